"""When all operations of a run were at their targets at once: the longest such time. Pure.

Loads that are asked together and hold one after another would all reach their doses; here they would not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

GAP_MAX_S: Final = 0.5  # windows of different nodes do not begin at one instant


@dataclass(frozen=True, slots=True)
class Overlap:
    """A time in which `operations` operations were all at target, in seconds from the start of the run."""

    operations: int
    from_s: float
    for_s: float


Stretch = tuple[float, float]


def longest_overlap(held: Sequence[Iterable[Stretch]]) -> Overlap:
    """Return the longest time that lies within a stretch of each operation; 0 s where there is none.

    `held` has the times at target of each operation, in seconds from the start of the run: windows in order.
    """
    common = joined(held[0]) if held else []
    for stretches in held[1:]:
        common = _both(common, joined(stretches))
    begin_s, end_s = max(common, key=lambda one: one[1] - one[0], default=(0.0, 0.0))
    return Overlap(len(held), begin_s, end_s - begin_s)


def joined(windows: Iterable[Stretch]) -> list[Stretch]:
    """Return windows in order as stretches: neighbours with a gap of at most `GAP_MAX_S` are one."""
    found: list[Stretch] = []
    for begin_s, end_s in windows:
        if found and begin_s - found[-1][1] <= GAP_MAX_S:
            found[-1] = (found[-1][0], end_s)
        else:
            found.append((begin_s, end_s))
    return found


def _both(left: Sequence[Stretch], right: Sequence[Stretch]) -> list[Stretch]:
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in left for b in right)
    return [(begin_s, end_s) for begin_s, end_s in pairs if begin_s < end_s]
