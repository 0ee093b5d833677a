"""Closed windows are kept compactly and stay what they were: in the files, and when they have become longer ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from actors.clock import VirtualClock
from actors.metrics import histogram
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.parts import part_files
from cluster.metrics.retention import Retention
from cluster.metrics.store import read_run
from cluster.metrics.windows import METRICS, QUANTILES
from tests.support.asked import rows
from tests.support.windows import START_S, record

SECONDS = 300
ACCUMULATOR_BYTES = {Kind.HISTOGRAM: 8192, Kind.GAUGE: 40, Kind.COUNTER: 40}  # as kept while it is open: 1,024 counts, or five numbers
PLAIN = [name for name in METRICS.names if name not in QUANTILES]


def size(aggregator: Aggregator) -> int:
    return sum(path.stat().st_size for path in part_files(aggregator.directory))


def test_closed_windows_are_small_and_as_they_were(tmp_path: Path) -> None:
    """A fifth of the bytes at most; counters and gauges are the same to the bit, and so are the quantiles of each histogram."""
    aggregator = Aggregator("r", tmp_path / "r", VirtualClock())
    came: list[pa.RecordBatch] = []
    aggregator.watch(lambda entries: came.extend(entry.metrics for entry in entries))
    for node in ("n1", "n2"):
        aggregator.push(node, "a", [record(node, at, rows=rows(node, at)) for at in range(1, SECONDS + 1)])
    aggregator.finish({"status": "passed"})
    before = pa.Table.from_batches([batch.replace_schema_metadata() for batch in came], METRICS)
    stored = read_run(aggregator.directory).metrics
    assert stored.select(PLAIN).equals(before.select(PLAIN))
    for row in stored.to_pylist():
        digest = row["digest"] if row["kind"] == "histogram" else None
        want = histogram.decode(digest).quantiles(tuple(QUANTILES.values())) if digest else [None] * len(QUANTILES)
        assert [row[name] for name in QUANTILES] == want
    accumulators = sum(ACCUMULATOR_BYTES[Kind(kind)] for kind in stored["kind"].to_pylist())
    assert size(aggregator) * 5 <= min(accumulators, sum(batch.nbytes for batch in came))
    settled = size(aggregator)
    assert aggregator.roll(Retention(30.0, 60.0).target((START_S + SECONDS) * 10**6, (float(START_S),)))
    assert size(aggregator) < settled
    assert aggregator.evaluate("probe.requests", "count") == 2 * 2 * 2 * SECONDS
    aggregator.close()
