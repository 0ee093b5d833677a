"""Whether several things were held all at the same time, as samples from outside show it. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EVERY_S = 0.1
GAP_MAX_S = 0.5  # between two samples, where others take the CPU from who counts; nothing could be let go of and taken again in it
SHARE = 0.9  # of the samples that there would be with one every `EVERY_S`


@dataclass(frozen=True, slots=True)
class Sample:
    """What was counted at a time (s): of each thing an amount on each node."""

    at_s: float
    counted: Mapping[str, Sequence[float]]


def assert_together(samples: Sequence[Sample], targets: Mapping[str, range], nodes: int, for_s: float) -> None:
    """Raise `AssertionError` unless in each sample all things were at their targets on all nodes, and the samples cover the time.

    They cover it when they span `for_s`, are nearly as many as asked for, and none is long after the one before.
    """
    off = [(sample.at_s, missed) for sample in samples if (missed := _missed(sample, targets, nodes))]
    assert not off, f"not all at target in {len(off)} of {len(samples)} samples, first {off[0]}"
    times = [sample.at_s for sample in samples]
    assert len(times) >= SHARE * for_s / EVERY_S, f"{len(times)} samples for {for_s:g} s"
    gaps = [(later - earlier, earlier) for earlier, later in itertools.pairwise(times)]
    assert max(gaps)[0] <= GAP_MAX_S, f"nobody looked for {max(gaps)[0]:.2f} s from {max(gaps)[1]:.2f} s on"
    assert times[-1] - times[0] >= for_s - EVERY_S, f"samples of {times[-1] - times[0]:.2f} s only"


def _missed(sample: Sample, targets: Mapping[str, range], nodes: int) -> dict[str, list[float]]:
    found = {what: list(sample.counted.get(what, ())) for what in targets}
    return {what: counts for what, counts in found.items() if len(counts) < nodes or any(round(one) not in targets[what] for one in counts)}
