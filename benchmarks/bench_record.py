"""What does recording one sample cost? By handle, name, batch, timer, thinned, left out; with peers in the same run; the drain apart.

Run: python benchmarks/bench_record.py. Times are nanoseconds a call (a sample, for batches), best of many rounds, the loop's turn included.
The ring has a benchmark of its own, bench_ring.py. Peers that are not installed are named as missing; statsd sends to a socket of this
process, which nobody reads.
"""

from __future__ import annotations

import random
import socket
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import prometheus_client
from machine import at_most, store
from peers import figures_of, installed, measured

from actors.clock import SystemClock
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Filter, RecordingPolicy
from actors.metrics.registry import Verbosity
from actors.metrics.reporter import BatchingReporter, MemoryReporter, NullReporter
from actors.metrics.sampling import Adaptive, Always, FirstN, Probability, RateLimit, Thinner
from actors.metrics.slab import Slab
from actors.metrics.stopwatch import Stopwatch

CALLS = 100_000
ROUNDS = 15
PARTS = 20
DRAIN = 5_000  # samples a tick: 50,000 a second
LABELS = {"worker": "w"}


def best_ns(call: Callable[..., object], *args: object, after: Callable[[], object] | None = None) -> float:
    """Return the best time of a call; `after` runs untimed between rounds."""
    timer = timeit.Timer(
        "call(*args)" if len(args) != 1 else "call(arg)", globals={"call": call, "args": args, "arg": args[0] if args else None}
    )
    times = []
    for _ in range(ROUNDS * PARTS):  # short ones: what else runs here is in some of them, and not in the best
        times.append(timer.timeit(CALLS // PARTS) / (CALLS // PARTS) * 1e9)
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


def with_drain_ns(kind: str) -> float:
    """Return the time of a sample by handle, its share of the drain included."""
    recorder = Recorder(Segment.create())
    record = (recorder.histogram("load.slice") if kind == "histogram" else recorder.counter("load.operations")).record

    def round_() -> None:
        for _ in range(DRAIN):
            record(0.005)
        recorder.tick()

    return round(min(timeit.repeat(round_, number=1, repeat=ROUNDS * 4)) / DRAIN * 1e9, 1)


def by_name_ns() -> float:
    """Return the time of a sample whose handle is looked up by name and labels each time."""
    recorder = Recorder(Segment.create())
    return best_ns(lambda value: recorder.counter("probe.requests", probe="x").record(value), 1.0, after=recorder.tick)


def opentelemetry_ns() -> dict[str, float]:
    """Return the times of the SDK's instruments, alone and with attributes."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider([InMemoryMetricReader()])
    meter = provider.get_meter("bench")
    counter, histogram = meter.create_counter("operations"), meter.create_histogram("slice")
    found = {
        "counter_add": best_ns(counter.add, 1.0),
        "counter_add_with_attributes": best_ns(counter.add, 1.0, LABELS),
        "histogram_record": best_ns(histogram.record, 0.005),
        "histogram_record_with_attributes": best_ns(histogram.record, 0.005, LABELS),
    }
    provider.shutdown()
    return found


def statsd_ns() -> dict[str, float]:
    """Return the times of a datagram a call, and of a pipeline that gathers them."""
    from statsd import StatsClient

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        client = StatsClient("127.0.0.1", sink.getsockname()[1])
        pipe = client.pipeline()
        found = {
            "incr": best_ns(client.incr, "operations"),
            "timing": best_ns(client.timing, "slice", 5),
            "incr_before_it_is_sent": best_ns(pipe.incr, "operations", after=pipe.send),
        }
        client.close()
    return found


def optional_peers() -> dict[str, object]:
    """Return the figures of peers that may not be installed, one a call; those that are missing by their names."""
    found: dict[str, object] = dict.fromkeys(("locust", "datadog"), "missing: not measured, their packages are no part of the extra")
    peers = {"opentelemetry.sdk": opentelemetry_ns, "statsd": statsd_ns}
    for module, measure in peers.items():
        name = module.partition(".")[0]
        figures = measured(module, measure)
        if isinstance(figures, str):
            found[name] = figures
        else:
            found |= {f"{name}_{call}_ns": value for call, value in figures.items()}
    return found


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
    found = {}
    for name, reporter in (("null", NullReporter()), ("memory", memory), ("batching", batching)):
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


def trace_p99_ns(take: Callable[[], object], give: Callable[[object], object], steps: int = 20_000) -> float:
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
    for one in live:
        give(one)
    return float(np.percentile(times, 99))


def buffers() -> dict[str, float]:
    """Return p99 of 64 KiB buffers that are filled, from the slab and new ones from numpy: in turns, the least of some passes.

    What else runs on this machine reaches into a tail.
    """
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

    passes = [(trace_p99_ns(take, slab.give), trace_p99_ns(fresh, lambda _: None)) for _ in range(12)]  # type: ignore[arg-type]
    ours, theirs = zip(*passes, strict=True)
    return {"slab_p99_ns": round(min(ours), 1), "numpy_empty_p99_ns": round(min(theirs), 1)}


def rotation_ns() -> dict[str, float]:
    """Return p99 of a steady add (a batch of 256 with its drain), and of the first add of a window with the rotation before it."""
    segment = Segment.create()
    recorder = Recorder(segment)
    recorder.declare("load.slice", "load.operations")
    series, values = recorder.histogram("load.slice"), np.random.default_rng(1).lognormal(-6, 1, 256)
    times: dict[bool, list[int]] = {False: [], True: []}
    for step in range(20_000):
        rotates = step % 10 == 0
        begun = time.perf_counter_ns()
        if rotates:
            segment.next_window()
        series.record_many(values)
        recorder.tick()
        times[rotates].append(time.perf_counter_ns() - begun)
    return {"steady_add_p99_ns": float(np.quantile(times[False], 0.99)), "rotation_p99_ns": float(np.quantile(times[True], 0.99))}


def share_of_a_pattern() -> float:
    """Return the recording's share of the time of 10^4 allocations of 64 KiB that are filled: two samples each, a drain a hundred."""
    recorder = Recorder(Segment.create())
    slices, operations = recorder.histogram("load.slice").record, recorder.counter("load.operations").record
    kept: list[np.ndarray] = []

    def pattern() -> None:
        kept.clear()
        for _ in range(10_000):
            made = np.empty(8192)
            made[:] = 1.0
            kept.append(made)
            if len(kept) == 100:
                kept.clear()

    def recording() -> None:
        for step in range(10_000):
            slices(0.00001)
            operations(1.0)
            if step % 100 == 99:
                recorder.tick()

    alone, recorded = (min(timeit.repeat(one, number=1, repeat=ROUNDS)) for one in (pattern, recording))
    return round(recorded / (alone + recorded), 4)


def prometheus_client_ns() -> dict[str, float]:
    """Return the times of a child that is kept, and of one that is looked up by labels each time."""
    registry = prometheus_client.CollectorRegistry()
    counters = prometheus_client.Counter("operations", "h", ["worker"], registry=registry)
    histogram = prometheus_client.Histogram("slice_seconds", "h", ["worker"], registry=registry).labels("w")
    return {
        "prometheus_client_counter_inc_ns": best_ns(counters.labels("w").inc, 1.0),
        "prometheus_client_histogram_observe_ns": best_ns(histogram.observe, 0.005),
        "prometheus_client_by_labels_ns": best_ns(lambda value: counters.labels(worker="w").inc(value), 1.0),
    }


def main() -> int:
    recorder = Recorder(Segment.create())
    ours = {
        "record_counter_ns": best_ns(recorder.counter("load.operations").record, 1.0, after=recorder.tick),
        "record_histogram_ns": best_ns(recorder.histogram("load.slice").record, 0.005, after=recorder.tick),
    }
    drained = {f"record_{kind}_with_drain_ns": with_drain_ns(kind) for kind in ("counter", "histogram")}
    peers, others, by_name = prometheus_client_ns(), optional_peers(), by_name_ns()
    drains = {f"drain_{kind}_{batch}_ns": drain_ns(kind, batch) for kind in ("counter", "histogram") for batch in (100, 5_000, 100_000)}
    worst, worst_drained = max(ours.values()), max(drained.values())
    batches = {f"record_many_{size}_ns": batch_ns(size) for size in (16, 256, 4096)}
    left_out = {
        "left_out_by_level_ns": left_out_ns(RecordingPolicy(level=Verbosity.MINIMAL)),
        "left_out_by_filter_ns": left_out_ns(RecordingPolicy(filters=(Filter(include=False, name="load.*"),))),
    }
    timers, reporters, thinning, slab = timers_ns(), reporters_ns(), thinning_ns(), buffers()
    rotation, share = rotation_ns(), share_of_a_pattern()
    empty = {"empty_call_ns": best_ns(lambda _: None, 1.0), "record_by_name_ns": by_name}
    figures = {**ours, **drained, **peers, **others, **drains, **empty, **batches, **left_out, **timers, **reporters, **thinning, **slab}
    figures |= {**rotation, "share_of_a_pattern": share}
    least = min(figures_of({**peers, **others}).values())
    figures["best_peer_ns"] = least
    goals = {
        "record by handle, times faster than the best peer, at least": (12.0, least / worst >= 12.0),
        "the same with the drain, at least": (4.0, least / worst_drained >= 4.0),
        "record_many of 256, times faster a sample than the best peer, at least": (50.0, least / batches["record_many_256_ns"] >= 50.0),
        "timer, times faster than prometheus_client's": (1.0, timers["prometheus_client_time_ns"] / timers["timer_ns"] >= 1.0),
        "left out, call and drain, share of the best peer's call": (0.5, max(left_out.values()) / least <= 0.5),
        "p99 of a rotation, times a steady add's, at most": (10.0, rotation["rotation_p99_ns"] / rotation["steady_add_p99_ns"] <= 10.0),
        "share of the time of 10^4 allocations that recording takes, below": (0.02, share < 0.02),
    }
    reported = {
        "record by handle, ns": at_most(25.0, worst),
        "record by handle with the drain, ns": at_most(45.0, worst_drained),
        "record by name and labels, ns": at_most(700.0, by_name),
        "record_many of 256, ns a sample": at_most(1.0, batches["record_many_256_ns"]),
        "record_many of 4,096, ns a sample": at_most(1.0, batches["record_many_4096_ns"]),
        "null reporter, ns": at_most(100.0, reporters["reporter_null_ns"]),
        "thinning, ns": at_most(1000.0, max(thinning.values())),
        "p99 of a filled buffer from the slab, times a new one's": at_most(1.0, slab["slab_p99_ns"] / slab["numpy_empty_p99_ns"]),
    }
    packages = ("numpy", "prometheus_client", *installed("opentelemetry-sdk", "statsd"))
    return store("record", figures, goals, packages, reported=reported)


if __name__ == "__main__":
    sys.exit(main())
