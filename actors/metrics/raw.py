"""Single samples on their way out of a process: thinned by their series' policy, then pushed to a ring as records of three words.

A record is the value (float64), the series (its row in the segment) with the sample's weight above it (int64), and the boot time of the
drain (int64, ns): a stamp a batch, because reading a clock costs more than recording. Rules that go by time are told that the samples of
a batch came evenly since the drain before. What the ring has no room for is counted there.
"""

from __future__ import annotations

from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt

from ..clock import Clock
from ..errors import HarnessError
from .histogram import Floats
from .policy import RecordingPolicy
from .registry import Metric
from .ring import SAMPLE_COLUMNS, SERIES, TIME, VALUE, Block, Integers, Producer, Ring
from .sampling import Always, Thinner, spread

ROW_BITS: Final = 24  # of the series' word; the weight has the 39 above them


class RawSink:
    """The raw samples of one process. It owns its producer. One thread at a time."""

    def __init__(self, producer: Producer, policy: RecordingPolicy, clock: Clock, chance: Random) -> None:
        check_columns(producer.ring)
        self._producer, self._policy, self._clock, self._chance = producer, policy, clock, chance
        self._thinners: dict[int, Thinner | None] = {}
        self._before_ns = self._now_ns = clock.boot_ns()
        self._taken_ns: dict[int, int] = {}

    def begin_drain(self) -> None:
        """Note that what is taken from now on came since the drain before."""
        self._before_ns, self._now_ns = self._now_ns, self._clock.boot_ns()

    def take(self, row: int, metric: Metric, values: Floats, weights: Integers | None) -> None:
        """Push the samples of one series; for its policy they came evenly since the drain before. Weighted ones pass: they are thinned."""
        now_ns = self._now_ns
        thinner = self._thinner(row, metric)
        if thinner is not None and weights is None:
            stamps = spread(max(self._before_ns, self._taken_ns.get(row, 0)), now_ns, values.size)
            self._taken_ns[row] = now_ns
            kept = [one for value, at_ns in zip(values.tolist(), stamps, strict=True) if (one := thinner.offer(value, at_ns))]
            self._push_kept(row, kept, now_ns)
        elif values.size:
            self._push(row, values, np.ones(1, np.int64) if weights is None else weights, now_ns)

    def begin_window(self) -> None:
        """End the groups of samples that must not reach into the next window."""
        now_ns = self._clock.boot_ns()
        for row, thinner in self._thinners.items():
            kept = thinner.begin_window() if thinner else None
            self._push_kept(row, [kept] if kept else [], now_ns)

    def flush(self) -> None:
        """End every open group: the last samples, or the last ones under this policy."""
        now_ns = self._clock.boot_ns()
        for row, thinner in self._thinners.items():
            kept = thinner.flush() if thinner else None
            self._push_kept(row, [kept] if kept else [], now_ns)

    def close(self) -> None:
        """Flush, and tell the reader that nothing more comes."""
        self.flush()
        self._producer.close()
        self._producer.ring.close()

    def _thinner(self, row: int, metric: Metric) -> Thinner | None:
        if row not in self._thinners:
            policy = self._policy.sampling_of(metric)
            self._thinners[row] = None if isinstance(policy, Always) else Thinner(policy, self._chance)
        return self._thinners[row]

    def _push_kept(self, row: int, kept: list[tuple[float, int]], now_ns: int) -> None:
        if kept:
            values, weights = zip(*kept, strict=True)
            self._push(row, np.array(values, np.float64), np.array(weights, np.int64), now_ns)

    def _push(self, row: int, values: Floats, weights: Integers, now_ns: int) -> None:
        rows = np.empty((SAMPLE_COLUMNS, values.size))
        integers = rows.view(np.int64)
        rows[VALUE] = values
        integers[SERIES] = row | weights << ROW_BITS
        integers[TIME] = now_ns
        self._producer.push_many(rows)


def check_columns(ring: Ring) -> None:
    """Raise `HarnessError` for a ring whose records are no raw samples."""
    if ring.columns != SAMPLE_COLUMNS:
        raise HarnessError("internal", f"{ring.path}: records of {ring.columns} words; a raw sample has {SAMPLE_COLUMNS}")


def columns(block: Block) -> tuple[Floats, Integers, Integers, npt.NDArray[np.int64]]:
    """Return (values, rows of the segment, weights, boot times in ns) of a drained block."""
    integers = block.view(np.int64)
    return block[VALUE], integers[SERIES] & ((1 << ROW_BITS) - 1), integers[SERIES] >> ROW_BITS, integers[TIME]
