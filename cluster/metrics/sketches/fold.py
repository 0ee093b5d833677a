"""A run's windows through an accumulator: what the files hold, as the batches that accumulators take. Pure.

    counter     the increase of each window
    gauge       the mean of each window, as often as it had values
    histogram   the middle of each bucket, as often as it has samples: 0.4 % off at most within the histogram's range

Accumulators of texts take the values of one label, as often as their rows had samples, or as much as their counters rose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from actors.errors import InputError
from actors.metrics import histogram
from actors.metrics.registry import Kind, find

from ..rollup import means
from .accumulator import Accumulator, AccumulatorRecord, Batch, Figure


def summarise(table: pa.Table, metric: str, record: AccumulatorRecord, *, label: str = "") -> dict[str, Figure]:
    """Return the figures of these windows of one metric. `label` names what an accumulator of texts takes, and is empty for one of numbers.

    Raises `InputError` for a metric or label that the catalogue lacks, or a label where none is taken.
    """
    return record.answers(accumulated(table, metric, record, label=label), find(metric).unit)


def accumulated(table: pa.Table, metric: str, record: AccumulatorRecord, *, label: str = "") -> Accumulator:
    """Return an accumulator that took these windows; see `summarise`."""
    kind, declared = find(metric).kind, find(metric).labels
    if record.takes == "texts" and label not in declared:
        words = f"accumulator {record.name!r} takes the values of a label, and {metric!r} has no label {label!r}"
        raise InputError("unknown_key", words, f"declared: {', '.join(declared) or 'none'}")
    if record.takes == "numbers" and label:
        raise InputError("invalid_value", f"accumulator {record.name!r} takes numbers, not the label {label!r}", "leave the label out")
    made = record.make()
    for batch in _texts(table, kind, label) if label else _numbers(table, kind):
        made.add(batch)
    return made


def _spans(table: pa.Table) -> Iterator[tuple[float, float]]:
    starts = table["time"].cast(pa.int64()).to_pylist()
    for start_us, length_s in zip(starts, table["window_s"].to_pylist(), strict=True):
        yield start_us / 1e6, start_us / 1e6 + length_s


def _numbers(table: pa.Table, kind: Kind) -> Iterator[Batch]:
    rows: Any = zip(_spans(table), *(table[name].to_pylist() for name in ("count", "sum", "digest")), strict=True)
    for (start_s, end_s), count, total, digest in rows:
        if kind is Kind.HISTOGRAM:
            found = histogram.decode(digest)
            yield Batch.of(found.middles(), found.counts, start_s=start_s, end_s=end_s)
        elif kind is Kind.GAUGE and digest is not None:
            yield Batch.of(*means(digest), start_s=start_s, end_s=end_s)
        elif kind is Kind.GAUGE:
            yield Batch.of(np.array([total / count]), [count], start_s=start_s, end_s=end_s)
        else:
            yield Batch.of(np.array([total]), start_s=start_s, end_s=end_s)


def _texts(table: pa.Table, kind: Kind, label: str) -> Iterator[Batch]:
    counts = table["sum" if kind is Kind.COUNTER else "count"].to_pylist()
    for (start_s, end_s), labels, count in zip(_spans(table), table["labels"].to_pylist(), counts, strict=True):
        if (value := dict(labels).get(label)) is not None:
            yield Batch.of([value], [round(count)], start_s=start_s, end_s=end_s)
