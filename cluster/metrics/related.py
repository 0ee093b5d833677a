"""How two metrics of a run go together: their windows on one grid of time steps, correlated over a range of lags. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from actors.errors import InputError
from actors.metrics.registry import Kind, find

from .answer import Answer, Row, answer
from .correlation import METHODS, Correlation, Floats, correlate
from .query import QUANTILES, Between
from .question import Query

USUAL: Final[Mapping[Kind, str]] = {Kind.COUNTER: "sum", Kind.GAUGE: "mean", Kind.HISTOGRAM: "mean"}
_MICRO: Final = 1_000_000
_By = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Both coefficients of one part, or why there are none."""

    by: _By
    correlations: tuple[Correlation, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Related:
    """What a correlation found: `stats` of the first metric and of the other one were compared."""

    query: Query
    stats: tuple[str, str]
    pairs: tuple[Pair, ...]

    @property
    def step_s(self) -> float:
        """Length of a time step in seconds."""
        return self.query.every_us / _MICRO

    @property
    def quantiles(self) -> bool:
        """Tell whether quantiles were computed for it."""
        return not QUANTILES.keys().isdisjoint(self.stats)

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return 1024 * (1 + len(self.pairs))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data. A lag above 0 means that the other metric follows the first."""
        first, other = ({"metric": name, "stat": stat} for name, stat in zip(self._names(), self.stats, strict=True))
        told = {"first": first, "other": other, "every_s": self.step_s, "lag_max_s": self.query.lag_us / _MICRO}
        return told | {"pairs": [self._pair_json(pair) for pair in self.pairs]}

    def _names(self) -> tuple[str, str]:
        return self.query.metrics[0], self.query.other

    def _pair_json(self, pair: Pair) -> dict[str, Any]:
        found: dict[str, Any] = {
            one.method: {
                "r": one.r,
                "lag_s": one.lag_steps * self.step_s,
                "pairs": one.pairs,
                "effective_pairs": one.effective,
                "threshold": one.threshold,
                "notable": one.notable,
            }
            for one in pair.correlations
        }
        return {"by": dict(pair.by), **found, "refusal": pair.refusal}


def relate(table: pa.Table, query: Query, span: Between | None = None) -> Related:
    """Return how the metrics of a question with `other` go together; see `answer` for the windows and the span.

    Nodes, phases and time choose windows of both metrics; workers and labels those of the first alone. Raises `InputError` when no part
    has enough steps with both; a part that has too few among others says so itself.
    """
    stats = _stats(query)
    plain = replace(query, other="", lag_us=0)
    first = answer(table, replace(plain, stats=stats[:1]), span)
    other = answer(table, replace(plain, metrics=(query.other,), stats=stats[1:], workers=(), labels=()), span)
    ours, theirs = _series(first, stats[0]), _series(other, stats[1])
    parts = sorted(ours.keys() | theirs.keys()) or [()]
    pairs = tuple(_pair(by, ours.get(by, {}), theirs.get(by, {}), query) for by in parts)
    if not any(pair.correlations for pair in pairs):
        where = f"{pairs[0].by[0][1]}: " if pairs[0].by else ""
        hint = first.note or other.note or "choose a longer time, a shorter lag or larger steps"
        raise InputError("invalid_value", f"{query.metrics[0]} with {query.other}: {where}{pairs[0].refusal}", hint)
    return Related(query, stats, pairs)


def _stats(query: Query) -> tuple[str, str]:
    if query.stats:
        return query.stats[0], query.stats[-1]
    return USUAL[find(query.metrics[0]).kind], USUAL[find(query.other).kind]


def _series(found: Answer, stat: str) -> dict[_By, dict[int, float]]:
    """Return the value at each step, by what the answer is split by beside time. Raises `InputError` when two units would be mixed."""
    series: dict[_By, dict[int, float]] = {}
    units: dict[_By, str] = {}
    for row in found.rows:
        by = tuple(pair for pair in row.by if pair[0] != "time")
        if units.setdefault(by, row.unit) != row.unit:
            words = f"{row.metric} is in {units[by]} and in {row.unit} here, which cannot be put together"
            raise InputError("invalid_value", words, "choose the windows of one, with --worker '*CpuLoad*' say")
        series.setdefault(by, {})[_step(row, found.query)] = _number(row, stat)
    return series


def _step(row: Row, query: Query) -> int:
    assert row.at_us is not None, "a correlation is split by time"
    return (row.at_us - query.origin_us) // query.every_us


def _number(row: Row, stat: str) -> float:
    value = row.figures[stat].value
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _pair(by: _By, ours: Mapping[int, float], theirs: Mapping[int, float], query: Query) -> Pair:
    steps = [*ours, *theirs]
    first, size = (min(steps), max(steps) - min(steps) + 1) if steps else (0, 0)
    one, other = _grid(ours, first, size), _grid(theirs, first, size)
    try:
        return Pair(by, tuple(correlate(one, other, method, query.lag_us // query.every_us) for method in METHODS))
    except InputError as error:
        return Pair(by, refusal=error.message)


def _grid(values: Mapping[int, float], first: int, size: int) -> Floats:
    grid = np.full(size, np.nan)
    for step, value in values.items():
        grid[step - first] = value
    return grid
