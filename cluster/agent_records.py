"""What an agent knows of the runs and operations on its node. Plain records; `agent.Agent` decides by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.messages import Allocation, Amounts, Capacity, Operation, Shortfall

from . import dose
from .agent_state import Stage
from .dose_terms import terms_of
from .exchange import Goal
from .exchange import Stage as RunStage


@dataclass(slots=True)
class OperationHere:
    """One operation on this node."""

    operation: Operation
    stage: Stage = Stage.WANTED
    slot: int = -1
    generation: int = 0
    reason: str = ""
    finished: bool = False  # its load ended as planned
    close_early: bool = False  # asked to close while the slot was still being opened
    first_slice_ns: int = 0  # this node's clock
    gone_ns: int = 0  # when its load had ended
    released_ns: int = 0  # when all of it had been given back
    ask_again_ns: int = 0  # it is stuck: when to ask the guardian for it again
    outcomes: tuple[dict[str, Any], ...] = ()
    requested: float | None = None
    achieved: float | None = None
    shortfall: Shortfall | None = None
    allocation: Allocation | None = None
    silent: bool = False  # it, or its simulator, has given no sign of life for a while

    def health(self) -> str:
        """Return how it does while it loads: "silent", else how its last window's dose stands ("well", "short", "over"); "" else."""
        if self.silent and self.stage in {Stage.ARMED, Stage.RUNNING}:
            return "silent"
        if self.stage is not Stage.RUNNING or self.requested is None or self.achieved is None:
            return ""
        return dose.momentary(self.requested, self.achieved, **terms_of(self.operation))


@dataclass(slots=True)
class RunHere:
    """One run on this node."""

    run: str
    operations: dict[str, OperationHere]
    goal: Goal = Goal.PREPARE
    capacity: Capacity | None = None
    machine_limits: Amounts | None = None
    recording: str = ""  # the recording policy that it goes by, as text
    failure: str = ""
    failure_code: str = ""
    start_at_ns: int = 0
    lease_ended: bool = False
    sealing: bool = False  # asked of the shell: done, or on its way
    delivered: bool = False
    foreign: bool = False  # left by an earlier agent of this node; only ended, sealed and forgotten here
    unswept: bool = False  # the guardian has not yet confirmed that nothing of the earlier agent is left

    def stage(self) -> RunStage:
        """Return how far this node is, from the stages of its operations."""
        stages = {op.stage for op in self.operations.values()}
        if self.delivered:
            return RunStage.DELIVERED
        if self.unswept:
            return RunStage.STOPPING
        if stages <= {Stage.CLEAN}:
            return RunStage.CLEAN if self.goal in {Goal.STOP, Goal.SEAL, Goal.FORGET} or self.failure else RunStage.RUNNING
        if self.goal is Goal.STOP or self.failure:
            return RunStage.STOPPING
        if stages & {Stage.ARMED, Stage.RUNNING, Stage.CLOSING}:
            return RunStage.RUNNING
        return RunStage.READY if stages <= {Stage.READY} else RunStage.PREPARING
