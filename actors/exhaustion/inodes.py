"""Inodes: holds files without a name (O_TMPFILE). Each takes an inode of the file system; the kernel frees it with its descriptor.

So at most as many can be held as one process may open. Files with names would outlive a kill, and are not made.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options
from .place import DIR, check_folder, folder_of, open_nameless

if TYPE_CHECKING:
    from ..capability import NodeFacts


class NamelessFiles:
    """Empty files without names in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[int] = []

    @property
    def held(self) -> int:
        """How many there are."""
        return len(self._held)

    def open(self) -> None:
        """Need nothing beforehand."""

    def take(self, count: int) -> None:
        """Make so many more; raises `OSError` (ENOSPC, EDQUOT, EMFILE)."""
        for _ in range(count):
            self._held.append(open_nameless(self._folder))

    def give_back(self, count: int) -> None:
        """Close the last ones, which frees their inodes."""
        for _ in range(count):
            os.close(self._held.pop())

    def figures(self) -> dict[str, float]:
        """Return nothing: a file without a name leaves nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    return Holding(NamelessFiles(folder_of(operation)), operation, capacity, watch, segment_path, descriptors_each=1)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(inodes=math.ceil(peak), descriptors=math.ceil(peak) + tuning.used.own_descriptors)


def _supported(facts: NodeFacts) -> Capability:
    if not facts.makes_nameless:
        return Capability(
            "unavailable",
            f"{facts.state_filesystem} has no files without a name (O_TMPFILE), and others would outlive a kill",
            "state_dir on ext4, xfs, btrfs or tmpfs",
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Inodes",
    family="exhaustion",
    summary="Holds inodes of a file system by files without a name.",
    units=("count", "fraction"),
    resource="inodes",
    meter="nameless_files",
    measure="files without a name that the load process has open, less those before the start; a fraction is of the file system's inodes",
    tolerance=0.02,
    look_ms=50,
    options=(DIR, *holding_options("Inodes")),
    supported=_supported,
    metrics=METRICS,
    needs="a file system with O_TMPFILE, and one descriptor for each inode",
    entry="exhaustion.inodes:make",
    reserves=_reserves,
    check_here=check_folder,
)
