"""Sealed records for tests of the metric path: each says in its values which one it is."""

from __future__ import annotations

from collections.abc import Iterable

from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.store import End, Entry
from cluster.metrics.windows import Row, events_batch, metrics_batch, seal
from cluster.outbox import Kind as RecordKind
from cluster.outbox import Record, frame

START_S = 1_700_000_000
STREAM = ("n1", "a")


def record(
    node: str,
    sequence: int,
    *,
    rows: Iterable[Row] | None = None,
    events: int = 1,
    start_s: int | None = None,
    window_s: float = 1.0,
) -> tuple[int, bytes]:
    """Return a window's record: a counter that gained `sequence`, a histogram of one sample, and events named after it."""
    made = Histogram.of([sequence * 1e-3])
    usual = [
        Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", "x"),), 1, float(sequence), last=0.0),
        Row(
            "probe.response", Kind.HISTOGRAM, "seconds", "w", "p", (("probe", "x"),), 1, made.sum, made.min, made.max, digest=made.encode()
        ),
        Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 1, sequence / 100, sequence / 100, sequence / 100, sequence / 100),
    ]
    start_ns = (START_S + sequence if start_s is None else start_s) * 10**9
    line = {"time": start_ns // 1000, "node": node, "worker": "", "phase": "", "kind": "k", "severity": "info", "data": "{}"}
    told = [line | {"sequence": sequence * 10 + at, "message": f"{node}/{sequence}.{at}"} for at in range(events)]
    metrics = metrics_batch(usual if rows is None else list(rows), node=node, start_ns=start_ns, window_s=window_s)
    return sequence, frame(Record(sequence, RecordKind.WINDOW, seal(metrics, events_batch(told))))


def end(sequence: int, *, clean: bool = True) -> tuple[int, bytes]:
    """Return a stream's end record."""
    return sequence, frame(Record(sequence, RecordKind.END, b'{"clean": true}' if clean else b'{"clean": false}'))


def entry(sequence: int, *, events: int = 1, end: bool = False, rows: int = 2) -> Entry:
    """Return a record of `STREAM` as the log takes it: gauges whose `last` is its number, and events named after it."""
    made = [Row("host.cpu.busy", Kind.GAUGE, "ratio", f"w{at}", "p", (), 1, 0.5, 0.5, 0.5, float(sequence)) for at in range(rows)]
    line = {"time": sequence * 1_000_000, "node": "n1", "worker": "", "phase": "", "kind": "k", "severity": "info", "data": "{}"}
    told = [line | {"sequence": sequence * 10 + at, "message": f"{sequence}.{at}"} for at in range(events)]
    metrics = metrics_batch(made, node="n1", start_ns=sequence * 10**9, window_s=1.0)
    return Entry(STREAM, sequence, metrics, events_batch(told), End(sequence, True) if end else None)
