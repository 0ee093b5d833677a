"""Contenders as threads of the load process, on locks that block in the kernel."""

from __future__ import annotations

import threading

from ..errors import HarnessError
from .contest import ContestSettings
from .crew import Crew, Unit
from .locks import ClosedError, LockFigures, LockTable, Task


class ThreadContest:
    """Threads that contend. Nothing but the shared lock protects `counter`, so it equals its acquisitions only if it is a lock."""

    def __init__(self, settings: ContestSettings) -> None:
        self._settings = settings
        self._table = LockTable(settings.clock, settings.on_wait, settings.on_hold)
        self._shared = self._table.lock("shared")
        self._crew = Crew(self._unit)
        self.counter = 0

    @property
    def size(self) -> int:
        """How many contenders work."""
        return self._crew.size

    @property
    def operations(self) -> int:
        """How often a lock was acquired."""
        return sum(lock.acquisitions for lock in self._table.locks.values())

    def resize(self, count: int) -> None:
        """Have so many contenders."""
        self._crew.resize(count)

    def look(self) -> None:
        """Raise the first error of any contender."""
        self._crew.check()

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the shared lock, then each contender's own."""
        return self._table.figures()

    def counts(self) -> dict[str, int]:
        """Return nothing: all that it counts is its locks'."""
        return {}

    def close(self) -> None:
        """Stop all; raises what went wrong, and `HarnessError` where the lock did not protect what it should."""
        self._table.close()
        self._crew.close()
        self._crew.check()
        check_protected(self.counter, self._table.figures())

    def _unit(self, number: int) -> Unit:
        task, stop, table = Task(f"contender-{number}"), threading.Event(), self._table

        def leave() -> None:
            stop.set()
            table.refuse(task.name, ClosedError(f"{task.name} is no longer asked for"))

        return Unit((lambda: self._contend(number, task, stop),), leave)

    def _contend(self, number: int, task: Task, stop: threading.Event) -> None:
        draws, own = self._settings.draws(number), self._table.lock(f"own-{number}")
        task.tid = threading.get_native_id()
        while not stop.is_set():
            is_shared, hold_s = draws.next()
            lock = self._shared if is_shared else own
            try:
                lock.acquire(task)
            except ClosedError:
                return
            try:
                before = self.counter if is_shared else 0
                stop.wait(hold_s)
                if is_shared:
                    self.counter = before + 1
            finally:
                lock.release(task)


def check_protected(counter: int, locks: tuple[LockFigures, ...]) -> None:
    """Raise `HarnessError` (`internal`) unless what the shared lock, the first one, protects was changed once in each acquisition of it."""
    shared = locks[0]
    if counter != shared.acquisitions:
        raise HarnessError("internal", f"{shared.acquisitions} acquisitions of {shared.name} made its counter {counter}: it let two in")
    held = [lock.name for lock in locks if lock.holder]
    if held:
        raise HarnessError("internal", f"still held at the end: {', '.join(held)}")
