"""The named hot paths allocate nothing that stays: 10^6 operations of each leave no live block and no larger process."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from actors.clock import VirtualClock
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Filter, RecordingPolicy
from actors.metrics.ring import Consumer, Producer, Ring
from actors.metrics.sampling import Adaptive, Probability, Thinner
from actors.metrics.slab import Slab
from actors.metrics.stopwatch import Stopwatch

ROOT = Path(__file__).parents[2]
TIMES, SHORT = 100, 4  # a path is 10^4 operations
SLACK_BYTES = 1 << 20  # what a C library keeps back is its own
VALUES = np.random.default_rng(1).lognormal(size=5_000)

Path_ = Callable[[], object]


def recorder_of(segment: Segment) -> Recorder:
    return Recorder(Segment.open(segment.path), VirtualClock())


def record() -> Path_:
    """Single samples by call, drained each 10,000."""
    segment = Segment.create()
    recorder = recorder_of(segment)
    handle, one = recorder.histogram("load.slice"), 0.005

    def path() -> None:
        call = handle.record
        for _ in range(10_000):
            call(one)
        recorder.tick()

    return path


def record_by_name() -> Path_:
    """The same by name and labels."""
    recorder = recorder_of(Segment.create())

    def path() -> None:
        for _ in range(10_000):
            recorder.counter("probe.requests", probe="x").record(1.0)
        recorder.tick()

    return path


def record_many() -> Path_:
    """Batches of a counter and a histogram that fit into their buffers, drained, with a new window each time."""
    segment = Segment.create()
    recorder = recorder_of(segment)
    recorder.declare("load.slice", "load.operations")
    slices, operations = recorder.histogram("load.slice"), recorder.counter("load.operations")

    def path() -> None:
        slices.record_many(VALUES)
        operations.record_many(VALUES)
        recorder.tick()
        segment.next_window()

    return path


def left_out() -> Path_:
    """What a filter leaves out."""
    segment = Segment.create()
    segment.publish(RecordingPolicy(filters=(Filter(include=False, name="load.*"),)).to_json())
    recorder = recorder_of(segment)
    handle = recorder.histogram("load.slice")

    def path() -> None:
        call = handle.record
        for _ in range(5_000):
            call(1.0)
        handle.record_many(VALUES)
        recorder.tick()

    return path


def timer() -> Path_:
    """Measured blocks."""
    recorder = recorder_of(Segment.create())
    watch = Stopwatch(recorder.histogram("load.slice"), VirtualClock())

    def path() -> None:
        for _ in range(10_000):
            with watch.running():
                pass
        recorder.tick()

    return path


def ring_in_batches() -> Path_:
    """Batches into a ring, and out into the same array."""
    ring = Ring.create(1 << 14)
    producer, consumer, rows, out = Producer(ring), Consumer(ring), np.ones((1, 10_000)), np.empty((1, 10_000))

    def path() -> None:
        assert producer.offer(rows) == consumer.drain_into(out) == 10_000

    return path


def ring_one_by_one() -> Path_:
    """Single pushes into a ring, drained into the same array."""
    ring = Ring.create(1 << 14)
    producer, consumer, out = Producer(ring), Consumer(ring), np.empty((1, 10_000))

    def path() -> None:
        for _ in range(10_000):
            producer.push(1.0)
        assert consumer.drain_into(out) == 10_000

    return path


def thin() -> Path_:
    """Offers to two thinners."""
    thinners = [Thinner(Probability(0.01), Random(1)), Thinner(Adaptive(100), Random(1))]

    def path() -> None:
        for thinner in thinners:
            for _ in range(5_000):
                thinner.offer(1.0, thinner.offered * 10_000)

    return path


def slab() -> Path_:
    """Blocks taken, filled and given back."""
    blocks = Slab(8, 64)

    def path() -> None:
        for _ in range(10_000):
            number = blocks.take()
            assert number is not None
            blocks.block(number)[:] = 1.0
            blocks.give(number)

    return path


BY_CALL = (record_by_name, timer, ring_one_by_one, thin, slab)  # whose 10^6 calls take seconds while allocations are traced
IN_BATCHES = (record, record_many, left_out, ring_in_batches)
PATHS = (*IN_BATCHES, *BY_CALL)
LONG = [pytest.param(make, TIMES, marks=pytest.mark.soak) for make in BY_CALL]


def growth(path: Path_, times: int) -> tuple[int, int]:
    """Return bytes and blocks that are still allocated after so many calls, numpy's memory included."""
    for _ in range(3):
        path()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(2):
            path()
        before = tracemalloc.take_snapshot()
        for _ in range(times):
            path()
        gc.collect()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    ours = [tracemalloc.Filter(inclusive=True, filename_pattern="*/actors/metrics/*")]
    found = after.filter_traces(ours).compare_to(before.filter_traces(ours), "filename")
    return sum(one.size_diff for one in found), sum(one.count_diff for one in found)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("make", "times"), [*((make, TIMES) for make in IN_BATCHES), *((make, SHORT) for make in BY_CALL), *LONG])
def test_a_million_operations_leave_nothing_behind(make: Callable[[], Path_], times: int) -> None:
    """Of 10^6 operations (fewer by call; the long form has all), over a hundred windows where there are windows, no block stays and less
    than 1 KB; the process does not grow."""
    path = make()
    for last in (False, False, True):  # an interpreter that other tests have filled may replace a few of its own blocks once
        size, blocks = growth(path, times)
        if blocks <= 0 or last:
            break
    assert size < 1024
    assert blocks <= 0
    before = resident_bytes()
    for _ in range(times):
        path()
    assert resident_bytes() - before <= SLACK_BYTES


def test_a_path_that_keeps_something_is_found() -> None:
    """Samples that nobody drains stay, and are seen."""
    handle = recorder_of(Segment.create()).counter("load.operations")
    assert growth(lambda: handle.record_many(np.ones(20_000)), 5)[0] > 1024


def test_undeclared_metrics_work_beside_declared_ones() -> None:
    """A slot that nobody claimed before is claimed at the first use, and one that is declared twice is one."""
    segment = Segment.create()
    recorder = recorder_of(segment)
    recorder.declare("load.slice", "load.slice")
    assert [name for _, _, name, _ in segment.series()] == ["load.slice"]
    recorder.counter("load.operations").record(2.0)
    recorder.histogram("load.slice").record(1.0)
    recorder.tick()
    assert [(name, segment.read(row).sum) for row, _, name, _ in segment.series()] == [("load.slice", 1.0), ("load.operations", 2.0)]


def test_the_hot_paths_are_listed() -> None:
    """The page names each path that is shown here, and those that must allocate."""
    page = (ROOT / "docs/explanation/metrics.md").read_text()
    for make in PATHS:
        assert f"`{make.__name__}`" in page
