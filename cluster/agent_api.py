"""What an agent is started with, and what it needs of the cluster around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.messages import Capacity, Operation, SlotTicket

from .exchange import Reply, Report
from .outbox import Frames


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent is started with."""

    node: str
    cluster: str
    epoch: int
    profile: str = "balanced"
    lease_s: float = 5.0
    renew_s: float = 1.0
    sample_hz: float = 10.0
    stale_s: float = 2.0
    window_s: float = 1.0
    idle_exit_s: float = 60.0
    stop_grace_s: float = 2.0
    outbox_max_bytes: int = 256 << 20
    watch: tuple[int, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


class SimulatorPort(Protocol):
    """One simulator's actor."""

    def prepare(self, timeout_s: float) -> tuple[int, ...]:
        """Start its load and wait until it is compiled and waits for its start; return its processes. Raises `StressError`."""
        ...

    def poll(self) -> Mapping[str, Any] | None:
        """Return its newest status without waiting: phase, reason, first_slice_ns; None before the first. Raises when it is dead."""
        ...

    def silent_s(self) -> float:
        """Return for how long the question that is open now has had no answer."""
        ...

    def kill(self) -> None:
        """End its process."""
        ...


class AgentPort(Protocol):
    """What an agent needs of the cluster around it."""

    def exchange(self, report: Report, timeout_s: float) -> Reply:
        """Ask the orchestrator; raises `StressError` when no answer came."""
        ...

    def simulator(self, operation: Operation, capacity: Capacity, ticket: SlotTicket, state_dir: str) -> SimulatorPort:
        """Create a simulator's actor on this node."""
        ...

    def push(self, run: str, node: str, incarnation: str, records: Frames, timeout_s: float) -> int:
        """Hand outbox records to the run's aggregator; returns the last sequence that it has made durable."""
        ...

    def exit(self) -> None:
        """End this actor."""
        ...
