"""Recording: a handle per series whose call is a bound `list.append`, and the drain that moves samples to shared memory.

Resolve a handle once, call `handle.record(value)` as often as wanted from any thread, and call `Recorder.tick()` at least every
100 ms: what waits in the process when it is killed is lost. A record checks nothing; the drain sorts out what is invalid (NaN,
and increments of a counter that are negative or infinite) and counts it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from ..clock import SECOND_NS, Clock, SystemClock
from ..errors import InputError
from . import histogram
from .registry import Kind, find
from .segment import (
    COUNT,
    H_CLOSED,
    H_REFUSED_SAMPLES,
    H_REFUSED_SERIES,
    H_WINDOW,
    INVALID,
    LAST,
    MAX,
    MIN,
    OVER,
    SEQUENCE,
    STAMP,
    SUM,
    TOUCHED,
    TOUCHED_NEGATIVE,
    UNDER,
    ZERO,
    Segment,
)

_FEW: Final = 4096  # below, buckets are bumped one by one: no pass over all of them


class Handle:
    """One series of one process. `record(value)`: the increment of a counter, the state of a gauge, a sample of a histogram."""

    __slots__ = ("_pending", "_row", "kind", "record")

    def __init__(self, kind: Kind, row: int) -> None:
        self.kind = kind
        self._row = row  # negative: the segment is full, samples are only counted
        self._pending: list[float] = []
        self.record: Callable[[float], None] = self._pending.append

    def record_many(self, values: histogram.Floats) -> None:
        """Record an array of samples."""
        self._pending.extend(values.tolist())

    def drain(self, segment: Segment) -> None:
        """Move what waits to shared memory. One thread at a time."""
        count = len(self._pending)
        if not count:
            return
        values = np.array(self._pending[:count], np.float64)
        if self._row < 0:
            segment.header[H_REFUSED_SAMPLES] += np.uint64(count)
        else:
            _store(segment, self._row, self.kind, values)
        del self._pending[:count]


class Recorder:
    """All handles of one process and the segment behind them. Handles are made once per name and labels."""

    def __init__(self, segment: Segment, clock: Clock | None = None) -> None:
        self._segment = segment
        self._clock: Clock = clock or SystemClock()
        self._handles: dict[tuple[str, tuple[tuple[str, str], ...]], Handle] = {}
        self._used = 0
        self._lock = threading.Lock()

    def counter(self, name: str, **labels: str) -> Handle:
        """Return the handle of a counter. Raises `InputError` for an unknown name, label, or another kind."""
        return self._handle(name, Kind.COUNTER, labels)

    def gauge(self, name: str, **labels: str) -> Handle:
        """Return the handle of a gauge; errors as `counter`."""
        return self._handle(name, Kind.GAUGE, labels)

    def histogram(self, name: str, **labels: str) -> Handle:
        """Return the handle of a histogram; errors as `counter`."""
        return self._handle(name, Kind.HISTOGRAM, labels)

    @contextmanager
    def timer(self, name: str, **labels: str) -> Iterator[None]:
        """Record the seconds that the block takes into a histogram, also when it raises."""
        handle = self.histogram(name, **labels)
        begun_ns = self._clock.boot_ns()
        try:
            yield
        finally:
            handle.record((self._clock.boot_ns() - begun_ns) / SECOND_NS)

    def tick(self) -> None:
        """Drain every handle. Call at least every 100 ms, from any thread."""
        with self._lock:
            for handle in self._handles.values():
                handle.drain(self._segment)

    def close(self) -> None:
        """Make the last drain and say so, so that the reader knows that nothing is missing."""
        self.tick()
        self._segment.header[H_CLOSED] = 1

    def _handle(self, name: str, kind: Kind, labels: dict[str, str]) -> Handle:
        metric = find(name)
        if metric.kind is not kind:
            raise InputError("invalid_value", f"metric {name!r} is a {metric.kind}, not a {kind}")
        key = (name, metric.checked_labels(labels))
        with self._lock:
            if key not in self._handles:
                self._handles[key] = Handle(kind, self._claim(kind, *key))
            return self._handles[key]

    def _claim(self, kind: Kind, name: str, labels: tuple[tuple[str, str], ...]) -> int:
        if not self._segment.claim(self._used, kind, name, labels):
            self._segment.header[H_REFUSED_SERIES] += np.uint64(1)
            return -1
        self._used += 1
        return self._used - 1


def _store(segment: Segment, row: int, kind: Kind, values: histogram.Floats) -> None:
    words, floats = segment.words[row], segment.floats[row]
    words[SEQUENCE] += np.uint64(1)
    good = values[(values >= 0.0) & (values < np.inf)] if kind is Kind.COUNTER else values[~np.isnan(values)]
    words[INVALID] += np.uint64(values.size - good.size)
    if good.size:
        _store_extremes(segment, row, good)
        if kind is Kind.HISTOGRAM:
            _store_buckets(segment, row, good)
        with np.errstate(over="ignore", invalid="ignore"):  # a sum past 1.8e308 is infinite, as IEEE has it
            floats[SUM] += good[np.isfinite(good)].sum()
        floats[LAST] = good[-1]
        words[COUNT] += np.uint64(good.size)
    words[SEQUENCE] += np.uint64(1)


def _store_extremes(segment: Segment, row: int, values: histogram.Floats) -> None:
    words, floats = segment.words[row], segment.floats[row]
    window = segment.header[H_WINDOW]
    low, high = values.min(), values.max()
    if words[STAMP] == window:
        low, high = min(low, floats[MIN]), max(high, floats[MAX])
    floats[MIN], floats[MAX], words[STAMP] = low, high, window


def _store_buckets(segment: Segment, row: int, values: histogram.Floats) -> None:
    words = segment.words[row]
    keys = histogram.keys_of(values).astype(np.intp)
    sizes = np.abs(keys)
    inside = (sizes > 0) & (sizes <= histogram.BUCKETS)
    words[ZERO] += np.uint64(np.count_nonzero(sizes == 0))
    words[OVER] += np.uint64(np.count_nonzero(keys == histogram.OVERFLOW))
    words[UNDER] += np.uint64(np.count_nonzero(keys == -histogram.OVERFLOW))
    flat = sizes[inside] - 1 + np.where(keys[inside] < 0, histogram.BUCKETS, 0)
    if not flat.size:
        return
    touched = 0
    for octave in np.unique(flat >> histogram.K).tolist():
        touched |= 1 << octave
    words[TOUCHED] |= np.uint64(touched & (1 << histogram.OCTAVES) - 1)
    words[TOUCHED_NEGATIVE] |= np.uint64(touched >> histogram.OCTAVES)
    cells = segment.buckets[row].reshape(-1)
    if flat.size < _FEW:
        np.add.at(cells, flat, np.uint32(1))
        return
    gained = np.bincount(flat)
    found = np.flatnonzero(gained)
    cells[found] += gained[found].astype(np.uint32)
