"""What is told of the orchestrator's state: to `status`, to `doctor` and to a run's driver. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from actors.clock import SECOND_NS

from .orchestrator import Orchestrator
from .records import Run


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
        {
            "operation": op.id,
            "node": name,
            "stage": op.stage,
            "unit": op.unit,
            "requested": op.requested,
            "achieved": op.achieved,
            "shortfall": asdict(op.shortfall) if op.shortfall else None,
            "health": op.health,
        }
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


def doctor_entry(hello: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node said of itself, or why it did not."""
    if "error" in hello:
        return dict(hello)
    return {"machine": hello["machine"], "capacity": asdict(hello["capacity"]), **hello["report"]}
