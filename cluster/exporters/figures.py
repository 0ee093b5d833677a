"""What a pipeline tells of itself: a report per destination, and the same as rows in the contract's columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.metrics.histogram import Histogram, merge
from actors.metrics.registry import Kind, find

from ..metrics.windows import QUANTILES, Row
from .base import Health
from .rows import LaneState
from .rules import ChainCounts

_MERGE_AT = 1024


@dataclass(slots=True)
class Latencies:
    """Durations in seconds: all of them, and those of the window that is open."""

    whole: Histogram = field(default_factory=lambda: Histogram.of([]))
    window: Histogram = field(default_factory=lambda: Histogram.of([]))
    recent: list[float] = field(default_factory=list)

    def record(self, duration_s: float) -> None:
        """Add one."""
        self.recent.append(duration_s)
        if len(self.recent) >= _MERGE_AT:
            self.histogram()

    def histogram(self) -> Histogram:
        """Return all of them."""
        if self.recent:
            new = Histogram.of(self.recent)
            self.whole, self.window, self.recent = merge((self.whole, new)), merge((self.window, new)), []
        return self.whole

    def close_window(self) -> Histogram:
        """Return those since the last call."""
        self.histogram()
        found, self.window = self.window, Histogram.of([])
        return found


@dataclass(frozen=True, slots=True)
class ExporterReport:
    """One destination at one moment. `waiting` rows are still with blocked producers; `latency` is of calls of write, in seconds."""

    name: str
    lane: LaneState
    chain: ChainCounts
    held: int
    waiting: int
    latency: Histogram
    health: Health
    flushes: int
    flush_failures: int
    is_paused: bool = False

    @property
    def balance(self) -> int:
        """Rows that are not accounted for anywhere between the rules and the destination; 0, or there is a bug."""
        chain = self.chain
        rules = chain.taken - chain.filtered - chain.late - self.held - chain.folded - chain.passed
        return abs(rules) + abs(chain.passed + chain.aggregates - self.waiting - self.lane.produced) + abs(self.lane.balance)

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON-ready data."""
        lane = self.lane
        quantiles = dict(zip(QUANTILES, self.latency.quantiles(tuple(QUANTILES.values())), strict=True)) if self.latency.count else {}
        return {
            "name": self.name,
            "ok": self.health.ok,
            "paused": self.is_paused,
            "detail": self.health.detail or lane.last_error,
            "breaker": lane.breaker.value,
            "breaker_opened": lane.breaker_opened,
            "produced_rows": lane.produced,
            "recovered_rows": lane.recovered,
            "delivered_rows": lane.delivered,
            "delivered_bytes": lane.delivered_bytes,
            "dropped_rows": lane.dropped,
            "queued_rows": lane.queued,
            "queued_bytes": lane.queued_bytes,
            "spilled_rows": lane.spilled,
            "waiting_rows": self.waiting,
            "filtered_rows": self.chain.filtered,
            "late_rows": self.chain.late,
            "held_rows": self.held,
            "attempts": lane.attempts,
            "successes": lane.successes,
            "failures": lane.failures,
            "last_success_ns": lane.last_success_ns,
            "latency_s": quantiles,
        }


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """The whole pipeline. `received` rows came in; `unrouted` of them had no destination."""

    received: int
    unrouted: int
    exporters: Mapping[str, ExporterReport]


def rows_of(report: PipelineReport, before: PipelineReport | None, calls: Mapping[str, Histogram]) -> list[Row]:
    """Return a report as rows of the catalogue's `export.*`; counters count since `before`, `calls` are the window's durations."""
    rows = [_counter("export.unrouted", (), report.unrouted, before.unrouted if before else 0)]
    for name, now in report.exporters.items():
        rows += _rows(now, before.exporters.get(name) if before else None, calls.get(name))
    return rows


def _rows(now: ExporterReport, before: ExporterReport | None, found: Histogram | None) -> list[Row]:
    labels, lane, was = (("exporter", now.name),), now.lane, before.lane if before else None
    rows = [
        _gauge("export.queue", labels, lane.queued),
        _gauge("export.queue.size", labels, lane.queued_bytes),
        _gauge("export.spilled", labels, lane.spilled),
        _gauge("export.breaker", labels, ("closed", "half_open", "open").index(lane.breaker.value)),
        _counter("export.delivered", labels, lane.delivered, was.delivered if was else 0),
        _counter("export.delivered.size", labels, lane.delivered_bytes, was.delivered_bytes if was else 0),
        _counter("export.batches", labels, lane.attempts, was.attempts if was else 0),
        _counter("export.successes", labels, lane.successes, was.successes if was else 0),
    ]
    reasons = {**lane.dropped, "filtered": now.chain.filtered, "late": now.chain.late}
    old = {**was.dropped, "filtered": before.chain.filtered, "late": before.chain.late} if before and was else {}
    rows += [_counter("export.dropped", (*labels, ("reason", reason)), count, old.get(reason, 0)) for reason, count in reasons.items()]
    for reason, count in lane.failures.items():
        rows.append(_counter("export.failures", (*labels, ("reason", reason)), count, was.failures.get(reason, 0) if was else 0))
    if found is not None and found.count:
        rows.append(
            Row(
                "export.write",
                Kind.HISTOGRAM,
                "seconds",
                "",
                "",
                labels,
                found.count,
                found.sum,
                found.min,
                found.max,
                digest=found.encode(),
            )
        )
    return rows


def _gauge(name: str, labels: tuple[tuple[str, str], ...], value: float) -> Row:
    assert math.isfinite(value), f"{name} is {value}"
    return Row(name, find(name).kind, find(name).unit, "", "", labels, 1, value, value, value, value)


def _counter(name: str, labels: tuple[tuple[str, str], ...], total: int, before: int) -> Row:
    return Row(name, find(name).kind, find(name).unit, "", "", tuple(sorted(labels)), 1, float(total - before), last=float(total))
