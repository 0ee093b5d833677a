"""The agent's side of the metric path: collects a window, seals it into the outbox, hands it out until it is acknowledged.

Nothing is lost or doubled when the wall clock jumps: windows are cut by boot time and ordered by sequence number, and wall
time is only their label. A window that cannot be sealed (disk full, outbox full) stays open and becomes a longer one; the base
that differences are taken from moves only when the record is sealed.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from actors.clock import MILLISECOND_NS, SECOND_NS, Clock
from actors.errors import CODES
from actors.messages import Event
from actors.metrics import histogram
from actors.metrics.error_ledger import ErrorLedger
from actors.metrics.policy import RecordingPolicy
from actors.metrics.registry import Kind, Metric, Verbosity, find
from actors.metrics.ring import Consumer
from actors.metrics.segment import (
    H_BACKLOG,
    H_LEFT_FILTER,
    H_LEFT_LEVEL,
    H_RAW,
    H_REFUSED_SAMPLES,
    RAW_UNAVAILABLE,
    Cells,
    Segment,
    difference,
)

from ..near import MAPPED_BYTES
from ..outbox import Bytes, Outbox, OutboxFullError, Place
from ..outbox import Kind as RecordKind
from .cardinality import Caps, Cardinality
from .cardinality import Key as _Key
from .error_rates import rate_rows
from .raw_samples import SampleReader
from .windows import Row, event_row, events_batch, metrics_batch, seal, seal_in_place, seal_samples

WINDOW_NS: Final = SECOND_NS
_SNAP_NS: Final = 200 * MILLISECOND_NS
_SLACK_NS: Final = 300 * MILLISECOND_NS  # a full second this close after a window's opening is the one that opened it
_MAX_DECISIONS: Final = 10_000  # about what to leave out, that are kept
_MAX_EVENTS: Final = 10_000
_MANY: Final = 1_000  # series that are forgotten at once: their memory is looked for
_EXAMPLES: Final = 3  # errors of each code that are told in words
_MAX_VALUES: Final = 1_000_000
_SAMPLES: Final = 1 << 14  # of one record
_SAMPLE_RECORDS: Final = 8  # of one load and window: more wait in the ring, which counts what finds no room

_LEFT: Final = (  # what a recorder counts of samples that it did not store: metric, reason, word of the segment's header
    ("metrics.dropped", "series_limit", H_REFUSED_SAMPLES),
    ("metrics.dropped", "backlog", H_BACKLOG),
    ("metrics.filtered", "level", H_LEFT_LEVEL),
    ("metrics.filtered", "filter", H_LEFT_FILTER),
)


@dataclass(slots=True)
class _Attached:
    """A segment, whose it is, and what of it is sealed already."""

    segment: Segment
    worker: str
    phase: str
    series: list[tuple[int, Kind, str, tuple[tuple[str, str], ...]]] = field(default_factory=list)
    base: dict[int, Cells] = field(default_factory=dict)
    left: tuple[int, ...] = (0,) * len(_LEFT)
    samples: SampleReader | None = None
    produced: int = 0
    dropped: int = 0

    def gather(self) -> tuple[list[Row], dict[int, Cells], tuple[int, ...]]:
        """Return rows of what is new, the base that makes it old, and how many samples were not stored in all, by `_LEFT`."""
        self.series.extend(self.segment.series(len(self.series)))
        stamp = self.segment.next_window()
        now = {row: self.segment.read(row) for row, _, _, _ in self.series}
        rows = []
        for row, kind, name, labels in self.series:
            base = self.base.get(row)
            made = Row(name, kind, find(name).unit, self.worker, self.phase, labels)
            if _fill(made, now[row], base, stamp):
                rows.append(made)
            invalid = now[row].invalid - (base.invalid if base else 0)
            if invalid:
                rows.append(self._not_stored("metrics.dropped", "invalid", invalid))
        left = tuple(int(self.segment.header[word]) for _, _, word in _LEFT)
        for (metric, reason, _), before, after in zip(_LEFT, self.left, left, strict=True):
            if after > before:
                rows.append(self._not_stored(metric, reason, after - before))
        return rows, now, left

    def _not_stored(self, metric: str, reason: str, count: int) -> Row:
        return Row(metric, Kind.COUNTER, "", self.worker, self.phase, (("reason", reason),), count=1, sum=float(count))


def _fill(row: Row, now: Cells, base: Cells | None, stamp: int) -> bool:
    """Put what a series gained since `base` into its row; false when it gained nothing."""
    if row.kind is Kind.HISTOGRAM:
        return _fill_histogram(row, now, base, stamp)
    row.count = now.count - (base.count if base else 0)
    row.sum = now.sum - (base.sum if base else 0.0)
    row.last = now.sum if row.kind is Kind.COUNTER else now.last
    if row.kind is Kind.GAUGE and row.count:
        fresh = now.stamp == stamp
        row.min, row.max = (now.min, now.max) if fresh else (now.last, now.last)
    return row.count > 0


def _fill_histogram(row: Row, now: Cells, base: Cells | None, stamp: int) -> bool:
    keys, counts = difference(now, base)
    if not keys.size:
        return False
    lowest, highest = histogram.bounds(int(keys[0])), histogram.bounds(int(keys[-1]))
    fresh = now.stamp == stamp
    row.min = min(max(now.min, lowest[0]), lowest[1]) if fresh else lowest[0]
    row.max = min(max(now.max, highest[0]), highest[1]) if fresh else highest[1]
    row.count = int(counts.sum())
    row.sum = now.sum - (base.sum if base else 0.0)
    row.digest = histogram.Histogram(keys, counts, row.sum, row.min, row.max).encode()
    return True


class MetricStream:
    """One agent's stream. All methods may be called from any thread.

    `caps` bound the series that `observe` makes; what passes them is merged into one series a metric and counted, see `cardinality`.
    """

    def __init__(
        self,
        node: str,
        incarnation: str,
        run: str,
        outbox: Outbox,
        clock: Clock,
        policy: RecordingPolicy | None = None,
        caps: Caps | None = None,
    ) -> None:
        assert (outbox.node, outbox.incarnation, outbox.run) == (node, incarnation, run), "an outbox belongs to one stream"
        self.node = node
        self.incarnation = incarnation
        self.run = run
        self._outbox = outbox
        self._clock = clock
        self._lock = threading.RLock()
        self._attached: list[_Attached] = []
        self._own: dict[_Key, Row] = {}
        self._values: dict[_Key, list[float]] = {}
        self._totals: dict[_Key, float] = {}
        self._policy = policy or RecordingPolicy(level=Verbosity.VERBOSE)
        self._left_out: dict[_Key, str] = {}  # why nothing of a series of the agent's own is recorded, "" for what is
        self._series = Cardinality(caps or Caps())
        self._departed: list[Row] = []
        self._events: list[dict[str, Any]] = []
        self._events_seen = 0
        self._errors = ErrorLedger()
        self._failing: set[tuple[str, str, tuple[tuple[str, str], ...]]] = set()  # whose last rate of errors was not 0
        self._opened_ns = clock.boot_ns()
        self._is_wide = False  # whether there was a window that is worth being mapped
        self._is_near: bool | None = None  # whether the aggregator reads this outbox itself; None until it was asked to

    # collecting

    def observe(
        self, metric: str, value: float, worker: str = "", phase: str = "", labels: Mapping[str, str] | None = None, *, unit: str = ""
    ) -> None:
        """Record one value of the agent itself: a counter's increment, a gauge's state, a histogram's sample.

        What the policy leaves out is counted in `metrics.filtered`. `unit` is needed for a dose in bytes only.
        Raises `InputError` for a name, label or unit that the catalogue lacks.
        """
        known = find(metric)
        key = (metric, known.checked_unit(unit), worker, phase, known.checked_labels(dict(labels or {})))
        with self._lock:
            why = self._why_left_out(key, known)
            if why:
                self._record(("metrics.filtered", "", "", "", (("reason", why),)), Kind.COUNTER, 1.0)
            else:
                self._observe(key, known, float(value))

    def _observe(self, key: _Key, metric: Metric, value: float) -> None:
        entered = self._series.admit(key, self._clock.boot_ns())
        if entered != key:
            self._record(("metrics.series.rejected", "", "", "", (("metric", metric.name),)), Kind.COUNTER, 1.0)
        self._record(entered, metric.kind, value)

    def _why_left_out(self, key: _Key, metric: Metric) -> str:
        if key not in self._left_out and len(self._left_out) < _MAX_DECISIONS:
            self._left_out[key] = self._policy.leaves_out(metric, key[4])
        found = self._left_out.get(key)
        return self._policy.leaves_out(metric, key[4]) if found is None else found

    def set_policy(self, policy: RecordingPolicy) -> None:
        """Record the agent's own values by this policy from now on; loads have theirs in their segments."""
        with self._lock:
            self._policy, self._left_out = policy, {}

    def _record(self, key: _Key, kind: Kind, value: float) -> None:
        if np.isnan(value) or (kind is Kind.COUNTER and not 0.0 <= value < np.inf):
            self._drop("invalid")
        elif kind is Kind.HISTOGRAM:
            self._sample(key, value)
        else:
            _bump(self._own.setdefault(key, _row(key, kind)), value)

    def _sample(self, key: _Key, value: float) -> None:
        values = self._values.get(key)
        if values is not None and len(values) >= _MAX_VALUES:
            self._drop("window_limit")
        else:
            self._values.setdefault(key, []).append(value)

    def _drop(self, reason: str) -> None:
        self._record(("metrics.dropped", "", "", "", (("reason", reason),)), Kind.COUNTER, 1.0)

    def event(self, event: Event) -> None:
        """Add a line to the run's story; it travels with the window."""
        with self._lock:
            if len(self._events) >= _MAX_EVENTS:
                self._drop("event_limit")
                return
            self._events_seen += 1
            self._events.append(event_row(event, self.node, self._events_seen, self._clock.wall_ns()))

    def error(self, error: BaseException, worker: str = "", phase: str = "") -> str:
        """Count an error under its stable code; the first few of each code go into the story with errno and category. Return the code."""
        noted = self._errors.note(error)
        labels = {"code": noted.code, "category": CODES[noted.code][0]}
        self.observe("errors.seen", 1.0, worker, phase, labels)
        if noted.number <= _EXAMPLES:
            words = f"{noted.code}: {noted.message or noted.kind}"
            self.event(
                Event("error", words, "warning", worker=worker, phase=phase, data={**labels, "type": noted.kind, "errno": noted.errno})
            )
        return noted.code

    def attach(self, segment: Segment, worker: str, phase: str, samples: SampleReader | None = None) -> None:
        """Read this segment at every window's close from now on, and its load's single samples where they have a reader."""
        with self._lock:
            self._attached.append(_Attached(segment, worker, phase, samples=samples))

    def has_samples(self, segment: Segment) -> bool:
        """Tell whether an attached load's single samples have a reader."""
        with self._lock:
            return any(one.samples is not None for one in self._attached if one.segment is segment)

    def read_samples(self, segment: Segment, ring: Consumer) -> None:
        """Read an attached load's single samples from this ring too, from the next window on. Does nothing for one that is gone."""
        with self._lock:
            for one in self._attached:
                if one.segment is segment:
                    one.samples = SampleReader(segment, ring, one.worker, one.phase)

    def detach(self, segment: Segment) -> None:
        """Read the segment a last time; it may be closed after that. A recorder that did not close it is counted as unflushed."""
        with self._lock:
            for one in [one for one in self._attached if one.segment is segment]:
                self._take_last_samples(one)
                rows, _, _ = one.gather()
                self._departed.extend(rows)
                self._attached.remove(one)
                if not segment.closed and one.series:
                    self._record(("metrics.unflushed", "", one.worker, one.phase, ()), Kind.COUNTER, 1.0)

    def _take_samples(self, one: _Attached) -> None:
        """Seal the single samples that wait in a load's ring, a bounded part of them; what the outbox does not take is counted."""
        if one.samples is None:
            return
        for _ in range(_SAMPLE_RECORDS):
            batch = one.samples.batch(self.node, self._clock.wall_ns() - self._clock.boot_ns(), _SAMPLES)
            if not batch.num_rows:
                break
            try:
                self._outbox.append(RecordKind.SAMPLES, seal_samples(batch))
            except OutboxFullError:
                self._count(one, "samples.dropped", batch.num_rows, (("reason", "outbox_full"),))
        before, one.produced = one.produced, one.samples.produced
        self._count(one, "samples.produced", one.produced - before)
        before, one.dropped = one.dropped, one.samples.dropped
        self._count(one, "samples.dropped", one.dropped - before, (("reason", "ring_full"),))

    def _take_last_samples(self, one: _Attached) -> None:
        if one.samples is None:
            return
        while one.samples.waiting:
            self._take_samples(one)
        self._take_samples(one)
        if int(one.segment.header[H_RAW]) == RAW_UNAVAILABLE:
            self.event(Event("samples_unavailable", f"{one.worker} could not give its single samples away", "warning", one.worker))
        one.samples.close()

    def _count(self, one: _Attached, metric: str, count: int, labels: tuple[tuple[str, str], ...] = ()) -> None:
        if count:
            self._record((metric, "", one.worker, one.phase, labels), Kind.COUNTER, float(count))

    # windows

    def due(self, now_wall_ns: int) -> bool:
        """Tell whether the open window has passed a full second of wall time, or has lasted a second and a half."""
        elapsed_ns = self._clock.boot_ns() - self._opened_ns
        passed = now_wall_ns % WINDOW_NS <= elapsed_ns - _SLACK_NS
        return elapsed_ns >= WINDOW_NS * 3 // 2 or (passed and elapsed_ns >= WINDOW_NS // 2)

    def close_window(self, now_wall_ns: int) -> int:
        """Seal what was collected into one record; return its sequence number, or 0 when the outbox took none.

        After 0 everything stays collected and goes into the next window.
        """
        with self._lock:
            for one in self._attached:
                self._take_samples(one)
            now_ns = self._clock.boot_ns()
            self._prune(now_ns)
            elapsed_ns = max(now_ns - self._opened_ns, 1)
            gathered = [(one, *one.gather()) for one in self._attached]
            rows = self._united([*self._own_rows(), *self._departed, *(row for _, found, _, _ in gathered for row in found)])
            rates = rate_rows(rows, self._failing, elapsed_ns / SECOND_NS)
            payload = self._seal([*rows, *rates], _snapped(now_wall_ns - elapsed_ns, elapsed_ns), elapsed_ns / SECOND_NS)
            try:
                sequence = self._outbox.append(RecordKind.WINDOW, *payload)
            except OutboxFullError:
                return 0
            for one, _, base, left in gathered:
                one.base, one.left = base, left
            self._totals.update((_key(row), row.last or 0.0) for row in rows if row.kind is Kind.COUNTER)
            self._failing = {(row.worker, row.phase, row.labels) for row in rates if row.last}
            self._own, self._values, self._departed, self._events = {}, {}, [], []
            self._opened_ns = now_ns
            return sequence

    def _prune(self, now_ns: int) -> None:
        """Forget series that are idle for long, and their totals: one that comes back begins at 0."""
        gone = self._series.prune(now_ns)
        for key in gone:
            self._totals.pop(key, None)
        count = len(gone)
        del gone
        if count:
            self._totals, self._left_out = dict(self._totals), {}  # a dict that has shrunk keeps its room
            self._record(("metrics.series.pruned", "", "", "", ()), Kind.COUNTER, float(count))
        if count >= _MANY:  # their windows have left the process large
            gc.collect()
            pa.default_memory_pool().release_unused()

    def _united(self, rows: list[Row]) -> list[Row]:
        """Return one row per series, counters with their totals: a load that was replaced has two segments in one window."""
        found: dict[_Key, Row] = {}
        for row in rows:
            key = _key(row)
            found[key] = _merged(found[key], row) if key in found else row
        for key, row in found.items():
            if row.kind is Kind.COUNTER:
                row.last = self._totals.get(key, 0.0) + row.sum
        return list(found.values())

    def _seal(self, rows: list[Row], start_ns: int, window_s: float) -> Sequence[Bytes]:
        """Return a payload in parts; as it lies in memory, which takes more room, for an aggregator that maps it."""
        metrics, events = metrics_batch(rows, node=self.node, start_ns=start_ns, window_s=window_s), events_batch(self._events)
        is_wide = metrics.nbytes >= MAPPED_BYTES
        self._is_wide |= is_wide
        if is_wide and self._is_near and self._outbox.has_ample_room:
            return seal_in_place(metrics, events)
        return (seal(metrics, events),)

    def _own_rows(self) -> list[Row]:
        rows = [replace(row) for row in self._own.values()]
        for key, values in self._values.items():
            made = histogram.Histogram.of(np.array(values, np.float64))
            row = _row(key, Kind.HISTOGRAM)
            row.count, row.sum, row.min, row.max, row.digest = made.count, made.sum, made.min, made.max, made.encode()
            rows.append(row)
        return rows

    # delivery

    def unacked(self, max_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
        """Return the oldest sealed records, for `Aggregator.push`."""
        with self._lock:
            return self._outbox.unacked(max_bytes)

    def places(self, max_bytes: int) -> list[tuple[int, Place]]:
        """Return where the oldest sealed records lie, for an aggregator on this machine; none where windows are small, or it is not."""
        with self._lock:
            return self._outbox.places(max_bytes) if self._is_wide and self._is_near is not False else []

    def set_near(self, *, is_near: bool) -> None:
        """Note whether the aggregator could read records by their places: windows are sealed accordingly from now on."""
        with self._lock:
            self._is_near = is_near

    def ack(self, sequence: int) -> None:
        """Drop what the aggregator has on its disk."""
        with self._lock:
            self._outbox.ack(sequence)

    @property
    def outbox(self) -> Outbox:
        """The file behind this stream."""
        return self._outbox

    @property
    def unacked_bytes(self) -> int:
        """Bytes that wait for their acknowledgement."""
        with self._lock:
            return self._outbox.unacked_bytes

    def finish(self) -> int:
        """Close the last window and name the end; return its sequence number.

        Raises `OutboxFullError` when the disk takes no more; call again later.
        """
        with self._lock:
            if self._outbox.ended:
                return self._outbox.last
            for one in list(self._attached):
                self.detach(one.segment)
            if not self.close_window(self._clock.wall_ns()):
                raise OutboxFullError("the last window could not be sealed; make room and call finish again")
            return self._outbox.append(RecordKind.END, b'{"clean": true}')

    def give_up(self) -> None:
        """Name the end without the last window: what it collected is lost, and the end is not clean. Raises `OutboxFullError`."""
        with self._lock:
            self._outbox.seal()


def _row(key: _Key, kind: Kind) -> Row:
    metric, unit, worker, phase, labels = key
    return Row(metric, kind, unit, worker, phase, labels)


def _key(row: Row) -> _Key:
    return (row.metric, row.unit, row.worker, row.phase, row.labels)


def _merged(one: Row, other: Row) -> Row:
    """Return two rows of one series and window as one; the later row's `last` counts."""
    made = replace(one, count=one.count + other.count, sum=one.sum + other.sum)
    if one.kind is not Kind.COUNTER:
        made.min = min(found for found in (one.min, other.min) if found is not None)
        made.max = max(found for found in (one.max, other.max) if found is not None)
        made.last = other.last
    if one.digest and other.digest:
        made.digest = histogram.merge(map(histogram.decode, (one.digest, other.digest))).encode()
    return made


def _bump(row: Row, value: float) -> None:
    row.count += 1
    if np.isfinite(value):
        row.sum += value
    if row.kind is Kind.GAUGE:
        row.min = value if row.min is None else min(row.min, value)
        row.max = value if row.max is None else max(row.max, value)
        row.last = value


def _snapped(start_ns: int, length_ns: int) -> int:
    """Return the full second near to a window's start, so that windows of all nodes have equal labels; else the start.

    A short window keeps its start: it and the next would otherwise get the same one.
    """
    second = round(start_ns / SECOND_NS) * SECOND_NS
    near = abs(second - start_ns) <= _SNAP_NS and length_ns > 2 * _SNAP_NS
    return second if near else start_ns
