"""Two ways to give tasks a priority, which CPython's threads do not have: the kernel's nice values, or a run queue in user space.

nice     each thread at a nice value for its priority, all of a group on one core; raising one needs CAP_SYS_NICE
queue    a thread runs its slices only while no thread of higher priority is ready; works everywhere, exact to a slice

Both follow a priority that is lent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from ..errors import RefusedError
from .locks import Task

LOW, MEDIUM, HIGH = 1, 2, 3
NICE: Final = {LOW: 19, MEDIUM: 0, HIGH: -10}  # shares of a busy core: 15, 1,024 and 9,548 (kernel/sched/core.c, sched_prio_to_weight)


class Mechanism(Protocol):
    """How priority acts. Every call but `lend` comes from the task's own thread."""

    def adopt(self, task: Task) -> None:
        """Put the calling thread under this mechanism. Raises `RefusedError` (`capability`) where that is not permitted."""
        ...

    def lend(self, task: Task) -> None:
        """Follow a change of a task's urgency; from any thread, must not wait."""
        ...

    @contextmanager
    def ready(self, task: Task) -> Iterator[None]:
        """Want to run, for the block."""
        ...

    @contextmanager
    def turn(self, task: Task) -> Iterator[None]:
        """Run one slice, once it is this task's turn; within `ready` only."""
        ...

    def close(self) -> None:
        """Let everybody run."""
        ...


class NiceMechanism:
    """Threads of one group on one core, at nice values."""

    def __init__(self, number: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self._core = cores[number % len(cores)]

    def adopt(self, task: Task) -> None:
        """Pin the calling thread to the group's core and set its nice value."""
        os.sched_setaffinity(0, {self._core})
        try:
            self.lend(task)
        except PermissionError as error:
            raise RefusedError(
                "capability", f"nice {NICE[task.urgency]} for {task.name} is not permitted", "it needs CAP_SYS_NICE; or mechanism='queue'"
            ) from error

    def lend(self, task: Task) -> None:
        """Give the thread the nice value of its urgency."""
        os.setpriority(os.PRIO_PROCESS, task.tid, NICE[task.urgency])

    @contextmanager
    def ready(self, task: Task) -> Iterator[None]:  # noqa: ARG002  # the kernel sees it
        """Do nothing: the kernel sees who is ready."""
        yield

    @contextmanager
    def turn(self, task: Task) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: the kernel decides who runs."""
        yield

    def close(self) -> None:
        """Do nothing."""


class RunQueue:
    """One core in user space: of those that are ready, one of the highest urgency runs a slice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: list[Task] = []
        self._running: Task | None = None
        self._is_open = False

    def adopt(self, task: Task) -> None:
        """Do nothing: a task is known once it is ready."""

    def lend(self, task: Task) -> None:  # noqa: ARG002  # urgency is read anew at each turn
        """Have everybody look again."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def ready(self, task: Task) -> Iterator[None]:
        """Be in the queue."""
        with self._changed:
            self._ready.append(task)
        try:
            yield
        finally:
            with self._changed:
                self._ready.remove(task)
                self._changed.notify_all()

    @contextmanager
    def turn(self, task: Task) -> Iterator[None]:
        """Wait until no other runs and none that is ready is more urgent, and run."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._is_turn_of(task))
            self._running = task
        try:
            yield
        finally:
            with self._changed:
                self._running = None
                self._changed.notify_all()

    def _is_turn_of(self, task: Task) -> bool:
        return self._running is None and task.urgency >= max(one.urgency for one in self._ready)

    def close(self) -> None:
        """Let everybody run, for the end."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()
