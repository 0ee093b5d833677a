"""Descriptors: holds open file descriptors of one load process. They end with it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import InputError
from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts

FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OpenFiles:
    """Descriptors of one device: each opened anew, which the machine counts too, or copies of one, which only this process counts."""

    def __init__(self, device: str, *, copies: bool) -> None:
        self._device, self._copies = device, copies
        self._first = -1
        self._held: list[int] = []

    @property
    def held(self) -> int:
        """How many are open."""
        return len(self._held)

    def open(self) -> None:
        """Check that the device is one that nothing waits on. Raises `InputError`, `OSError`."""
        if not Path(self._device).is_char_device():
            raise InputError("invalid_value", f"option 'device' must name a character device such as {os.devnull}, got {self._device}")
        self._first = os.open(self._device, FLAGS)

    def take(self, count: int) -> None:
        """Open so many more; raises `OSError` (EMFILE, ENFILE)."""
        keep, one, device, take, flags = self._held.append, self._first, self._device, os.open, FLAGS  # found once, not for each
        if self._copies:
            for _ in range(count):
                keep(os.dup(one))
        else:
            for _ in range(count):
                keep(take(device, flags))

    def give_back(self, count: int) -> None:
        """Close the last ones."""
        last = self._held.pop
        for _ in range(count):
            os.close(last())

    def figures(self) -> dict[str, float]:
        """Return nothing: closed descriptors leave nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    stock = OpenFiles(str(options["device"]), copies=options["source"] == "copy")
    return Holding(stock, operation, capacity, watch, segment_path, descriptors_each=1)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(descriptors=math.ceil(peak) + tuning.used.own_descriptors)


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Descriptors",
    family="exhaustion",
    summary="Holds open file descriptors and follows its shape up and down.",
    units=("count", "fraction"),
    resource="descriptors",
    meter="descriptors",
    measure="open descriptors of the load process less those before the start; a fraction is of what one process may open",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("source", "choice", "open", "open: each counts for the machine too; copy: for this process only", ("open", "copy")),
        Option("device", "path", tuning.used.device, "the character device that is opened"),
        *holding_options("Descriptors"),
    ),
    supported=_supported,
    metrics=METRICS,
    needs="a hard limit of descriptors (ulimit -Hn) above what is asked; the soft one is raised in the load process",
    entry="exhaustion.descriptors:make",
    reserves=_reserves,
)
