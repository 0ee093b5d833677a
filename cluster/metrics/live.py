"""What a run's series stand at now: totals for Prometheus and the dose, fed with each window once. Pure, not thread-safe.

When there are too many series, those make room that no page shows any more: gauges that nobody reports, and what was idle for a day and is
not vital. A counter that comes back after that begins anew, as Prometheus has forgotten it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from actors.clock import SECOND_NS
from actors.metrics.histogram import Histogram, Keys
from actors.metrics.registry import CATALOGUE, Kind

from .buckets import Buckets

MAX_SERIES: Final = 100_000
MAX_DOSE_WINDOWS: Final = 100_000
IDLE_NS: Final = {  # after which a series makes room for others; longer than any page shows it
    Kind.GAUGE: 60 * SECOND_NS,
    Kind.COUNTER: 86_400 * SECOND_NS,
    Kind.HISTOGRAM: 86_400 * SECOND_NS,
}
_SWEEP_NS: Final = 60 * SECOND_NS

_DOSES: Final = ["dose.requested", "dose.achieved"]
_DOSE_NAMES: Final = pa.array(_DOSES)
_NAN: Final = float("nan")
_USED: Final = ("metric", "kind", "unit", "worker", "phase", "count", "sum", "last", "labels")


class DoseWindow(NamedTuple):
    """Asked and achieved strength of one operation in one window; NaN where the agent did not say."""

    time_s: float  # start of the window, UTC
    requested: float
    achieved: float
    unit: str  # ratio or bytes


class SeriesKey(NamedTuple):
    """What tells one series from another."""

    metric: str
    unit: str
    node: str
    worker: str
    phase: str
    labels: tuple[tuple[str, str], ...]


class Exemplar(NamedTuple):
    """One value as an example of a series, when it was, and labels that lead to it, a trace's id say; the run's id is known anyway."""

    value: float
    time_s: float | None = None  # UTC
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A series as Prometheus sees it: a total, a state, or cumulative buckets by `Buckets.bounds` of metric and unit.

    `created_s` is the start of its first window (UTC, seconds). A histogram's exemplar is the highest value of its newest window.
    """

    key: SeriesKey
    kind: Kind
    value: float = 0.0
    count: int = 0
    sum: float = 0.0
    buckets: tuple[int, ...] = ()
    seen_ns: int = 0
    created_s: float | None = None
    exemplar: Exemplar | None = None


class Live:
    """Every series' newest state. `buckets` may change as long as there are no series."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        self.buckets = buckets or Buckets()
        self._series: dict[SeriesKey, Sample] = {}
        self._doses: dict[str, list[DoseWindow]] = {}
        self._ends: dict[tuple[str, str], Keys] = {}
        self._swept_ns = -_SWEEP_NS
        self.refused = 0

    def absorb(self, batch: pa.RecordBatch, decoded: Sequence[Histogram | None], now_ns: int) -> None:
        """Add one record's rows. `decoded` are their digests."""
        if not batch.num_rows:
            return
        node = batch.column("node")[0].as_py()
        columns = [batch.column(name).to_pylist() for name in _USED]
        starts_us = batch.column("time").cast(pa.int64()).to_pylist()
        rows = zip(decoded, starts_us, zip(*columns, strict=True), strict=True)
        for found, start_us, (metric, kind, unit, worker, phase, count, total, last, labels) in rows:
            key = SeriesKey(metric, unit, node, worker, phase, tuple(labels))
            old = self._series.get(key)
            if old is None:
                if not self._has_room(now_ns):
                    self.refused += 1
                    continue
                old = Sample(key, Kind(kind), created_s=start_us / 1e6)
            exemplar = old.exemplar if found is None or not found.counts.size else Exemplar(found.max, start_us / 1e6)
            value = old.value if last is None else last
            gained = Sample(old.key, old.kind, value, count, total, seen_ns=now_ns, created_s=old.created_s, exemplar=exemplar)
            self._series[old.key] = self._next(old, gained, found)
        self.absorb_doses(batch)

    def _has_room(self, now_ns: int) -> bool:
        """Tell whether one more series may come; makes room once a minute at most."""
        if len(self._series) >= MAX_SERIES and now_ns - self._swept_ns >= _SWEEP_NS:
            self._swept_ns = now_ns
            self._series = {key: one for key, one in self._series.items() if not _is_over(one, now_ns)}
        return len(self._series) < MAX_SERIES

    def _next(self, old: Sample, gained: Sample, found: Histogram | None) -> Sample:
        if old.kind is Kind.COUNTER:
            return replace(gained, value=old.value + gained.sum)
        if found is None:
            return gained
        below = found.cumulative(self._ends_of(old.key.metric, old.key.unit)).tolist()
        buckets = tuple(map(sum, zip(old.buckets, below, strict=True))) if old.buckets else tuple(below)
        return replace(gained, count=old.count + gained.count, sum=old.sum + gained.sum, buckets=buckets)

    def _ends_of(self, metric: str, unit: str) -> Keys:
        if (metric, unit) not in self._ends:
            self._ends[metric, unit] = self.buckets.ends(metric, unit)
        return self._ends[metric, unit]

    def absorb_doses(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Add the dose windows among these rows. Asked and achieved of one window come together, in one record."""
        rows = rows.filter(pc.is_in(rows.column("metric"), value_set=_DOSE_NAMES))  # an expression would start an engine for each record
        columns = [rows.column(name).to_pylist() for name in ("metric", "unit", "worker", "count", "sum")]
        found: dict[tuple[str, int], DoseWindow] = {}
        times = rows.column("time").cast(pa.int64()).to_pylist()
        for time_us, (metric, unit, worker, count, total) in zip(times, zip(*columns, strict=True), strict=True):
            window = found.get((worker, time_us), DoseWindow(time_us / 1e6, _NAN, _NAN, unit))
            mean = total / count if count else _NAN
            found[worker, time_us] = window._replace(requested=mean) if metric == _DOSES[0] else window._replace(achieved=mean)
        for (worker, _), window in found.items():
            windows = self._doses.setdefault(worker, [])
            if len(windows) < MAX_DOSE_WINDOWS:
                windows.append(window)

    def samples(self, gauges_since_ns: int = 0) -> list[Sample]:
        """Return all series; gauges only if they were seen since then, so that what ended goes stale."""
        return [one for one in self._series.values() if one.kind is not Kind.GAUGE or one.seen_ns >= gauges_since_ns]

    def stale(self, gauges_since_ns: int) -> int:
        """Return how many series `samples` leaves out."""
        return sum(one.kind is Kind.GAUGE and one.seen_ns < gauges_since_ns for one in self._series.values())

    def doses(self) -> dict[str, list[DoseWindow]]:
        """Return the dose by operation, in the order of arrival."""
        return {worker: list(windows) for worker, windows in self._doses.items()}


def _is_over(sample: Sample, now_ns: int) -> bool:
    """Tell whether a series is shown nowhere any more."""
    known = CATALOGUE.get(sample.key.metric)
    if known is not None and known.vital:  # a rare failure is an increase, not a new series
        return False
    return now_ns - sample.seen_ns > IDLE_NS[sample.kind]
