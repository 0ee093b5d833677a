"""What docs/how-to/add-a-simulator.md asks for: a record, and code that a load process runs."""

from __future__ import annotations

from actors.capability import NodeFacts
from actors.lease import LeaseWatch
from actors.messages import Capacity, Operation
from actors.simulator import AVAILABLE, Capability, Option, Simulator, SimulatorFactory, SimulatorRecord


def _supported(facts: NodeFacts) -> Capability:
    return AVAILABLE if facts.cpu_cores > 1 else Capability("unavailable", "one core is Ray's own")


RECORD = SimulatorRecord(
    name="CacheLoad",
    family="cpu",
    summary="Walks an array larger than the last-level cache.",
    units=("fraction",),
    resource="cpu_cores",
    meter="cpu_seconds",
    measure="CPU seconds of the load process per second, of the node's cores",
    tolerance=0.05,
    look_ms=5,
    options=(Option("stride", "bytes", 64, "distance of two reads"),),
    supported=_supported,
    entry="cache:CacheLoad",
)


class CacheLoad:
    """Complete, and no subclass of anything."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        self._stride = RECORD.resolve_options(operation.options)["stride"]
        self._cores, self._watch, self._segment_path = capacity.cpu_cores, watch, segment_path

    def warm_up(self) -> None:
        """Compile."""

    def idle(self) -> None:
        """Give a sign of life."""

    def run(self, start_ns: int) -> None:
        """Load until there is no lease."""
        while self._watch.may_go_on():
            self._watch.first_slice()


FACTORY: SimulatorFactory = CacheLoad

WRONG_RESOURCE = SimulatorRecord(
    name="CacheLoad",
    family="cache",  # E: [arg-type]
    summary="",
    units=("percent",),  # E: [arg-type]
    resource="cores",  # E: [arg-type]
    meter="cpu_seconds",
    measure="",
    tolerance="5%",  # E: [arg-type]
    look_ms=5,
    options=(Option("stride", "size", 64, ""),),  # E: [arg-type]
    supported=lambda facts: "available",  # E: [arg-type, return-value]
)
UNEXPLAINED = SimulatorRecord(name="CacheLoad", summary="")  # E: [call-arg]


class NeverLooks:
    """Has no `run`."""

    def warm_up(self) -> None:
        """Compile."""


HALF: Simulator = NeverLooks()  # E: [assignment]
RECORD.tolerance = 1.0  # E: [misc]
