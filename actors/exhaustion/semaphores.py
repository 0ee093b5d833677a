"""Semaphores: uses up the semaphore sets of System V, until a further `semget` finds no room (ENOSPC).

Such sets outlive their process, so the load process leaves the host's IPC namespace before it begins: its sets end with it, and nothing
outside is short of them. What is tested there enters the namespace (`nsenter --ipc --target PID`).
"""

from __future__ import annotations

import ctypes
import math
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import namespaces
from ..lease import LeaseWatch
from ..limits import PROC
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts

IPC_PRIVATE: Final = 0  # these three: linux/ipc.h
IPC_CREAT: Final = 0o1000
IPC_RMID: Final = 0
_LIMITS: Final = "sys/kernel/sem"


def limit_sets(most: int, proc: Path = PROC) -> None:
    """Let this IPC namespace have at most so many sets; the kernel's default where 0 is asked. Raises `OSError`."""
    if most:
        semaphores, whole, operations, _ = (proc / _LIMITS).read_text().split()
        (proc / _LIMITS).write_text(f"{semaphores} {whole} {operations} {most}")


class SemaphoreSets:
    """Sets of one semaphore each. Used by one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._held: list[int] = []

    @property
    def held(self) -> int:
        """How many there are."""
        return len(self._held)

    def open(self) -> None:
        """Make the namespace, and give it as many sets as asked. Raises `OSError`."""
        namespaces.leave(namespaces.CLONE_NEWIPC, "an IPC namespace")
        limit_sets(self._most)

    def take(self, count: int) -> None:
        """Make so many more; raises `OSError` (ENOSPC when the namespace has no more, ENOMEM)."""
        for _ in range(count):
            made = self._libc.semget(IPC_PRIVATE, 1, IPC_CREAT | stat.S_IRUSR | stat.S_IWUSR)
            if made < 0:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot make a semaphore set: {os.strerror(code)}")
            self._held.append(made)

    def give_back(self, count: int) -> None:
        """Remove the last ones."""
        for _ in range(count):
            self._libc.semctl(self._held.pop(), 0, IPC_RMID)

    def figures(self) -> dict[str, float]:
        """Return nothing: a set that was removed leaves nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    return Holding(SemaphoreSets(int(options["sets"])), operation, capacity, watch, segment_path, descriptors_each=0)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(locks=math.ceil(peak), memory_bytes=math.ceil(peak) * tuning.used.set_overhead_bytes)


def _supported(facts: NodeFacts) -> Capability:
    if "CAP_SYS_ADMIN" not in facts.capabilities:
        return Capability(
            "unavailable", "making an IPC namespace needs CAP_SYS_ADMIN", "run as root, or give the container that capability"
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Semaphores",
    family="exhaustion",
    summary="Uses up the System V semaphore sets of an IPC namespace of its own; the host keeps all of its own.",
    units=("count",),
    resource="locks",
    meter="semaphore_sets",
    measure="semaphore sets in the load process's IPC namespace less those before the start, read inside it",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("sets", "integer", 0, "how many sets the namespace may have; 0 for the kernel's default", low=0, high=32_000),
        *holding_options("Semaphores"),
    ),
    supported=_supported,
    metrics=METRICS,
    needs="CAP_SYS_ADMIN",
    entry="exhaustion.semaphores:make",
    reserves=_reserves,
)
