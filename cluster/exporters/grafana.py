"""The Grafana dashboard of runs, made from the catalogue of metrics and the simulators' records. Pure; `python -m` prints it.

Rows are: nodes, dose, operations, safety, probes, one for each family of simulators, recording, exporters, the endpoint itself. A
family's row follows from what its simulators record: metrics of one kind and unit share a panel, so what a run does not load draws
nothing and leaves no panel of its own empty. Never asks Grafana or Prometheus anything.

Sources: grafana.com/docs, "Dashboard JSON model", "Prometheus query variables", "$__rate_interval".
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from actors.metrics.registry import CATALOGUE, DOSE_UNITS, Kind, Metric
from actors.simulator import REGISTRY

from .prometheus import OWN

SCHEMA: Final = 39  # of Grafana 10 and 11; later ones convert it
UID: Final = "stress-cluster"
WIDTH: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
IN_RUN: Final = 'run=~"$run"'
ON_NODES: Final = f'{IN_RUN}, node=~"$node"'
RATE: Final = "[$__rate_interval]"

# Values that are names and not quantities: a curve of them says nothing.
NOT_DRAWN: Final[Mapping[str, str]] = {
    "memory.sequence": "a hash of what is read",
    "concurrency.lock.holder": "the kernel's number of a thread",
    "dose.remaining": "what is asked less what is achieved, both of which are drawn",
    "errors.rate": "errors.seen is drawn, which stays when they stop",
}
# Counters that most runs never move: drawn as their total, beside the gauges of their unit.
SO_FAR: Final = ("flood.spilled",)
# Families whose histograms get their values at an operation's start or end only: their quantiles are of the run so far.
ONCE: Final = ("exhaustion", "backend")
_UNITS: Final = {"ratio": "percentunit", "bytes": "bytes", "seconds": "s", "per_second": "cps", "bytes_per_second": "Bps", "": "short"}
_RATES: Final = {"bytes": "Bps", "seconds": "percentunit", "": "cps"}
_KIND_WORDS: Final = {Kind.COUNTER: "per second", Kind.GAUGE: "now", Kind.HISTOGRAM: "99th percentile"}
_UNIT_WORDS: Final = {
    "ratio": "shares",
    "bytes": "bytes",
    "seconds": "time",
    "per_second": "rates",
    "bytes_per_second": "bandwidth",
    "": "counts",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel, and what its curves are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph. `unit` is Grafana's."""

    title: str
    help: str
    unit: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def rows() -> tuple[Row, ...]:
    """Return all rows, in order."""
    families = dict.fromkeys(record.family for record in REGISTRY.values())
    return (
        *_fixed(),
        *(_family_row(family) for family in families),
        Row("Recording", tuple(_panels("metrics", ("metrics.", "samples.", "anomaly.", "agent.outbox"), IN_RUN))),
        Row("Exporters", tuple(_panels("export", ("export.",), IN_RUN))),
        Row("Metrics endpoint", tuple(_panels("exposition", ("exposition.",), IN_RUN))),
    )


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    return {
        "uid": UID,
        "title": "Stress Cluster",
        "description": "Runs of Stress Cluster: nodes, dose asked against achieved, loads, safety, exporters.",
        "tags": ["stress-cluster"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [_source_variable(), _variable("run", "Run", _RUNS), _variable("node", "Node", _NODES)]},
        "panels": list(_placed(rows())),
    }


def text() -> str:
    """Return the dashboard as the file in deploy/grafana has it."""
    return json.dumps(dashboard(), indent=1) + "\n"


# ---- queries


def gauge(name: str, where: str = ON_NODES, unit: str = "") -> Query:
    """Return what each series of a gauge stands at."""
    metric = _metric(name)
    return Query(f"{metric.family(unit)}{{{where}}}", _legend(metric))


def rate(name: str, where: str = ON_NODES) -> Query:
    """Return a counter's increase a second, by node, operation and the metric's own labels."""
    metric = _metric(name)
    by = ", ".join(("node", "worker", *metric.labels))
    return Query(f"sum by ({by}) (rate({metric.family()}{{{where}}}{RATE}))", _legend(metric))


def total(name: str, where: str = ON_NODES) -> Query:
    """Return what each series of a counter has come to in its run."""
    metric = _metric(name)
    return Query(f"{metric.family()}{{{where}}}", _legend(metric))


def quantile(name: str, where: str = ON_NODES, q: float = 0.99, *, so_far: bool = False) -> Query:
    """Return a quantile of a histogram over the last interval, or of the run so far."""
    metric = _metric(name)
    buckets = f"{metric.family()}_bucket{{{where}}}"
    each = buckets if so_far else f"rate({buckets}{RATE})"
    by = ", ".join(("le", "node", "worker", *metric.labels))
    return Query(f"histogram_quantile({q}, sum by ({by}) ({each}))", f"{_legend(metric)} p{q * 100:g}")


def _query(metric: Metric, where: str, *, so_far: bool = False) -> Query:
    if metric.name in SO_FAR:
        return total(metric.name, where)
    if metric.kind is Kind.HISTOGRAM:
        return quantile(metric.name, where, so_far=so_far)
    return gauge(metric.name, where) if metric.kind is Kind.GAUGE else rate(metric.name, where)


def _metric(name: str) -> Metric:
    return CATALOGUE[name] if name in CATALOGUE else OWN[name]


def _legend(metric: Metric) -> str:
    own = " ".join(f"{{{{{label}}}}}" for label in metric.labels)
    return " ".join(filter(None, ("{{node}} {{worker}}", metric.name.partition(".")[2], own)))


_RUNS: Final = f"label_values({OWN['exposition.series'].family()}, run)"
_NODES: Final = f"label_values({CATALOGUE['host.cpu.busy'].family()}{{{IN_RUN}}}, node)"


# ---- rows

_OPERATIONS: Final = ("operation.started", "operation.completed", "operation.failed")


def _fixed() -> tuple[Row, ...]:
    host = "host."
    nodes = (
        _panel("CPU", gauge(f"{host}cpu.busy")),
        _panel("Memory", *(gauge(f"{host}memory.{one}") for one in ("used", "available", "limit"))),
        _panel("Memory pressure", gauge(f"{host}memory.pressure")),
        _panel("Disk", gauge(f"{host}disk.free"), gauge(f"{host}disk.size")),
        _panel("Descriptors", gauge(f"{host}descriptors.used"), gauge(f"{host}descriptors.limit")),
        _panel("Load average", gauge(f"{host}load.average")),
    )
    doses = tuple(_dose(unit) for unit in DOSE_UNITS.values())
    operations = (
        _panel("Operations and errors", *(total(name) for name in (*_OPERATIONS, "errors.seen"))),
        _panel("Start and halt", gauge("start.skew", IN_RUN), gauge("halt.latency", IN_RUN)),
    )
    safety = (
        _panel("Verdict", gauge("safety.verdict")),
        _panel("Ceilings", gauge("safety.ceiling")),
        _panel("Lease remaining", gauge("agent.lease.remaining")),
        _panel("Lag of the agent", quantile("agent.tick.lag"), quantile("agent.tick.lag", q=0.5)),
    )
    probes = (
        _panel("Response time", *(quantile("probe.response", IN_RUN, q) for q in (0.5, 0.99)), quantile("probe.service", IN_RUN)),
        _panel("Calls", rate("probe.requests", IN_RUN), rate("probe.failures", IN_RUN)),
    )
    return (
        Row("Nodes", nodes),
        Row("Dose: asked against achieved", doses),
        Row("Operations", operations),
        Row("Safety and leases", safety),
        Row("Probes", probes),
    )


def _dose(unit: str) -> Panel:
    names = ("dose.requested", "dose.achieved", *(("dose.own",) if unit == "ratio" else ()))
    title = {"ratio": "Shares", "bytes": "Bytes", "objects": "Counts", "per_second": "Rates"}[unit]
    queries = tuple(Query(gauge(name, unit=unit).expr, f"{{{{node}}}} {{{{worker}}}} {name.partition('.')[2]}") for name in names)
    return Panel(title, _helps(names), {"objects": "short"}.get(unit) or _UNITS[unit], queries)


def _family_row(family: str) -> Row:
    """Return a family's row: the work and slices of its operations, then what its simulators record beside."""
    records = [record for record in REGISTRY.values() if record.family == family]
    kinds = "|".join(record.name for record in records)
    mine = f'{ON_NODES}, worker=~".*[.]({kinds})@.*"'
    names = dict.fromkeys(name for record in records for name in record.metrics if name not in NOT_DRAWN)
    panels = [_asked(mine)]
    for (stem, kind, unit), group in _grouped(names).items():
        title = f"{_stem_words(stem)}: {_UNIT_WORDS[unit]}, {_KIND_WORDS[kind]}"
        panels.append(_panel(title, *(_query(CATALOGUE[name], mine, so_far=family in ONCE) for name in group), names=group))
    return Row(f"Loads: {family}", tuple(panels))


def _asked(mine: str) -> Panel:
    """Return how much of what is asked a family's operations achieve, whatever the unit."""
    parts = [
        f"{gauge('dose.achieved', mine, unit).expr} / ({gauge('dose.requested', mine, unit).expr} > 0)" for unit in DOSE_UNITS.values()
    ]
    queries = tuple(Query(part, "{{node}} {{worker}}") for part in parts)
    return Panel("Achieved of what is asked", _helps(("dose.achieved", "dose.requested")), "percentunit", queries)


def _panels(title: str, starts: tuple[str, ...], where: str) -> Iterator[Panel]:
    names = [name for name in (*CATALOGUE, *OWN) if name.startswith(starts)]
    for (_, kind, unit), group in _grouped(names, by_stem=False).items():
        told = f"{title}: {_UNIT_WORDS[unit]}, {_KIND_WORDS[kind]}"
        yield _panel(told, *(_query(_metric(name), where) for name in group), names=group)


def _grouped(names: Iterable[str], *, by_stem: bool = True) -> dict[tuple[str, Kind, str], tuple[str, ...]]:
    """Return names by stem, kind and unit, in order of their first."""
    found: dict[tuple[str, Kind, str], list[str]] = {}
    for name in names:
        metric = _metric(name)
        kind = Kind.GAUGE if name in SO_FAR else metric.kind
        found.setdefault((name.partition(".")[0] if by_stem else "", kind, metric.unit), []).append(name)
    return {key: tuple(group) for key, group in found.items()}


def _stem_words(stem: str) -> str:
    return {"load": "work", "stressng": "stress-ng"}.get(stem, stem)


def _panel(title: str, *queries: Query, names: Iterable[str] = ()) -> Panel:
    """Return a panel in the unit of its first query's metric, explained by the catalogue."""
    known = tuple(names) or tuple(dict.fromkeys(map(_name_in, queries)))
    metric = _metric(known[0])
    counted = metric.kind is Kind.COUNTER and "rate(" in queries[0].expr
    unit = _RATES[metric.unit] if counted else _UNITS[metric.unit]
    return Panel(title, _helps(known), unit, queries)


def _name_in(query: Query) -> str:
    """Return the name of the metric that a query asks for."""
    return next(one.name for one in _LONGEST_FIRST if one.family() in query.expr)


_LONGEST_FIRST: Final = sorted((*CATALOGUE.values(), *OWN.values()), key=lambda one: -len(one.family()))


def _helps(names: Iterable[str]) -> str:
    return "\n\n".join(f"{name}: {_metric(name).help}" for name in names)


# ---- Grafana's model


def _placed(all_rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Yield rows and panels with their places, three or four panels in a line."""
    ids, y = itertools.count(1), 0
    for row in all_rows:
        yield {"id": next(ids), "type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _place(0, y, WIDTH, 1)}
        y += 1
        across = 4 if len(row.panels) in (4, 8) else 3
        for at, panel in enumerate(row.panels):
            width = WIDTH // across
            yield _graph(next(ids), panel, _place(at % across * width, y + at // across * 8, width, 8))
        y += -(-len(row.panels) // across) * 8


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _graph(number: int, panel: Panel, place: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 5, "spanNulls": False}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [_target(at, query) for at, query in enumerate(panel.queries)],
    }


def _target(at: int, query: Query) -> dict[str, Any]:
    name = chr(ord("A") + at % 26) + (str(at // 26) if at >= 26 else "")
    return {"refId": name, "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend, "editorMode": "code", "range": True}


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes: runs come and go
        "sort": 2 if name == "run" else 1,  # the newest run first, nodes by name
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    sys.stdout.write(text())
