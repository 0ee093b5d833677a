"""What the orchestrator knows of runs and nodes, and what it has its shell do. Records only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.messages import Amounts, Capacity, Event, Operation

from .exchange import Report, RunReport, Stage
from .run_state import Phase
from .verdict import Cause


@dataclass(frozen=True, slots=True)
class Admission:
    """A run that asks for admission: its plan by node and what it will take there."""

    run: str
    operations: Mapping[str, tuple[Operation, ...]]  # by node
    amounts: Mapping[str, Amounts]  # by node
    duration_s: float
    on_node_lost: str = "stop"
    detached: bool = False
    timeout_s: float | None = None
    capacities: Mapping[str, Capacity] = field(default_factory=dict)  # each node's share of its machine
    machine_limits: Mapping[str, Amounts] = field(default_factory=dict)
    terms: Mapping[str, Any] = field(default_factory=dict)  # recording policy, series caps, resolved profile, the scenario's own limits
    observe_s: float = 0.0  # how long nodes go on recording once their load is undone: for hypotheses about the time after it


@dataclass(frozen=True, slots=True)
class Do:
    """An effect for the shell: what, for which run and node, with which data."""

    what: str  # start_agents, poke, expect, started, start_probes, stop_probes, finish, journal
    run: str = ""
    nodes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class NodeInRun:
    """One target node of one run, as last heard."""

    stage: Stage | None = None
    lost: bool = False
    lost_reason: str = ""
    returned: bool = False
    report: RunReport | None = None
    first_slices: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Tell whether the node's guardian confirmed that nothing of the run is left."""
        return self.stage in {Stage.CLEAN, Stage.DELIVERED}


@dataclass(slots=True)
class Run:
    """One run's state."""

    admission: Admission
    phase: Phase = Phase.ADMITTED
    nodes: dict[str, NodeInRun] = field(default_factory=dict)
    causes: list[tuple[Cause, str]] = field(default_factory=list)
    start_at_ns: int = 0
    entered_ns: int = 0
    admitted_ns: int = 0
    driver_deadline_ns: int = 0
    stop_decided_ns: int = 0
    last_gone_ns: int = 0
    kill: bool = False
    events: list[Event] = field(default_factory=list)
    finished: bool = False
    begun: bool = False

    def skew_ms(self) -> float | None:
        """Latest minus earliest first slice of load among operations that start with the barrier, in milliseconds."""
        slices = self._slices_at_start()
        return (max(slices) - min(slices)) / 1e6 if len(slices) > 1 else (0.0 if slices else None)

    def takes_begin(self) -> bool:
        """Tell, once, that load has begun in all operations that start with the barrier."""
        is_news = not self.begun and 0 < len(self._at_start()) == len(self._slices_at_start())
        self.begun = self.begun or is_news
        return is_news

    def _at_start(self) -> set[str]:
        return {op.id for ops in self.admission.operations.values() for op in ops if op.start_s == 0}

    def _slices_at_start(self) -> list[int]:
        at_start = self._at_start()
        return [ns for node in self.nodes.values() for op, ns in node.first_slices.items() if ns and op in at_start]


@dataclass(slots=True)
class NodeHeard:
    """What is known of a node over all runs."""

    incarnation: int
    heard_ns: int
    machine: str
    expiry_ns: int = 0  # until when load that we allowed may exist there
    report: Report | None = None
