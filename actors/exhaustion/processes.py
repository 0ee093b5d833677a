"""Processes: holds child processes that wait. The kernel kills each with the thread that made it, so none outlives the load."""

from __future__ import annotations

import math
import os
import signal
from typing import TYPE_CHECKING, Final, NoReturn

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..proc import die_with_parent
from ..simulator import AVAILABLE, Capability, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts


def _wait_for_the_end(parent_pid: int) -> NoReturn:
    """Be a child: tied to its parent, doing nothing until it is killed."""
    try:
        die_with_parent(parent_pid)
        while True:
            signal.pause()
    finally:  # whatever happens, a child never returns into the load
        os._exit(1)


class Children:
    """Waiting children of this process. All are made by the thread that calls `take`."""

    def __init__(self) -> None:
        self._held: list[int] = []

    @property
    def held(self) -> int:
        """How many live; one that was killed by others is buried here and counts no more."""
        while self._held:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            self._held.remove(pid)
        return len(self._held)

    def open(self) -> None:
        """Need nothing beforehand."""

    def take(self, count: int) -> None:
        """Fork so many more; raises `OSError` (EAGAIN, ENOMEM)."""
        parent_pid = os.getpid()
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                _wait_for_the_end(parent_pid)
            self._held.append(pid)

    def give_back(self, count: int) -> None:
        """Kill the last ones, and wait for each: no zombie stays."""
        ending = [self._held.pop() for _ in range(count)]
        for pid in ending:
            os.kill(pid, signal.SIGKILL)
        for pid in ending:
            os.waitpid(pid, 0)

    def figures(self) -> dict[str, float]:
        """Return nothing: children that were waited for leave nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    return Holding(Children(), operation, capacity, watch, segment_path)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(tasks=math.ceil(peak), memory_bytes=math.ceil(peak) * tuning.used.child_bytes)


def _supported(facts: NodeFacts) -> Capability:
    if not facts.lists_children:
        return Capability(
            "unavailable",
            "the kernel does not list the children of a process (CONFIG_PROC_CHILDREN): no dose could be measured",
            "a kernel with CONFIG_PROC_CHILDREN",
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Processes",
    family="exhaustion",
    summary="Holds waiting child processes.",
    units=("count", "fraction"),
    resource="tasks",
    meter="children",
    measure="children of the load process less those before the start; a fraction is of the tasks that there may be",
    tolerance=0.02,
    look_ms=50,
    options=holding_options("Processes"),
    supported=_supported,
    metrics=METRICS,
    undo="the kernel kills each child with the load (PDEATHSIG), and the guardian ends its session and control group",
    entry="exhaustion.processes:make",
    reserves=_reserves,
)
