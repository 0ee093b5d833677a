"""What does a window of 1,000 series cost? In the aggregator from frame to fsync, and in the agent from shared memory to outbox.

Run: python benchmarks/bench_window_close.py. Every series is a histogram with 1,000 log-normal samples in the window: the dearest kind.
Times are of CPU, so that other work on the same cores does not count; `push_wall_ms` is how long the aggregator's step took with its sync.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from machine import store

from actors.clock import SystemClock
from actors.metrics import Recorder, Segment
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.stream import MetricStream
from cluster.outbox import Outbox

SERIES = 1_000
SAMPLES = 1_000
WINDOWS = 9
LIMIT_MS = 60.0


def measure(folder: Path) -> dict[str, list[float]]:
    """Return milliseconds of each step, by window."""
    clock = SystemClock()
    stream = MetricStream("n1", "a", "r", Outbox(folder / "r" / "n1-a.box", node="n1", incarnation="a", run="r"), clock)
    segment = Segment.create(SERIES)
    recorder = Recorder(Segment.open(segment.path), clock, label_sets_max=SERIES)
    stream.attach(segment, "w", "p")
    aggregator = Aggregator("r", folder / "run", clock)
    handles = [recorder.histogram("probe.response", probe=f"p{at}") for at in range(SERIES)]
    chance = np.random.default_rng(1)
    times: dict[str, list[float]] = {"drain": [], "agent_close": [], "aggregator_push": [], "push_wall": [], "record_kib": []}
    for _ in range(WINDOWS):
        for handle in handles:
            handle.record_many(chance.lognormal(-6, 1, SAMPLES))
        times["drain"].append(timed(recorder.tick))
        times["agent_close"].append(timed(lambda: stream.close_window(clock.wall_ns())))
        records = stream.unacked(1 << 30)
        times["record_kib"].append(len(records[0][1]) / 1024)
        begun = time.perf_counter()
        times["aggregator_push"].append(timed(lambda records=records: stream.ack(aggregator.push("n1", "a", records))))
        times["push_wall"].append((time.perf_counter() - begun) * 1e3)
    times["settle"] = [timed(aggregator.finish)]
    aggregator.close()
    return times


def timed(call) -> float:
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1e3


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-window-") as folder:
        times = measure(Path(folder))
    median = {f"{name}{'' if name.endswith('kib') else '_ms'}": round(statistics.median(values), 2) for name, values in times.items()}
    push_ms = median["aggregator_push_ms"]
    goals = {"window of 1,000 series in the aggregator, ms of CPU": (LIMIT_MS, push_ms <= LIMIT_MS)}
    return store("window_close", {"series": SERIES, "samples_a_series": SAMPLES, **median}, goals, ("numpy", "pyarrow"))


if __name__ == "__main__":
    sys.exit(main())
