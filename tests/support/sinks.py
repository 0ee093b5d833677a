"""Rows and destinations for tests of exporters: rows that say which they are, and sinks that fail as they are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pyarrow as pa

from actors.metrics.registry import Kind
from cluster.exporters.base import Health, RejectedError
from cluster.exporters.context import Context
from cluster.metrics.windows import Row, metrics_batch

START_S = 1_700_000_000
CONTEXT = Context("run-1", "small")


def numbered(
    first: int, rows: int, *, metric: str = "host.cpu.busy", node: str = "n1", labels: tuple[tuple[str, str], ...] = ()
) -> pa.RecordBatch:
    """Return rows whose `last` counts up from `first`."""
    made = [Row(metric, Kind.GAUGE, "ratio", "w", "p", labels, 1, float(at), last=float(at)) for at in range(first, first + rows)]
    return metrics_batch(made, node=node, start_ns=START_S * 10**9, window_s=1.0)


def numbers(batches: Iterable[pa.RecordBatch]) -> list[int]:
    """Return which rows these are."""
    return [int(value) for batch in batches for value in batch.column("last").to_pylist()]


class ListSink:
    """Keeps what it is given. `plan` says of each call of write: None to take it, else the error to raise."""

    def __init__(self, plan: Iterable[Exception | None] = ()) -> None:
        self.taken: list[pa.RecordBatch] = []
        self.calls: list[str] = []
        self.plan = iter(plan)
        self.ok = True

    def open(self) -> None:
        self.calls.append("open")

    def write(self, batch: pa.RecordBatch) -> None:
        self.calls.append("write")
        error = next(self.plan, None)
        self.ok = error is None
        if error is not None:
            raise error
        self.taken.append(batch)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")

    def health(self) -> Health:
        return Health(ok=self.ok)

    @property
    def numbers(self) -> list[int]:
        return numbers(self.taken)


class GateSink(ListSink):
    """Hangs in every write until the gate is opened."""

    def __init__(self, plan: Iterable[Exception | None] = ()) -> None:
        super().__init__(plan)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def write(self, batch: pa.RecordBatch) -> None:
        self.entered.set()
        self.gate.wait()
        super().write(batch)


class FlakySink(ListSink):
    """Asks a function before each write whether to fail, and how."""

    def __init__(self, decide: Callable[[], Exception | None]) -> None:
        super().__init__()
        self.decide = decide

    def write(self, batch: pa.RecordBatch) -> None:
        error = self.decide()
        if error is not None:
            raise error
        self.taken.append(batch)


__all__ = ["CONTEXT", "START_S", "FlakySink", "GateSink", "ListSink", "RejectedError", "numbered", "numbers"]
