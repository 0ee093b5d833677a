"""Recording: a handle per series whose call is a bound `list.append`, and the drain that moves samples to shared memory.

Resolve a handle once, call `handle.record(value)` as often as wanted from any thread, and call `Recorder.tick()` at least every
100 ms: what waits in the process when it is killed is lost. A record checks nothing; the drain sorts out what is invalid (NaN,
and increments of a counter that are negative or infinite) and counts it. So a metric that the level or a filter leaves out costs an
append and no more, a policy that changes is in force for handles that exist, and what was left out is counted exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Final

import numpy as np

from ..clock import SECOND_NS, Clock, SystemClock
from ..errors import InputError, StressError
from . import histogram
from .policy import Labels, Mode, RecordingPolicy
from .raw import RawSink, check_columns
from .registry import Kind, Metric, find
from .ring import Integers, Producer, Ring
from .segment import (
    COUNT,
    H_BACKLOG,
    H_BAD_TEXTS,
    H_CLOSED,
    H_LEFT_FILTER,
    H_LEFT_LEVEL,
    H_RAW,
    H_REFUSED_SAMPLES,
    H_REFUSED_SERIES,
    H_WINDOW,
    INVALID,
    LAST,
    MAX,
    MIN,
    OVER,
    RAW_NONE,
    RAW_ON,
    RAW_UNAVAILABLE,
    SEQUENCE,
    STAMP,
    SUM,
    TOUCHED,
    TOUCHED_NEGATIVE,
    UNDER,
    ZERO,
    Segment,
    Words,
)
from .slab import Slab

LABEL_SETS_MAX: Final = 32  # of one metric in one process; more share the overflow series
OVERFLOW_LABEL: Final = "__overflow__"
WEIGHT_MAX: Final = 1 << 31  # a bucket counts modulo 2^32
_SPAN: Final = 4  # buckets from the first to the last, for each sample, up to which all of them are passed over at once
_BATCH: Final = 1 << 13  # samples of `record_many` that find room without an allocation
_BUFFERS: Final = 128  # of them in one process: 8 MiB, of which only what is used takes pages
_BACKLOG: Final = 1 << 21  # samples of `record_many` that may wait in one handle: 16 MiB
_Weighted = tuple[histogram.Floats, Integers | None]
_LEFT_OUT: Final = {"level": H_LEFT_LEVEL, "filter": H_LEFT_FILTER}
_CALLS_MAX: Final = 4096  # names with labels, as they were called, whose handles are found without a check


class Handle:
    """One series of one process. `record(value)`: the increment of a counter, the state of a gauge, a sample of a histogram."""

    __slots__ = (
        "_block",
        "_blocks",
        "_buffer",
        "_filled",
        "_is_gauge",
        "_lock",
        "_lost",
        "_pending",
        "_row",
        "_slab",
        "_waiting",
        "_weighted",
        "labels",
        "left_out",
        "metric",
        "record",
    )

    def __init__(self, metric: Metric, labels: Labels, row: int, slab: Slab) -> None:
        self.metric, self.labels = metric, labels
        self.left_out = ""  # why nothing of it is stored: level or filter
        self._row = row  # negative: the segment is full, samples are only counted
        self._pending: list[float] = []
        self.record: Callable[[float], None] = self._pending.append
        self._weighted: list[tuple[float, int]] = []
        self._lock = threading.Lock()
        self._slab = slab
        self._buffer: int | None = None  # the block of the slab that fills now
        self._block: histogram.Floats | None = None  # its memory
        self._filled = self._waiting = self._lost = 0
        self._blocks: list[histogram.Floats] = []
        self._is_gauge = metric.kind is Kind.GAUGE

    @property
    def kind(self) -> Kind:
        """How values of this series combine."""
        return self.metric.kind

    def record_many(self, values: histogram.Floats) -> None:
        """Record an array of samples, which is copied. Past 2^21 that wait for a drain they are dropped and counted as backlog."""
        if self._is_gauge:  # the last one counts, so their order among single records does
            self._pending.extend(values.tolist())
            return
        count = values.size
        with self._lock:
            waiting = self._waiting + count
            if waiting > _BACKLOG:
                self._lost += count
                return
            self._waiting = waiting
            block, filled = self._block, self._filled
            if block is None:
                block = self._open_block()
            if block is None or filled + count > _BATCH:
                self._blocks.append(np.array(values, np.float64))
            else:
                self._filled = end = filled + count
                block[filled:end] = values

    def _open_block(self) -> histogram.Floats | None:
        """Take a block of the slab to fill; None where all are in use."""
        self._buffer = self._slab.take()
        self._block = None if self._buffer is None else self._slab.block(self._buffer)
        return self._block

    def record_weighted(self, value: float, weight: int) -> None:
        """Record a sample that stands for `weight` samples, from 1 to 2^31. Raises `InputError` for another weight."""
        if not 1 <= weight <= WEIGHT_MAX:
            raise InputError("invalid_value", f"a sample's weight lies in 1..{WEIGHT_MAX}, got {weight}")
        self._weighted.append((value, weight))

    def drain(self, segment: Segment, raw: RawSink | None = None) -> None:
        """Move what waits to shared memory. One thread at a time."""
        if count := len(self._pending):
            self._pass_on(segment, raw, np.array(self._pending[:count], np.float64))
            del self._pending[:count]
        if count := len(self._weighted):
            pairs = self._weighted[:count]
            values, weights = np.array([value for value, _ in pairs], np.float64), np.array([weight for _, weight in pairs], np.int64)
            self._pass_on(segment, raw, values, weights)
            del self._weighted[:count]
        if self._waiting or self._lost:
            self._drain_batches(segment, raw)

    def _drain_batches(self, segment: Segment, raw: RawSink | None) -> None:
        with self._lock:
            buffer, filled, blocks, lost = self._buffer, self._filled, self._blocks, self._lost
            self._buffer, self._block, self._blocks, self._filled, self._waiting, self._lost = None, None, [], 0, 0, 0
        segment.header[H_BACKLOG] += np.uint64(lost)
        if buffer is not None:
            try:
                if filled:
                    self._pass_on(segment, raw, self._slab.block(buffer)[:filled])
            finally:
                self._slab.give(buffer)
        for block in blocks:
            if block.size:
                self._pass_on(segment, raw, block)

    def _pass_on(self, segment: Segment, raw: RawSink | None, values: histogram.Floats, weights: Integers | None = None) -> None:
        if self.left_out:
            segment.header[_LEFT_OUT[self.left_out]] += _total(values, weights)
        elif self._row < 0:
            segment.header[H_REFUSED_SAMPLES] += _total(values, weights)
        else:
            good, counts = _store(segment, self._row, self.kind, values, weights)
            if raw is not None:
                raw.take(self._row, self.metric, good, counts)


class Recorder:
    """All handles of one process and the segment behind them. Handles are made once per name and labels."""

    def __init__(self, segment: Segment, clock: Clock | None = None, *, label_sets_max: int = LABEL_SETS_MAX, seed: int = 0) -> None:
        self._segment = segment
        self._clock: Clock = clock or SystemClock()
        self._handles: dict[tuple[str, Labels], Handle] = {}
        self._called: dict[tuple[object, ...], Handle] = {}  # by name and labels as they were called
        self._label_sets: dict[str, int] = {}
        self._label_sets_max = label_sets_max
        self._used = 0
        self._lock = threading.Lock()
        self._chance = Random(seed)
        self._slab = Slab(_BUFFERS, _BATCH)
        self._raw: RawSink | None = None
        self._window = int(segment.header[H_WINDOW])
        self._texts_seen = 0
        self.policy = RecordingPolicy()
        with self._lock:
            self._look()

    def counter(self, name: str, **labels: str) -> Handle:
        """Return the handle of a counter. Raises `InputError` for an unknown name, label, or another kind."""
        return self._handle(name, Kind.COUNTER, labels)

    def gauge(self, name: str, **labels: str) -> Handle:
        """Return the handle of a gauge; errors as `counter`."""
        return self._handle(name, Kind.GAUGE, labels)

    def histogram(self, name: str, **labels: str) -> Handle:
        """Return the handle of a histogram; errors as `counter`."""
        return self._handle(name, Kind.HISTOGRAM, labels)

    def declare(self, *names: str) -> None:
        """Claim the slots of metrics without labels before anything is recorded. Raises `InputError` for an unknown name."""
        for name in names:
            self._handle(name, find(name).kind, {})

    @contextmanager
    def timer(self, name: str, **labels: str) -> Iterator[None]:
        """Record the seconds that the block takes into a histogram, also when it raises. `Stopwatch` is quicker and counts errors."""
        handle = self.histogram(name, **labels)
        begun_ns = self._clock.boot_ns()
        try:
            yield
        finally:
            handle.record((self._clock.boot_ns() - begun_ns) / SECOND_NS)

    def tick(self) -> None:
        """Drain every handle, under the policy that is in force now. Call at least every 100 ms, from any thread."""
        with self._lock:
            self._look()
            if self._raw is not None:
                self._raw.begin_drain()
            for handle in self._handles.values():
                handle.drain(self._segment, self._raw)

    def close(self) -> None:
        """Make the last drain and say so, so that the reader knows that nothing is missing."""
        self.tick()
        with self._lock:
            if self._raw is not None:
                self._raw.close()
            self._raw = None
        self._segment.header[H_CLOSED] = 1

    def _look(self) -> None:
        """Take over a new policy and note a new window. What waits is drained under the new one: it is in force from now on."""
        window = int(self._segment.header[H_WINDOW])
        if window != self._window and self._raw is not None:
            self._raw.begin_window()
        self._window = window
        texts = self._segment.texts(self._texts_seen)
        if texts is None:
            return
        self._texts_seen, policy, ring = texts
        try:
            self.policy = RecordingPolicy.from_json(policy) if policy else RecordingPolicy()
        except InputError:  # a reader of another version, or a damaged page: no reason to end the load, so the old policy stays
            self._segment.header[H_BAD_TEXTS] += np.uint64(1)
        for handle in self._handles.values():
            handle.left_out = self.policy.leaves_out(handle.metric, handle.labels)
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        self._segment.header[H_RAW] = RAW_NONE
        self._raw = self._open_raw(ring) if self.policy.mode is Mode.DETAILED and ring else None

    def _open_raw(self, path: str) -> RawSink | None:
        """Return the way out for raw samples; None, and the header says so, where this processor or this ring has none."""
        ring = None
        try:
            ring = Ring.open(path)
            check_columns(ring)
            sink = RawSink(Producer(ring), self.policy, self._clock, self._chance)
        except (StressError, OSError):  # aggregates go on
            if ring is not None:
                ring.close()
            self._segment.header[H_RAW] = RAW_UNAVAILABLE
            return None
        self._segment.header[H_RAW] = RAW_ON
        return sink

    def _handle(self, name: str, kind: Kind, labels: dict[str, str]) -> Handle:
        called = (name, *labels.items())
        known = self._called.get(called)
        if known is not None and known.metric.kind is kind:
            return known
        handle = self._checked(name, kind, labels)
        if len(self._called) < _CALLS_MAX and all(type(value) is str for value in labels.values()):  # True == 1, and "True" is not "1"
            self._called[called] = handle
        return handle

    def _checked(self, name: str, kind: Kind, labels: dict[str, str]) -> Handle:
        metric = find(name)
        if metric.kind is not kind:
            raise InputError("invalid_value", f"metric {name!r} is a {metric.kind}, not a {kind}")
        key = (name, metric.checked_labels(labels))
        with self._lock:
            if key not in self._handles:
                key = self._bounded(metric, key)
            if key not in self._handles:
                made = Handle(metric, key[1], self._claim(kind, *key), self._slab)
                made.left_out = self.policy.leaves_out(metric, key[1])
                self._handles[key] = made
            return self._handles[key]

    def _bounded(self, metric: Metric, key: tuple[str, Labels]) -> tuple[str, Labels]:
        """Return the key, or that of the metric's overflow series when it has too many label sets."""
        if not key[1]:
            return key
        sets = self._label_sets.get(metric.name, 0)
        if sets >= self._label_sets_max:
            return (metric.name, tuple((label, OVERFLOW_LABEL) for label in sorted(metric.labels)))
        self._label_sets[metric.name] = sets + 1
        return key

    def _claim(self, kind: Kind, name: str, labels: Labels) -> int:
        if not self._segment.claim(self._used, kind, name, labels):
            self._segment.header[H_REFUSED_SERIES] += np.uint64(1)
            return -1
        self._used += 1
        return self._used - 1


def _total(values: histogram.Floats, weights: Integers | None) -> np.uint64:
    return np.uint64(values.size if weights is None else weights.sum())


def _store(segment: Segment, row: int, kind: Kind, values: histogram.Floats, weights: Integers | None) -> _Weighted:
    """Add samples, at least one, to a series and count the invalid ones; return the others."""
    words, floats = segment.words[row], segment.floats[row]
    words[SEQUENCE] += np.uint64(1)
    with np.errstate(over="ignore", invalid="ignore"):  # a sum past 1.8e308 is infinite, as IEEE has it
        good, counts, low, high = _valid(kind, values, weights)
        total = _total(good, counts)
        words[INVALID] += _total(values, weights) - total
        if good.size:
            _store_extremes(segment, row, low, high)
            if kind is Kind.HISTOGRAM:
                _store_buckets(segment, row, good, counts, low, high)
            floats[SUM] += _sum(good, counts, low, high)
            floats[LAST] = good[-1]
            words[COUNT] += total
    words[SEQUENCE] += np.uint64(1)
    return good, counts


def _valid(kind: Kind, values: histogram.Floats, weights: Integers | None) -> tuple[histogram.Floats, Integers | None, float, float]:
    """Return the valid samples with their weights, and the least and the greatest of them. Where all are valid, nothing is copied."""
    low, high = float(values.min()), float(values.max())  # NaN where one is
    is_counter = kind is Kind.COUNTER
    if (low >= 0.0 and high < np.inf) if is_counter else not np.isnan(low):
        return values, weights, low, high
    valid = (values >= 0.0) & (values < np.inf) if is_counter else ~np.isnan(values)
    good, counts = values[valid], None if weights is None else weights[valid]
    return (good, counts, float(good.min()), float(good.max())) if good.size else (good, counts, low, high)


def _sum(values: histogram.Floats, weights: Integers | None, low: float, high: float) -> float:
    """Return the sum of the finite ones."""
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = np.isfinite(values)
        values, weights = values[finite], None if weights is None else weights[finite]
    return float(values.sum() if weights is None else (values * weights).sum())


def _store_extremes(segment: Segment, row: int, low: float, high: float) -> None:
    words, floats = segment.words[row], segment.floats[row]
    window = segment.header[H_WINDOW]
    if words[STAMP] == window:
        low, high = min(low, floats[MIN]), max(high, floats[MAX])
    floats[MIN], floats[MAX], words[STAMP] = low, high, window


def _store_buckets(segment: Segment, row: int, values: histogram.Floats, weights: Integers | None, low: float, high: float) -> None:
    words, counts = segment.words[row], segment.buckets[row].reshape(-1)
    if low >= histogram.LEAST and high < histogram.MOST:
        cells = histogram.cells_of(values)
    else:
        cells, weights = _sort_out(words, values, weights)
        if not cells.size:
            return
    first, last = int(cells.min()), int(cells.max())
    if weights is None and last - first < _SPAN * cells.size:
        _touch(words, (2 << (last >> histogram.K)) - (1 << (first >> histogram.K)))
        counts[first : last + 1] += np.bincount(cells - first).astype(np.uint32)
        return
    _touch(words, sum(1 << octave for octave in np.unique(cells >> histogram.K).tolist()))
    np.add.at(counts, cells, np.uint32(1) if weights is None else weights.astype(np.uint32))  # modulo 2^32, as the reader has it


def _sort_out(words: Words, values: histogram.Floats, weights: Integers | None) -> tuple[histogram.Cells, Integers | None]:
    """Count zeros and what is beyond the buckets; return the cells of the others, those of negative values after all others."""
    keys = histogram.keys_of(values).astype(np.int64)
    sizes = np.abs(keys)
    for word, where in ((ZERO, sizes == 0), (OVER, keys == histogram.OVERFLOW), (UNDER, keys == -histogram.OVERFLOW)):
        words[word] += np.uint64(np.count_nonzero(where) if weights is None else weights[where].sum())
    inside = (sizes > 0) & (sizes <= histogram.BUCKETS)
    cells = sizes[inside] - 1 + np.where(keys[inside] < 0, histogram.BUCKETS, 0)
    return cells, None if weights is None else weights[inside]


def _touch(words: Words, octaves: int) -> None:
    """Set the bits of octaves before they are written: readers look nowhere else."""
    words[TOUCHED] |= np.uint64(octaves & (1 << histogram.OCTAVES) - 1)
    words[TOUCHED_NEGATIVE] |= np.uint64(octaves >> histogram.OCTAVES)
