"""What the loads of this family record: counts, waits and holds of their locks, and gauges of a few of them. Never their dose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from .locks import LockFigures

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

GAUGES_MAX: Final = 16  # locks of a load that have gauges: each is three series
LOCK_METRICS: Final = (
    "load.operations",
    "concurrency.lock.acquisitions",
    "concurrency.lock.contended",
    "concurrency.lock.wait",
    "concurrency.lock.hold",
    "concurrency.lock.waiters",
    "concurrency.lock.holder",
    "concurrency.lock.held",
)


class LockMeters:
    """The series of one load's locks. `wait` and `hold` take seconds from any thread; `take` and `tick` are the main thread's."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.wait = reporter.histogram("concurrency.lock.wait").record
        self.hold = reporter.histogram("concurrency.lock.hold").record
        self._told: dict[str, int] = {}
        self.tick, self.close = reporter.tick, reporter.close

    def take(self, locks: Sequence[LockFigures], operations: int, counts: Mapping[str, int]) -> None:
        """Record what was counted since the last call, and the first locks as they are now. All counts are since the beginning."""
        own = {
            "load.operations": operations,
            "concurrency.lock.acquisitions": sum(lock.acquisitions for lock in locks),
            "concurrency.lock.contended": sum(lock.contended for lock in locks),
        }
        for name, count in (own | dict(counts)).items():
            self.reporter.counter(name).record(float(count - self._told.get(name, 0)))
            self._told[name] = count
        for lock in locks[:GAUGES_MAX]:
            gauge = self.reporter.gauge
            gauge("concurrency.lock.waiters", lock=lock.name).record(float(lock.waiters))
            gauge("concurrency.lock.holder", lock=lock.name).record(float(lock.holder_tid))
            gauge("concurrency.lock.held", lock=lock.name).record(lock.held_s)
        self.tick()
