"""Loads of concurrency in this process, without pages and leases: `driven` has one work until enough was seen of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from actors.clock import SystemClock
from actors.concurrency.figures import LockMeters
from actors.concurrency.load import Contest, ContestLoad
from actors.messages import Capacity, Operation
from actors.metrics.reporter import MemoryReporter
from actors.simulator import record_of

from .waiting import until

CAPACITY = Capacity(2.0, 1 << 30, 1 << 30)


def operation(kind: str, count: float, duration_s: float = 60.0, **options: Any) -> Operation:
    """Return an operation with so many contenders, pairs or groups."""
    return Operation(f"0.{kind}@n", kind, "n", 0.0, duration_s, "count", {"kind": "constant", "level": float(count)}, options, seed=1)


class Driven:
    """One contest with what it records."""

    def __init__(self, kind: str, count: int, options: dict[str, Any]) -> None:
        self.reporter, self.count = MemoryReporter(), count
        self.meters = LockMeters(self.reporter)
        watch: Any = SimpleNamespace(clock=SystemClock())
        load = record_of(kind).make(operation(kind, count, **options), CAPACITY, watch)
        assert isinstance(load, ContestLoad)
        self.contest: Contest = load.contest(self.meters)

    def until(self, enough: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Look as a load does until enough was seen; raises what the contest raises."""

        def looked() -> bool:
            if enough():
                return True
            self.contest.resize(self.count)
            self.contest.look()
            self.tell()
            return False

        until(looked, timeout_s, lambda: str((self.contest.counts(), self.contest.figures())), every_s=0.01)

    def tell(self) -> None:
        """Record what was counted."""
        self.meters.take(self.contest.figures(), self.contest.operations, self.contest.counts())

    def total(self, name: str) -> float:
        """Return a counter's sum, or a histogram's number of samples."""
        samples = self.reporter.samples(name)
        return float(len(samples)) if name.endswith((".wait", ".hold", ".detection")) else sum(value for value, _ in samples)


@contextmanager
def driven(kind: str, count: int, **options: Any) -> Iterator[Driven]:
    """Give a contest that is closed at the end."""
    made = Driven(kind, count, options)
    try:
        yield made
    finally:
        try:
            made.contest.close()
        finally:
            made.tell()
