"""Livelock: pairs of threads that are busy for ever and get nothing done, because each politely gives way to the other.

Each thread takes its own lock and tries the other's; it is held, so the thread gives its own back, waits `backoff_s`, and tries again. With
`retry="in_step"` both do so at once, which a barrier makes certain, and no try ever succeeds. With `retry="at_random"`, the control, waits
are drawn by chance, and nearly each try does. A pair that tried often and got nowhere within a second is counted as livelocked.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import AVAILABLE, Capability, SimulatorRecord
from .detection import LivelockWatch
from .figures import LOCK_METRICS, LockMeters
from .group import Group, GroupContest
from .load import Contest, ContestLoad, threads_and_locks
from .locks import LockFigures, LockTable

if TYPE_CHECKING:
    from ..capability import NodeFacts

WINDOW_S: Final = 1.0
SPREAD: Final = 8.0  # a random wait is up to so many times `backoff_s`
WORK_S: Final = 0.0002  # how long both locks are kept, once a thread has them


@dataclass(slots=True)
class _Side:
    """What one thread counts."""

    tries: int = 0
    progress: int = 0


class Polite:
    """Pairs of threads that give way to each other."""

    def __init__(self, table: LockTable, *, in_step: bool, backoff_s: float, seed: int) -> None:
        self._table, self._in_step, self._backoff_s, self._seed = table, in_step, backoff_s, seed
        self._sides: dict[int, tuple[_Side, _Side]] = {}
        self._watches: dict[int, LivelockWatch] = {}
        self._guard = threading.Lock()
        self._crew = GroupContest(table, ("left", "right"), self._live)
        self.resize, self.close = self._crew.resize, self._crew.close

    @property
    def size(self) -> int:
        """How many pairs work."""
        return self._crew.size

    @property
    def operations(self) -> int:
        """How often a thread got both locks."""
        return self._sum("progress")

    def look(self) -> None:
        """Raise the first error of any thread; see which pairs livelock."""
        self._crew.check()
        now_ns = self._table.clock.boot_ns()
        for number, sides in list(self._sides.items())[: self.size]:
            watch = self._watches.setdefault(number, LivelockWatch(WINDOW_S))
            watch.look(now_ns, sum(side.tries for side in sides), sum(side.progress for side in sides))

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the locks as they are now."""
        return self._crew.figures()

    def counts(self) -> dict[str, int]:
        """Return tries, successes, and livelocks found, by metric."""
        return {
            "concurrency.livelock.tries": self._sum("tries"),
            "concurrency.livelock.progress": self._sum("progress"),
            "concurrency.livelock.detected": sum(watch.found for watch in self._watches.values()),
        }

    def _sum(self, name: str) -> int:
        return sum(getattr(side, name) for sides in list(self._sides.values()) for side in sides)

    def _live(self, group: Group, place: int) -> None:
        with self._guard:
            side = self._sides.setdefault(group.number, (_Side(), _Side()))[place]
        task = group.tasks[place]
        chance = Random(f"{self._seed}/{task.name}")
        own, other = (self._table.lock(f"{group.number}.{name}") for name in ("ab", "ba")[place])
        while True:
            own.acquire(task)
            try:
                if self._in_step:
                    group.meet()  # both hold their own now
                side.tries += 1
                if other.try_acquire(task):
                    side.progress += 1
                    try:
                        group.rest(WORK_S)
                    finally:
                        other.release(task)
                if self._in_step:
                    group.meet()  # both have tried
            finally:
                own.release(task)
            group.rest(self._backoff_s if self._in_step else chance.uniform(0.0, SPREAD * self._backoff_s))


class Livelock(ContestLoad):
    """Runs in a load process."""

    def contest(self, meters: LockMeters) -> Contest:
        """Return the pairs."""
        options = RECORD.resolve_options(self.operation.options)
        table = LockTable(self._watch.clock, meters.wait, meters.hold)
        return Polite(table, in_step=options["retry"] == "in_step", backoff_s=float(options["backoff_s"]), seed=self.operation.seed)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return threads_and_locks(peak, 2, 2)


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Livelock",
    family="concurrency",
    summary="Has pairs of threads give way to each other for ever.",
    units=("count",),
    resource="tasks",
    meter="thread_pairs",
    measure="pairs of threads that the kernel shows of the load process above those before its start",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("retry", "choice", "in_step", "in_step: for ever; at_random: the control, which gets on", ("in_step", "at_random")),
        Option("backoff_s", "duration", 0.002, "how long a thread waits before it tries again", low=0.0002, high=1.0),
    ),
    supported=_supported,
    metrics=(*LOCK_METRICS, "concurrency.livelock.tries", "concurrency.livelock.progress", "concurrency.livelock.detected"),
    entry="concurrency.livelock:Livelock",
    reserves=_reserves,
)
