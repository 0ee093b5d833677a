"""What does recording one sample cost? By handle, with prometheus_client in the same run; the drain apart.

Run: python benchmarks/bench_record.py. Times are nanoseconds a call, best of 15 rounds, the loop's turn included.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import prometheus_client
from machine import store

from actors.metrics import Recorder, Segment

CALLS = 100_000
ROUNDS = 15
LIMIT_NS = 30.0


def best_ns(call: Callable[..., object], *args: object, after: Callable[[], object] | None = None) -> float:
    """Return the best time of a call; `after` runs untimed between rounds."""
    timer = timeit.Timer(
        "call(*args)" if len(args) != 1 else "call(arg)", globals={"call": call, "args": args, "arg": args[0] if args else None}
    )
    times = []
    for _ in range(ROUNDS):
        times.append(timer.timeit(CALLS) / CALLS * 1e9)
        if after is not None:
            after()
    return round(min(times), 1)


def drain_ns(kind: str, batch: int) -> float:
    """Return the drain's time for one sample, when this many wait."""
    recorder = Recorder(Segment.create())
    handle = recorder.histogram("load.slice") if kind == "histogram" else recorder.counter("load.operations")
    values = np.random.default_rng(1).lognormal(-6, 1, batch)
    times = []
    for _ in range(ROUNDS):
        handle.record_many(values)
        times.append(timeit.timeit(recorder.tick, number=1) / batch * 1e9)
    return round(min(times), 1)


def main() -> int:
    recorder = Recorder(Segment.create())
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("operations", "h", ["worker"], registry=registry).labels("w")
    histogram = prometheus_client.Histogram("slice_seconds", "h", ["worker"], registry=registry).labels("w")
    ours = {
        "record_counter_ns": best_ns(recorder.counter("load.operations").record, 1.0, after=recorder.tick),
        "record_histogram_ns": best_ns(recorder.histogram("load.slice").record, 0.005, after=recorder.tick),
    }
    peers = {
        "prometheus_client_counter_inc_ns": best_ns(counter.inc, 1.0),
        "prometheus_client_histogram_observe_ns": best_ns(histogram.observe, 0.005),
    }
    drains = {f"drain_{kind}_{batch}_ns": drain_ns(kind, batch) for kind in ("counter", "histogram") for batch in (100, 5_000, 100_000)}
    worst = max(ours.values())
    figures = {**ours, **peers, **drains, "empty_call_ns": best_ns(lambda _: None, 1.0)}
    goals = {
        "record by handle, ns": (LIMIT_NS, worst <= LIMIT_NS),
        "times faster than prometheus_client, at least": (4.0, min(peers.values()) / worst >= 4.0),
    }
    return store("record", figures, goals, ("numpy", "prometheus_client"))


if __name__ == "__main__":
    sys.exit(main())
