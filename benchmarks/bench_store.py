"""What does keeping rows cost? Parquet and the Arrow log of a run, with pyarrow's defaults and other forms in the same run.

Run: python benchmarks/bench_store.py. Rates are million rows a second of CPU time of this process, on one thread, best of some rounds.

    samples    2,000,000 rows of (series of 1,000, time, value): value as whole nanoseconds, and as float64, into memory
    windows    rows as a run has them, 500 nodes for some minutes, digests included, into memory
    log        the same rows appended to a run's log on this disk, synced for each window of all nodes; and plain Arrow IPC in memory
    killed     a writer is killed by SIGKILL in mid-write: rows that can be read afterwards, of those it was told were kept

`store` is how a run directory is written: zstd, dictionaries for names, statistics on the time only, deltas of times, and the bytes of
single samples' floats apart (of whole numbers: deltas); `plain` is the same without the last two. Peers: pyarrow's defaults, and CSV.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from machine import at_least, at_most, store

from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.samples import _PLAIN as SAMPLE_NAMES
from cluster.metrics.store import Entry, RunStore, parquet_options, read_run
from cluster.metrics.windows import EVENTS, METRICS, SAMPLES, Row, metrics_batch

ROWS = 2_000_000
SERIES = 1_000
ROUNDS = 3
NODES, WINDOWS = 500, 10
BATCH = 100_000
RATIO, RUN_RATIO = 1.5, 1.2  # a run's samples have seven columns of names, whose dictionaries cost every writer the same
GROUP = {"row_group_size": 1 << 20}
NO_EVENTS = pa.RecordBatch.from_pylist([], schema=EVENTS)


def samples(*, whole: bool) -> pa.Table:
    """Return single samples in the order of their arrival."""
    chance = np.random.default_rng(1)
    ids = pa.array(chance.integers(0, SERIES, ROWS, dtype=np.int32))
    times = 1_700_000_000_000_000_000 + np.cumsum(chance.exponential(1000, ROWS)).astype(np.int64)
    values = chance.lognormal(-6, 1, ROWS)
    return pa.table(
        {
            "series": pa.DictionaryArray.from_arrays(ids, pa.array([f"probe.response/p{at}" for at in range(SERIES)])),
            "time": times,
            "value": (values * 1e9).astype(np.int64) if whole else values,
        }
    )


def window_batches() -> list[pa.RecordBatch]:
    """Return the windows of many nodes, one batch a node and window."""
    chance = np.random.default_rng(2)
    digests = [Histogram.of(chance.lognormal(-6, 1, 500)) for _ in range(50)]
    names = ("host.cpu.busy", "host.memory.used", "host.disk.free", "agent.tick.lag", "safety.verdict")
    made = []
    for window in range(WINDOWS):
        for node in range(NODES):
            rows = [Row(name, Kind.GAUGE, "", "", "p", (), 10, *chance.random(4).tolist()) for name in names]
            found = digests[(node + window) % len(digests)]
            rows.append(Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", "x"),), 500, 500.0, last=500.0 * (window + 1)))
            rows.append(Row("probe.response", Kind.HISTOGRAM, "seconds", "w", "p", (("probe", "x"),), 500, found.sum, found.min, found.max))
            rows[-1].digest = found.encode()
            made.append(metrics_batch(rows, node=f"node-{node:04d}", start_ns=(1_700_000_000 + window) * 10**9, window_s=1.0))
    return made


def rate(rows: int, call: Callable[[], Any]) -> float:
    """Return million rows a CPU second, best of the rounds."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return round(rows / min(times) / 1e6, 2)


def parquet(table: pa.Table, *, combined: bool = False, **options: Any) -> dict[str, float]:
    """Return rate and bytes a row of Parquet with these options; `combined` puts chunks together first, within the time."""

    def write() -> int:
        sink = pa.BufferOutputStream()
        pq.write_table(table.combine_chunks() if combined else table, sink, **options)
        return sink.getvalue().size

    return {"M_rows_per_s": rate(table.num_rows, write), "bytes_a_row": round(write() / table.num_rows, 2)}


def csv(table: pa.Table) -> dict[str, float]:
    """Return rate and bytes a row of CSV."""
    plain = table.set_column(0, "series", table["series"].cast(pa.string())) if "series" in table.column_names else table

    def write() -> int:
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(plain, sink)
        return sink.getvalue().size

    return {"M_rows_per_s": rate(table.num_rows, write), "bytes_a_row": round(write() / table.num_rows, 2)}


def of_samples(*, whole: bool) -> dict[str, Any]:
    """Return the forms of single samples."""
    table = samples(whole=whole)
    ours = GROUP | parquet_options(["series"])
    ours["column_encoding"] |= {"value": "DELTA_BINARY_PACKED"} if whole else {}
    return {
        "pyarrow_defaults": parquet(table),
        "csv": csv(table),
        "plain": parquet(table, **(ours | {"column_encoding": None})),
        "store": parquet(table, **ours),
        "store_uncompressed": parquet(table, **(ours | {"compression": "none", "compression_level": None})),
    }


def run_samples() -> pa.Table:
    """Return single samples of one load with all columns of a run's files: drained ten times a second, probes by name."""
    chance = np.random.default_rng(3)
    probes = pa.array([[("probe", f"p{at}")] for at in range(20)], SAMPLES.field("labels").type)
    columns = {
        "time": pa.array(1_700_000_000_000_000 + np.arange(ROWS) // 5_000 * 100_000).cast(SAMPLES.field("time").type),
        "labels": probes.take(pa.array(chance.integers(0, len(probes), ROWS))),
        "value": pa.array(chance.lognormal(-6, 1, ROWS)),
        "weight": pa.array(np.ones(ROWS, np.int64)),
    }
    for name, text in (("metric", "probe.response"), ("unit", "seconds"), ("node", "n1"), ("worker", "prober"), ("phase", "sustained")):
        columns[name] = pa.repeat(pa.scalar(text), ROWS)
    return pa.table([columns[field.name] for field in SAMPLES], schema=SAMPLES)


def of_run(table: pa.Table, **options: Any) -> dict[str, Any]:
    """Return pyarrow's form of a run's rows and ours."""
    return {"rows": table.num_rows, "pyarrow_defaults": parquet(table), "store": parquet(table, combined=True, **GROUP, **options)}


def ipc(table: pa.Table, compression: str | None) -> dict[str, float]:
    """Return rate and bytes a row of an Arrow IPC stream in memory."""
    batches = table.combine_chunks().to_batches(max_chunksize=BATCH)
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)

    def write() -> int:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return sink.getvalue().size

    return {"M_rows_per_s": rate(table.num_rows, write), "bytes_a_row": round(write() / table.num_rows, 2)}


def entries(batches: list[pa.RecordBatch], life: str) -> list[Entry]:
    """Return records as the log takes them."""
    found = []
    for at, batch in enumerate(batches):
        found.append(Entry((batch.column("node")[0].as_py(), life), at // NODES + 1, batch, NO_EVENTS))
    return found


def of_log(batches: list[pa.RecordBatch], folder: Path) -> dict[str, Any]:
    """Return the rate of a run's log: every node's window in one append, synced."""
    rows = sum(batch.num_rows for batch in batches)
    rates = []
    for turn in range(ROUNDS):
        run = RunStore(folder / f"log-{turn}")
        taken, began, began_wall = entries(batches, "1"), time.process_time(), time.perf_counter()
        for first in range(0, len(taken), NODES):
            run.append(taken[first : first + NODES])
        rates.append((rows / (time.process_time() - began) / 1e6, rows / (time.perf_counter() - began_wall) / 1e6, run.log_bytes / rows))
        run.close()
    cpu, wall, size = max(rates)
    return {
        "M_rows_per_s": round(cpu, 3),
        "M_rows_per_s_of_wall": round(wall, 3),
        "bytes_a_row": round(size, 1),
        "rows_a_record": rows // len(batches),
    }


def killed(batches: list[pa.RecordBatch], folder: Path) -> dict[str, int]:
    """Kill a writer of the log in mid-write, and one of Parquet; return what was promised and what can be read."""
    promised = 0
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        run = RunStore(folder / "killed")
        for entry in entries(batches * 4, "1"):
            run.append([entry])
            os.write(writing, b".")
        os._exit(0)
    os.close(writing)
    while promised < NODES:
        promised += len(os.read(reading, 4096))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while found := os.read(reading, 4096):
        promised += len(found)
    os.close(reading)
    contents = read_run(folder / "killed")
    kept = sum(last - first + 1 for ranges in contents.coverage.held.values() for first, last in ranges.pairs())
    return {
        "records_promised": promised,
        "records_read": kept,
        "rows_read": contents.metrics.num_rows,
        "parquet_rows_read": torn_parquet(folder),
    }


def torn_parquet(folder: Path) -> int:
    """Return how many rows can be read of a Parquet file whose writer was killed after six row groups."""
    path = folder / "killed.parquet"
    table = samples(whole=True).slice(0, 100_000)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        writer = pq.ParquetWriter(path, table.schema)
        for _ in range(6):
            writer.write_table(table)
        os.write(writing, b".")
        signal.pause()
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        return pq.read_table(path).num_rows
    except (pa.ArrowInvalid, OSError):
        return 0


def main() -> int:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    batches = window_batches()
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        crash, log = killed(batches, Path(folder)), of_log(batches, Path(folder))
    whole, floats = of_samples(whole=True), of_samples(whole=False)
    windows = of_run(pa.Table.from_batches(batches, schema=METRICS), **parquet_options())
    singles = of_run(run_samples(), **parquet_options(SAMPLE_NAMES))
    streams = {name: ipc(samples(whole=True), compression) for name, compression in (("none", None), ("lz4", "lz4"))}
    figures = {"samples_whole": whole, "samples_float": floats, "run_samples": singles, "windows": windows}
    figures |= {"log": log, "ipc": streams, "killed": crash}
    ratios = {
        name: found["store"]["M_rows_per_s"] / found["pyarrow_defaults"]["M_rows_per_s"]
        for name, found in figures.items()
        if "store" in found
    }
    sizes = {
        name: found["store"]["bytes_a_row"] / found["pyarrow_defaults"]["bytes_a_row"]
        for name, found in figures.items()
        if "store" in found
    }
    figures["store_times_the_defaults"] = {name: round(ratio, 2) for name, ratio in ratios.items()}
    goals = {
        "after SIGKILL every promised record is read": (0.0, crash["records_read"] >= crash["records_promised"]),
        "samples, times as fast as pyarrow's defaults, at least": (RATIO, min(ratios["samples_whole"], ratios["samples_float"]) >= RATIO),
        "single samples of a run, times as fast as pyarrow's defaults, at least": (RUN_RATIO, ratios["run_samples"] >= RUN_RATIO),
        "windows, times as fast as pyarrow's defaults, at least": (RATIO, ratios["windows"] >= RATIO),
        "bytes, share of those of pyarrow's defaults, at most": (1.0, max(sizes.values()) <= 1.0),
    }
    reported = {
        "Parquet of a run's single samples, M rows/s": at_least(25.0, singles["store"]["M_rows_per_s"]),
        "Parquet of a run's single samples, bytes a row": at_most(9.7, singles["store"]["bytes_a_row"]),
        "Parquet of whole numbers, M rows/s": at_least(25.0, whole["store"]["M_rows_per_s"]),
        "Parquet of whole numbers, bytes a row": at_most(6.2, whole["store"]["bytes_a_row"]),
        "Parquet of float64, M rows/s": at_least(25.0, floats["store"]["M_rows_per_s"]),
        "Parquet of float64, bytes a row": at_most(9.7, floats["store"]["bytes_a_row"]),
        "Arrow IPC in memory, uncompressed, M rows/s": at_least(80.0, streams["none"]["M_rows_per_s"]),
    }
    return store("store", figures, goals, ("numpy", "pyarrow"), reported=reported)


if __name__ == "__main__":
    sys.exit(main())
