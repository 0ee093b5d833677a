"""What does tracing cost? All that is done for the paths of records, as a share of what the exporters' process does for the records.

Run: python benchmarks/bench_trace.py. The whole is a run's aggregator with two exporters (CSV and Arrow) and no tracing: frames parsed,
logged and synced, routed, queued, written. The parts are what tracing adds to it, each on its own: origins and paths, the lane's hops, a
tick's paths into the log, and the log into Parquet. All are CPU time, the best of their rounds, because other work on the same cores only
adds to it. `whole_with_s` is the run with tracing: its difference from the run without is smaller than what two runs of a kind differ by.
Records have about as many rows as a node's second has with one probe and two operations; there are as many as a minute of 20 nodes has.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import at_most, store

from actors.breaker import BreakerPolicy
from actors.clock import SystemClock
from actors.metrics.registry import Kind
from cluster.export_feed import _origin
from cluster.export_traces import FILE, TraceLog, settle
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits
from cluster.exporters.trace import KEPT, Tracer
from cluster.exporters.trace import Path as TracedPath
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import Entry
from cluster.metrics.windows import Row, metrics_batch, unseal
from cluster.outbox import parse
from cluster.run_exports import RunExports
from scenarios.exporters import Destination, Exporters
from tests.support.windows import record

RECORDS, AT_ONCE, ROWS, EXPORTERS, ROUNDS, PART_ROUNDS = 1_200, 20, 40, 2, 6, 15
A_TICK = 20 * EXPORTERS  # paths that 20 nodes make in a second
RATIO = 1.03
RUN = "20260101-120000-bench-1a2b"
CLOCK = SystemClock()
ROW_LIST = [Row("host.cpu.busy", Kind.GAUGE, "ratio", f"w{at}", "p", (), 5, 2.5, 0.1, 0.9, 0.5) for at in range(ROWS)]


def whole_s(pushed: list[tuple[int, bytes]], traced: int) -> float:
    """Return the CPU seconds of a run, all threads."""
    with tempfile.TemporaryDirectory() as folder:
        core = Aggregator(RUN, Path(folder) / "runs" / RUN, CLOCK)
        wanted = Exporters(destinations=(Destination("csv", "m.csv"), Destination("arrow", "m.arrow")), drain_s=60.0)
        exports = RunExports(core, wanted, CLOCK, tells=False, traced=traced)
        while len(exports._feed._live) < EXPORTERS:  # noqa: SLF001  # from here on records are given as they come
            time.sleep(0.005)
        began = time.process_time()
        for first in range(0, len(pushed), AT_ONCE):
            core.push("n1", "life", pushed[first : first + AT_ONCE])
        reports = exports.finish()
        took = time.process_time() - began
        assert [one["delivered_rows"] for one in reports] == [RECORDS * ROWS] * EXPORTERS, reports
        assert (core.directory / FILE).exists() == bool(traced)
        core.close()
    return took


def best_s(call: Callable[[], object], rounds: int = PART_ROUNDS) -> float:
    """Return the least CPU time of a call in this thread."""
    took = []
    for _ in range(rounds):
        began = time.thread_time()
        call()
        took.append(time.thread_time() - began)
    return min(took)


def through_a_lane(paths: list[TracedPath] | None) -> Callable[[], None]:
    """Return a call that puts records through a lane, with their paths or without."""
    batch = metrics_batch(ROW_LIST, node="n1", start_ns=0, window_s=1.0)

    def call() -> None:
        lane = Lane(Limits(), BreakerPolicy())
        for at in range(RECORDS):
            path = paths[at] if paths is not None else None
            if path is not None:
                path.hops.clear()
                path.open_rows = ROWS
                path.hop("routed", 0, ROWS)
            lane.offer(batch, 0, path)
        while lane.take(0, at_once=True) is not None:
            lane.succeeded(0)

    return call


def parts_us(pushed: list[tuple[int, bytes]]) -> dict[str, float]:
    """Return what tracing does, in CPU us a path."""
    batch = unseal(parse(pushed[0][1]).payload)[0]
    entry = Entry(("n1", "life"), 1, batch, batch)

    def begun() -> list[TracedPath]:
        tracer = Tracer(RECORDS * EXPORTERS)
        for _ in range(RECORDS):
            origin = _origin(entry, 0)
            assert origin is not None
            for name in ("csv", "arrow"):
                tracer.begin(origin, name)
        return tracer.collect()

    made = begun()
    bare = through_a_lane(None)
    traced = through_a_lane(made)
    rounds = [(best_s(traced, 1), best_s(bare, 1)) for _ in range(PART_ROUNDS)]
    lane_s = min(one for one, _ in rounds) - min(other for _, other in rounds)
    with tempfile.TemporaryDirectory() as folder:
        log = TraceLog(Path(folder), CLOCK)
        tick_s = best_s(lambda: log.add(made[:A_TICK]))
        log.close()
        settle(Path(folder))
    settled = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            log = TraceLog(Path(folder), CLOCK)
            for first in range(0, len(made), A_TICK):
                log.add(made[first : first + A_TICK])
            log.close()
            began = time.thread_time()
            settle(Path(folder))
            settled.append(time.thread_time() - began)
    paths = RECORDS * EXPORTERS
    found = {"begin": best_s(begun) / paths, "hops": max(0.0, lane_s) / RECORDS, "log": tick_s / A_TICK, "settle": min(settled) / paths}
    return {name: round(one * 1e6, 2) for name, one in found.items()}


def main() -> int:
    """Measure, store, judge."""
    pushed = [record("n1", number, rows=ROW_LIST, events=0) for number in range(1, RECORDS + 1)]
    whole_s(pushed, KEPT)  # warm
    plain, traced = [], []
    for _ in range(ROUNDS):
        plain.append(whole_s(pushed, 0))
        traced.append(whole_s(pushed, KEPT))
    parts = parts_us(pushed)
    a_record_us = min(plain) / RECORDS * 1e6
    ratio = 1 + sum(parts.values()) * EXPORTERS / a_record_us
    figures = {
        "records": RECORDS,
        "rows_a_record": ROWS,
        "exporters": EXPORTERS,
        "us_a_path": parts,
        "us_a_record_without": round(a_record_us, 1),
        "ratio": round(ratio, 4),
        "whole_without_s": sorted(round(one, 3) for one in plain),
        "whole_with_s": sorted(round(one, 3) for one in traced),
    }
    goals = {"CPU with tracing over CPU without": (RATIO, ratio < RATIO)}
    return store(
        "trace", figures, goals, ("pyarrow",), reported={"whole runs, best with over best without": at_most(1.1, min(traced) / min(plain))}
    )


if __name__ == "__main__":
    raise SystemExit(main())
