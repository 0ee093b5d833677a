"""From what the orchestrator heard of a node to what a run's end says of it. Pure."""

from __future__ import annotations

from .conclusion import NodeEnding
from .exchange import Stage
from .orchestrator import NodeInRun


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
    )


def _after_ms(decided_ns: int, at_ns: int) -> float | None:
    return max(0, at_ns - decided_ns) / 1e6 if decided_ns and at_ns else None
