"""What the orchestrator is started with, what a driver submits to it, and what it needs of the cluster around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from actors.messages import NodeSpec

from .agent_api import AgentConfig
from .safety.profiles import DEFAULT_PROFILE
from .times import Times


@dataclass(frozen=True, slots=True)
class OrchestratorConfig:
    """What the orchestrator is started with: the control plane's times and the cluster-wide budget's shares."""

    profile: str = "balanced"
    lease_s: float = 5.0
    renew_s: float = 1.0
    sample_hz: float = 10.0
    stale_s: float = 2.0
    prepare_timeout_s: float = 60.0
    stop_grace_s: float = 2.0
    idle_exit_s: float = 60.0
    window_s: float = 1.0
    collect_s: float = 15.0
    outbox_max_bytes: int = 256 << 20
    nodes_max: int | None = None
    cpu_fraction: float = 0.9
    memory_fraction: float = 0.8
    disk_bytes_max: int | None = None
    duration_s_max: float | None = None
    code_id: str = ""

    def times(self) -> Times:
        """Return the control plane's durations."""
        return Times(lease_s=self.lease_s, prepare_s=self.prepare_timeout_s, grace_s=self.stop_grace_s, collect_s=self.collect_s)

    def for_agent(self, node: str, cluster: str, epoch: int) -> AgentConfig:
        """Return what the agent of a node is started with."""
        return AgentConfig(
            node=node,
            cluster=cluster,
            epoch=epoch,
            profile=self.profile,
            lease_s=self.lease_s,
            renew_s=min(self.renew_s, self.lease_s / 4),
            sample_hz=self.sample_hz,
            stale_s=self.stale_s,
            window_s=self.window_s,
            idle_exit_s=self.idle_exit_s,
            stop_grace_s=self.stop_grace_s,
            outbox_max_bytes=self.outbox_max_bytes,
        )

    def differences(self, other: OrchestratorConfig) -> list[str]:
        """Return, as settings and values, what binds all runs of one orchestrator and is another in `other`."""
        mine, theirs = asdict(self), asdict(other)
        names = [name for name in mine if name not in NOT_SHARED and mine[name] != theirs[name]]
        return [f"{SETTINGS.get(name, name)} is {mine[name]} here, {theirs[name]} was asked" for name in names]


NOT_SHARED: Final = frozenset({"profile", "idle_exit_s", "code_id"})  # each run has its own profile; the others bind no run
SETTINGS: Final = {
    "nodes_max": "budget.max_nodes",
    "cpu_fraction": "budget.cpu_fraction",
    "memory_fraction": "budget.memory_fraction",
    "disk_bytes_max": "budget.disk_bytes",
    "duration_s_max": "budget.max_duration_s",
    "window_s": "metrics.window_s",
    "outbox_max_bytes": "outbox.max_bytes",
}


@dataclass(frozen=True, slots=True)
class Submission:
    """A driver's wish: a scenario as canonical YAML, and how to run it. `profile` is the resolved one, and the only one that counts."""

    run: str
    scenario: str
    seed: int
    allow_head: bool = False
    allow_starve: bool = False
    profile: str = DEFAULT_PROFILE
    detached: bool = False
    timeout_s: float | None = None
    prometheus_port: int | None = None
    prometheus_host: str = "127.0.0.1"
    replay_plan: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    code_id: str = ""
    config: OrchestratorConfig | None = None  # what the driver's settings ask of the orchestrator
    caps: Mapping[str, float] = field(default_factory=dict)  # of series on each node, see `cardinality.Caps`


class RemoteAgent(Protocol):
    """One node's agent, as the orchestrator reaches it."""

    def hello(self, timeout_s: float) -> dict[str, Any]:
        """Return what the agent says of its node."""
        ...

    def poke(self) -> None:
        """Make it ask now; never waits."""
        ...

    def leave(self) -> None:
        """Make it end; never waits."""
        ...


class RemoteAggregator(Protocol):
    """One run's aggregator."""

    def call(self, method: str, *args: Any, timeout_s: float = 30.0) -> Any:
        """Call a method of `aggregator_shell.AggregatorShell`."""
        ...


class OrchestratorPort(Protocol):
    """What the orchestrator needs of the cluster around it."""

    def nodes(self) -> list[NodeSpec]:
        """Return the alive nodes."""
        ...

    def agent(self, config: AgentConfig) -> RemoteAgent:
        """Create the agent of a node, or take over the one that is there and alive."""
        ...

    def agent_alive(self, node: str) -> bool:
        """Tell whether the node and its agent's process are alive as far as Ray knows; cheap."""
        ...

    def aggregator(self, run: str, manifest: Mapping[str, Any], *, create: bool) -> RemoteAggregator | None:
        """Return the run's aggregator."""
        ...

    def aggregators(self) -> list[str]:
        """Return the runs that have a living aggregator."""
        ...

    def state_dir(self) -> Path:
        """Return STATE on this node: its aggregators write there."""
        ...

    def prober(self, run: str, probes: Sequence[Mapping[str, Any]], nodes: Sequence[str], start_in_s: float) -> Any:
        """Create the prober of a run."""
        ...

    def end_actor(self, actor: Any) -> None:
        """End an actor of a run that is over."""
        ...

    def exit(self) -> None:
        """End this orchestrator."""
        ...
