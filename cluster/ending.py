"""From what the orchestrator heard of a run and its nodes to what its end is judged by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.clock import SECOND_NS
from actors.messages import Event

from .conclusion import Ending, NodeEnding
from .exchange import Stage
from .records import NodeInRun, Run
from .verdict import Cause


def ending_of(run: Run, events: Sequence[Event], wall_ns: int, drift: Sequence[str], shared: Mapping[str, list[str]]) -> Ending:
    """Return how a run ended. `wall_ns`: the wall clock less the boot clock."""
    return Ending(
        run=run.admission.run,
        causes=tuple((str(cause), reason) for cause, reason in run.causes),
        nodes=tuple(node_ending(name, state, run.stop_decided_ns) for name, state in run.nodes.items()),
        events=tuple(events),
        start_at_wall_ns=wall_ns + run.start_at_ns if run.start_at_ns else 0,
        start_skew_ms=run.skew_ms(),
        halt_latency_ms=_after_ms(run.stop_decided_ns, run.last_gone_ns),
        drift=tuple(drift),
        shared=shared,
        ended_s=_let_go_s(run),
    )


def _let_go_s(run: Run) -> float | None:
    """Return when a run was let go before its plan's end, in seconds from its start: nothing was asked from then on."""
    is_let_go = any(cause is Cause.PASSED for cause, _ in run.causes)
    return (run.stop_decided_ns - run.start_at_ns) / SECOND_NS if is_let_go else None


def node_ending(name: str, state: NodeInRun, decided_ns: int = 0) -> NodeEnding:
    """Return a node's end; its times count from `decided_ns`, when the stop was decided (0: the run ended as planned)."""
    report = state.report
    stopped_ns, released_ns = (report.last_gone_ns, report.last_released_ns) if report else (0, 0)
    return NodeEnding(
        name=name,
        stage=str(state.stage) if state.stage else "never_heard",
        lost=state.lost,
        lost_reason=state.lost_reason,
        clean=state.clean,
        delivered=state.stage is Stage.DELIVERED,
        unclean=report.unclean if report else (),
        failure=report.failure if report else "",
        stopped_ms=_after_ms(decided_ns, stopped_ns),
        released_ms=_after_ms(decided_ns, released_ns),
        failed={op.id: op.reason for op in report.operations if op.reason} if report and not report.failure else {},
        partial={op.id: op.shortfall for op in report.operations if op.shortfall} if report else {},
        allocations={op.id: op.allocation for op in report.operations if op.allocation} if report else {},
    )


def _after_ms(decided_ns: int, at_ns: int) -> float | None:
    """Return the time from a decision to what came of it; what a node's own halt had ended before took no time."""
    return max(0, at_ns - decided_ns) / 1e6 if decided_ns and at_ns else None
