"""LockContention: contenders that ask for one lock while others hold it, as threads, as asyncio tasks, or as processes.

Each contender acquires one lock after the other: with the chance `contention` the shared one, else one of its own, and holds it for a time
of mean `hold_s`. How often an acquisition has to wait follows from `contention` and the number of contenders alone: see
`contest.contended_share`. Contenders sleep while they hold a lock, so this loads the lock, the scheduler and what waits, not the processor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import AVAILABLE, Capability, SimulatorRecord
from .contest import ContestSettings
from .contest_processes import ProcessContest
from .contest_threads import ThreadContest
from .figures import LOCK_METRICS, LockMeters
from .load import THREAD_BYTES, Contest, ContestLoad, threads_and_locks

if TYPE_CHECKING:
    from ..capability import NodeFacts

PROCESS_BYTES: Final = 8 << 20  # what a forked contender does not share with the load


class LockContention(ContestLoad):
    """Runs in a load process."""

    def contest(self, meters: LockMeters) -> Contest:
        """Return the contenders of the asked kind."""
        options = RECORD.resolve_options(self.operation.options)
        settings = ContestSettings(
            contention=float(options["contention"]),
            hold_s=float(options["hold_s"]),
            seed=self.operation.seed,
            clock=self._watch.clock,
            on_wait=meters.wait,
            on_hold=meters.hold,
        )
        if options["contenders"] == "processes":
            return ProcessContest(settings, math.ceil(self._shape.peak(self.operation.duration_s)))
        if options["contenders"] == "tasks":
            from .contest_tasks import TaskContest  # noqa: PLC0415  # asyncio takes longer to import than all else here

            return TaskContest(settings)
        return ThreadContest(settings)


def _reserves(peak: float, operation: Operation, _: Capacity) -> Amounts:
    """Return what the contenders take: a lock each and the shared one, a thread, a descriptor or a process each."""
    count = math.ceil(peak)
    kind = RECORD.resolve_options(operation.options)["contenders"]
    if kind == "processes":
        return Amounts(tasks=count, memory_bytes=count * PROCESS_BYTES, locks=count + 1)
    if kind == "tasks":
        return Amounts(tasks=1, memory_bytes=count * THREAD_BYTES, descriptors=count, locks=count + 1)
    return threads_and_locks(count, 1, 1).plus(Amounts(locks=1))


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="LockContention",
    family="concurrency",
    summary="Has contenders ask for one lock while others hold it.",
    units=("count",),
    resource="tasks",
    meter="contenders",
    measure="threads, processes, or event descriptors of asyncio tasks, that the kernel shows of the load above those before its start",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option(
            "contenders",
            "choice",
            "threads",
            "threads: on locks that block in the kernel; tasks: asyncio; processes: on file locks",
            ("threads", "tasks", "processes"),
        ),
        Option("contention", "fraction", 0.5, "share of acquisitions that go to the shared lock, by chance"),
        Option("hold_s", "duration", 0.005, "mean time for which a lock is held, exponentially distributed", low=0.0001, high=10.0),
    ),
    supported=_supported,
    metrics=LOCK_METRICS,
    entry="concurrency.contention:LockContention",
    reserves=_reserves,
)
