"""Ports: uses up the local ports of a network namespace of its own, until a further connection finds none (EADDRNOTAVAIL).

The load process leaves the host's namespace before it begins, so nothing outside is short of ports; what is tested there enters it
(`nsenter --net --target PID`). The namespace ends with the process.
"""

from __future__ import annotations

import errno
import fcntl
import math
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import namespaces
from ..counted import PORT_RANGE
from ..lease import LeaseWatch
from ..limits import PROC
from ..messages import Amounts, Capacity, Operation
from ..procfs import port_range
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import tuning
from .holder import METRICS, Holding, holding_options

if TYPE_CHECKING:
    from ..capability import NodeFacts

SIOCSIFFLAGS: Final = 0x8914  # linux/sockios.h
IFF_UP: Final = 0x1  # linux/if.h


def leave_network() -> None:
    """Move this thread into a network namespace of its own, with its loopback up; raises `OSError` (EPERM)."""
    namespaces.leave(namespaces.CLONE_NEWNET, "a network namespace")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def read_range(proc: Path = PROC) -> tuple[int, int]:
    """Return the first and the last local port of this network namespace. Raises `OSError`."""
    return port_range((proc / PORT_RANGE).read_text())


class BoundPorts:
    """Sockets, each bound to one of the namespace's local ports."""

    def __init__(self, ports: int) -> None:
        self._ports = ports
        self._free: list[int] = []
        self._held: list[tuple[int, socket.socket]] = []

    @property
    def held(self) -> int:
        """How many ports are taken."""
        return len(self._held)

    def open(self) -> None:
        """Make the namespace and give it as many local ports as asked. Raises `OSError`."""
        first, last = read_range()
        leave_network()
        last = min(last, first + self._ports - 1) if self._ports else last
        if read_range() != (first, last):  # where /proc/sys is read-only, the kernel's default may do
            (PROC / PORT_RANGE).write_text(f"{first} {last}")
        self._free = list(range(last, first - 1, -1))

    def take(self, count: int) -> None:
        """Bind so many more; raises `OSError` (EADDRNOTAVAIL when the namespace has no more, EMFILE)."""
        for _ in range(count):
            if not self._free:
                raise OSError(errno.EADDRNOTAVAIL, "every local port of the namespace is taken")
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                one.bind(("", self._free[-1]))
            except OSError:
                one.close()
                raise
            self._held.append((self._free.pop(), one))

    def give_back(self, count: int) -> None:
        """Free the last ones."""
        for _ in range(count):
            port, one = self._held.pop()
            one.close()
            self._free.append(port)

    def figures(self) -> dict[str, float]:
        """Return nothing: a socket without a peer leaves nothing."""
        return {}


def make(operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Holding:
    """Return the simulator of an operation."""
    options = RECORD.resolve_options(operation.options)
    return Holding(BoundPorts(int(options["ports"])), operation, capacity, watch, segment_path, descriptors_each=1)


def _reserves(peak: float, _: Operation, __: Capacity) -> Amounts:
    return Amounts(
        descriptors=math.ceil(peak) + tuning.used.own_descriptors, memory_bytes=math.ceil(peak) * tuning.used.socket_overhead_bytes
    )


def _supported(facts: NodeFacts) -> Capability:
    if "CAP_SYS_ADMIN" not in facts.capabilities:
        return Capability(
            "unavailable", "making a network namespace needs CAP_SYS_ADMIN", "run as root, or give the container that capability"
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="Ports",
    family="exhaustion",
    summary="Uses up the local ports of a network namespace of its own; the host keeps all of its own.",
    units=("count", "fraction"),
    resource="ports",
    meter="sockets",
    measure="bound sockets of the load process less those before the start; a fraction is of the host's local port range",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("ports", "integer", 0, "how many local ports the namespace has; 0 for as many as the host", low=0, high=60_000),
        *holding_options("Ports"),
    ),
    supported=_supported,
    metrics=METRICS,
    needs="CAP_SYS_ADMIN, and one descriptor for each port",
    entry="exhaustion.ports:make",
    reserves=_reserves,
)
