"""What windows answer to a question: a row of figures for each part that it was split into. Pure.

Windows of different metrics or units are never put together. A window belongs whole to the time step in which it begins. No windows is
no row, never a zero.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import HarnessError, InputError
from actors.metrics.registry import Kind, find

from .query import COLUMNS, QUANTILES, Between, figures
from .question import DIMENSIONS, Query
from .sketches.accumulator import AccumulatorRecord, Figure, Value, unit_of
from .sketches.builtin import value_bound
from .sketches.fold import accumulated

READ: Final = ["metric", "unit", *COLUMNS]  # what `answer` needs of the contract's columns
ROWS_MAX: Final = 10_000
USUAL: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.COUNTER: ("sum", "rate"),
    Kind.GAUGE: ("mean", "min", "max", "last"),
    Kind.HISTOGRAM: ("count", "mean", "p50", "p90", "p99", "p999", "max"),
}
_MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one part: its windows lie from `start_us` to `end_us` (microseconds of UTC), its time step begins at `at_us`."""

    metric: str
    unit: str
    by: tuple[tuple[str, str], ...]
    windows: int
    start_us: int
    end_us: int
    at_us: int | None
    figures: Mapping[str, Figure]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {
            "metric": self.metric,
            "unit": self.unit,
            "by": dict(self.by),
            "windows": self.windows,
            "start": utc(self.start_us),
            "end": utc(self.end_us),
            "figures": {name: _figure_json(figure) for name, figure in self.figures.items()},
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows in the order of metric, unit and what they are split by. `note` says what there would have been when there are none."""

    query: Query
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def quantiles(self) -> bool:
        """Tell whether quantiles were computed for it."""
        return any(name in QUANTILES for row in self.rows for name in row.figures)

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return 1024 + sum(512 + 128 * len(row.figures) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return rows and note as JSON-ready data. Infinite values are the texts Infinity and -Infinity, which null would hide."""
        return {"rows": [row.to_json() for row in self.rows], "note": self.note}

    def to_arrow(self) -> pa.Table:
        """Return a table with metric, unit, what it was split by (time as a timestamp), windows, and a column for each figure."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        stamp = pa.timestamp("us", tz="UTC")
        columns: dict[str, Any] = {"metric": [row.metric for row in self.rows], "unit": [row.unit for row in self.rows]}
        for name in self.query.by:
            columns[name] = [row.at_us if name == "time" else dict(row.by)[name] for row in self.rows]
        columns["windows"] = pa.array([row.windows for row in self.rows], pa.int64())
        for name in names:
            columns[name] = [plain_value(row.figures[name].value) if name in row.figures else None for row in self.rows]
        if "time" in columns:
            columns["time"] = pa.array(columns["time"], stamp)
        return pa.table(columns)


def answer(table: pa.Table, query: Query, span: Between | None = None, record: AccumulatorRecord | None = None) -> Answer:
    """Return what these windows (with the columns `READ` at least) answer.

    `span` is the time (seconds of UTC) in which the run was observed, by default that of all these windows: rates go by as much of it
    as lies between since, until and the ends of a time step, so that the rates of parts add up to that of the whole. `record` is the
    accumulator that the question names. Raises `InputError` for more than 10,000 rows, `HarnessError` when an accumulator fails.
    """
    held = chosen(table, query)
    observed = _cut(span or extent(table), query.since_us, query.until_us)
    rows = tuple(_row(part, query, observed, record) for part in _parts(held, query))
    return Answer(query, rows, "" if rows else _note(table, query))


def chosen(table: pa.Table, query: Query) -> pa.Table:
    """Return the windows that a question is about."""
    held = table.filter(pc.is_in(table["metric"], value_set=pa.array(query.metrics, pa.string())))
    for limit, compare in ((query.since_us, pc.greater_equal), (query.until_us, pc.less)):
        if limit is not None:
            held = held.filter(compare(held["time"], pa.scalar(limit, pa.timestamp("us", tz="UTC"))))
    for name, globs in zip(DIMENSIONS, (query.nodes, query.workers, query.phases), strict=True):
        held = _fitting(held, held[name], globs)
    for name, glob in query.labels:
        held = _fitting(held, _label(held, name), (glob,))
    return held


def _fitting(table: pa.Table, column: Any, globs: Sequence[str]) -> pa.Table:
    if not globs:
        return table
    present = column.unique().drop_null().to_pylist()
    wanted = [one for one in present if any(fnmatch.fnmatchcase(one, glob) for glob in globs)]
    return table.filter(pc.is_in(column, value_set=pa.array(wanted, pa.string())))


def _label(table: pa.Table, name: str) -> Any:
    return pc.map_lookup(table["labels"], pa.scalar(name), "first")


# parts


class _Part(NamedTuple):
    metric: str
    unit: str
    by: tuple[tuple[str, str], ...]
    at_us: int | None
    table: pa.Table


def _parts(table: pa.Table, query: Query) -> Iterator[_Part]:
    """Yield the windows by metric, unit and what they are split by. Raises `InputError` when there are too many."""
    if not table.num_rows:
        return
    keys = [_coded(table[name]) for name in ("metric", "unit")]
    keys += [_coded_times(table, query) if name == "time" else _coded(_column(table, name)) for name in query.by]
    order = np.lexsort([codes for codes, _ in reversed(keys)])
    sorted_codes = np.stack([codes[order] for codes, _ in keys])
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(sorted_codes, axis=1) != 0).any(axis=0)]))
    if starts.size > ROWS_MAX:
        words = f"the answer would have {starts.size} rows, at most {ROWS_MAX} are given"
        raise InputError("invalid_value", words, "narrow it with --since, --until or --node, or take larger steps with --every")
    table = table.combine_chunks().take(pa.array(order))
    ends = [*starts[1:].tolist(), table.num_rows]
    for start, end in zip(starts.tolist(), ends, strict=True):
        metric, unit, *values = (names[codes[start]] for (_, names), codes in zip(keys, sorted_codes, strict=True))
        times = [value for name, value in zip(query.by, values, strict=True) if name == "time"]
        by = tuple((name, utc(value) if name == "time" else value) for name, value in zip(query.by, values, strict=True))
        yield _Part(metric, unit, by, times[0] if times else None, table.slice(start, end - start))


def _column(table: pa.Table, name: str) -> Any:
    return table[name] if name in DIMENSIONS else pc.fill_null(_label(table, name), "")


def _coded(column: Any) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return each row's place among the sorted values, and these."""
    names = sorted(column.unique().to_pylist())
    codes = pc.index_in(column, value_set=pa.array(names, pa.string()))
    return np.asarray(codes).astype(np.int64), names


def _coded_times(table: pa.Table, query: Query) -> tuple[npt.NDArray[np.int64], list[int]]:
    times = np.asarray(table["time"].cast(pa.int64()))
    if query.every_us:
        times = (times - query.origin_us) // query.every_us * query.every_us + query.origin_us
    found, codes = np.unique(times, return_inverse=True)
    return codes.astype(np.int64), found.tolist()


def _row(part: _Part, query: Query, observed: Between | None, record: AccumulatorRecord | None) -> Row:
    starts = np.asarray(part.table["time"].cast(pa.int64()))
    ends = starts + np.rint(np.asarray(part.table["window_s"]) * _MICRO).astype(np.int64)
    between = observed
    if part.at_us is not None:  # a step of one window each is as long as its window
        between = _cut(observed, part.at_us, part.at_us + query.every_us) if query.every_us else None
    if record is not None:
        found = _accumulated(part, query, record)
    else:
        stats = query.stats or USUAL[find(part.metric).kind]
        found = {stat: _figure(part, stat, value) for stat, value in figures(part.table, part.metric, stats, between).items()}
    return Row(part.metric, part.unit, part.by, part.table.num_rows, int(starts.min()), int(ends.max()), part.at_us, found)


def _figure(part: _Part, stat: str, value: float | None) -> Figure:
    unit = {"count": "", "rate": unit_of("per_second", part.unit)}.get(stat, part.unit)
    is_estimate = stat in QUANTILES and find(part.metric).kind is Kind.HISTOGRAM
    return Figure(value, unit, value_bound(value) if is_estimate and value is not None and math.isfinite(value) else None)


def _accumulated(part: _Part, query: Query, record: AccumulatorRecord) -> dict[str, Figure]:
    try:
        return record.answers(accumulated(part.table, part.metric, record, label=query.of), part.unit)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's accumulator does
        words = f"accumulator {record.name!r} failed on {part.metric}: {type(error).__name__}: {error}"
        raise HarnessError("internal", words, "run cluster.metrics.sketches.conformance.problems on its record") from error


# time


def extent(table: pa.Table | pa.RecordBatch) -> Between | None:
    """Return the time that windows cover, in seconds of UTC."""
    if not table.num_rows:
        return None
    starts = np.asarray(table["time"].cast(pa.int64())) / _MICRO
    return float(starts.min()), float((starts + np.asarray(table["window_s"])).max())


def _cut(span: Between | None, since_us: int | None, until_us: int | None) -> Between | None:
    """Return what of a time lies between two others; None when nothing does."""
    if span is None:
        return None
    first = span[0] if since_us is None else max(span[0], since_us / _MICRO)
    last = span[1] if until_us is None else min(span[1], until_us / _MICRO)
    return (first, last) if first < last else None


def utc(at_us: int) -> str:
    """Return microseconds of UTC as ISO text, with as many digits as it takes."""
    digits = "seconds" if at_us % _MICRO == 0 else "milliseconds" if at_us % 1000 == 0 else "microseconds"
    seconds, rest = divmod(at_us, _MICRO)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat(timespec=digits).replace("+00:00", "Z")


# words and data


def _note(table: pa.Table, query: Query) -> str:
    """Say why there is no row: what the metric's windows have."""
    name = query.metrics[0] if len(query.metrics) == 1 else f"these {len(query.metrics)} metrics"
    held = table.filter(pc.is_in(table["metric"], value_set=pa.array(query.metrics, pa.string())))
    if not held.num_rows:
        when = " in that time" if (query.since_us, query.until_us) != (None, None) else ""
        return f"the run has no window of {name}{when}"
    has = []
    for dimension in (*DIMENSIONS, *(label for label, _ in query.labels)):
        values = sorted({value for value in _column(held, dimension).unique().to_pylist() if value})
        has += [f"{dimension} {', '.join(values[:8])}{' ...' if len(values) > 8 else ''}"] if values else []
    found = extent(held)
    assert found is not None
    times = " to ".join(utc(round(at * _MICRO)) for at in found)
    return f"no window fits; those of {name} have {'; '.join([*has, times])}"


def plain_value(value: Value) -> Any:
    """Return a figure's value with the items of a top list as mappings."""
    if isinstance(value, tuple):
        return [{"item": item, "at_least": low, "at_most": high} for item, low, high in value]
    return value


def _figure_json(figure: Figure) -> dict[str, Any]:
    told = {"value": _json_number(plain_value(figure.value)), "unit": figure.unit}
    if figure.bound is not None:
        told |= {"approximate": True, "bound": {"kind": figure.bound.kind, "size": _json_number(figure.bound.size)}}
    return told


def _json_number(value: Any) -> Any:
    """Return a value that JSON has a word for."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
