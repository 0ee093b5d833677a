"""Merge rows over time and series: windows of `every_s` by some of the names, closed by a watermark.

A merged row has the contract's columns, and holds what one window over all its sources would have held, as in `metrics.rollup`, but that

    a counter's `last` is the newest total of each source series, added up
    a gauge has no digest, for there is no end to how many rows are merged

Windows begin at whole multiples of `every_s` since 1970. The watermark is the newest `time` seen, less `late_s`; a window closes when
the watermark reaches its end, and rows that come for it later are dropped and counted as late. Pure but for its open windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from actors.metrics.registry import Kind

from ..metrics.rollup import MICROSECONDS, Group, Series

WEIGHT: Final = "__weight__"  # a column: 0 for a source row, else how many source rows a merged row stands for
PLAIN: Final = ("metric", "kind", "unit", "node", "worker", "phase")
_NAMES: Final = ("node", "worker", "phase")
_FIGURES: Final = ("count", "sum", "min", "max", "last", "digest")


class Out(NamedTuple):
    """What comes out: rows that did not match and windows that closed; and how many rows came too late."""

    batch: pa.RecordBatch
    late: int


@dataclass(slots=True)
class _Merged:
    weight: int = 0
    group: Group = field(default_factory=lambda: Group(keeps_means=False))
    totals: dict[tuple[Any, ...], tuple[int, float]] = field(default_factory=dict)  # of a counter's source series

    def add(self, time_us: int, row: Mapping[str, Any]) -> None:
        self.weight += max(1, row[WEIGHT])
        self.group.add(time_us, row["kind"], [row[name] for name in _FIGURES])
        if row["kind"] == Kind.COUNTER and row["last"] is not None:
            source = (*(row[name] for name in _NAMES), tuple(row["labels"]))
            self.totals[source] = max(self.totals.get(source, (time_us, row["last"])), (time_us, row["last"]))

    def row(self, key: Series, length_us: int) -> dict[str, Any]:
        found = self.group.row(key, length_us) | {WEIGHT: self.weight, "labels": list(key.labels)}
        return found | ({"last": sum(total for _, total in self.totals.values())} if self.totals else {})


class Downsample:
    """See the module. `by` names what stays apart: node, worker, phase, `labels` (all) or `labels.NAME`."""

    def __init__(self, mask: Callable[[pa.RecordBatch], pa.Array], every_s: float, by: tuple[str, ...], late_s: float) -> None:
        self._mask = mask
        self._every_us = round(every_s * MICROSECONDS)
        self._late_us = round(late_s * MICROSECONDS)
        self._names = tuple(name for name in _NAMES if name in by)
        self._labels = None if "labels" in by else frozenset(name.removeprefix("labels.") for name in by if name.startswith("labels."))
        self._open: dict[Series, _Merged] = {}
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
                self._open.setdefault(self._key(start_us, row), _Merged()).add(time_us, row)
        mark_us = self._watermark_us()
        done = [key for key in self._open if mark_us is not None and key.start_us + self._every_us <= mark_us]
        return Out(self._joined(batch.filter(pc.invert(mask)), done), late)

    def drain(self, schema: pa.Schema) -> pa.RecordBatch:
        """Close every window and return its rows, with the columns of this schema."""
        return self._joined(pa.RecordBatch.from_pylist([], schema=schema), list(self._open))

    def _watermark_us(self) -> int | None:
        return None if self._newest_us is None else self._newest_us - self._late_us

    def _key(self, start_us: int, row: Mapping[str, Any]) -> Series:
        names = {name: row[name] if name in self._names else "" for name in _NAMES}
        labels = tuple(sorted(pair for pair in row["labels"] if self._labels is None or pair[0] in self._labels))
        return Series(start_us, row["metric"], row["kind"], row["unit"], **names, labels=labels)

    def _joined(self, rest: pa.RecordBatch, done: list[Series]) -> pa.RecordBatch:
        if not done:
            return rest
        rows = [self._open.pop(key).row(key, self._every_us) for key in sorted(done)]
        columns = [pa.array([row.get(column.name) for row in rows], column.type) for column in rest.schema]
        merged = pa.RecordBatch.from_arrays(columns, schema=rest.schema)
        return pa.concat_batches([merged, rest]) if rest.num_rows else merged
