"""Merge rows over time and series: windows of `every_s` by some of the names, closed by a watermark.

A merged row has the contract's columns, and holds what one window over all its sources would have held:

    counter     count, sum: added up; last: the newest total of each source series, added up
    gauge       count, sum: added up; min, max; last: the newest (of equal times, the one that came last)
    histogram   count, sum: added up; min, max; digest: merged exactly, and the quantiles read from it (null if a source had none)

Windows begin at whole multiples of `every_s` since 1970. The watermark is the newest `time` seen, less `late_s`; a window closes when
the watermark reaches its end, and rows that come for it later are dropped and counted as late. Pure but for its open windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from actors.metrics.histogram import Histogram, decode, merge
from actors.metrics.registry import Kind

from ..metrics.windows import QUANTILES

WEIGHT: Final = "__weight__"  # a column: 0 for a source row, else how many source rows a merged row stands for
PLAIN: Final = ("metric", "kind", "unit", "node", "worker", "phase")
_NAMES: Final = ("node", "worker", "phase")
_MERGE_AT: Final = 32


class Out(NamedTuple):
    """What comes out: rows that did not match and windows that closed; and how many rows came too late."""

    batch: pa.RecordBatch
    late: int


class _Key(NamedTuple):
    start_us: int
    metric: str
    kind: str
    unit: str
    node: str
    worker: str
    phase: str
    labels: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Group:
    weight: int = 0
    count: int = 0
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    last: float | None = None
    last_us: int = -1 << 63
    totals: dict[tuple[Any, ...], tuple[int, float]] = field(default_factory=dict)  # of a counter's source series
    digests: list[Histogram] = field(default_factory=list)
    without_digest: int = 0

    def add(self, time_us: int, row: Mapping[str, Any]) -> None:
        self.weight += max(1, row[WEIGHT])
        self.count += row["count"]
        self.sum = row["sum"] if self.sum is None else self.sum + (row["sum"] or 0.0)
        self.min = _both(self.min, row["min"], min)
        self.max = _both(self.max, row["max"], max)
        if row["last"] is not None:
            source = (*(row[name] for name in _NAMES), tuple(row["labels"]))
            if row["kind"] == Kind.COUNTER and time_us >= self.totals.get(source, (time_us, 0.0))[0]:
                self.totals[source] = (time_us, row["last"])
            if time_us >= self.last_us:
                self.last_us, self.last = time_us, row["last"]
        if row["digest"] is not None and row["kind"] == Kind.HISTOGRAM:  # a rolled up gauge has means there
            self.digests.append(decode(row["digest"]))
            if len(self.digests) >= _MERGE_AT:
                self.digests = [merge(self.digests)]
        elif row["count"]:
            self.without_digest += 1

    def row(self, key: _Key, every_s: float) -> dict[str, Any]:
        found: dict[str, Any] = {**key._asdict(), "time": key.start_us, "window_s": every_s, "count": self.count, WEIGHT: self.weight}
        del found["start_us"]
        found |= {"sum": self.sum, "min": self.min, "max": self.max, "last": self.last, "labels": list(key.labels)}
        if key.kind == Kind.COUNTER and self.totals:
            found["last"] = sum(total for _, total in self.totals.values())
        if self.digests and not self.without_digest:
            whole = merge(self.digests)
            found["digest"] = whole.encode()
            found |= zip(QUANTILES, whole.quantiles(tuple(QUANTILES.values())), strict=True)
        return found


def _both(one: float | None, other: float | None, pick: Callable[[float, float], float]) -> float | None:
    """Return the picked one of two values; what is absent or NaN gives way to the other."""
    if one is None or (other is not None and math.isnan(one)):
        return other
    return one if other is None or math.isnan(other) else pick(one, other)


class Downsample:
    """See the module. `by` names what stays apart: node, worker, phase, `labels` (all) or `labels.NAME`."""

    def __init__(self, mask: Callable[[pa.RecordBatch], pa.Array], every_s: float, by: tuple[str, ...], late_s: float) -> None:
        self._mask = mask
        self._every_s = every_s
        self._every_us = round(every_s * 1e6)
        self._late_us = round(late_s * 1e6)
        self._names = tuple(name for name in _NAMES if name in by)
        self._labels = None if "labels" in by else frozenset(name.removeprefix("labels.") for name in by if name.startswith("labels."))
        self._open: dict[_Key, _Group] = {}
        self._newest_us: int | None = None

    @property
    def held(self) -> int:
        """Source rows in open windows."""
        return sum(group.weight for group in self._open.values())

    def take(self, batch: pa.RecordBatch) -> Out:
        """Merge the rows that match; return the others, and windows that closed."""
        mask = self._mask(batch)
        matching = batch.filter(mask)
        late = 0
        closed_us = self._watermark_us()
        for time_us, row in zip(
            pc.cast(matching.column("time"), pa.int64()).to_pylist(), matching.drop_columns(["time"]).to_pylist(), strict=True
        ):
            self._newest_us = time_us if self._newest_us is None else max(self._newest_us, time_us)
            start_us = time_us // self._every_us * self._every_us
            if closed_us is not None and start_us + self._every_us <= closed_us:
                late += max(1, row[WEIGHT])
            else:
                self._open.setdefault(self._key(start_us, row), _Group()).add(time_us, row)
        mark_us = self._watermark_us()
        done = [key for key in self._open if mark_us is not None and key.start_us + self._every_us <= mark_us]
        return Out(self._joined(batch.filter(pc.invert(mask)), done), late)

    def drain(self, schema: pa.Schema) -> pa.RecordBatch:
        """Close every window and return its rows, with the columns of this schema."""
        return self._joined(pa.RecordBatch.from_pylist([], schema=schema), list(self._open))

    def _watermark_us(self) -> int | None:
        return None if self._newest_us is None else self._newest_us - self._late_us

    def _key(self, start_us: int, row: Mapping[str, Any]) -> _Key:
        names = {name: row[name] if name in self._names else "" for name in _NAMES}
        labels = tuple(sorted(pair for pair in row["labels"] if self._labels is None or pair[0] in self._labels))
        return _Key(start_us, row["metric"], row["kind"], row["unit"], **names, labels=labels)

    def _joined(self, rest: pa.RecordBatch, done: list[_Key]) -> pa.RecordBatch:
        if not done:
            return rest
        rows = [self._open.pop(key).row(key, self._every_s) for key in sorted(done)]
        columns = [pa.array([row.get(column.name) for row in rows], column.type) for column in rest.schema]
        merged = pa.RecordBatch.from_arrays(columns, schema=rest.schema)
        return pa.concat_batches([merged, rest]) if rest.num_rows else merged
