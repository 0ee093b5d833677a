"""What a run was asked for, what it achieved, and what broke: one value, told as text, JSON or a page.

`assemble` is pure; `read` fetches its parts from a run directory; `write` puts `report.html` there. The page is one file: no
script, nothing fetched from elsewhere. Nothing here starts or stops anything, and it runs on any platform.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from actors.clock import SystemClock

from ..stored import judge_status, setting_of
from ..words import HEADLINES, closing_lines, exporter_words, loss_words, moment, operation_kind, reason_of, sentence, stamp, text
from .plots import Point

__all__ = [
    "Dose",
    "Happening",
    "Hypothesis",
    "Node",
    "Report",
    "assemble",
    "closing_lines",
    "read",
    "write",
    "write_report",
]

SERIES: Final = ("dose.requested", "dose.achieved", "host.cpu.busy", "host.memory.available")
_EVENT_LIMIT: Final = 200


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One hypothesis and what became of it; `held` is None when it could not be judged."""

    name: str
    expected: str
    seen: str
    held: bool | None


@dataclass(frozen=True, slots=True)
class Dose:
    """One operation: asked and achieved, as figures and over time (seconds since the first window, value in `unit`)."""

    operation: str
    kind: str
    node: str
    unit: str
    requested: float
    achieved: float
    reached: bool | None
    asked: tuple[Point, ...] = ()
    got: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One node's host over the run: busy fraction of its CPU, available bytes of its memory."""

    name: str
    machine: str = ""
    address: str = ""
    cpu: tuple[Point, ...] = ()
    memory: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Happening:
    """One event, with seconds since the first window or event."""

    at_s: float
    severity: str
    kind: str
    node: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that a reader is told about one run."""

    run: str
    status: str
    exit_code: int | None
    headline: str
    scenario: str
    seed: str
    profile: str
    started: str
    ended: str
    span_s: float
    hypotheses: tuple[Hypothesis, ...]
    doses: tuple[Dose, ...]
    nodes: tuple[Node, ...]
    shared: tuple[tuple[str, ...], ...]
    events: tuple[Happening, ...]
    events_left_out: int
    violations: tuple[str, ...]
    losses: tuple[str, ...]
    outstanding: tuple[str, ...]
    drift: tuple[str, ...]
    exporters: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data with everything the page shows."""
        return asdict(self)


def read(run_dir: Path, now_wall_ns: int) -> Report:
    """Read a run directory, finished or not. Raises `InputError` (`not_found`) when it is none."""
    from . import load  # noqa: PLC0415  # pyarrow is slow to import, and `assemble` does not need it

    data = load(run_dir)
    return assemble(_mapping(data.manifest), _mapping(data.summary), _rows(data.metrics), _events(data.events), now_wall_ns)


def write(run_dir: Path, report: Report) -> Path:
    """Write `report.html` so that it appears whole, and return its path."""
    from .page import render_html  # noqa: PLC0415  # text and JSON readers do not need the page

    path, partial = run_dir / "report.html", run_dir / f".report.html.{os.getpid()}.tmp"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(render_html(report))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_report(run_dir: Path) -> Path:
    """Read a run directory and write its `report.html`; return the path."""
    return write(run_dir, read(run_dir, SystemClock().wall_ns()))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(table: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow metrics table that the report draws."""
    import pyarrow as pa  # noqa: PLC0415  # see `read`
    import pyarrow.compute as pc  # noqa: PLC0415

    if table is None or table.num_rows == 0:
        return []
    wanted = table.filter(pc.is_in(table["metric"], value_set=pa.array(SERIES)))
    columns = ["time", "window_s", "metric", "node", "worker", "count", "sum", "last"]
    rows: list[dict[str, Any]] = wanted.select(columns).sort_by("time").to_pylist()
    return rows


def _events(table: Any) -> list[dict[str, Any]]:
    if table is None or table.num_rows == 0:
        return []
    rows: list[dict[str, Any]] = table.select(["time", "node", "kind", "severity", "message"]).sort_by("time").to_pylist()
    return rows


def assemble(
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    now_wall_ns: int,
) -> Report:
    """Make the report of a run's parts, each of which may be empty.

    `rows` are metric rows ordered by time, `events` event rows ordered by time. Pure.
    """
    status, exit_code, died = judge_status(manifest, summary, now_wall_ns)
    zero = min((_seconds(row["time"]) for row in (*rows, *events)), default=0.0)
    series = _series(rows, zero)
    hypotheses = tuple(_hypothesis(one) for one in summary.get("hypotheses") or ())
    worst = sorted(events, key=lambda event: _SEVERITY.get(str(event.get("severity")), 3))[:_EVENT_LIMIT]
    kept = sorted(worst, key=lambda event: _seconds(event["time"]))
    scenario = _mapping(manifest.get("scenario"))
    nodes = _nodes(manifest, series)
    return Report(
        run=str(manifest.get("run") or manifest.get("run_id") or summary.get("run") or ""),
        status=status,
        exit_code=exit_code,
        headline=died or _headline(status, hypotheses, summary),
        scenario=str(scenario.get("name") or manifest.get("name") or ""),
        seed=text(manifest.get("seed")),
        profile=text(setting_of(manifest, "profile")),
        started=stamp(manifest.get("start")),
        ended=stamp(manifest.get("end")),
        span_s=max((points[-1][0] for points in series.values() if points), default=0.0),
        hypotheses=hypotheses,
        doses=_doses(summary, series),
        nodes=nodes,
        shared=_shared(nodes),
        events=tuple(_happening(event, zero) for event in kept),
        events_left_out=len(events) - len(kept),
        violations=tuple(sentence(one) for one in summary.get("violations") or ()),
        losses=tuple(loss_words(summary.get("losses"))),
        outstanding=tuple(sentence(one) for one in summary.get("outstanding") or ()),
        drift=tuple(sentence(one) for one in summary.get("drift") or ()),
        exporters=tuple(exporter_words(summary.get("exporters") or ())),
        figures=_figures(summary),
        versions=tuple((str(name), text(value)) for name, value in sorted(_versions(manifest).items())),
    )


_SEVERITY: Final[Mapping[str, int]] = {"error": 0, "warning": 1, "info": 2}


def _seconds(value: Any) -> float:
    return moment(value) or 0.0


def _series(rows: Iterable[Mapping[str, Any]], zero: float) -> dict[tuple[str, str, str], list[Point]]:
    """Group rows to curves by (metric, node, worker); a window's value is its mean, or its last where nothing was counted."""
    curves: dict[tuple[str, str, str], list[Point]] = {}
    for row in rows:
        value = row["sum"] / row["count"] if row.get("count") and row.get("sum") is not None else row.get("last")
        if value is not None:
            key = (str(row["metric"]), str(row["node"]), str(row["worker"]))
            curves.setdefault(key, []).append((_seconds(row["time"]) - zero, float(value)))
    return curves


def _doses(summary: Mapping[str, Any], series: Mapping[tuple[str, str, str], list[Point]]) -> tuple[Dose, ...]:
    stated = {str(one.get("operation")): one for one in summary.get("dose") or ()}
    seen = {worker: node for metric, node, worker in series if metric == "dose.requested" and worker}
    doses = []
    for operation in dict.fromkeys([*stated, *sorted(seen)]):
        one = stated.get(operation, {})
        node = str(one.get("node") or seen.get(operation) or operation.partition("@")[2])
        asked, got = (tuple(series.get((metric, node, operation), ())) for metric in ("dose.requested", "dose.achieved"))
        requested = one.get("requested", _mean(asked))
        achieved = one.get("achieved", _mean(got))
        doses.append(
            Dose(
                operation,
                operation_kind(operation),
                node,
                str(one.get("unit") or ("fraction" if "Cpu" in operation else "bytes")),
                float(requested or 0.0),
                float(achieved or 0.0),
                one.get("reached"),
                asked,
                got,
            ),
        )
    return tuple(doses)


def _mean(points: Sequence[Point]) -> float:
    return sum(value for _, value in points) / len(points) if points else 0.0


def _nodes(manifest: Mapping[str, Any], series: Mapping[tuple[str, str, str], list[Point]]) -> tuple[Node, ...]:
    listed = manifest.get("nodes") or ()
    entries = [{"name": name, **_mapping(one)} for name, one in listed.items()] if isinstance(listed, Mapping) else list(listed)
    known = {str(one.get("name", "")): one for one in entries}
    names = dict.fromkeys([*known, *sorted({node for metric, node, _ in series if metric.startswith("host.")})])
    return tuple(
        Node(
            name,
            str(known.get(name, {}).get("machine", "")),
            str(known.get(name, {}).get("address", "")),
            tuple(series.get(("host.cpu.busy", name, ""), ())),
            tuple(series.get(("host.memory.available", name, ""), ())),
        )
        for name in names
    )


def _shared(nodes: Iterable[Node]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of nodes that share a machine and with it one set of limits."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        if node.machine:
            groups.setdefault(node.machine, []).append(node.name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _hypothesis(one: Mapping[str, Any]) -> Hypothesis:
    name = str(one.get("name") or one.get("metric") or one.get("kind") or "hypothesis")
    return Hypothesis(name, text(one.get("tolerance")), text(one.get("reason") or "nothing was observed"), one.get("held"))


def _headline(status: str, hypotheses: Sequence[Hypothesis], summary: Mapping[str, Any]) -> str:
    reason = reason_of(summary)
    base = HEADLINES.get(status, f"The run ended as {status}.")
    broken = [one.name for one in hypotheses if one.held is False]
    if status == "failed" and broken:
        base = f"{len(broken)} of {len(hypotheses)} hypotheses broke: {', '.join(broken)}."
    return f"{base} {reason}".strip() if reason and reason not in base else base


def _happening(event: Mapping[str, Any], zero: float) -> Happening:
    texts = (str(event.get(key) or "") for key in ("severity", "kind", "node", "message"))
    severity, kind, node, message = texts
    return Happening(round(_seconds(event["time"]) - zero, 1), severity, kind, node, message)


def _figures(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    figures = []
    for key, name in (("start_skew_ms", "start skew"), ("halt_latency_ms", "halt latency")):
        if isinstance(summary.get(key), (int, float)):
            figures.append((name, f"{summary[key]:.0f} ms"))
    return tuple(figures)


def _versions(manifest: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: manifest[key] for key in ("code_id", "plan_digest") if manifest.get(key)}
    return {**_mapping(manifest.get("versions")), **extra}
