"""Loads of groups of threads that meet at locks of their own: the part that deadlocks, livelocks and inversions share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from ..errors import HarnessError
from .crew import Crew, Unit
from .locks import ClosedError, LockFigures, LockTable, Task


class StoppedError(Exception):
    """The group is to stop: its threads leave their rounds."""


@dataclass(slots=True, eq=False)
class Group:
    """The threads of one unit. `meet` has them wait for each other."""

    number: int
    tasks: tuple[Task, ...]
    stop: threading.Event = field(default_factory=threading.Event)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(len(self.tasks))

    def meet(self) -> None:
        """Wait until all threads of the group are here. Raises `StoppedError` when it is to stop instead."""
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise StoppedError from error

    def rest(self, duration_s: float) -> None:
        """Wait. Raises `StoppedError` when the group is to stop, at once."""
        if self.stop.wait(duration_s):
            raise StoppedError


class GroupContest:
    """Groups of so many threads; each thread lives `live(group, place)`. What one raises ends the whole load with it."""

    def __init__(self, table: LockTable, places: tuple[str, ...], live: Callable[[Group, int], None]) -> None:
        self.table = table
        self._places, self._live = places, live
        self._groups: dict[int, Group] = {}
        self._crew = Crew(self._unit)

    @property
    def size(self) -> int:
        """How many groups work."""
        return self._crew.size

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that were made last, by number."""
        return tuple(self._groups.values())

    def resize(self, count: int) -> None:
        """Have so many groups."""
        self._crew.resize(count)

    def check(self) -> None:
        """Raise the first error of any thread."""
        self._crew.check()

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the locks as they are now."""
        return self.table.figures()

    def close(self) -> None:
        """Stop all and wait for them; raises what went wrong, and `HarnessError` where a lock is still held."""
        self.table.close()
        self._crew.close()
        self._crew.check()
        if held := [lock.name for lock in self.figures() if lock.holder]:
            raise HarnessError("internal", f"still held at the end: {', '.join(held)}")

    def _unit(self, number: int) -> Unit:
        group = self._groups[number] = Group(number, tuple(Task(f"{number}.{place}") for place in self._places))
        return Unit(tuple(self._body(group, place) for place in range(len(self._places))), lambda: self._stop(group))

    def _stop(self, group: Group) -> None:
        group.stop.set()
        group.barrier.abort()
        for task in group.tasks:
            self.table.refuse(task.name, ClosedError(f"{task.name} is no longer asked for"))

    def _body(self, group: Group, place: int) -> Callable[[], None]:
        def body() -> None:
            group.tasks[place].tid = threading.get_native_id()
            try:
                with suppress(StoppedError, ClosedError):  # asked to leave
                    self._live(group, place)
            finally:  # whoever leaves, for whatever reason, leaves nobody waiting
                self._stop(group)

        return body
