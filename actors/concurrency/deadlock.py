"""Deadlock: pairs of threads that take two locks in opposite order, so that each waits for the other, for certain.

In a round each thread takes its first lock, both meet at a barrier, and each asks for the lock that the other holds: the cycle is closed.
The load's own look at the wait-for graph, 20 times a second, names the cycle and refuses the lock to the thread that came last: its
`acquire` raises `DeadlockError`, it gives back what it holds, and the other goes on. Where detection is off, or fails, each waits
`timeout_s` at most. With `order="ordered"` both take the locks in one order, as programs should, and nothing is ever found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..clock import SECOND_NS
from ..errors import HarnessError
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import AVAILABLE, Capability, SimulatorRecord
from .detection import deadlocks
from .figures import LOCK_METRICS, LockMeters
from .group import Group, GroupContest
from .load import Contest, ContestLoad, threads_and_locks
from .locks import DeadlockError, LockError, LockTable, LockTimeoutError, Task

if TYPE_CHECKING:
    from ..capability import NodeFacts

REST_S: Final = 0.02
LOCKS_OF_A_PAIR: Final = 2
OUTCOMES: Final = {  # metric -> field of `Outcomes`
    "concurrency.deadlock.planted": "planted",
    "concurrency.deadlock.detected": "detected",
    "concurrency.deadlock.timeouts": "timeouts",
    "concurrency.deadlock.completed": "completed",
    "concurrency.deadlock.cut": "cut",
}


@dataclass(slots=True)
class Outcomes:
    """How rounds ended. Once all are over, planted = detected + timeouts + cut; completed are those without a cycle.

    `cut` are those that the end of the load, or of their pair, cut short; they are known when the load has closed.
    """

    planted: int = 0
    detected: int = 0
    timeouts: int = 0
    completed: int = 0
    cut: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def rounds(self) -> int:
        """How many rounds are over."""
        return self.detected + self.timeouts + self.completed

    def add(self, name: str) -> None:
        """Count one."""
        with self.guard:
            setattr(self, name, getattr(self, name) + 1)


@dataclass(frozen=True, slots=True)
class Rules:
    """How pairs behave."""

    crossed: bool = True
    detects: bool = True
    fails: bool = False
    hold_s: float = 0.1
    timeout_s: float = 5.0
    rest_s: float = REST_S


class Pairs:
    """Pairs of threads at two locks each. `on_detected` takes the seconds from a cycle's closing to its being named."""

    def __init__(self, table: LockTable, rules: Rules, on_detected: Callable[[float], object] = lambda _: None) -> None:
        self.table, self._rules, self._on_detected = table, rules, on_detected
        self.outcomes = Outcomes()
        self.named: tuple[str, ...] = ()  # the last cycle
        self._errors: dict[tuple[int, int], LockError | None] = {}
        self._crew = GroupContest(table, ("left", "right"), self._live)
        self.resize, self.figures = self._crew.resize, self._crew.figures

    @property
    def size(self) -> int:
        """How many pairs work."""
        return self._crew.size

    @property
    def operations(self) -> int:
        """How many rounds are over."""
        return self.outcomes.rounds

    def counts(self) -> dict[str, int]:
        """Return how rounds ended so far, by metric."""
        return {metric: getattr(self.outcomes, name) for metric, name in OUTCOMES.items()}

    def close(self) -> None:
        """Stop all and wait for them; raises what went wrong."""
        try:
            self._crew.close()
        finally:
            done = self.outcomes
            done.cut = done.planted - done.detected - done.timeouts

    def look(self) -> None:
        """Raise the first error of any thread; find cycles and refuse a lock to one of each."""
        self._crew.check()
        if not self._rules.detects:
            return
        for found in deadlocks(self.table.waits()):
            if self.table.refuse(found.victim, DeadlockError(f"deadlock: {found.text}; {found.victim} gives way", found.circle)):
                self.named = found.circle
                self._on_detected((self.table.clock.boot_ns() - found.since_ns) / SECOND_NS)

    def _live(self, group: Group, place: int) -> None:
        locks = (self.table.lock(f"{group.number}.a"), self.table.lock(f"{group.number}.b"))
        first, second = locks if place == 0 or not self._rules.crossed else reversed(locks)
        task = group.tasks[place]
        while True:
            group.meet()
            self._errors[group.number, place] = self._round(group, task, first.name, second.name)
            group.meet()
            if place == 0:
                self._judge(group)
            group.rest(self._rules.rest_s)

    def _round(self, group: Group, task: Task, first: str, second: str) -> LockError | None:
        """Take both locks, hold them, give them back; return the error where the second was not given."""
        outer, inner = self.table.lock(first), self.table.lock(second)
        outer.acquire(task)
        try:
            if self._rules.crossed:
                group.meet()  # both hold their first one now
                if task is group.tasks[0]:
                    self.outcomes.add("planted")
            try:
                inner.acquire(task, self._rules.timeout_s)
            except (DeadlockError, LockTimeoutError) as error:
                return error
            try:
                group.rest(self._rules.hold_s)
            finally:
                inner.release(task)
        finally:
            outer.release(task)
        return None

    def _judge(self, group: Group) -> None:
        """Count a pair's round, and see that its locks are free. Raises the deadlock's error where it should end the load."""
        errors = [error for place in (0, 1) if (error := self._errors[group.number, place]) is not None]
        cycle = next((error for error in errors if isinstance(error, DeadlockError)), None)
        self.outcomes.add("detected" if cycle else "timeouts" if errors else "completed")
        held = [name for name in (f"{group.number}.a", f"{group.number}.b") if self.table.lock(name).holder is not None]
        if held:
            raise HarnessError("internal", f"still held after the round: {', '.join(held)}")
        if errors and self._rules.fails:
            raise cycle or errors[0]


class Deadlock(ContestLoad):
    """Runs in a load process."""

    def contest(self, meters: LockMeters) -> Contest:
        """Return the pairs."""
        options = RECORD.resolve_options(self.operation.options)
        rules = Rules(
            crossed=options["order"] == "crossed",
            detects=bool(options["detect"]),
            fails=options["on_deadlock"] == "fail",
            hold_s=float(options["hold_s"]),
            timeout_s=float(options["timeout_s"]),
        )
        on_detected = meters.reporter.histogram("concurrency.deadlock.detection").record
        return Pairs(LockTable(self._watch.clock, meters.wait, meters.hold), rules, on_detected)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return threads_and_locks(peak, 2, LOCKS_OF_A_PAIR)


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Deadlock",
    family="concurrency",
    summary="Has pairs of threads deadlock, names the cycle, and resolves it.",
    units=("count",),
    resource="tasks",
    meter="thread_pairs",
    measure="pairs of threads that the kernel shows of the load process above those before its start",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("order", "choice", "crossed", "crossed: each round deadlocks; ordered: the control, none does", ("crossed", "ordered")),
        Option("detect", "flag", True, "whether cycles are looked for; without it only the timeout ends a deadlock"),
        Option(
            "on_deadlock",
            "choice",
            "resolve",
            "resolve: one thread gives way and the pair goes on; fail: the load ends with the cycle as its reason",
            ("resolve", "fail"),
        ),
        Option("hold_s", "duration", 0.1, "how long a thread that has both locks keeps them", high=60.0),
        Option("timeout_s", "duration", 5.0, "how long a thread waits for its second lock at most", low=0.05, high=600.0),
    ),
    supported=_supported,
    metrics=(*LOCK_METRICS, *OUTCOMES, "concurrency.deadlock.detection"),
    entry="concurrency.deadlock:Deadlock",
    reserves=_reserves,
)
