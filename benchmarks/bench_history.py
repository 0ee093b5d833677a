"""What does a closed window take, and how quickly is it read? Half an hour of some nodes, in every form in which windows are kept.

Run: python benchmarks/bench_history.py. A window here is one second of one node: five gauges, a counter and two histograms of 500 samples.
Bytes are a window's share of

    open        accumulators, as a window has them while it is filled: 128 bytes a series and 512 an octave that a histogram touched
    reservoir   what the framework before this one kept: 1,000 samples a histogram, five figures each of the others
    memory      Arrow, uncompressed, as the aggregator takes it
    log         the run's log: Arrow IPC, LZ4
    parquet     metrics/part-*.parquet, quantiles included
    rolled      metrics/rolled-*.parquet, windows of 10 s in their place: bytes of one second still

Times are of CPU. `record_ms` is the time to decode one window's sealed record, histograms included; `window_ms` to find and decode one
window of one node among all in Parquet; `share_ms` a window's share of reading and decoding the whole run. What is read is compared with
what went in, bit by bit, quantiles too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from machine import at_least, at_most, store

from actors.clock import SystemClock
from actors.metrics.histogram import SUB, Histogram, K, quantiles_of
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.parts import part_files
from cluster.metrics.retention import Target
from cluster.metrics.store import log_files, read_metrics, read_run
from cluster.metrics.windows import METRICS, QUANTILES, Row, histograms, unseal
from cluster.outbox import parse
from tests.support.windows import START_S, record

NODES = tuple(f"node-{at}" for at in range(4))
WINDOWS = 1_800
SAMPLES = 500
LOOKS = 300
GAUGES = ("host.cpu.busy", "host.memory.used", "host.memory.available", "host.disk.free", "host.descriptors.used")
SERIES_BYTES, OCTAVE_BYTES = 128, 4 * SUB  # see actors/metrics/segment.py
RESERVOIR_BYTES, FIGURES_BYTES = 8_000 + 40, 40
SMALLER = 5.0
DECODE_MS = 5.0


def open_bytes(sealed: dict[str, list[tuple[int, bytes]]]) -> int:
    """Return what these windows took before they were closed."""
    size = 0
    for records in sealed.values():
        for _, data in records:
            found = histograms(unseal(parse(data).payload)[0])
            size += SERIES_BYTES * len(found)
            size += sum(OCTAVE_BYTES * np.unique((one.keys.astype(np.int64) - 1) >> K).size for one in found if one is not None)
    return size


def windows(node: str, seed: int) -> list[tuple[int, bytes]]:
    """Return a node's sealed windows: gauges that wander, a counter, latencies."""
    chance = np.random.default_rng(seed)
    states = np.abs(np.cumsum(chance.normal(0, 0.01, (WINDOWS, len(GAUGES))), axis=0) + 0.5)
    made = []
    for at in range(WINDOWS):
        rows = [
            Row(name, Kind.GAUGE, "", "", "p", (), 10, state * 10, state, state, state)
            for name, state in zip(GAUGES, states[at].tolist(), strict=True)
        ]
        rows.append(Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", "x"),), SAMPLES, float(SAMPLES), last=float(SAMPLES * at)))
        for name in ("probe.response", "probe.service"):
            one = Histogram.of(chance.lognormal(-6, 1, SAMPLES))
            rows.append(
                Row(name, Kind.HISTOGRAM, "seconds", "w", "p", (("probe", "x"),), one.count, one.sum, one.min, one.max, digest=one.encode())
            )
        made.append(record(node, at + 1, rows=rows, events=0))
    return made


def times_ms(calls: list[Callable[[], Any]]) -> dict[str, float]:
    """Return median and 99th percentile of the times of these calls."""
    taken = []
    for call in calls:
        begun = time.process_time()
        call()
        taken.append((time.process_time() - begun) * 1e3)
    return {"p50": round(float(np.quantile(taken, 0.5)), 3), "p99": round(float(np.quantile(taken, 0.99)), 3)}


def decoded(payload: bytes) -> int:
    metrics, _ = unseal(payload)
    return len(histograms(metrics))


def looked_up(directory: Path, node: str, at_s: int) -> int:
    moment = pa.scalar(at_s * 10**6, pa.int64()).cast(METRICS.field("time").type)
    rows = read_metrics(directory, METRICS.names, (pc.field("time") == moment) & (pc.field("node") == node))
    found = len(histograms(rows.combine_chunks().to_batches()[0]))
    assert found == len(GAUGES) + 3
    return found


def whole(directory: Path) -> pa.Table:
    """Return all rows in one order, their digests decoded once."""
    rows = read_run(directory).metrics
    for batch in rows.to_batches():
        histograms(batch)
    return rows.sort_by([("time", "ascending"), ("node", "ascending"), ("metric", "ascending")])


def same(rows: pa.Table, sealed: dict[str, list[tuple[int, bytes]]]) -> bool:
    """Tell whether rows are those that went in, every column to the bit, and the quantiles those of the digests that went in."""
    batches = [unseal(parse(data).payload)[0] for records in sealed.values() for _, data in records]
    given = pa.Table.from_batches(batches).sort_by([("time", "ascending"), ("node", "ascending"), ("metric", "ascending")])
    if not given.drop_columns(list(QUANTILES)).equals(rows.drop_columns(list(QUANTILES))):
        return False
    kept = pc.is_valid(given["digest"])
    held = histograms(given.filter(kept).combine_chunks().to_batches()[0])
    want = quantiles_of([one for one in held if one is not None], tuple(QUANTILES.values()))
    got = np.column_stack([rows.filter(kept)[name].to_numpy() for name in QUANTILES])
    return np.array_equal(want, got)


def main() -> int:
    sealed = {node: windows(node, seed) for seed, node in enumerate(NODES)}
    count = WINDOWS * len(NODES)
    chance = np.random.default_rng(9)
    looks = [(NODES[chance.integers(len(NODES))], START_S + 1 + int(chance.integers(WINDOWS))) for _ in range(LOOKS)]
    payloads = [parse(sealed[node][at_s - START_S - 1][1]).payload for node, at_s in looks]
    size: dict[str, float] = {
        "open": open_bytes(sealed) / count,
        "memory": sum(unseal(parse(data).payload)[0].nbytes for records in sealed.values() for _, data in records) / count,
        "reservoir": 2 * RESERVOIR_BYTES + (len(GAUGES) + 1) * FIGURES_BYTES,
    }
    with tempfile.TemporaryDirectory(prefix="bench-history-") as folder:
        aggregator = Aggregator("r", Path(folder) / "r", SystemClock())
        for first in range(0, WINDOWS, 60):
            aggregator.push_many({(node, "a"): records[first : first + 60] for node, records in sealed.items()})
        size["log"] = sum(path.stat().st_size for path in log_files(aggregator.directory, "metrics")) / count
        aggregator.finish({"status": "x"})
        size["parquet"] = sum(path.stat().st_size for path in part_files(aggregator.directory)) / count
        record_ms = times_ms([lambda payload=payload: decoded(payload) for payload in payloads])
        window_ms = times_ms([lambda node=node, at_s=at_s: looked_up(aggregator.directory, node, at_s) for node, at_s in looks[:50]])
        begun = time.process_time()
        rows = whole(aggregator.directory)
        share_ms = round((time.process_time() - begun) * 1e3 / count, 4)
        is_same = same(rows, sealed)
        aggregator.roll(Target(((10_000_000, (START_S + WINDOWS + 60) * 10**6),), ()))
        size["rolled"] = sum(path.stat().st_size for path in part_files(aggregator.directory)) / count
        aggregator.close()
    smaller = {name: round(size["open"] / size[name], 2) for name in ("memory", "log", "parquet", "rolled")}
    figures = {
        "windows": count,
        "rows": rows.num_rows,
        "bytes_a_window": {name: round(one, 1) for name, one in size.items()},
        "times_smaller_than_open": smaller,
        "record_ms": record_ms,
        "window_ms": window_ms,
        "share_ms": share_ms,
    }
    goals = {
        "what is read is what went in, quantiles too": (1.0, is_same),
        "Parquet, times smaller than open windows, at least": (SMALLER, smaller["parquet"] >= SMALLER),
        "rolled up, times smaller than open windows, at least": (SMALLER, smaller["rolled"] >= SMALLER),
    }
    reported = {
        "decoding a sealed window, p99 in ms": at_most(DECODE_MS, record_ms["p99"]),
        "a window's share of reading the run, ms": at_most(DECODE_MS, share_ms),
        "finding one window of the run in Parquet, p99 in ms": at_most(DECODE_MS, window_ms["p99"]),
        "Parquet, times smaller than reservoirs": at_least(SMALLER, size["reservoir"] / size["parquet"]),
    }
    return store("history", figures, goals, ("numpy", "pyarrow"), reported=reported)


if __name__ == "__main__":
    sys.exit(main())
