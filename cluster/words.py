"""A run in plain words: how amounts, moments and records are told, and the last lines of a terminal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

HEADLINES: Final[Mapping[str, str]] = {
    "passed": "Every hypothesis held and the asked load was reached.",
    "failed": "A hypothesis broke.",
    "invalid": "The scenario, an option or a setting is wrong; nothing was started.",
    "error": "The harness failed or an outcome is unknown; draw no conclusion about the system under test.",
    "safety": "Safety ended the run.",
    "inconclusive": "Nothing broke, but the asked load was not reached, so nothing is proven.",
    "refused": "This cluster forbids the run; nothing was started.",
    "timeout": "The run's own time limit ended it.",
    "cancelled": "The run was stopped on request.",
    "running": "The run is still going on.",
}
_NODE_LIMIT: Final = 8


def text(value: Any) -> str:
    """Return a value as words: nothing for None, six digits for a float."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sentence(one: Any) -> str:
    """Return a record as words: its message where it has one, else its fields."""
    if not isinstance(one, Mapping):
        return text(one)
    node = f"{one['node']}: " if one.get("node") else ""
    told = one.get("message") or one.get("reason")
    return node + (text(told) if told else ", ".join(f"{key} {text(value)}" for key, value in one.items() if key != "node"))


def amount(value: float, unit: str) -> str:
    """Return a quantity in words: a fraction as percent, bytes with a binary unit, a count bare, anything else with its unit."""
    if unit in {"fraction", "ratio"}:
        return f"{value * 100:.1f} %"
    if unit in {"count", "objects"}:
        return f"{value:.6g}"
    if unit == "per_second":
        return f"{value:.6g}/s"
    if unit != "bytes":
        return f"{value:.6g} {unit}".strip()
    for name, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value) >= size:
            return f"{value / size:.1f} {name}"
    return f"{value:.0f} B"


def operation_kind(operation: str) -> str:
    """Return "CpuLoad" of "0.1.CpuLoad@n2"."""
    return operation.partition("@")[0].rpartition(".")[2] or operation


def moment(value: Any) -> float | None:
    """Return seconds since 1970 of an ISO text, a datetime, or a count of seconds or nanoseconds; None when it is none of these."""
    if isinstance(value, str) and value:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        return None
    return value / 1e9 if value > 1e14 else float(value)


def stamp(value: Any) -> str:
    """Return a moment as UTC text to the second, empty when there is none."""
    at = moment(value)
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def closing_lines(summary: Mapping[str, Any], run_dir: Path | None) -> list[str]:
    """Return what a run's last lines say: verdict, asked, achieved, what it did to the nodes, what broke, where the report lies."""
    status = str(summary.get("status") or "error")
    reason = reason_of(summary)
    headline = HEADLINES.get(status, "")
    lines = [f"{status}: {headline}" + (f" {reason}" if reason and reason not in headline else "")]
    if status == "running":  # detached: nothing is judged yet
        return [*lines, *([f"Run directory: {run_dir}"] if run_dir is not None else [])]
    lines += [*_dose_lines(summary.get("dose") or ()), *_node_line(summary), *_broken_lines(summary)]
    exporters = summary.get("exporters") or ()
    lines += [f"Exporter {line}" for line in exporter_words(one for one in exporters if not one.get("complete"))]
    if run_dir is not None:
        report = run_dir / "report.html"
        lines.append(f"Report: {report}" if report.exists() else f"Run directory: {run_dir}")
    return lines


def exporter_words(exporters: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each exporter of a run: what it has taken, where that is, and what it lacks and why."""
    lines = []
    for one in exporters:
        dropped = ", ".join(f"{count} dropped ({reason})" for reason, count in (one.get("dropped_rows") or {}).items() if count)
        left = [f"{one[key]} {words}" for key, words in _LEFT if one.get(key)]
        spilled = f"{one['spilled_rows']} on disk in {one['spill']}" if one.get("spill") else ""
        behind = "not all of the run was given to it" if one.get("is_behind") else ""
        why = "; ".join(words for words in (dropped, *left, spilled, behind, text(one.get("detail"))) if words)
        state = "complete" if one.get("complete") else f"NOT COMPLETE: {why or 'no reason is known'}"
        taken = int(one.get("delivered_rows") or 0) + int(one.get("earlier_rows") or 0)
        lines.append(f"{one.get('name')}: {taken} rows in {one.get('path') or one.get('type')}, {state}")
    return lines


_LEFT: Final = (("queued_rows", "still waited"), ("late_rows", "came too late for their window"))


def reason_of(summary: Mapping[str, Any]) -> str:
    """Return why a run ended as it did: its message, else the first of its reasons; nothing for a pass, which needs none."""
    reasons = summary.get("reasons") or ()
    first = reasons[0].get("reason") if reasons and isinstance(reasons[0], Mapping) else ""
    return "" if summary.get("status") == "passed" else text(summary.get("message") or first)


def _dose_lines(doses: Sequence[Mapping[str, Any]]) -> list[str]:
    if not doses:
        return ["Asked: nothing was put on any node."]
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in doses:
        kinds.setdefault((operation_kind(str(one.get("operation"))), str(one.get("unit") or "")), []).append(one)
    asked = "; ".join(
        f"{kind} {_span(group, 'requested', unit)} on {_names(one.get('node') for one in group)}" for (kind, unit), group in kinds.items()
    )
    achieved = "; ".join(f"{kind} {_span(group, 'achieved', unit)}" for (kind, unit), group in kinds.items())
    missed = [str(one.get("operation")) for one in doses if not one.get("reached")]
    verdict = f"missed by {_names(missed)}" if missed else f"reached by all {len(doses)} operations"
    return [f"Asked (mean): {asked}.", f"Achieved (mean, seen from outside the load): {achieved}; {verdict}."]


def _span(group: Iterable[Mapping[str, Any]], key: str, unit: str) -> str:
    values = [float(one.get(key) or 0.0) for one in group]
    low, high = amount(min(values), unit), amount(max(values), unit)
    return low if low == high else f"{low} to {high}"


def _names(names: Iterable[Any]) -> str:
    unique = list(dict.fromkeys(str(name) for name in names))
    more = len(unique) - _NODE_LIMIT
    return ", ".join(unique[:_NODE_LIMIT]) + (f" and {more} more" if more > 0 else "")


_PEAKS: Final[Mapping[str, tuple[str, str]]] = {
    "host.cpu.busy": ("CPU busy up to", "fraction"),
    "host.memory.used": ("memory used up to", "bytes"),
}


def peaks_by_node(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return {node: words} of a summary's `peaks`, which is {node: {metric: highest value}}."""
    peaks = summary.get("peaks")
    told: dict[str, str] = {}
    for node, values in peaks.items() if isinstance(peaks, Mapping) else ():
        words = [f"{_PEAKS[name][0]} {amount(values[name], _PEAKS[name][1])}" for name in _PEAKS if values.get(name) is not None]
        if words and node:
            told[str(node)] = ", ".join(words)
    return told


def _node_line(summary: Mapping[str, Any]) -> list[str]:
    told = peaks_by_node(summary)
    shown = "; ".join(f"{node} {words}" for node, words in list(told.items())[:_NODE_LIMIT])
    more = len(told) - _NODE_LIMIT
    return [f"The nodes saw: {shown}" + (f"; and {more} more." if more > 0 else ".")] if told else []


def _broken_lines(summary: Mapping[str, Any]) -> list[str]:
    hypotheses = summary.get("hypotheses") or ()
    broken = [one for one in hypotheses if one.get("held") is False]
    lines = [f"Broke: {hypothesis_words(one)}." for one in broken]
    unknown = [one for one in hypotheses if one.get("held") is None]
    lines += [f"Unknown: {hypothesis_words(one)}." for one in unknown]
    if hypotheses and not broken and not unknown:
        lines.append(f"Broke: nothing; {_counted(len(hypotheses), 'hypothesis', 'hypotheses')} held.")
    named: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("violations", "Safety", sentence),
        ("outstanding", "Outstanding", sentence),
        ("unclean", "Not undone", sentence),
    )
    for key, name, told in named:
        lines += [f"{name}: {told(one)}" for one in (summary.get(key) or ())[:_NODE_LIMIT]]
    return lines + [f"Lost metrics: {loss}" for loss in loss_words(summary.get("losses"))]


def loss_words(losses: Any) -> list[str]:
    """Return a summary's losses in words: nothing for what is zero, each reason of what is counted by reason."""
    told = []
    for name, count in sorted(losses.items()) if isinstance(losses, Mapping) else ():
        if isinstance(count, Mapping):
            told += [f"{name} ({reason}) {text(value)}" for reason, value in sorted(count.items()) if value]
        elif count:
            told.append(f"{name} {text(count)}")
    return told


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def hypothesis_words(one: Mapping[str, Any]) -> str:
    """Return a hypothesis of a summary in words."""
    name = text(one.get("name") or one.get("metric") or one.get("kind") or "hypothesis")
    expected = f", expected {text(one['tolerance'])}" if one.get("tolerance") not in {None, "", name} else ""
    seen = f" ({text(one['reason'])})" if one.get("reason") else ""
    return f"{name}{expected}{seen}"
