"""One core, tasks with priorities and one lock, on a virtual clock: what a priority inversion is without a machine's noise. Deterministic.

The scheduler is preemptive: of the tasks that are ready one of the highest urgency runs, of equals the first by name. Its log is what
`detection.inversions` reads, the same as the log of real threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..clock import SECOND_NS, VirtualClock
from .detection import LockEvent
from .run_queue import HIGH, LOW, MEDIUM


@dataclass(frozen=True, slots=True)
class Script:
    """A task that comes at `start_s` and runs for `before_s`, then for `locked_s` with the lock where that is more than nothing."""

    task: str
    priority: int
    start_s: float
    before_s: float = 0.0
    locked_s: float = 0.0


def episode(number: int, at_s: float, hold_s: float, burst_s: float) -> tuple[Script, ...]:
    """Return one planted inversion: low takes the lock, high wants it a fifth of the hold later, and medium then bursts."""
    return (
        Script(f"{number}.low", LOW, at_s, locked_s=hold_s),
        Script(f"{number}.high", HIGH, at_s + hold_s / 5, locked_s=hold_s / 10),
        Script(f"{number}.medium", MEDIUM, at_s + hold_s / 4, before_s=burst_s),
    )


@dataclass(slots=True)
class _Running:
    script: Script
    start_ns: int
    before_ns: int
    locked_ns: int
    is_waiting: bool = False
    lent: int = 0

    @property
    def urgency(self) -> int:
        return max(self.script.priority, self.lent)

    @property
    def is_over(self) -> bool:
        return not self.before_ns and not self.locked_ns

    def left_ns(self) -> int:
        return self.before_ns or self.locked_ns


@dataclass(slots=True)
class Core:
    """The core and its lock. `run` gives the log."""

    clock: VirtualClock
    inheritance: bool
    log: list[LockEvent] = field(default_factory=list)
    _holder: _Running | None = None
    _waiters: list[_Running] = field(default_factory=list)

    def run(self, scripts: Sequence[Script]) -> list[LockEvent]:
        """Run all scripts to their end; times count from the clock's now."""
        begun_ns = self.clock.boot_ns()
        tasks = [
            _Running(one, begun_ns + round(one.start_s * SECOND_NS), round(one.before_s * SECOND_NS), round(one.locked_s * SECOND_NS))
            for one in scripts
        ]
        while any(not task.is_over for task in tasks):
            now_ns = self.clock.boot_ns()
            coming = [task.start_ns for task in tasks if task.start_ns > now_ns]
            ready = [task for task in tasks if task.start_ns <= now_ns and not task.is_over and not task.is_waiting]
            if not ready:
                self.clock.now_ns = min(coming)
                continue
            task = min(ready, key=lambda one: (-one.urgency, one.script.task))
            if self._may_run(task):
                self._run(task, min((at_ns - now_ns for at_ns in coming), default=task.left_ns()))
        return self.log

    def _may_run(self, task: _Running) -> bool:
        """Take the lock where the task needs it now; tell whether it can run on."""
        if task.before_ns or self._holder is task:
            return True
        self._tell("asked", task)
        if self._holder is None:
            self._give(task)
            return True
        task.is_waiting = True
        self._waiters.append(task)
        if self.inheritance:
            self._holder.lent = max(self._holder.lent, task.urgency)
        return False

    def _run(self, task: _Running, most_ns: int) -> None:
        span_ns = min(task.left_ns(), most_ns)
        self._tell("ran", task)
        self.clock.now_ns += span_ns
        if task.before_ns:
            task.before_ns -= span_ns
            return
        task.locked_ns -= span_ns
        if not task.locked_ns:
            self._tell("released", task)
            self._holder, task.lent = None, 0
            if self._waiters:
                heir = max(self._waiters, key=lambda one: one.urgency)
                self._waiters.remove(heir)
                heir.is_waiting = False
                self._give(heir)

    def _give(self, task: _Running) -> None:
        self._holder = task
        if self.inheritance and self._waiters:
            task.lent = max(waiter.urgency for waiter in self._waiters)
        self._tell("got", task)

    def _tell(self, kind: str, task: _Running) -> None:
        self.log.append(LockEvent(self.clock.boot_ns(), kind, task.script.task, task.script.priority))  # type: ignore[arg-type]  # one of its words
