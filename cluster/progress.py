"""What is told of a run while it goes on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.clock import SECOND_NS

from .orchestrator import NodeHeard, Run


def progress_of(run: Run, heard_of: Mapping[str, NodeHeard], now_ns: int) -> dict[str, Any]:
    """Return elapsed time, each operation's asked and achieved dose, and how each node is; `heard_of` is by node."""
    reports = {name: state.report for name, state in run.nodes.items() if state.report}
    operations = [
        {"operation": op.id, "node": name, "stage": op.stage, "unit": op.unit, "requested": op.requested, "achieved": op.achieved}
        for name, report in reports.items()
        for op in report.operations
    ]
    nodes = []
    for name, state in run.nodes.items():
        heard = heard_of.get(name)
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
