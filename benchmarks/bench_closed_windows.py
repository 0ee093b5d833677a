"""How small do closed windows become, and how long does it take to read one again?

Run: python benchmarks/bench_closed_windows.py [RUN]. RUN is a run directory; by default an hour of two nodes is recorded first, through
recorders, agents' streams and an aggregator, with the metrics that a run of a CPU load with two probes has.

    accumulators   what a window costs that is kept as it was accumulated: 8 KB a histogram (1,024 counters), 40 bytes else
    arrow          the rows as they come in: Arrow in memory
    parquet        the same rows in the run directory
    rolled         an hour later: as windows of 10 s, then of 60 s, a window as it came being one of the parts
    decode         microseconds for a window from its row to its figures (digest to histogram to four quantiles), p99

What is read back equals what was written: counters and gauges to the bit, and the quantiles of every histogram.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from machine import store

from actors.clock import VirtualClock
from actors.metrics import Recorder, Segment, histogram
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.parts import part_files
from cluster.metrics.retention import Retention
from cluster.metrics.store import read_run
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import METRICS, QUANTILES
from cluster.outbox import Outbox

SECONDS = 3_600
RATIO = 5.0
DECODE_MS = 5.0
ACCUMULATOR_BYTES = {Kind.HISTOGRAM: 8192, Kind.GAUGE: 40, Kind.COUNTER: 40}
GAUGES = ("host.cpu.busy", "host.memory.used", "host.memory.available", "host.disk.free", "host.descriptors.used", "agent.lease.remaining")


class Node:
    """A node's recorders and stream."""

    def __init__(self, name: str, folder: Path, clock: VirtualClock, seed: int) -> None:
        self.name, self.clock, self.chance = name, clock, np.random.default_rng(seed)
        self.stream = MetricStream(name, "a", "r", Outbox(folder / "r" / f"{name}.box", node=name, incarnation="a", run="r"), clock)
        segment = Segment.create()
        self.stream.attach(segment, f"0.CpuLoad@{name}", "main")
        self.recorder = Recorder(Segment.open(segment.path), clock)
        self.level = 0.5

    def second(self) -> None:
        """Record one second."""
        chance, worker = self.chance, f"0.CpuLoad@{self.name}"
        self.level = min(0.95, max(0.05, self.level + chance.normal(0, 0.02)))
        self.recorder.histogram("load.slice").record_many(chance.lognormal(-6, 0.3, 100))
        self.recorder.counter("load.operations").record(float(chance.integers(900, 1100)))
        for probe in ("front", "back"):
            self.recorder.histogram("probe.response", probe=probe).record_many(chance.lognormal(-5, 0.5, 10))
            self.recorder.counter("probe.requests", probe=probe).record(10.0)
        self.recorder.tick()
        for at, metric in enumerate(GAUGES):
            self.stream.observe(metric, self.level * (1.0 if at == 0 else 2.0**34), worker="")
        for metric in ("dose.requested", "dose.achieved"):
            self.stream.observe(metric, 0.5 if metric == "dose.requested" else self.level, worker, "main")
        for _ in range(10):
            self.stream.observe("agent.tick.lag", float(chance.exponential(1e-3)))


def record(folder: Path) -> tuple[Aggregator, pa.Table, int]:
    """Return an aggregator that has taken an hour, its rows as they came in, and the bytes of these in memory."""
    clock = VirtualClock()
    aggregator = Aggregator("r", folder / "run", clock)
    came: list[pa.RecordBatch] = []
    aggregator.watch(lambda entries: came.extend(entry.metrics for entry in entries))
    nodes = [Node(name, folder, clock, seed) for seed, name in enumerate(("n1", "n2"))]
    for _ in range(SECONDS):
        for node in nodes:
            node.second()
        clock.advance(1.0)
        for node in nodes:
            node.stream.close_window(clock.wall_ns())
            node.stream.ack(aggregator.push(node.name, "a", node.stream.unacked()))
    return aggregator, pa.Table.from_batches([batch.replace_schema_metadata() for batch in came], METRICS), sum(one.nbytes for one in came)


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in part_files(directory))


def sorted_rows(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("time", "node", "metric", "worker", "phase", "unit", "count")]).combine_chunks()


def decode_p99_ms(table: pa.Table) -> float:
    """Return the p99 of the time from a histogram's row to its quantiles."""
    digests = table.filter(pc.equal(table["kind"], "histogram"))["digest"].to_pylist()[:5_000]
    times = []
    for digest in digests:
        began = time.perf_counter()
        histogram.decode(digest).quantiles(tuple(QUANTILES.values()))
        times.append(time.perf_counter() - began)
    return float(np.percentile(times, 99) * 1e3)


def figures_of(table: pa.Table, arrow_bytes: int, parquet_bytes: int) -> dict[str, Any]:
    kept = sum(ACCUMULATOR_BYTES[Kind(kind)] for kind in table["kind"].to_pylist())
    return {
        "windows": table.num_rows,
        "histograms": int(pc.sum(pc.equal(table["kind"], "histogram")).as_py()),
        "bytes_a_window": {
            "accumulators": round(kept / table.num_rows, 1),
            "arrow": round(arrow_bytes / table.num_rows, 1),
            "parquet": round(parquet_bytes / table.num_rows, 1),
        },
    }


def main() -> int:
    if len(sys.argv) > 1:
        rows = read_run(Path(sys.argv[1])).metrics
        return store("closed_windows", figures_of(rows, rows.nbytes, size(Path(sys.argv[1]))), {}, ("pyarrow",))
    with tempfile.TemporaryDirectory(prefix="bench-closed-") as name:
        aggregator, came, arrow_bytes = record(Path(name))
        aggregator.finish({"status": "passed"})
        stored, parquet_bytes = read_run(aggregator.directory).metrics, size(aggregator.directory)
        figures = figures_of(stored, arrow_bytes, parquet_bytes)
        plain = [column for column in METRICS.names if column not in QUANTILES]
        is_equal = sorted_rows(came).select(plain).equals(sorted_rows(stored).select(plain))
        for row, before in zip(sorted_rows(stored).to_pylist()[:2000], sorted_rows(came).to_pylist()[:2000], strict=True):
            if before["digest"] is not None and row["kind"] == "histogram":
                want = histogram.decode(before["digest"]).quantiles(tuple(QUANTILES.values()))
                is_equal &= [row[quantile] for quantile in QUANTILES] == want
        decode_ms = decode_p99_ms(stored)
        start_s = came["time"][0].value / 1e6
        target = Retention(600.0, 1200.0).target(round((start_s + SECONDS) * 1e6), (start_s,))
        began = time.process_time()
        aggregator.roll(target)
        figures |= {
            "rolled_bytes_a_window": round(size(aggregator.directory) / came.num_rows, 1),
            "roll_cpu_s": round(time.process_time() - began, 2),
            "decode_p99_ms": round(decode_ms, 4),
        }
        aggregator.close()
    by = figures["bytes_a_window"]
    goals = {
        "smaller than accumulators": (RATIO, by["accumulators"] >= RATIO * by["parquet"]),
        "smaller than rows in memory": (RATIO, by["arrow"] >= RATIO * by["parquet"]),
        "decode p99, ms": (DECODE_MS, decode_ms < DECODE_MS),
        "read back as written": (1.0, is_equal),
    }
    return store("closed_windows", figures, goals, ("numpy", "pyarrow"))


if __name__ == "__main__":
    sys.exit(main())
