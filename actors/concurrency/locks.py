"""Locks that count: who holds them, who waits, since when, how often and how long. Waiters block in the kernel, each on a lock of its own.

A lock is handed over by its holder's release, to the task that has waited longest or, in a lock by priority, to the most urgent one; so a
task that asks while others wait never overtakes them, and what counts as contended is exact: the lock was held when it was asked for. All
locks of one load are in a `LockTable`, whose one inner lock guards every count; it is held for microseconds and never while waiting.
Who may wait for whom is asked of the table (`waits`), and a waiter can be refused from outside: its `acquire` then raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..clock import SECOND_NS, Clock

WAIT_MAX_S: Final = threading.TIMEOUT_MAX


class LockError(Exception):
    """A lock was not given. What it says names the task, the lock and its holder."""


class DeadlockError(LockError):
    """The task waits in a circle, which `circle` names, and was chosen to give way."""

    def __init__(self, message: str, circle: tuple[str, ...]) -> None:
        super().__init__(message, circle)
        self.message, self.circle = message, circle

    def __str__(self) -> str:
        return self.message


class LockTimeoutError(LockError):
    """The lock was not given within the time allowed."""


class ClosedError(LockError):
    """The load ends: nobody waits any more."""


@dataclass(slots=True, eq=False)
class Task:
    """One contender. The higher `priority` is the more urgent; `tid` is the kernel's number of its thread, known once it runs."""

    name: str
    priority: int = 0
    tid: int = 0
    inherited: int | None = None  # the priority that a waiter has lent it

    @property
    def urgency(self) -> int:
        """Return the priority that counts now."""
        return self.priority if self.inherited is None else max(self.priority, self.inherited)


@dataclass(slots=True, eq=False)
class _Waiter:
    """One task that waits; `gate` is held until its wait is over."""

    task: Task
    since_ns: int
    gate: threading.Lock = field(default_factory=threading.Lock)
    is_granted: bool = False
    refusal: LockError | None = None


@dataclass(frozen=True, slots=True)
class LockFigures:
    """One lock as it is now: counts since it was made, and who holds it for how long. `holder_tid` is 0 while it is free."""

    name: str
    acquisitions: int
    contended: int
    waiters: int
    holder: str
    holder_tid: int
    held_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """What one task waits for, and since when."""

    lock: str
    holder: str
    since_ns: int


class LockTable:
    """The locks of one load. Thread safe. `on_hold` takes the seconds of each hold, `on_wait` those of each wait that had an end."""

    def __init__(
        self, clock: Clock, on_wait: Callable[[float], object] = lambda _: None, on_hold: Callable[[float], object] = lambda _: None
    ) -> None:
        self.clock, self.on_wait, self.on_hold = clock, on_wait, on_hold
        self.guard = threading.Lock()
        self.locks: dict[str, CountedLock] = {}
        self.is_closed = False

    def lock(self, name: str, *, by_priority: bool = False, lend: Callable[[Task], object] | None = None) -> CountedLock:
        """Return the lock of this name, made if it is new.

        `lend`: its waiters lend their priority to its holder until it releases; it is called with the task whose urgency has changed,
        while the table is guarded, so it must not ask the table.
        """
        with self.guard:
            if name not in self.locks:
                self.locks[name] = CountedLock(self, name, by_priority=by_priority, lend=lend)
            return self.locks[name]

    def figures(self) -> tuple[LockFigures, ...]:
        """Return all locks as they are at one instant."""
        with self.guard:
            now_ns = self.clock.boot_ns()
            return tuple(lock.figures(now_ns) for lock in self.locks.values())

    def waits(self) -> dict[str, Wait]:
        """Return who waits for whom at one instant, by task. A task has one lock to wait for, and a lock one holder."""
        with self.guard:
            return {
                waiter.task.name: Wait(lock.name, lock.holder.name, waiter.since_ns)
                for lock in self.locks.values()
                if lock.holder is not None
                for waiter in lock.waiters
            }

    def refuse(self, task: str, error: LockError) -> bool:
        """End a task's wait with this error; tell whether it still waited."""
        with self.guard:
            for lock in self.locks.values():
                for waiter in lock.waiters:
                    if waiter.task.name == task:
                        lock.turn_away(waiter, error)
                        return True
        return False

    def close(self) -> None:
        """End every wait, and let nobody wait from now on: both raise `ClosedError`. Who holds a lock still releases it."""
        with self.guard:
            self.is_closed = True
            for lock in self.locks.values():
                for waiter in list(lock.waiters):
                    lock.turn_away(waiter, ClosedError(f"{waiter.task.name} waited for {lock.name} as the load ended"))


class CountedLock:
    """One lock of a table. Not reentrant: a task that asks for what it holds waits for itself."""

    def __init__(self, table: LockTable, name: str, *, by_priority: bool, lend: Callable[[Task], object] | None) -> None:
        self.name, self._table, self._by_priority, self._lend = name, table, by_priority, lend
        self.holder: Task | None = None
        self.waiters: list[_Waiter] = []  # in the order in which they came
        self.acquisitions = 0
        self.contended = 0
        self._since_ns = 0

    def acquire(self, task: Task, timeout_s: float | None = None) -> float:
        """Take the lock, waiting for it if it is held; return the seconds waited, 0 where it was free.

        Raises `LockTimeoutError` after `timeout_s`, `ClosedError` at the load's end, and whatever `LockTable.refuse` was given.
        """
        table = self._table
        with table.guard:
            if table.is_closed:
                raise ClosedError(f"{task.name} asked for {self.name} as the load ended")
            now_ns = table.clock.boot_ns()
            if self.holder is None:
                self._give(task, now_ns)
                return 0.0
            self.contended += 1
            waiter = self._queue(task, now_ns)
        waiter.gate.acquire(timeout=WAIT_MAX_S if timeout_s is None else timeout_s)
        return self._end_wait(waiter)

    def try_acquire(self, task: Task) -> bool:
        """Take the lock if it is free; a try that fails counts as contended. Raises `ClosedError` at the load's end."""
        table = self._table
        with table.guard:
            if table.is_closed:
                raise ClosedError(f"{task.name} asked for {self.name} as the load ended")
            if self.holder is not None:
                self.contended += 1
                return False
            self._give(task, table.clock.boot_ns())
            return True

    def _queue(self, task: Task, now_ns: int) -> _Waiter:
        waiter = _Waiter(task, now_ns)
        waiter.gate.acquire()
        self.waiters.append(waiter)
        self._lend_on()
        return waiter

    def _end_wait(self, waiter: _Waiter) -> float:
        """Return how long a wait took, or raise why it was in vain."""
        table = self._table
        with table.guard:
            waited_s = (table.clock.boot_ns() - waiter.since_ns) / SECOND_NS
            if not waiter.is_granted and waiter.refusal is None:
                holder = self.holder.name if self.holder else "nobody"
                late = LockTimeoutError(f"{waiter.task.name} was not given {self.name} within {waited_s:.2f} s; {holder} holds it")
                self.turn_away(waiter, late)
        table.on_wait(waited_s)
        if waiter.refusal is not None:
            raise waiter.refusal
        return waited_s

    def release(self, task: Task) -> None:
        """Give the lock to the next waiter, or free it. Only its holder may."""
        table = self._table
        with table.guard:
            assert self.holder is task, f"{task.name} releases {self.name}, which {self.holder} holds"
            now_ns = table.clock.boot_ns()
            held_s = (now_ns - self._since_ns) / SECOND_NS
            self.holder = None
            if task.inherited is not None and self._lend is not None:
                task.inherited = None
                self._lend(task)
            if self.waiters:
                waiter = self.waiters.pop(self._next())
                waiter.is_granted = True
                self._give(waiter.task, now_ns)
                waiter.gate.release()
        table.on_hold(held_s)

    def _next(self) -> int:
        """Return the place of the waiter that is next: the most urgent, of equals the one that came first."""
        if not self._by_priority:
            return 0
        return max(range(len(self.waiters)), key=lambda at: (self.waiters[at].task.urgency, -at))

    def _give(self, task: Task, now_ns: int) -> None:
        self.holder, self._since_ns = task, now_ns
        self.acquisitions += 1
        self._lend_on()

    def _lend_on(self) -> None:
        """Lend the most urgent waiter's priority to the holder, where this lock does."""
        if self._lend is None or self.holder is None or not self.waiters:
            return
        most = max(waiter.task.urgency for waiter in self.waiters)
        if most > self.holder.urgency:
            self.holder.inherited = most
            self._lend(self.holder)

    def turn_away(self, waiter: _Waiter, error: LockError) -> None:
        """Take a waiter out of the queue and have its `acquire` raise. The table's guard is held."""
        self.waiters.remove(waiter)
        waiter.refusal = error
        waiter.gate.release()

    def figures(self, now_ns: int) -> LockFigures:
        """Return the lock as it is now. The table's guard is held."""
        holder = self.holder
        held_s = (now_ns - self._since_ns) / SECOND_NS if holder else 0.0
        name, tid = (holder.name, holder.tid) if holder else ("", 0)
        return LockFigures(self.name, self.acquisitions, self.contended, len(self.waiters), name, tid, held_s)
