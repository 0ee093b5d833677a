"""What became of one row of a run: from the window in which it was recorded to every destination, with the times that are known.

A trace id names it: `RUN:NODE:INCARNATION:RECORD:SERIES`. The first four parts are on the record from the node's outbox to its last
batch, the last is a digest of the series' names, so nobody has to keep or send an id. Rules are worked out on the row itself; counts of
its record then say what became of it. Where only some rows of its record shared a fate, that is said, and not guessed further.
"""

from __future__ import annotations

import fnmatch
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.errors import InputError
from actors.metrics.registry import find
from scenarios.exporters import Destination, Exporters

from .export_changes import read
from .export_story import CHANGED
from .export_traces import read_traces
from .exporters import destinations as kinds
from .exporters.rules import Chain, parse
from .metrics.parts import part_files
from .metrics.store import held_by, metrics_coverage, pending_metrics, read_events, read_metrics
from .metrics.windows import METRICS

_NAMES: Final = ("metric", "unit", "node", "worker", "phase")
_COLUMNS: Final = [name for name in METRICS.names if name not in {"p50", "p90", "p99", "p999"}]


@dataclass(frozen=True, slots=True)
class Point:
    """Which row is meant: globs over names and labels, and a moment (s of UTC) in its window; without one the newest row."""

    metric: str
    node: str = "*"
    worker: str = "*"
    phase: str = "*"
    labels: tuple[tuple[str, str], ...] = ()
    at_s: float | None = None
    series: str = ""  # digest, as in a trace id
    record: tuple[str, str, int] | None = None  # node, incarnation, record, as in a trace id

    @classmethod
    def of_id(cls, trace: str, run: str) -> Point:
        """Return the point that a trace id names. Raises `InputError` for one that is none, or of another run."""
        parts = trace.split(":")
        if len(parts) < 5 or not parts[-2].isdecimal():
            raise InputError("invalid_value", f"{trace!r} is no trace id", "they look like RUN:NODE:INCARNATION:RECORD:SERIES")
        if parts[0] != run:
            raise InputError("invalid_value", f"{trace!r} is of another run than {run}")
        node, incarnation = ":".join(parts[1:-3]), parts[-3]
        return cls("*", node=_literal(node), series=parts[-1], record=(node, incarnation, int(parts[-2])))


def series_digest(row: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits for the names of a row's series."""
    names = [row[name] for name in _NAMES] + sorted(dict(row["labels"]).items())
    return f"{zlib.crc32(repr(names).encode()):08x}"


def trace(directory: Path, run: str, manifest: Exporters, point: Point) -> dict[str, Any]:
    """Return the path of the row that `point` chooses, as a JSON-like document.

    `manifest` is what the run's scenario says of exporters. Raises `InputError` (`not_found`) when there is no such row.
    """
    row = _choose(directory, point)
    batch = pa.RecordBatch.from_pylist([row], schema=METRICS)
    found = _records(directory, row, point)
    origin = found[0] if len(found) == 1 else {}
    paths = _paths(directory, row, found)
    wanted = _in_force(directory, manifest, paths)
    taken = min((path["taken"] for path in paths if not path["part"]), default=None)
    return {
        "run": run,
        "trace": ":".join([run, *(str(origin[name]) for name in ("node", "incarnation", "record")), series_digest(row)])
        if origin
        else None,
        "point": {name: row[name] for name in ("time", "window_s", *_NAMES, "count", "sum")} | {"labels": dict(row["labels"])},
        "records": found,
        "aggregated": {"at": taken, "rows": origin.get("rows")},
        "exports": [_export(one, wanted, batch, [path for path in paths if path["exporter"] == one.name]) for one in wanted.destinations],
    }


def _choose(directory: Path, point: Point) -> dict[str, Any]:
    if point.record is not None:
        times = _times_of(directory, point.record)
        condition = pc.field("time").isin(pa.array(times, METRICS.field("time").type)) & (pc.field("node") == point.record[0])
    elif any(sign in point.metric for sign in "*?["):
        condition = pc.field("time").is_valid()
    else:
        condition = pc.field("metric") == find(point.metric).name
    rows = [row for row in read_metrics(directory, _COLUMNS, condition).to_pylist() if _fits(row, point)]
    if not rows:
        raise InputError("not_found", "no row of this run is meant", "see `stress-cluster query RUN METRIC --by time` for what there is")
    row = max(rows, key=lambda one: (one["time"], one["metric"]))
    return {name: row.get(name) for name in METRICS.names}


def _fits(row: Mapping[str, Any], point: Point) -> bool:
    labels = dict(row["labels"])
    names = all(fnmatch.fnmatchcase(row[name], getattr(point, name)) for name in ("metric", "node", "worker", "phase"))
    fits = all(name in labels and fnmatch.fnmatchcase(labels[name], glob) for name, glob in point.labels)
    start_s = row["time"].timestamp()
    in_time = point.at_s is None or start_s <= point.at_s < start_s + row["window_s"]
    return names and fits and in_time and point.series in ("", series_digest(row))


def _times_of(directory: Path, record: tuple[str, str, int]) -> list[datetime]:
    node, incarnation, number = record
    condition = (pc.field("node") == node) & (pc.field("incarnation") == incarnation) & (pc.field("record") == number)
    times = {path["time"] for path in read_traces(directory, condition)}
    if not times:
        for tagged in pending_metrics(directory, metrics_coverage(directory)):
            if (*tagged.stream, tagged.sequence) == record:
                times |= set(tagged.batch.column("time").to_pylist())
    if not times:
        raise InputError("not_found", f"no path of record {number} of {node} ({incarnation}) is known here")
    return sorted(times)


# the record of a row, and its paths


def _records(directory: Path, row: Mapping[str, Any], point: Point) -> list[dict[str, Any]]:
    """Return the records that a row may be of: one, as a rule; several of a window that was rolled up."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in read_traces(directory, _during(row)):
        found[path["node"], path["incarnation"], path["record"]] = {name: path[name] for name in ("time", "rows")}
    if not found:
        found = {
            (*tagged.stream, tagged.sequence): {"time": row["time"], "rows": tagged.batch.num_rows}
            for tagged in pending_metrics(directory, metrics_coverage(directory))
            if tagged.stream[0] == row["node"] and row["time"] in set(tagged.batch.column("time").to_pylist())
        }
    exact = {key: one for key, one in found.items() if one["time"] == row["time"]}
    chosen = exact or found
    if point.record in chosen:
        chosen = {point.record: chosen[point.record]}
    return [
        {"node": node, "incarnation": incarnation, "record": number, "rows": one["rows"]}
        for (node, incarnation, number), one in sorted(chosen.items())
    ]


def _during(row: Mapping[str, Any]) -> Any:
    end = row["time"] + timedelta(seconds=row["window_s"])
    return (pc.field("node") == row["node"]) & (pc.field("time") >= row["time"]) & (pc.field("time") < end) & (pc.field("part") == "")


def _paths(directory: Path, row: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the paths of a row's records, or else of the Parquet part that it was read from."""
    keys = {(one["node"], one["incarnation"], one["record"]) for one in records}
    own = [path for path in read_traces(directory, _during(row)) if (path["node"], path["incarnation"], path["record"]) in keys]
    same = (pc.field("node") == row["node"]) & (pc.field("time") == row["time"])
    parts = [part.name for part in part_files(directory) if pq.read_table(part, columns=["time"], filters=same).num_rows]
    known = {path["exporter"] for path in own}
    others = read_traces(directory, pc.field("part").isin(parts)) if parts else []
    return [*own, *(path for path in others if path["exporter"] not in known)]


def _in_force(directory: Path, said: Exporters, paths: Sequence[Mapping[str, Any]]) -> Exporters:
    """Return what the exporters were when the row was given to them: as the scenario says, or as they were changed since."""
    routed = min(
        (hop["at"] for path in paths for hop in path["hops"] if hop["stage"] == "routed"), default=datetime.max.replace(tzinfo=UTC)
    )
    events = read_events(directory, held_by(directory))
    changes = [one for one in events.filter(pc.field("kind") == CHANGED).to_pylist() if one["time"] <= routed]
    if not changes:
        return said
    document = json.loads(max(changes, key=lambda one: (one["time"], one["sequence"]))["data"])["exporters"]
    return read(document)


# one destination


def _export(one: Destination, wanted: Exporters, row: pa.RecordBatch, paths: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    outcome, detail = _by_rules(one, wanted, row)
    if not outcome:
        outcome, detail = _by_counts(paths)
    hops = sorted((hop for path in paths for hop in path["hops"]), key=lambda hop: hop["at"])
    return {"exporter": one.name, "outcome": outcome, "detail": detail, "hops": hops, "unlisted": sum(path["unlisted"] for path in paths)}


def _by_rules(one: Destination, wanted: Exporters, row: pa.RecordBatch) -> tuple[str, str]:
    """Return what routes and rules do to a row before its destination; nothing when it comes through."""
    rules = parse(kinds.rules_of(wanted))
    split, _ = rules.split(row, [other.name for other in wanted.destinations])
    if one.name not in split:
        return "not routed", "no route sends it there"
    steps = rules.chains.get(one.name, ())
    for number in range(1, len(steps) + 1):
        chain = Chain(steps[:number])
        chain.apply(row)
        if chain.counts.filtered:
            return "filtered", f"its rule {number} leaves it out"
        if chain.held or chain.counts.folded:
            return "merged", f"its rule {number} merges it into a longer window"
    return "", ""


def _by_counts(paths: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return what became of rows that came through the rules."""
    if not paths:
        return "unknown", "no path is written down; while a run goes on, not yet"
    ends: dict[str, int] = {}
    came = 0
    for path in paths:
        for hop in path["hops"]:
            if hop["stage"] == "delivered" or hop["stage"].startswith("dropped"):
                ends[hop["stage"]] = ends.get(hop["stage"], 0) + hop["rows"]
        through = [hop["rows"] for hop in path["hops"] if hop["stage"] in ("routed", "through the rules")]
        came += through[-1] if through else 0
    left = came - sum(ends.values())
    if left:
        waits = max((hop for path in paths for hop in path["hops"]), key=lambda hop: hop["at"])["stage"]
        ends[f"waiting ({waits})"] = left
    if len(ends) == 1:
        return next(iter(ends)), ""
    told = ", ".join(f"{rows} {stage}" for stage, rows in ends.items())
    return "shared", f"of {came} rows that came with it: {told}; which of them it was is not kept"


# words


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Return a trace as text, from the recording to each destination."""
    point = found["point"]
    start, end = point["time"], point["time"] + timedelta(seconds=point["window_s"])
    labels = "".join(f" {name}={value}" for name, value in point["labels"].items())
    where = " ".join(
        word for word in (f"by {point['worker']}" if point["worker"] else "", f"in {point['phase']}" if point["phase"] else "") if word
    )
    lines = [
        f"trace {found['trace'] or 'of more than one record: this row was rolled up, or its record is not known any more'}",
        f"{_clock(start)}  recorded      {point['metric']}{labels} on {point['node']} {where}".rstrip()
        + f": count {point['count']}, sum {point['sum'] if point['sum'] is not None else '-'}",
    ]
    lines += [
        f"{_clock(end)}  collected     record {one['record']} of {one['node']}, life {one['incarnation']}, with {one['rows']} rows"
        for one in found["records"]
    ]
    if found["aggregated"]["at"] is not None:
        lines.append(f"{_clock(found['aggregated']['at'])}  aggregated    on the disk of the run's aggregator")
    if not found["exports"]:
        lines.append("this run has no exporters")
    for one in found["exports"]:
        lines += [f"-> {one['exporter']}: {one['outcome']}{'; ' if one['detail'] else ''}{one['detail']}"]
        lines += [f"{_clock(hop['at'])}  {hop['stage']:<13} {hop['rows']} rows{_batch(hop)}" for hop in one["hops"]]
        lines += [f"               and {one['unlisted']} more"] if one["unlisted"] else []
    return lines


def _clock(at: datetime) -> str:
    return at.strftime("%H:%M:%S.%f")[:-3]


def _batch(hop: Mapping[str, Any]) -> str:
    return f", batch {hop['batch']}" if hop["batch"] else ""


def _literal(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
