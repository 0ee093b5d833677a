"""What is told of the orchestrator's state: to `status`, to a run's driver, and to its aggregator at the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from actors.clock import SECOND_NS
from actors.messages import Event

from .conclusion import Ending, NodeEnding
from .exchange import Stage
from .orchestrator import NodeInRun, Orchestrator, Run


def status(core: Orchestrator, now_ns: int) -> dict[str, Any]:
    """Return what runs where, asked against achieved, the halt, the budget and when each node was heard."""
    ledger = core.ledger
    return {
        "halt": asdict(core.halt),
        "runs": {name: {"phase": str(run.phase), **progress(run, core, now_ns)} for name, run in core.runs.items()},
        "budget": {
            "used": asdict(ledger.total(now_ns)),
            "nodes_harmed": sorted(ledger.nodes_harmed()),
            "limits": asdict(ledger.budget),
        },
        "nodes": {name: {"heard_s": (now_ns - heard.heard_ns) / SECOND_NS, "machine": heard.machine} for name, heard in core.nodes.items()},
    }


def progress(run: Run, core: Orchestrator, now_ns: int) -> dict[str, Any]:
    """Return how far a run is: each operation's asked and achieved dose, each node's state."""
    reports = {name: state.report for name, state in run.nodes.items() if state.report}
    operations = [
        {"operation": op.id, "node": name, "stage": op.stage, "unit": op.unit, "requested": op.requested, "achieved": op.achieved}
        for name, report in reports.items()
        for op in report.operations
    ]
    nodes = []
    for name, state in run.nodes.items():
        heard = core.nodes.get(name)
        report = heard.report if heard else None
        nodes.append(
            {
                "node": name,
                "stage": str(state.stage) if state.stage else "",
                "lost": state.lost,
                "cpu": report.host.get("cpu") if report else None,
                "memory_available_bytes": report.host.get("memory_available_bytes") if report else None,
                "verdict": report.verdict_level if report else None,
                "ceiling": report.ceiling if report else None,
            }
        )
    elapsed_s = (now_ns - run.start_at_ns) / SECOND_NS if run.start_at_ns else 0.0
    return {
        "elapsed_s": max(0.0, min(elapsed_s, run.admission.duration_s)),
        "duration_s": run.admission.duration_s,
        "operations": operations,
        "nodes": nodes,
    }


def ending_of(run: Run, events: Sequence[Event], wall_ns: int, drift: Sequence[str], shared: Mapping[str, list[str]]) -> Ending:
    """Return how a run ended. `wall_ns`: the wall clock less the boot clock."""
    return Ending(
        run=run.admission.run,
        causes=tuple((str(cause), reason) for cause, reason in run.causes),
        nodes=tuple(node_ending(name, state) for name, state in run.nodes.items()),
        events=tuple(events),
        start_at_wall_ns=wall_ns + run.start_at_ns if run.start_at_ns else 0,
        start_skew_ms=run.skew_ms(),
        halt_latency_ms=_latency_ms(run),
        drift=tuple(drift),
        shared=shared,
    )


def _latency_ms(run: Run) -> float | None:
    """Return the time from the decision to stop to the last load gone. What a node's own halt had ended before it took no time."""
    if not run.stop_decided_ns or not run.last_gone_ns:
        return None
    return max(0, run.last_gone_ns - run.stop_decided_ns) / 1e6


def node_ending(name: str, state: NodeInRun) -> NodeEnding:
    """Return how a run ended on one node."""
    report = state.report
    return NodeEnding(
        name=name,
        stage=str(state.stage) if state.stage else "never_heard",
        lost=state.lost,
        lost_reason=state.lost_reason,
        clean=state.clean,
        delivered=state.stage is Stage.DELIVERED,
        unclean=report.unclean if report else (),
        failure=report.failure if report else "",
    )


def doctor_entry(hello: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node said of itself, or why it did not."""
    if "error" in hello:
        return dict(hello)
    return {"machine": hello["machine"], "capacity": asdict(hello["capacity"]), **hello["report"]}
