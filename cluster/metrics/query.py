"""Questions to a table of windows: one figure over series, windows and nodes. Pure.

Figures of several windows and series are those of all their samples together: counts and sums add, extremes are extremes, quantiles
come from merged digests, also where windows are of unequal lengths. No rows is no answer (None), never zero: a counter that must read 0
is recorded with increments of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import InputError
from actors.metrics import histogram
from actors.metrics.registry import Kind, find

from .rollup import means
from .sums import total_of

Between = tuple[float, float]  # seconds of UTC: windows that begin at or after the first and before the second

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
COLUMNS: Final = ["time", "window_s", "node", "worker", "phase", "labels", "count", "sum", "min", "max", "last", "digest"]


def condition(metric: str, node: str | None = None, worker: str | None = None, between: Between | None = None) -> Any:
    """Return the rows' filter. Raises `InputError` for a metric that the catalogue lacks."""
    wanted = pc.field("metric") == find(metric).name
    if node is not None:
        wanted &= pc.field("node") == node
    if worker is not None:
        wanted &= pc.field("worker") == worker
    if between is not None:
        first, last = (pa.scalar(round(at * 1e6), pa.timestamp("us", tz="UTC")) for at in between)
        wanted &= (pc.field("time") >= first) & (pc.field("time") < last)
    return wanted


def labelled(table: pa.Table, labels: Mapping[str, str] | None) -> pa.Table:
    """Return the rows that have all of these labels."""
    if not labels:
        return table
    wanted = set(labels.items())
    return table.filter(pa.array([wanted <= set(found) for found in table["labels"].to_pylist()], pa.bool_()))


def figure(table: pa.Table, metric: str, stat: str, between: Between | None = None) -> float | None:
    """Return one figure of these rows, or None when they have none; see `figures`."""
    return figures(table, metric, (stat,), between)[stat]


def figures(table: pa.Table, metric: str, stats: Sequence[str], between: Between | None = None) -> dict[str, float | None]:
    """Return figures of these rows by name, None for what they do not have. Digests are merged once for all quantiles.

    `rate` is the sum per second of `between`, else of the span that the windows cover. A quantile of a gauge is one of its windows'
    means. `last` is of the newest window: a counter's totals together, else the mean over its series.
    Raises `InputError` for an unknown stat.
    """
    for stat in stats:
        if stat not in STATS:
            raise InputError("unknown_name", f"unknown statistic {stat!r}", f"known: {', '.join(STATS)}")
    if not table.num_rows:
        return dict.fromkeys(stats)
    quantiles = [stat for stat in stats if stat in QUANTILES]
    found = _quantiles(table, metric, quantiles) if quantiles else {}
    found |= {stat: _SCALARS[stat](table, metric, between) for stat in stats if stat in _SCALARS}
    return {stat: _known(found[stat]) for stat in stats}


def _known(answer: float | None) -> float | None:
    return None if answer is None or np.isnan(answer) else float(answer)


def _quantiles(table: pa.Table, metric: str, names: Sequence[str]) -> dict[str, float | None]:
    kind = find(metric).kind
    if kind is Kind.COUNTER:
        return dict.fromkeys(names)
    if kind is Kind.GAUGE:
        means = _means(table)
        return {name: float(np.quantile(means, QUANTILES[name], method="lower")) for name in names}
    merged = histogram.merge(map(histogram.decode, table["digest"].drop_null().to_pylist()))
    return dict(zip(names, merged.quantiles([QUANTILES[name] for name in names]), strict=True))


def _means(table: pa.Table) -> npt.NDArray[np.float64]:
    """Return the mean of each window as it came, also of those that became part of a longer one."""
    plain = table.filter(pc.is_null(table["digest"]))
    rolled = [means(digest)[0] for digest in table["digest"].drop_null().to_pylist()]
    return np.concatenate([np.asarray(pc.divide(plain["sum"], plain["count"].cast(pa.float64()))), *rolled])


def _sum(table: pa.Table, _: str, __: Between | None) -> float | None:
    """Return the sum, rounded once: the same whichever files the rows lie in."""
    known = table["sum"].drop_null()
    return total_of(known.to_pylist()) if len(known) else None


def _rate(table: pa.Table, _: str, between: Between | None) -> float | None:
    if between is not None:
        span_s = between[1] - between[0]
    else:
        starts = np.asarray(table["time"].cast(pa.int64())) / 1e6
        span_s = float((starts + np.asarray(table["window_s"])).max() - starts.min())
    total = _sum(table, "", between)
    return total / span_s if total is not None and span_s > 0 else None


def _mean(table: pa.Table, _: str, __: Between | None) -> float | None:
    count = pc.sum(table["count"]).as_py()
    extremes = [pc.min(table["min"]).as_py(), pc.max(table["max"]).as_py()]
    for extreme in extremes:
        if extreme is not None and np.isinf(extreme):
            return float(extreme)  # sums leave infinities out
    total = _sum(table, "", None)
    return total / count if total is not None and count else None


def _last(table: pa.Table, metric: str, _: Between | None) -> float | None:
    newest = table.filter(pc.equal(table["time"], pc.max(table["time"])))["last"].drop_null()
    if not len(newest):
        return None
    answer = pc.sum(newest) if find(metric).kind is Kind.COUNTER else pc.mean(newest)
    return float(answer.as_py())


_SCALARS: Final[dict[str, Callable[[pa.Table, str, Between | None], float | None]]] = {
    "count": lambda table, _, __: pc.sum(table["count"]).as_py(),
    "sum": _sum,
    "rate": _rate,
    "min": lambda table, _, __: pc.min(table["min"]).as_py(),
    "max": lambda table, _, __: pc.max(table["max"]).as_py(),
    "mean": _mean,
    "last": _last,
}
STATS: Final = (*_SCALARS, *QUANTILES)


def peaks(table: pa.Table) -> dict[str, dict[str, float]]:
    """Return the highest value by node and metric. `table` needs node, metric and max."""
    found: dict[str, dict[str, float]] = {}
    grouped = table.group_by(["node", "metric"]).aggregate([("max", "max")])
    for row in grouped.sort_by([("node", "ascending"), ("metric", "ascending")]).to_pylist():
        if row["max_max"] is not None:
            found.setdefault(row["node"], {})[row["metric"]] = row["max_max"]
    return found
