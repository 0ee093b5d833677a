"""Sealed records for tests of the metric path: each says in its values which one it is."""

from __future__ import annotations

from collections.abc import Iterable

from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.windows import Row, events_batch, metrics_batch, seal
from cluster.outbox import Kind as RecordKind
from cluster.outbox import Record, frame

START_S = 1_700_000_000


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
