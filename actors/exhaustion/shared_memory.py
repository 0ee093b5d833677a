"""SharedMemory: holds segments of shared memory by descriptor (memfd), which the kernel frees with their process.

Those of System V and the named ones of POSIX outlive a process that is killed, so they are not made.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..proc import allocate
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options
from .mappings import map_bytes

if TYPE_CHECKING:
    from ..capability import NodeFacts


class Segments:
    """Shared segments of one size, all of their pages resident."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = map_bytes(size_bytes)
        self._held: list[int] = []

    @property
    def held(self) -> int:
        """How many there are."""
        return len(self._held)

    def open(self) -> None:
        """Need nothing beforehand."""

    def take(self, count: int) -> None:
        """Make so many more; raises `OSError` (EMFILE, ENFILE, ENOMEM, ENOSPC)."""
        for _ in range(count):
            made = os.memfd_create("stress-cluster-shared", os.MFD_CLOEXEC)
            try:
                allocate(made, 0, self._size_bytes)
            except OSError:
                os.close(made)
                raise
            self._held.append(made)

    def give_back(self, count: int) -> None:
        """Free the last ones."""
        for _ in range(count):
            os.close(self._held.pop())

    def figures(self) -> dict[str, float]:
        """Return nothing: a segment without a descriptor is gone."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    return Holding(Segments(int(options["size_bytes"])), operation, capacity, watch, segment_path, descriptors_each=1)


def _reserves(peak: float, operation: Operation, _: Capacity) -> Amounts:
    count, size = math.ceil(peak), map_bytes(int(RECORD.resolve_options(operation.options)["size_bytes"]))
    return Amounts(descriptors=count + tuning.used.own_descriptors, memory_bytes=count * (size + tuning.used.segment_overhead_bytes))


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="SharedMemory",
    family="exhaustion",
    summary="Holds segments of shared memory that the kernel frees with their process.",
    units=("count",),
    resource="descriptors",
    meter="segments",
    measure="shared segments (memfd) that the load process has open, less those before the start",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option(
            "size_bytes",
            "bytes",
            tuning.used.segment_bytes,
            "size of each segment, rounded up to whole pages; all of it is resident",
            low=1,
            high=1 << 30,
        ),
        *holding_options("SharedMemory"),
    ),
    supported=_supported,
    metrics=METRICS,
    entry="exhaustion.shared_memory:make",
    reserves=_reserves,
)
