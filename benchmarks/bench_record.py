"""What does recording one sample cost? By handle, batch, timer, thinned, left out; prometheus_client in the same run; the drain apart.

Run: python benchmarks/bench_record.py. Times are nanoseconds a call (a sample, for batches), best of 15 rounds, the loop's turn included.
The ring has a benchmark of its own, bench_ring.py.
"""

from __future__ import annotations

import random
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import prometheus_client
from machine import store

from actors.clock import SystemClock
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Filter, RecordingPolicy
from actors.metrics.registry import Verbosity
from actors.metrics.reporter import BatchingReporter, MemoryReporter, NullReporter, SamplingReporter
from actors.metrics.sampling import Adaptive, Always, FirstN, Probability, RateLimit, Thinner
from actors.metrics.slab import Slab
from actors.metrics.stopwatch import Stopwatch

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


def batch_ns(size: int) -> float:
    """Return the time of `record_many` for one sample of a batch; drained between rounds."""
    recorder = Recorder(Segment.create())
    series, values = recorder.counter("load.operations"), np.ones(size)
    calls = max(1, 8192 // size)
    times = []
    for _ in range(ROUNDS * 20):
        times.append(timeit.timeit(lambda: series.record_many(values), number=calls) / calls / size * 1e9)
        recorder.tick()
    return round(min(times), 2)


def left_out_ns(policy: RecordingPolicy) -> float:
    """Return what a sample costs that a policy leaves out: the call and its share of the drain."""
    segment = Segment.create()
    segment.publish(policy.to_json())
    recorder = Recorder(segment)
    record = recorder.histogram("load.slice").record
    recorder.tick()

    def round_() -> None:
        for _ in range(1000):
            record(1.0)
        recorder.tick()

    return round(min(timeit.repeat(round_, number=20, repeat=ROUNDS)) / 20_000 * 1e9, 1)


def reporters_ns() -> dict[str, float]:
    """Return the time of a call of each reporter that is not the recorder."""
    clock = SystemClock()
    memory = MemoryReporter()
    batching = BatchingReporter(lambda _: True, clock)
    sampling = SamplingReporter(NullReporter(), lambda _: Probability(0.01), clock, random.Random(1))
    found = {}
    for name, reporter in (("null", NullReporter()), ("memory", memory), ("batching", batching), ("sampling", sampling)):
        record = reporter.histogram("load.slice").record
        found[f"reporter_{name}_ns"] = best_ns(record, 1.0, after=memory.clear)
    return found


def thinning_ns() -> dict[str, float]:
    """Return the time of one offer under each policy, at a million samples a second."""
    found = {}
    for policy in (Always(), Probability(0.01), RateLimit(1000), FirstN(100), Adaptive(1000)):
        thinner, now = Thinner(policy, random.Random(1)), iter(range(0, 1 << 60, 1000))
        found[f"thin_{type(policy).__name__.lower()}_ns"] = best_ns(lambda value, t=thinner, n=now: t.offer(value, next(n)), 1.0)
    return found


def timers_ns() -> dict[str, float]:
    """Return the time of an empty measured block: ours, the general one, and prometheus_client's."""
    recorder = Recorder(Segment.create())
    watch = Stopwatch(recorder.histogram("load.slice"), SystemClock())
    registry = prometheus_client.CollectorRegistry()
    peer = prometheus_client.Histogram("block_seconds", "h", registry=registry)

    def ours(_: float) -> None:
        with watch.running():
            pass

    def general(_: float) -> None:
        with recorder.timer("load.slice"):
            pass

    def theirs(_: float) -> None:
        with peer.time():
            pass

    return {
        "timer_ns": best_ns(ours, 1.0, after=recorder.tick),
        "timer_by_name_ns": best_ns(general, 1.0, after=recorder.tick),
        "prometheus_client_time_ns": best_ns(theirs, 1.0),
    }


def trace_p99_ns(take: Callable[[], object], give: Callable[[object], object], steps: int = 200_000) -> float:
    """Return the p99 of an allocation with its release, on a trace of up to 100 live buffers that come and go by chance."""
    chance, live, times = random.Random(3), [], []
    clock_ns = time.perf_counter_ns
    for _ in range(steps):
        if len(live) < 100 and chance.random() < 0.5:
            begun = clock_ns()
            live.append(take())
            times.append(clock_ns() - begun)
        elif live:
            live[-1], live[at] = live[at := chance.randrange(len(live))], live[-1]
            one = live.pop()
            begun = clock_ns()
            give(one)
            times.append(clock_ns() - begun)
    return float(np.percentile(times, 99))


def buffers() -> dict[str, float]:
    """Return p99 of 64 KiB buffers that are filled: from the slab, and new ones from numpy."""
    slab = Slab(128, 8192)

    def take() -> int:
        number = slab.take()
        assert number is not None
        slab.block(number)[:] = 1.0
        return number

    def fresh() -> object:
        made = np.empty(8192)
        made[:] = 1.0
        return made

    return {"slab_p99_ns": trace_p99_ns(take, slab.give), "numpy_empty_p99_ns": trace_p99_ns(fresh, lambda _: None)}  # type: ignore[arg-type]


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
    batches = {f"record_many_{size}_ns": batch_ns(size) for size in (16, 256, 4096)}
    left_out = {
        "left_out_by_level_ns": left_out_ns(RecordingPolicy(level=Verbosity.MINIMAL)),
        "left_out_by_filter_ns": left_out_ns(RecordingPolicy(filters=(Filter(include=False, name="load.*"),))),
    }
    timers, reporters, thinning, slab = timers_ns(), reporters_ns(), thinning_ns(), buffers()
    empty = {"empty_call_ns": best_ns(lambda _: None, 1.0)}
    figures = {**ours, **peers, **drains, **empty, **batches, **left_out, **timers, **reporters, **thinning, **slab}
    least = min(peers.values())
    goals = {
        "record by handle, ns": (LIMIT_NS, worst <= LIMIT_NS),
        "times faster than prometheus_client, at least": (4.0, least / worst >= 4.0),
        "record_many of 256, times faster a sample than prometheus_client": (100.0, least / batches["record_many_256_ns"] >= 100.0),
        "timer, times faster than prometheus_client's": (1.0, timers["prometheus_client_time_ns"] / timers["timer_ns"] >= 1.0),
        "left out, call and drain, share of prometheus_client's call": (0.5, max(left_out.values()) / least <= 0.5),
        "null reporter, ns": (100.0, reporters["reporter_null_ns"] < 100.0),
        "thinning, ns": (1000.0, max(thinning.values()) < 1000.0),
    }
    return store("record", figures, goals, ("numpy", "prometheus_client"))


if __name__ == "__main__":
    sys.exit(main())
