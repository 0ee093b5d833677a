"""Mappings: holds map entries of one load process: as many as asked, for the kernel joins equal neighbours where it can.

Private maps stay apart because every second one carries another flag (MADV_DONTDUMP); shared anonymous ones are each a file of their own.
"""

from __future__ import annotations

import errno
import math
import mmap
from typing import TYPE_CHECKING, Final

from ..lease import LeaseWatch
from ..memory import MADV_POPULATE_WRITE
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts

_FLAGS: Final = {"private": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, "shared": mmap.MAP_SHARED | mmap.MAP_ANONYMOUS}


def map_bytes(size_bytes: int) -> int:
    """Return a size in whole pages of this machine, at least one."""
    return max(1, -(-size_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE


class Maps:
    """Anonymous maps of one size; each is unmapped with the length that it was made with."""

    def __init__(self, form: str, size_bytes: int, *, touch: bool) -> None:
        self._flags, self._apart = _FLAGS[form], form == "private"
        self._size_bytes, self._touch = map_bytes(size_bytes), touch
        self._held: list[mmap.mmap] = []

    @property
    def held(self) -> int:
        """How many there are."""
        return len(self._held)

    def open(self) -> None:
        """Need nothing beforehand."""

    def take(self, count: int) -> None:
        """Map so many more; raises `OSError` (ENOMEM)."""
        for _ in range(count):
            made = mmap.mmap(-1, self._size_bytes, flags=self._flags)
            try:
                self._finish(made)
            except OSError:
                made.close()
                raise
            self._held.append(made)

    def _finish(self, made: mmap.mmap) -> None:
        if self._apart and len(self._held) % 2:
            self._set_apart(made)
        if self._touch:
            made.madvise(MADV_POPULATE_WRITE)

    @staticmethod
    def _set_apart(made: mmap.mmap) -> None:
        """Split a map off its neighbours, for which it takes an entry of its own; where there is none, the kernel says EAGAIN."""
        try:
            made.madvise(mmap.MADV_DONTDUMP)
        except OSError as error:
            code = errno.ENOMEM if error.errno == errno.EAGAIN else error.errno  # as mmap says it
            raise OSError(code, str(error)) from error

    def give_back(self, count: int) -> None:
        """Unmap the last ones."""
        for _ in range(count):
            self._held.pop().close()

    def figures(self) -> dict[str, float]:
        """Return nothing: what is unmapped leaves nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    stock = Maps(str(options["form"]), int(options["size_bytes"]), touch=bool(options["touch"]))
    return Holding(stock, operation, capacity, watch, segment_path)


def _reserves(peak: float, operation: Operation, _: Capacity) -> Amounts:
    options = RECORD.resolve_options(operation.options)
    resident = map_bytes(int(options["size_bytes"])) if options["touch"] else 0
    return Amounts(memory_bytes=math.ceil(peak) * (resident + tuning.used.map_overhead_bytes))


def _supported(facts: NodeFacts) -> Capability:
    if not facts.populates_memory:
        return Capability("fallback", "the kernel has no MADV_POPULATE_WRITE: the option 'touch' fails", "Linux 5.14 or newer")
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Mappings",
    family="exhaustion",
    summary="Holds map entries of a process, which stay apart, and follows its shape up and down.",
    units=("count", "fraction"),
    resource="mappings",
    meter="mappings",
    measure="entries of the load process's memory map less those before the start; a fraction is of vm.max_map_count",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("form", "choice", "private", "private: every second one carries another flag; shared: each a file", ("private", "shared")),
        Option("size_bytes", "bytes", tuning.used.map_bytes, "size of each map, rounded up to whole pages", low=1, high=1 << 30),
        Option("touch", "flag", False, "make all its pages resident, so that it takes memory too"),
        *holding_options("Mappings"),
    ),
    supported=_supported,
    metrics=METRICS,
    entry="exhaustion.mappings:make",
    reserves=_reserves,
)
