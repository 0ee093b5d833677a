"""Errors a second, by series of `errors.seen` and window: a gauge, so that an end of the errors is seen as 0 and not as nothing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from actors.metrics.registry import Kind

from .windows import Row

Failing = tuple[str, str, tuple[tuple[str, str], ...]]  # worker, phase, labels


def rate_rows(rows: Sequence[Row], failing: Collection[Failing], window_s: float) -> list[Row]:
    """Return the rate of each series of errors in a window, and 0 for those of `failing` that had none.

    A series that stays at 0 is not repeated: a gauge holds until its next row.
    """
    counts = {(row.worker, row.phase, row.labels): row.sum for row in rows if row.metric == "errors.seen"}
    return [_row(key, counts.get(key, 0.0) / window_s) for key in sorted({*counts, *failing})]


def _row(key: Failing, per_second: float) -> Row:
    worker, phase, labels = key
    row = Row("errors.rate", Kind.GAUGE, "", worker, phase, labels, count=1, sum=per_second)
    row.min = row.max = row.last = per_second
    return row
