"""What an agent and the orchestrator tell each other. One exchange is the only way by which authority reaches a node.

The agent asks: `Report` says what the node holds and does. The orchestrator answers: `Reply` says what each run wants of this
node (`Order.goal`) and for how long it may load (`lease_s`, a duration that counts from the agent's own `t0_ns`, so that a
reply that was held up anywhere cannot extend a load). Orders are goals, not steps: repeating one changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from actors.messages import Allocation, Amounts, Capacity, Halt, Operation, Shortfall


class Goal(StrEnum):
    """What a run wants of a node."""

    PREPARE = "prepare"  # open slots, start simulators, compile; no load yet
    START = "start"  # load from `start_at_ns` (the orchestrator's clock) on
    STOP = "stop"  # drain within `grace_s`, kill what is left, undo everything
    SEAL = "seal"  # close the metric stream and deliver it
    FORGET = "forget"  # delivered: drop the run


class Stage(StrEnum):
    """How far a node is with a run."""

    PREPARING = "preparing"
    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"
    CLEAN = "clean"  # the guardian confirmed: no process, no record left
    DELIVERED = "delivered"  # and the aggregator acknowledged all of it


@dataclass(frozen=True, slots=True)
class OperationReport:
    """One operation as the agent sees it."""

    id: str
    stage: str
    reason: str = ""
    first_slice_ns: int = 0  # in the orchestrator's clock; 0 before the first slice of load
    outcomes: tuple[dict[str, Any], ...] = ()  # how each undo record ended
    unit: str = ""
    requested: float | None = None  # the last window's dose, in `unit`
    achieved: float | None = None
    shortfall: Shortfall | None = None  # what its load asked for and did not get
    health: str = ""  # while it loads: "well", "short" of or "over" what is asked, or "silent"
    allocation: Allocation | None = None  # what it held, once it is gone


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run as the agent sees it."""

    run: str
    stage: Stage
    operations: tuple[OperationReport, ...] = ()
    failure: str = ""  # why this node cannot go on, empty while it can
    failure_code: str = ""
    last_gone_ns: int = 0  # when the last load of the run was confirmed gone, the orchestrator's clock
    last_released_ns: int = 0  # when the last of it was given back: memory freed, files removed
    unclean: tuple[str, ...] = ()  # what could not be undone, in words
    recording: str = ""  # the recording policy in force


@dataclass(frozen=True, slots=True)
class Report:
    """An agent's question."""

    node: str
    machine: str
    cluster: str
    incarnation: int
    epoch: int
    nonce: int
    t0_ns: int
    runs: tuple[RunReport, ...] = ()
    verdict_level: int = 0
    verdict_reason: str = ""
    ceiling: float = 1.0
    halt: Halt = field(default_factory=Halt)  # in force at the node's guardian
    halt_kept: Halt = field(default_factory=Halt)  # on its disk
    host: dict[str, float] = field(default_factory=dict)
    capacity: Capacity | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What one run wants of this node now."""

    run: str
    goal: Goal
    lease_s: float = 0.0
    start_at_ns: int = 0
    operations: tuple[Operation, ...] = ()  # given while the node has not reported the run
    capacity: Capacity | None = None  # this node's share of its machine
    machine_limits: Amounts | None = None
    grace_s: float = 0.0
    kill: bool = False
    terms: dict[str, Any] = field(default_factory=dict)  # recording policy, series caps, resolved profile, the scenario's own limits


@dataclass(frozen=True, slots=True)
class Reply:
    """The orchestrator's answer."""

    nonce: int
    epoch: int
    received_ns: int  # the orchestrator's clock at receipt: gives the agent the offset between the two clocks
    orders: tuple[Order, ...] = ()
    halt: Halt = field(default_factory=Halt)
    refused: str = ""
