"""Options that floods share, and what a flood takes of a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..messages import Amounts, Capacity
from ..option import Option, Value
from ..simulator import AVAILABLE, Capability
from .flow import Strategy

if TYPE_CHECKING:
    from ..capability import NodeFacts

MIB: Final = 1 << 20
CALL_CPU_S: Final = 0.0006  # of sender, receiver and raylet for one call without work: measured
PROCESS_BYTES: Final = 160 * MIB  # of a worker process of Ray: 115 MiB resident, and room for what it serves
PROCESS_TASKS: Final = 40  # its threads
CALL_BYTES: Final = 4096  # of an outstanding call beside its payload, on both sides

METRICS: Final = (
    "flood.calls",
    "flood.outstanding",
    "flood.waiting",
    "flood.payload",
    "flood.response",
    "flood.blocked",
    "load.operations",
)


def backpressure(outstanding: Option) -> tuple[Option, ...]:
    """Return the options of a flow, with the one that bounds it."""
    return (
        outstanding,
        Option(
            "backpressure",
            "choice",
            str(Strategy.BLOCK),
            "what becomes of an offer beyond `outstanding`: the source waits, it or the oldest that waits is dropped, it is refused, "
            "it is shed with a rising chance, or a token bucket decides",
            choices=tuple(map(str, Strategy)),
        ),
        Option("waiting", "integer", 100, "offers that may wait before they are dropped (drop_newest, drop_oldest)", low=0, high=100_000),
        Option("tokens_per_s", "number", 1000.0, "tokens a second (token_bucket)", low=0.0, high=1e6),
        Option("burst", "integer", 100, "tokens that the bucket keeps (token_bucket)", low=1, high=100_000),
        Option("work", "duration", 0.0, "CPU time that each call takes where it is served", low=0.0, high=10.0),
    )


def reserved(per_s: float, options: Mapping[str, Value], processes: int, lanes: int, capacity: Capacity) -> Amounts:
    """Return what a flood takes at a peak rate: cores of both sides, memory of processes, calls and payloads, and disk to spill these."""
    calls = int(options["outstanding"]) * lanes + int(options["waiting"])
    in_flight = min(int(options.get("in_flight_bytes", 0)), int(options.get("payload_bytes", 0)) * calls)
    work = min(float(processes), per_s * float(options["work"]))
    return Amounts(
        cpu_cores=min(capacity.cpu_cores, work + min(2.0, per_s * CALL_CPU_S)),
        memory_bytes=processes * PROCESS_BYTES + calls * CALL_BYTES + in_flight,
        disk_bytes=in_flight,
        tasks=processes * PROCESS_TASKS,
    )


def supported(facts: NodeFacts) -> Capability:
    """Say that any node can be flooded: what is loaded runs as Ray runs the users' own, at its priority."""
    del facts
    return AVAILABLE
