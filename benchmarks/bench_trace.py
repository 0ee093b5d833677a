"""What does tracing cost? Records of a run pushed through aggregator and exporters into files, with tracing and without, in turn.

Run: python benchmarks/bench_trace.py. The path is the whole one in the aggregator's process: frames parsed, logged and synced, routed,
queued, written as CSV and Arrow, paths written down and settled. Figures are CPU seconds of all threads, so that other work on the same
cores falls on neither side; rounds with and without alternate, and the ratio is of their medians. Records have about as many rows as a
node's second has with one probe and two operations (40). A node seals one a second, so the rate here is thousands of times the default one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import at_most, store

from actors.clock import SystemClock
from actors.metrics.registry import Kind
from cluster.export_traces import FILE
from cluster.exporters.trace import KEPT
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.windows import Row
from cluster.run_exports import RunExports
from scenarios.exporters import Destination, Exporters
from tests.support.windows import record

RECORDS, AT_ONCE, ROWS, ROUNDS = 2_000, 20, 40, 7
RATIO = 1.03
RUN = "20260101-120000-bench-1a2b"
CLOCK = SystemClock()


def frames() -> list[tuple[int, bytes]]:
    """Return the records of one node."""
    rows = [Row("host.cpu.busy", Kind.GAUGE, "ratio", f"w{at}", "p", (), 5, 2.5, 0.1, 0.9, 0.5) for at in range(ROWS)]
    return [record("n1", number, rows=rows, events=0) for number in range(1, RECORDS + 1)]


def cpu_s(pushed: list[tuple[int, bytes]], traced: int) -> tuple[float, int]:
    """Return CPU seconds of a run, and bytes of its traces."""
    with tempfile.TemporaryDirectory() as folder:
        core = Aggregator(RUN, Path(folder) / "runs" / RUN, CLOCK)
        wanted = Exporters(destinations=(Destination("csv", "m.csv"), Destination("arrow", "m.arrow")), drain_s=60.0)
        began = time.process_time()
        exports = RunExports(core, wanted, CLOCK, tells=False, traced=traced)
        for first in range(0, len(pushed), AT_ONCE):
            core.push("n1", "life", pushed[first : first + AT_ONCE])
        reports = exports.finish()
        took = time.process_time() - began
        assert [one["delivered_rows"] for one in reports] == [RECORDS * ROWS] * 2, reports
        traces = core.directory / FILE
        size = traces.stat().st_size if traces.exists() else 0
        assert bool(size) is bool(traced)
        core.close()
    return took, size


def main() -> int:
    """Measure, store, judge."""
    pushed = frames()
    cpu_s(pushed, KEPT)  # warm
    plain, traced, size = [], [], 0
    for _ in range(ROUNDS):
        plain.append(cpu_s(pushed, 0)[0])
        took, size = cpu_s(pushed, KEPT)
        traced.append(took)
    ratio = statistics.median(traced) / statistics.median(plain)
    paths = RECORDS * 2
    extra_us = (statistics.median(traced) - statistics.median(plain)) / paths * 1e6
    figures = {
        "records": RECORDS,
        "rows_a_record": ROWS,
        "exporters": 2,
        "cpu_s_without": [round(one, 3) for one in plain],
        "cpu_s_with": [round(one, 3) for one in traced],
        "ratio": round(ratio, 4),
        "us_a_path": round(extra_us, 2),
        "bytes_a_path": round(size / paths, 1),
    }
    return store(
        "trace",
        figures,
        {"CPU with tracing over CPU without": (RATIO, ratio < RATIO)},
        ("pyarrow",),
        reported={"us a path": at_most(30.0, extra_us)},
    )


if __name__ == "__main__":
    raise SystemExit(main())
