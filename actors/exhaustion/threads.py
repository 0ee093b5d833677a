"""Threads: holds threads of the kernel that wait for their end on a small stack. They end with their process."""

from __future__ import annotations

import _thread
import errno
import math
import mmap
import threading
from typing import TYPE_CHECKING, Final

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts


class Waiters:
    """Threads, each of which waits for a lock of its own."""

    def __init__(self, stack_bytes: int) -> None:
        self._stack_bytes = -(-stack_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._held: list[_thread.LockType] = []

    @property
    def held(self) -> int:
        """How many wait."""
        return len(self._held)

    def open(self) -> None:
        """Set the stack of threads to come; this process makes no others."""
        threading.stack_size(self._stack_bytes)

    def take(self, count: int) -> None:
        """Start so many more; raises `OSError` (EAGAIN, the only refusal that pthread_create has of a limit)."""
        for _ in range(count):
            gate = _thread.allocate_lock()
            gate.acquire()
            try:
                _thread.start_new_thread(gate.acquire, ())
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, str(error)) from error
            self._held.append(gate)

    def give_back(self, count: int) -> None:
        """Let the last ones end."""
        for _ in range(count):
            self._held.pop().release()

    def figures(self) -> dict[str, float]:
        """Return nothing: a thread that ended leaves nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    return Holding(Waiters(int(options["stack_bytes"])), operation, capacity, watch, segment_path)


def _reserves(peak: float, operation: Operation, _: Capacity) -> Amounts:
    stack = int(RECORD.resolve_options(operation.options)["stack_bytes"])
    count = math.ceil(peak)
    return Amounts(tasks=count, memory_bytes=count * (stack + tuning.used.thread_overhead_bytes))


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Threads",
    family="exhaustion",
    summary="Holds waiting threads of the kernel in one process.",
    units=("count", "fraction"),
    resource="tasks",
    meter="threads",
    measure="threads of the load process as the kernel counts them, less those before the start; a fraction is of the tasks there may be",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option(
            "stack_bytes",
            "bytes",
            tuning.used.stack_bytes,
            "stack of each thread, rounded up to whole pages",
            low=32 << 10,
            high=64 << 20,
        ),
        *holding_options("Threads"),
    ),
    supported=_supported,
    metrics=METRICS,
    entry="exhaustion.threads:make",
    reserves=_reserves,
)
