"""LockConvoy: threads that share a lock in short turns, and now and then one that stalls while it holds it, so that all queue up behind.

Each thread holds the lock for `hold_s` and works outside of it for `work_s`. Every `every_s` one holder stalls for `stall_s`. A convoy has
formed when at least half of the threads wait at the end of a stall; it has cleared when fewer do. Threads sleep in all of this, so that
what is loaded is the lock and the scheduler, which wakes one waiter after the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..clock import SECOND_NS
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import AVAILABLE, Capability, SimulatorRecord
from .figures import LOCK_METRICS, LockMeters
from .group import Group, GroupContest
from .load import Contest, ContestLoad, threads_and_locks
from .locks import LockTable

if TYPE_CHECKING:
    from ..capability import NodeFacts

Take = Callable[[float], object]


class Convoy:
    """Threads at one lock. `on_length` takes how many waited at the end of a stall, `on_cleared` the seconds until fewer than half did."""

    def __init__(self, table: LockTable, times_s: tuple[float, float, float, float], on_length: Take, on_cleared: Take) -> None:
        self._hold_s, self._work_s, self._stall_s, self._every_s = times_s
        self._on_length, self._on_cleared = on_length, on_cleared
        self._clock = table.clock
        self._lock = table.lock("shared")
        self._crew = GroupContest(table, ("rider",), self._live)
        self._stall_due = threading.Event()
        self._stalled_ns = self._clock.boot_ns()  # when the last stall was asked for
        self._ended_ns = 0  # when a stall ended whose convoy has not cleared; written by the lock's holder only
        self.stalls = self.formed = 0
        self.resize, self.figures, self.close = self._crew.resize, self._crew.figures, self._crew.close

    @property
    def size(self) -> int:
        """How many threads work."""
        return self._crew.size

    @property
    def operations(self) -> int:
        """How often the lock was acquired."""
        return self._lock.acquisitions

    def look(self) -> None:
        """Raise the first error of any thread; ask for a stall when one is due."""
        self._crew.check()
        now_ns = self._clock.boot_ns()
        if now_ns - self._stalled_ns >= self._every_s * SECOND_NS:
            self._stalled_ns = now_ns
            self._stall_due.set()

    def counts(self) -> dict[str, int]:
        """Return stalls, and those behind which a convoy formed, by metric."""
        return {"concurrency.convoy.stalls": self.stalls, "concurrency.convoy.formed": self.formed}

    def _live(self, group: Group, _: int) -> None:
        task = group.tasks[0]
        while True:
            self._lock.acquire(task)
            try:
                self._see_cleared()
                if self._stall_due.is_set():
                    self._stall_due.clear()
                    self._stall(group)
                else:
                    group.rest(self._hold_s)
            finally:
                self._lock.release(task)
            group.rest(self._work_s)

    def _stall(self, group: Group) -> None:
        """Keep the lock for long, and see who waits at the end."""
        self.stalls += 1
        group.rest(self._stall_s)
        waiting = len(self._lock.waiters)
        self._on_length(float(waiting))
        if self._is_convoy(waiting):
            self.formed += 1
            self._ended_ns = self._clock.boot_ns()

    def _see_cleared(self) -> None:
        if self._ended_ns and not self._is_convoy(len(self._lock.waiters)):
            self._on_cleared((self._clock.boot_ns() - self._ended_ns) / SECOND_NS)
            self._ended_ns = 0

    def _is_convoy(self, waiting: int) -> bool:
        return waiting >= max(1, math.ceil(self.size / 2))


class LockConvoy(ContestLoad):
    """Runs in a load process."""

    def contest(self, meters: LockMeters) -> Contest:
        """Return the threads."""
        options = RECORD.resolve_options(self.operation.options)
        hold_s, work_s, stall_s, every_s = (float(options[name]) for name in ("hold_s", "work_s", "stall_s", "every_s"))
        length, clearing = (meters.reporter.histogram(name).record for name in ("concurrency.convoy.length", "concurrency.convoy.clearing"))
        table = LockTable(self._watch.clock, meters.wait, meters.hold)
        return Convoy(table, (hold_s, work_s, stall_s, every_s), length, clearing)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return threads_and_locks(peak, 1, 0).plus(Amounts(locks=1))


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="LockConvoy",
    family="concurrency",
    summary="Has threads queue up behind a holder that stalls.",
    units=("count",),
    resource="tasks",
    meter="threads",
    measure="threads that the kernel shows of the load process above those before its start",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("hold_s", "duration", 0.001, "how long the lock is held in a turn", low=0.0001, high=1.0),
        Option("work_s", "duration", 0.02, "how long a thread works before its next turn", high=60.0),
        Option("stall_s", "duration", 0.1, "how long a holder stalls", low=0.01, high=60.0),
        Option("every_s", "duration", 1.0, "how often one does", low=0.1, high=600.0),
    ),
    supported=_supported,
    metrics=(
        *LOCK_METRICS,
        "concurrency.convoy.stalls",
        "concurrency.convoy.formed",
        "concurrency.convoy.length",
        "concurrency.convoy.clearing",
    ),
    entry="concurrency.convoy:LockConvoy",
    reserves=_reserves,
)
