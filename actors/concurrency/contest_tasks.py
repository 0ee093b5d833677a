"""Contenders as asyncio tasks on `asyncio.Lock`, in one event loop of the load process.

The kernel sees nothing of a task. Each one holds an event descriptor while it works, as a task that serves somebody holds a connection:
that is what is counted from outside. The event loop wakes in whole milliseconds, so that holds of about one end together and more
acquisitions are contended than the model has it: a few in a hundred at a mean of 1 ms, none to be seen at 5 ms.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ..clock import SECOND_NS
from ..errors import HarnessError
from .contest import ContestSettings
from .contest_threads import check_protected
from .locks import LockFigures

LEAVE_S: Final = 5.0


class _CountedLock:
    """An `asyncio.Lock` with counts. Used by one event loop only, so nothing guards them."""

    def __init__(self, name: str, settings: ContestSettings) -> None:
        self._name, self._settings, self._lock = name, settings, asyncio.Lock()
        self._acquisitions = self._contended = self._waiters = self._since_ns = 0
        self._holder = ""

    @asynccontextmanager
    async def held_by(self, task: str) -> AsyncIterator[None]:
        """Hold it, waiting for it first if it is held or others wait."""
        clock = self._settings.clock
        asked_ns, is_contended = clock.boot_ns(), self._lock.locked() or self._waiters > 0
        if is_contended:
            self._contended += 1
            self._waiters += 1
        try:
            await self._lock.acquire()
        finally:
            if is_contended:
                self._waiters -= 1
                self._settings.on_wait((clock.boot_ns() - asked_ns) / SECOND_NS)
        self._acquisitions, self._holder, self._since_ns = self._acquisitions + 1, task, clock.boot_ns()
        try:
            yield
        finally:
            self._settings.on_hold((clock.boot_ns() - self._since_ns) / SECOND_NS)
            self._holder = ""
            self._lock.release()

    def figures(self, tid: int) -> LockFigures:
        """Return it as it is now."""
        held_s = (self._settings.clock.boot_ns() - self._since_ns) / SECOND_NS if self._holder else 0.0
        return LockFigures(self._name, self._acquisitions, self._contended, self._waiters, self._holder, tid if self._holder else 0, held_s)


class TaskContest:
    """Tasks that contend. Their event loop has a thread of its own, which lives from the beginning, so that it counts into no dose."""

    def __init__(self, settings: ContestSettings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._shared = _CountedLock("shared", settings)
        self._own: dict[int, _CountedLock] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._trouble: BaseException | None = None
        self.counter = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="tasks", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        """How many contenders work."""
        return len(self._tasks)

    @property
    def operations(self) -> int:
        """How often a lock was acquired."""
        return sum(lock.acquisitions for lock in self.figures())

    def resize(self, count: int) -> None:
        """Have so many contenders, by the next turn of the event loop."""
        self._loop.call_soon_threadsafe(self._resize, count)

    def look(self) -> None:
        """Raise the first error of any contender."""
        if self._trouble is not None:
            raise self._trouble

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the shared lock, then each contender's own."""
        tid = self._thread.native_id or 0
        return tuple(lock.figures(tid) for lock in (self._shared, *list(self._own.values())))

    def counts(self) -> dict[str, int]:
        """Return nothing: all that it counts is its locks'."""
        return {}

    def close(self) -> None:
        """Stop all and the event loop; raises what went wrong."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(LEAVE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LEAVE_S)
            if self._thread.is_alive():
                raise HarnessError("internal", f"the event loop did not end within {LEAVE_S:g} s")
            self._loop.close()
        self.look()
        check_protected(self.counter, self.figures())

    def _resize(self, count: int) -> None:
        for number in [number for number in self._tasks if number >= count]:
            self._tasks[number].cancel()
        for number in range(count):
            if number not in self._tasks:
                self._own.setdefault(number, _CountedLock(f"own-{number}", self._settings))
                task = self._loop.create_task(self._contend(number))
                self._tasks[number] = task
                task.add_done_callback(functools.partial(self._ended, number))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._trouble = self._trouble or error

    async def _leave(self) -> None:
        self._resize(0)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _contend(self, number: int) -> None:
        draws, name = self._settings.draws(number), f"contender-{number}"
        seen_by = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            while True:
                is_shared, hold_s = draws.next()
                async with (self._shared if is_shared else self._own[number]).held_by(name):
                    before = self.counter
                    try:
                        await asyncio.sleep(hold_s)
                    finally:
                        if is_shared:
                            self.counter = before + 1
        finally:
            os.close(seen_by)
