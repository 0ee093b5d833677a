"""Where a simulator's samples go: one protocol, so that what records does not know what collects.

    Recorder             collects: into the segment that the agent reads (`handle`)
    NullReporter         takes everything, keeps nothing
    MemoryReporter       keeps everything, for tests
    BatchingReporter     hands over batches, by size and by age, for sinks where each call is dear

A run uses the first, and the second where its agent is gone; the others are for simulators of one's own and their tests. Names, labels and
kinds are checked against the catalogue by each of them, so a test with one finds what another would refuse.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..clock import SECOND_NS, Clock
from ..errors import InputError
from .histogram import Floats
from .policy import Labels
from .registry import Kind, Metric, find
from .sampling import Kept

_NOTHING: Final[deque[float]] = deque(maxlen=0)


class Recordable(Protocol):
    """One series. `record` is quick; a weight says how many samples one stands for."""

    @property
    def record(self) -> Callable[[float], None]:
        """The call that takes one sample; may be kept."""
        ...

    def record_many(self, values: Floats) -> None:
        """Take an array of samples, which is copied."""
        ...

    def record_weighted(self, value: float, weight: int) -> None:
        """Take a sample that stands for `weight` samples."""
        ...


class Reporter(Protocol):
    """Gives out series and moves on what they took. Raises `InputError` for a name, label or kind that the catalogue lacks."""

    def counter(self, name: str, **labels: str) -> Recordable:
        """Return the series of a counter."""
        ...

    def gauge(self, name: str, **labels: str) -> Recordable:
        """Return the series of a gauge."""
        ...

    def histogram(self, name: str, **labels: str) -> Recordable:
        """Return the series of a histogram."""
        ...

    def tick(self) -> None:
        """Move on what waits. Call at least every 100 ms."""
        ...

    def close(self) -> None:
        """Move on the last of it."""
        ...


@dataclass(frozen=True, slots=True)
class Series:
    """What identifies a series within one process."""

    name: str
    kind: Kind
    labels: Labels = ()


def series_of(name: str, kind: Kind, labels: dict[str, str]) -> tuple[Series, Metric]:
    """Return the series of a name. Raises `InputError` for an unknown name or label, or another kind."""
    metric = find(name)
    if metric.kind is not kind:
        raise InputError("invalid_value", f"metric {name!r} is a {metric.kind}, not a {kind}")
    return Series(name, kind, metric.checked_labels(labels)), metric


class _Kinds:
    """The three ways to ask for a series, as one."""

    def _series(self, name: str, kind: Kind, labels: dict[str, str]) -> Recordable:
        raise AssertionError(f"a reporter says how a series is made: {kind} {name} {labels}")

    def counter(self, name: str, **labels: str) -> Recordable:
        """Return the series of a counter."""
        return self._series(name, Kind.COUNTER, labels)

    def gauge(self, name: str, **labels: str) -> Recordable:
        """Return the series of a gauge."""
        return self._series(name, Kind.GAUGE, labels)

    def histogram(self, name: str, **labels: str) -> Recordable:
        """Return the series of a histogram."""
        return self._series(name, Kind.HISTOGRAM, labels)

    def tick(self) -> None:
        """Move on what waits; here, nothing does."""

    def close(self) -> None:
        """Move on the last of it."""
        self.tick()


class _Void:
    """Takes samples to nowhere."""

    record: Callable[[float], None] = _NOTHING.append

    def record_many(self, values: Floats) -> None:
        pass

    def record_weighted(self, value: float, weight: int) -> None:
        pass


class NullReporter(_Kinds):
    """Takes everything and keeps nothing, at the price of one C call."""

    def _series(self, name: str, kind: Kind, labels: dict[str, str]) -> Recordable:
        series_of(name, kind, labels)
        return _Void()


class _Kept:
    """The samples of one series, in order, with their weights."""

    def __init__(self) -> None:
        self.samples: list[Kept] = []

    def record(self, value: float) -> None:
        self.samples.append((value, 1))

    def record_many(self, values: Floats) -> None:
        self.samples.extend((value, 1) for value in values.tolist())

    def record_weighted(self, value: float, weight: int) -> None:
        self.samples.append((value, weight))


class MemoryReporter(_Kinds):
    """Keeps everything: `samples(name, **labels)` are (value, weight) in order. For tests: it has no bound."""

    def __init__(self) -> None:
        self._kept: dict[Series, _Kept] = {}
        self.closed = False

    def _series(self, name: str, kind: Kind, labels: dict[str, str]) -> Recordable:
        return self._kept.setdefault(series_of(name, kind, labels)[0], _Kept())

    def samples(self, name: str, **labels: str) -> list[Kept]:
        """Return what a series took; empty when it was never asked for."""
        series, _ = series_of(name, find(name).kind, labels)
        return list(self._kept[series].samples) if series in self._kept else []

    def series(self) -> list[Series]:
        """Return the series that took samples."""
        return [series for series, kept in self._kept.items() if kept.samples]

    def clear(self) -> None:
        """Forget the samples; the series stay."""
        for kept in self._kept.values():
            kept.samples.clear()

    def close(self) -> None:
        """Note the end."""
        self.closed = True


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of several series in the order in which they came."""

    entries: tuple[tuple[Series, float, int], ...]  # series, value, weight


@dataclass(slots=True)
class _Batched:
    """One series of a batching reporter."""

    owner: BatchingReporter
    series: Series
    record: Callable[[float], None] = field(init=False)

    def __post_init__(self) -> None:
        self.record = self._one

    def _one(self, value: float) -> None:
        self.owner.add(((self.series, value, 1),))

    def record_many(self, values: Floats) -> None:
        self.owner.add([(self.series, value, 1) for value in values.tolist()])

    def record_weighted(self, value: float, weight: int) -> None:
        self.owner.add(((self.series, value, weight),))


class BatchingReporter(_Kinds):
    """Hands batches of up to `size` samples to `deliver`: when one is full, when `age_s` has passed at a tick, and at the end.

    `deliver` returns whether it took the batch. What it refuses, or raises over, waits for the next try; past `limit` samples the newest
    are dropped. `offered` = `delivered` + `dropped` + `waiting`, exactly, whenever no call is under way. A record that fills a batch waits
    for `deliver`, so that is to hand over and return.
    """

    def __init__(
        self, deliver: Callable[[Batch], bool], clock: Clock, *, size: int = 1000, age_s: float = 1.0, limit: int = 100_000
    ) -> None:
        if not 0 < size <= limit:
            raise InputError("invalid_value", f"a batch has 1 sample up to the limit of {limit}, got {size}")
        self._deliver, self._clock, self._size, self._age_ns, self._limit = deliver, clock, size, round(age_s * SECOND_NS), limit
        self._lock = threading.RLock()
        self._waiting: deque[tuple[Series, float, int]] = deque()
        self._oldest_ns = 0
        self._under_way = 0  # samples of the batch that the sink has now
        self.offered = self.delivered = self.dropped = self.failures = self.calls = 0

    @property
    def waiting(self) -> int:
        """Samples that no batch has taken yet."""
        return len(self._waiting)

    def _series(self, name: str, kind: Kind, labels: dict[str, str]) -> Recordable:
        return _Batched(self, series_of(name, kind, labels)[0])

    def add(self, entries: Sequence[tuple[Series, float, int]]) -> None:
        """Take samples; deliver the batches that they fill."""
        with self._lock:
            if not self._waiting:
                self._oldest_ns = self._clock.boot_ns()
            for entry in entries:
                self.offered += 1
                if len(self._waiting) >= self._limit:
                    self.dropped += 1
                    continue
                self._waiting.append(entry)
                if len(self._waiting) % self._size == 0:  # of a sink that refuses, a try for each batch, not for each sample
                    self._send(self._size)

    def tick(self) -> None:
        """Deliver what is old enough, and what was refused before."""
        with self._lock:
            if self._waiting and (len(self._waiting) >= self._size or self._clock.boot_ns() - self._oldest_ns >= self._age_ns):
                self._send(1)

    def close(self) -> None:
        """Deliver everything; what is refused now is dropped, and counted."""
        with self._lock:
            self._send(1)
            while len(self._waiting) > self._under_way:  # all, but where a sink closes the reporter that calls it
                self._waiting.pop()
                self.dropped += 1

    def _send(self, least: int) -> None:
        """Deliver batches while at least so many of the samples that wait now are left and they are taken.

        A sink may record into this reporter: what it does waits for the next call, so that it is neither sent twice nor without end.
        """
        if self._under_way:
            return
        for _ in range(-(-len(self._waiting) // self._size)):
            if len(self._waiting) < least:
                return
            entries = [self._waiting[index] for index in range(min(self._size, len(self._waiting)))]
            self.calls += 1
            self._under_way = len(entries)
            try:
                taken = self._deliver(Batch(tuple(entries)))
            except Exception:  # a sink is foreign code: its error costs a try, never a sample
                taken = False
            finally:
                self._under_way = 0
            if not taken:
                self.failures += 1
                return
            for _ in entries:
                self._waiting.popleft()
            self.delivered += len(entries)
