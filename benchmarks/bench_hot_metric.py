"""Can one node take a million samples a second into one metric, and what does that cost? For a minute, with CPU time seen from outside.

Run: python benchmarks/bench_hot_metric.py. A load process records 1,000 samples each millisecond; this process is its agent: it closes a
window each second, seals it into an outbox and hands it to an aggregator, which writes. CPU time is that of both processes, by the
system. Afterwards the counts must be those that were recorded, and the quantiles those of the data.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow.compute as pc
from machine import at_least, store

from actors.clock import SECOND_NS, SystemClock
from actors.metrics import Segment
from actors.metrics.histogram import ERROR
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.stream import MetricStream
from cluster.outbox import Outbox

SECONDS = 60
RATE = 1_000_000

LOAD = """
import sys, time
import numpy as np
from actors.metrics import Recorder, Segment

seconds, rate = int(sys.argv[2]), int(sys.argv[3])
values = np.random.default_rng(1).lognormal(-6, 1, rate)
recorder = Recorder(Segment.open(sys.argv[1]))
record = recorder.histogram("load.slice").record_many
begun, late = time.monotonic(), 0
for step in range(seconds * 1000):
    at = step % 1000 * (rate // 1000)
    record(values[at : at + rate // 1000])
    if step % 50 == 49:
        recorder.tick()
    rest = begun + (step + 1) / 1000 - time.monotonic()
    if rest > 0:
        time.sleep(rest)
recorder.close()
"""


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, as the system counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    clock, ours_s, theirs_s = SystemClock(), cpu_s(os.getpid()), 0.0
    with tempfile.TemporaryDirectory() as folder:
        segment, box = Segment.create(), Outbox(Path(folder) / "r" / "n1-a.box", node="n1", incarnation="a", run="r")
        stream, aggregator = MetricStream("n1", "a", "r", box, clock), Aggregator("r", Path(folder) / "run", clock)
        stream.attach(segment, "op", "")
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        load = subprocess.Popen([sys.executable, "-c", LOAD, segment.path, str(SECONDS), str(RATE)], env=environ)
        begun_ns = clock.boot_ns()
        while load.poll() is None:
            theirs_s = cpu_s(load.pid)
            if stream.due(clock.wall_ns()):
                stream.close_window(clock.wall_ns())
                stream.ack(aggregator.push("n1", "a", stream.unacked()))
            time.sleep(0.02)
        elapsed_s = (clock.boot_ns() - begun_ns) / SECOND_NS
        stream.detach(segment)
        stream.finish()
        stream.ack(aggregator.push("n1", "a", stream.unacked()))
        cores = (cpu_s(os.getpid()) - ours_s + theirs_s) / elapsed_s
        count = pc.sum(aggregator.query("load.slice")["count"]).as_py()
        values = np.random.default_rng(1).lognormal(-6, 1, RATE)
        errors = {}
        for stat, quantile in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
            want = float(np.quantile(values, quantile))
            errors[f"{stat}_error"] = abs((aggregator.evaluate("load.slice", stat) or 0.0) - want) / want
        aggregator.close()
    figures = {
        "seconds": round(elapsed_s, 1),
        "samples": count,
        "cores": round(cores, 3),
        "cores_of_the_load": round(theirs_s / elapsed_s, 3),
    }
    figures |= {name: round(found, 5) for name, found in errors.items()}
    goals = {
        "samples in windows, as recorded": (float(SECONDS * RATE), count == SECONDS * RATE),
        "cores of load and agent together, at most": (1.0, cores < 1.0),
        "error of a quantile, at most": (ERROR, max(errors.values()) <= 1.02 * ERROR),
    }
    return store(
        "hot_metric", figures, goals, ("numpy", "pyarrow"), reported={"samples a second": at_least(0.95 * RATE, count / elapsed_s)}
    )


if __name__ == "__main__":
    sys.exit(main())
