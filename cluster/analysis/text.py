"""A report as plain text for a terminal or a log: the same content as the page, without colour. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..words import amount
from .plots import sparkline
from .report import Dose, Report

MARKS: Final = {True: "ok  ", False: "MISS", None: "?   "}
_LIMIT: Final = 60
_EVENT_LIMIT: Final = 20


def render_text(report: Report) -> str:
    """Return the report as text, the verdict first."""
    blocks = [
        [f"{report.status.upper()}  {report.headline}"],
        [line for line in _about(report) if line],
        _section(
            "Hypotheses",
            [f"  {_held(one.held)}  {one.name}: expected {one.expected}; {one.seen}" for one in report.hypotheses],
        ),
        _section("Asked and achieved (mean)", _dose_lines(report.doses)),
        _section("Nodes", _node_lines(report)),
        _section("Share one machine and its limits", [f"  {', '.join(group)}" for group in report.shared]),
        _section("Safety", [f"  {one}" for one in report.violations]),
        _section("Not arrived", [f"  {one}" for one in report.outstanding]),
        _section("Lost metrics", [f"  {one}" for one in report.losses]),
        _section("Differs from the replayed plan", [f"  {one}" for one in report.drift]),
        _section("Exporters", [f"  {one}" for one in report.exporters]),
        _section("Figures", [f"  {name}: {value}" for name, value in report.figures]),
        _section("Events", _event_lines(report)),
        _section("Versions", [f"  {name} {value}" for name, value in report.versions]),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _about(report: Report) -> list[str]:
    when = f"{report.started} to {report.ended}" if report.ended else f"{report.started} on" if report.started else ""
    seed = f", seed {report.seed}" if report.seed else ""
    profile = f", profile {report.profile}" if report.profile else ""
    return [f"run {report.run}" if report.run else "", f"scenario {report.scenario}{seed}{profile}" if report.scenario else "", when]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *lines] if lines else []


def _held(held: bool | None) -> str:
    return {True: "held   ", False: "BROKE  ", None: "unknown"}[held]


def _dose_lines(doses: Sequence[Dose]) -> list[str]:
    """Return a line per operation, the missed ones first when there are too many to show."""
    chosen = doses if len(doses) <= _LIMIT else sorted(doses, key=lambda one: one.reached is True)[:_LIMIT]
    width = max((len(one.operation) for one in chosen), default=0)
    lines = []
    for one in chosen:
        top = max((value for _, value in (*one.asked, *one.got)), default=0.0)
        figures = f"asked {amount(one.requested, one.unit):>10}  achieved {amount(one.achieved, one.unit):>10}"
        head = f"  {MARKS[one.reached]} {one.operation:{width}}  {figures}"
        lines.append(f"{head}  {sparkline([value for _, value in one.got], top)}".rstrip())
    left_out = len(doses) - len(chosen)
    return lines + ([f"  and {left_out} more"] if left_out else [])


def _node_lines(report: Report) -> list[str]:
    lines = []
    for node in report.nodes[:_LIMIT]:
        cpu = f"  cpu up to {amount(max(value for _, value in node.cpu), 'fraction')}" if node.cpu else ""
        memory = f"  memory down to {amount(min(value for _, value in node.memory), 'bytes')}" if node.memory else ""
        lines.append(f"  {node.name}{f' ({node.address})' if node.address else ''}{cpu}{memory}")
    left_out = len(report.nodes) - _LIMIT
    return lines + ([f"  and {left_out} more"] if left_out > 0 else [])


def _event_lines(report: Report) -> list[str]:
    shown = report.events[-_EVENT_LIMIT:]
    left_out = len(report.events) - len(shown) + report.events_left_out
    lines = [f"  {one.at_s:7.1f} s  {one.severity:7} {one.kind:16} {one.node:8} {one.message}".rstrip() for one in shown]
    return ([f"  {left_out} earlier or lesser ones are in events.parquet"] if left_out else []) + lines
