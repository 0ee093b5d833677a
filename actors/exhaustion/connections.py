"""Connections: holds established TCP connections, over loopback with both ends in the load process, or with the next node (`links.py`).

They are closed by a reset, also when the process is killed, so that nothing is left in TIME_WAIT, unless `close` asks for an orderly end:
then the kernel keeps one end of each for a minute, and how many is recorded.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Final

from ..errors import InputError
from ..lease import LeaseWatch
from ..limits import PROC, read_text
from ..messages import Amounts, Capacity, Operation
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options
from .links import Links
from .tcp import RESET, count_time_wait

if TYPE_CHECKING:
    from ..capability import NodeFacts

LOOPBACK: Final = "127.0.0.1"
Pair = tuple[socket.socket, socket.socket]


class Pairs:
    """Connections to a listener of our own."""

    def __init__(self, *, orderly: bool) -> None:
        self._orderly = orderly
        self._listener: socket.socket | None = None
        self._held: list[Pair] = []

    @property
    def held(self) -> int:
        """How many are established."""
        return len(self._held)

    def open(self) -> None:
        """Listen on a port that the kernel chooses."""
        self._listener = socket.create_server((LOOPBACK, 0), backlog=tuning.used.accept_backlog)
        self._listener.settimeout(tuning.used.connect_s)

    def take(self, count: int) -> None:
        """Connect so many more; raises `OSError` (EMFILE, ENFILE, EADDRNOTAVAIL)."""
        for _ in range(count):
            self._held.append(self._connect())

    def _connect(self) -> Pair:
        assert self._listener is not None, "open comes before take"
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            client.settimeout(tuning.used.connect_s)
            if not self._orderly:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.connect(self._listener.getsockname())
            return client, self._listener.accept()[0]
        except OSError:
            client.close()
            raise

    def give_back(self, count: int) -> None:
        """Close both ends of the last ones, the client's first."""
        for _ in range(count):
            for end in self._held.pop():
                end.close()

    def figures(self) -> dict[str, float]:
        """Return how many are in TIME_WAIT now."""
        assert self._listener is not None, "open comes before figures"
        return self.measured(self._listener.getsockname()[1])

    @staticmethod
    def measured(port: int) -> dict[str, float]:
        """Return how many connections to a port are in TIME_WAIT."""
        return {"load.sockets.waiting": float(count_time_wait(read_text(PROC / "self/net/tcp") or "", port))}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    orderly = options["close"] == "orderly"
    if options["peer"] == "self":
        return Holding(Pairs(orderly=orderly), operation, capacity, watch, segment_path, descriptors_each=2)
    if not operation.link:
        raise InputError(
            "invalid_value", f"{operation.id} has peer: next, and nobody has told it which one", "run it by a plan of two nodes"
        )
    links = Links(operation.link, watch.clock, orderly=orderly)
    return Holding(links, operation, capacity, watch, segment_path, descriptors_each=2, tries=False)  # no peer is there before the start


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(
        descriptors=2 * math.ceil(peak) + tuning.used.own_descriptors,
        memory_bytes=2 * math.ceil(peak) * tuning.used.socket_overhead_bytes,
    )


def _supported(_: NodeFacts) -> Capability:
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Connections",
    family="exhaustion",
    summary="Holds established TCP connections over loopback, both ends of each, or with the next node.",
    units=("count",),
    resource="descriptors",
    meter="connections",
    measure="established connections of the load process less those before the start; one of which it has one end counts half",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("close", "choice", "reset", "reset: nothing stays; orderly: one end of each stays in TIME_WAIT", ("reset", "orderly")),
        Option(
            "peer",
            "choice",
            "self",
            "self: both ends are here; next: each node opens what is asked to the next one of its targets, and accepts as many",
            ("self", "next"),
        ),
        Option(
            "port",
            "integer",
            tuning.used.peer_port,
            "where a node with a peer listens, on its own address; one more for each further load on that address",
            low=1024,
            high=65_000,
        ),
        *holding_options("Connections"),
    ),
    supported=_supported,
    metrics=(*METRICS, "load.sockets.waiting"),
    needs="a hard limit of descriptors (ulimit -Hn) above twice what is asked; the soft one is raised in the load process",
    entry="exhaustion.connections:make",
    reserves=_reserves,
)
