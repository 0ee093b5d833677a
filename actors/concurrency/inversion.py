"""PriorityInversion: an urgent thread waits for a lock that a humble one holds, which does not run because one between the two does.

In an episode the low thread takes the lock, the high one asks for it, and the medium one then computes for `burst_s`: without inheritance
the low one does not get on meanwhile, and the high one waits for all of it. Episodes are found in the log of what the three did, not
taken from the plan. With `inheritance` the low thread has the priority of the high one until it releases the lock, and nothing is found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from .. import kernels
from ..clock import SECOND_NS, thread_cpu_ns
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..pacing import next_rounds
from ..simulator import AVAILABLE, NO_KERNELS, Capability, SimulatorRecord
from .detection import EventKind, LockEvent, inversions
from .figures import LOCK_METRICS, LockMeters
from .group import Group, GroupContest, StoppedError
from .load import Contest, ContestLoad, threads_and_locks
from .locks import LockFigures, LockTable, Task
from .run_queue import HIGH, LOW, MEDIUM, Mechanism, NiceMechanism, RunQueue

if TYPE_CHECKING:
    from ..capability import NodeFacts

REST_S: Final = 0.1
LOOK_S: Final = 0.001
ROUNDS: Final = 20_000
PRIORITIES: Final = (LOW, MEDIUM, HIGH)

Work = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class InversionRules:
    """How long the low thread works with the lock, how long the medium one computes, how long the high one may wait."""

    hold_s: float
    burst_s: float
    bound_s: float
    inheritance: bool
    by_nice: bool


@dataclass(slots=True, eq=False)
class _Episode:
    """What a group's threads share of the episode that runs."""

    mechanism: Mechanism
    asked: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)  # the medium thread is ready to run
    log: list[LockEvent] = field(default_factory=list)


class Triples:
    """Groups of three threads of low, medium and high priority, at one lock each."""

    def __init__(self, table: LockTable, rules: InversionRules, work: Work) -> None:
        self.table, self._rules, self._work = table, rules, work
        self.planted = self.detected = 0
        self._mechanisms: dict[int, Mechanism] = {}
        self._episodes: dict[Group, _Episode] = {}
        self._guard = threading.Lock()
        self._crew = GroupContest(table, ("low", "medium", "high"), self._live)
        self.resize, self.look = self._crew.resize, self._crew.check

    @property
    def size(self) -> int:
        """How many groups work."""
        return self._crew.size

    @property
    def operations(self) -> int:
        """How many episodes are over."""
        return self.planted

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the locks as they are now."""
        return self._crew.figures()

    def counts(self) -> dict[str, int]:
        """Return inversions planted and found in episodes that are over, by metric."""
        return {"concurrency.inversion.planted": self.planted, "concurrency.inversion.detected": self.detected}

    def close(self) -> None:
        """Stop all and wait for them; raises what went wrong."""
        for mechanism in list(self._mechanisms.values()):
            mechanism.close()
        self._crew.close()

    def _live(self, group: Group, place: int) -> None:
        task = group.tasks[place]
        task.priority = PRIORITIES[place]
        with self._guard:
            if group.number not in self._mechanisms:
                self._mechanisms[group.number] = NiceMechanism(group.number) if self._rules.by_nice else RunQueue()
            episode = self._episodes.setdefault(group, _Episode(self._mechanisms[group.number]))
        episode.mechanism.adopt(task)
        play = (self._low, self._medium, self._high)[place]
        while True:
            play(group, task, episode)
            group.meet()
            if place == 2:
                self._judge(episode)
            group.rest(REST_S)
            group.meet()

    def _low(self, group: Group, task: Task, episode: _Episode) -> None:
        lock = self.table.lock(f"{group.number}", by_priority=True, lend=episode.mechanism.lend if self._rules.inheritance else None)
        lock.acquire(task)
        try:
            self._note(episode, "got", task)
            group.meet()  # the lock is held: the others may begin
            while not (lock.waiters and episode.begun.is_set()):  # so that an inversion is planted for certain
                group.rest(LOOK_S)
            with episode.mechanism.ready(task):
                self._compute(group, task, episode, self._rules.hold_s)
            self._note(episode, "released", task)
        finally:
            lock.release(task)

    def _medium(self, group: Group, task: Task, episode: _Episode) -> None:
        group.meet()
        while not episode.asked.wait(LOOK_S):
            group.rest(0.0)
        with episode.mechanism.ready(task):
            episode.begun.set()
            self._compute(group, task, episode, self._rules.burst_s)

    def _high(self, group: Group, task: Task, episode: _Episode) -> None:
        group.meet()
        self._note(episode, "asked", task)
        episode.asked.set()
        lock = self.table.lock(f"{group.number}")
        lock.acquire(task)
        try:
            self._note(episode, "got", task)
            self._note(episode, "released", task)
        finally:
            lock.release(task)

    def _compute(self, group: Group, task: Task, episode: _Episode, cpu_s: float) -> None:
        """Use so much CPU time, in slices of about a millisecond; the task is ready."""
        rounds, used_s = ROUNDS, 0.0
        while used_s < cpu_s:
            if group.stop.is_set():
                raise StoppedError
            with episode.mechanism.turn(task):
                before_ns = thread_cpu_ns()
                self._work(rounds, task.priority)
                slice_s = (thread_cpu_ns() - before_ns) / SECOND_NS
            self._note(episode, "ran", task)
            used_s += slice_s
            rounds = next_rounds(rounds, slice_s)

    def _note(self, episode: _Episode, kind: EventKind, task: Task) -> None:
        episode.log.append(LockEvent(self.table.clock.boot_ns(), kind, task.name, task.priority))

    def _judge(self, episode: _Episode) -> None:
        """Look for inversions in the episode's log, and begin a new one."""
        found = inversions(sorted(episode.log, key=lambda event: event.at_ns), self._rules.bound_s)
        with self._guard:
            self.planted += 1
            self.detected += len(found)
        episode.log.clear()
        episode.asked.clear()
        episode.begun.clear()


class PriorityInversion(ContestLoad):
    """Runs in a load process."""

    def contest(self, meters: LockMeters) -> Contest:
        """Return the groups, with their work compiled."""
        options = RECORD.resolve_options(self.operation.options)
        rules = InversionRules(
            hold_s=float(options["hold_s"]),
            burst_s=float(options["burst_s"]),
            bound_s=float(options["bound_s"]),
            inheritance=bool(options["inheritance"]),
            by_nice=options["mechanism"] == "nice",
        )
        return Triples(LockTable(self._watch.clock, meters.wait, meters.hold), rules, kernels.load_function("integer"))


def _reserves(peak: float, operation: Operation, _: Capacity) -> Amounts:
    """Return three threads and a lock for each group, and the mean of the cores that it computes on."""
    options = RECORD.resolve_options(operation.options)
    busy_s = float(options["hold_s"]) + float(options["burst_s"])
    return threads_and_locks(peak, 3, 1).plus(Amounts(cpu_cores=peak * busy_s / (busy_s + REST_S)))


def _supported(facts: NodeFacts) -> Capability:
    if not facts.has_numba:
        return NO_KERNELS
    if not facts.may_raise_nice:
        return Capability(
            "fallback", "raising a nice value needs CAP_SYS_NICE: mechanism=queue works, mechanism=nice does not", "CAP_SYS_NICE"
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="PriorityInversion",
    family="concurrency",
    summary="Has urgent threads wait for humble ones that do not get to run.",
    units=("count",),
    resource="cpu_cores",
    meter="thread_triples",
    measure="groups of three threads that the kernel shows of the load process above those before its start",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option(
            "mechanism",
            "choice",
            "queue",
            "what gives threads a priority. queue: a run queue in user space; nice: nice values of threads on one core",
            ("queue", "nice"),
        ),
        Option("inheritance", "flag", False, "whether the holder has its most urgent waiter's priority until it releases the lock"),
        Option("hold_s", "duration", 0.02, "CPU time for which the low thread works with the lock", low=0.001, high=10.0),
        Option("burst_s", "duration", 0.3, "CPU time that the medium thread takes meanwhile", low=0.001, high=60.0),
        Option("bound_s", "duration", 0.1, "how long the high thread may wait until that counts as an inversion", low=0.001, high=60.0),
    ),
    supported=_supported,
    metrics=(*LOCK_METRICS, "concurrency.inversion.planted", "concurrency.inversion.detected"),
    needs="numba, or its kept kernels",
    entry="concurrency.inversion:PriorityInversion",
    reserves=_reserves,
)
