"""Sockets: holds TCP or UDP sockets that are connected to nothing. They end with their process."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Final

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts

_TYPES: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Unconnected:
    """Sockets of one protocol."""

    def __init__(self, protocol: str) -> None:
        self._type = _TYPES[protocol]
        self._held: list[socket.socket] = []

    @property
    def held(self) -> int:
        """How many are open."""
        return len(self._held)

    def open(self) -> None:
        """Need nothing beforehand."""

    def take(self, count: int) -> None:
        """Open so many more; raises `OSError` (EMFILE, ENFILE, ENOBUFS)."""
        kind, keep = self._type, self._held.append
        for _ in range(count):
            keep(socket.socket(socket.AF_INET, kind))

    def give_back(self, count: int) -> None:
        """Close the last ones."""
        for _ in range(count):
            self._held.pop().close()

    def figures(self) -> dict[str, float]:
        """Return nothing: a socket without a peer leaves nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    return Holding(Unconnected(str(options["protocol"])), operation, capacity, watch, segment_path, descriptors_each=1)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(
        descriptors=math.ceil(peak) + tuning.used.own_descriptors, memory_bytes=math.ceil(peak) * tuning.used.socket_overhead_bytes
    )


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Sockets",
    family="exhaustion",
    summary="Holds TCP or UDP sockets that are connected to nothing.",
    units=("count", "fraction"),
    resource="descriptors",
    meter="sockets",
    measure="sockets of the load process less those before the start; a fraction is of the descriptors that one process may open",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("protocol", "choice", "tcp", "which kind of socket", tuple(_TYPES)),
        *holding_options("Sockets"),
    ),
    supported=_supported,
    metrics=METRICS,
    needs="a hard limit of descriptors (ulimit -Hn) above what is asked; the soft one is raised in the load process",
    entry="exhaustion.sockets:make",
    reserves=_reserves,
)
