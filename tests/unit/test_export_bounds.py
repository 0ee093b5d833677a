"""When rows go out, how many wait, and how many bytes: the limits of one destination, measured."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.breaker import BreakerPolicy
from actors.clock import SECOND_NS, VirtualClock
from cluster.exporters.arrow_file import ParquetFile
from cluster.exporters.csv_file import CsvFile
from cluster.exporters.json_file import JsonArray, JsonLines
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.spill import SpillLog
from cluster.exporters.wal import Sync, WriteAheadLog
from tests.support.power import Disk
from tests.support.sinks import GateSink, ListSink, numbered, numbers

LATE = Limits(batch_rows=100, batch_age_s=1000.0)


class Steps:
    """Time that moves when a test says so: a port waits until it is woken, or its moment has come."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._event: asyncio.Event | None = None
        self._due_ns: int | None = None

    async def wait(self, event: asyncio.Event, timeout_s: float | None) -> None:
        self._due_ns = None if timeout_s is None else self.clock.boot_ns() + round(timeout_s * SECOND_NS)
        self._event = event
        await event.wait()
        self._event = None

    async def settled(self) -> None:
        """Let everything run until the port waits for a later moment."""
        while self._event is None or self._event.is_set() or self._is_due():  # a state, not an event
            if self._event is not None and self._is_due():
                self._event.set()
            await asyncio.sleep(0)

    def _is_due(self) -> bool:
        return self._due_ns is not None and self._due_ns <= self.clock.boot_ns()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.settled()


def bounded(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


# when


@pytest.mark.parametrize(
    ("limits", "rows", "after_s"),
    [
        pytest.param(Limits(batch_rows=10, batch_age_s=9.0), 10, 0.0, id="rows"),
        pytest.param(Limits(batch_rows=11, batch_age_s=9.0), 10, 9.0, id="one-row-less"),
        pytest.param(Limits(batch_bytes=numbered(0, 10).nbytes, batch_age_s=9.0), 10, 0.0, id="bytes"),
        pytest.param(Limits(batch_bytes=numbered(0, 10).nbytes + 1, batch_age_s=9.0), 10, 9.0, id="one-byte-less"),
        pytest.param(LATE, 10, 1000.0, id="age"),
    ],
)
def test_a_batch_goes_out_when_it_is_full_or_old(limits: Limits, rows: int, after_s: float) -> None:
    """At its rows, its bytes or its age, whichever comes first, and not a nanosecond before."""
    clock = VirtualClock()
    lane = Lane(limits, BreakerPolicy())
    lane.offer(numbered(0, rows), clock.boot_ns())
    if after_s:
        clock.advance(after_s)
        assert lane.take(clock.boot_ns() - 1) is None
    batch = lane.take(clock.boot_ns())
    assert batch is not None
    assert batch.num_rows == rows


@pytest.mark.parametrize("how", ["drain", "shutdown", "remove"])
def test_a_batch_goes_out_when_it_is_asked_for(how: str) -> None:
    """A call sends and flushes at once what is neither full nor old; so do the end of the destination and of the pipeline."""

    async def test() -> None:
        clock = VirtualClock()
        steps, sink = Steps(clock), ListSink()
        pipeline = ExportPipeline(clock=clock, wait=steps.wait)
        pipeline.add("a", sink, LATE)
        await pipeline.export(numbered(0, 7))
        await steps.settled()
        await steps.advance(999.0)
        assert sink.taken == []
        await (pipeline.remove("a") if how == "remove" else pipeline.drain() if how == "drain" else pipeline.shutdown())
        assert (sink.numbers, "flush" in sink.calls) == (list(range(7)), True)
        await pipeline.shutdown()

    bounded(test)


def test_what_was_written_is_flushed_in_its_time() -> None:
    """A destination that has rows is flushed `flush_s` after the first of them, once, and not again without new ones."""

    async def test() -> None:
        clock = VirtualClock()
        steps, sink = Steps(clock), ListSink()
        pipeline = ExportPipeline(clock=clock, wait=steps.wait)
        pipeline.add("a", sink, Limits(batch_rows=1, flush_s=10.0))
        await steps.settled()
        for _ in range(5):
            await pipeline.export(numbered(0, 1))
            await steps.settled()
            await steps.advance(1.0)
        await steps.advance(4.9)
        assert sink.calls.count("flush") == 0
        await steps.advance(0.1)
        assert sink.calls.count("flush") == 1
        await steps.advance(100.0)
        assert sink.calls.count("flush") == 1
        await pipeline.shutdown()

    bounded(test)


def test_rows_are_on_disk_within_one_flush_interval(tmp_path: Path) -> None:
    """At every moment a power cut leaves all rows of JSON lines that are older than a batch's age and a flush; what is there is valid."""
    (tmp_path / "disk").mkdir()
    path = tmp_path / "disk" / "x.jsonl"

    async def test() -> None:
        clock, disk = VirtualClock(), Disk(tmp_path / "disk")
        steps = Steps(clock)
        pipeline = ExportPipeline(clock=clock, wait=steps.wait)
        limits = Limits(batch_age_s=0.5, flush_s=2.0)
        pipeline.add("x", JsonLines(path, sync=Sync.INTERVAL, clock=clock), limits)
        with disk.watched():
            await steps.settled()
            for at in range(60):
                await pipeline.export(numbered(at, 1))
                await steps.advance(0.25)
                found = disk.cut(tmp_path / "cut") / path.name
                held = [json.loads(line)["last"] for line in found.read_text().splitlines()] if found.exists() else []
                assert held == list(range(len(held)))
                assert len(held) >= at + 1 - (limits.batch_age_s + limits.flush_s) / 0.25, at
        await pipeline.shutdown()

    bounded(test)


# how many


def test_a_long_stream_has_few_batches_in_flight() -> None:
    """Of ten million rows never more than the queue's batches and the one in hand are between the stream and the destination."""
    rows, count, waiting = 5_000, 2_000, 4
    batch = numbered(0, rows)
    given = taken = most = 0

    class Counting(ListSink):
        def write(self, batch: pa.RecordBatch) -> None:
            nonlocal taken
            taken += batch.num_rows

    async def source() -> AsyncIterator[pa.RecordBatch]:
        nonlocal given, most
        for _ in range(count):
            given += rows
            most = max(most, given - taken)
            yield batch

    async def test() -> None:
        pipeline = ExportPipeline()
        pipeline.add("a", Counting(), Limits(Overflow.BLOCK, queue_rows=waiting * rows, queue_bytes=1 << 30, batch_rows=rows))
        assert await pipeline.export_stream(source()) == rows * count == 10**7
        report = (await pipeline.shutdown(60)).exporters["a"]
        assert (report.lane.delivered, report.balance) == (10**7, 0)

    bounded(test)
    assert taken == 10**7
    assert most <= (waiting + 1) * rows


READ: dict[str, tuple[Callable[[Path], Any], Callable[[Path], list[float]]]] = {
    "json": (JsonArray, lambda path: [row["last"] for row in json.loads(path.read_text())]),
    "jsonl": (JsonLines, lambda path: [json.loads(line)["last"] for line in path.read_text().splitlines()]),
    "csv": (CsvFile, lambda path: [float(row["last"]) for row in csv.DictReader(path.read_text().splitlines())]),
    "parquet": (ParquetFile, lambda path: pq.read_table(path)["last"].to_pylist()),
}


@pytest.mark.parametrize("kind", READ)
def test_a_stream_that_is_cancelled_leaves_a_valid_file(tmp_path: Path, kind: str) -> None:
    """Cancelled in the middle, also while it waits for room, the file holds whole rows: those that were let in, in order."""
    make, read = READ[kind]

    async def test() -> int:
        begun = asyncio.Event()

        async def source() -> AsyncIterator[pa.RecordBatch]:
            for first in range(0, 10**9, 10):
                if first == 500:
                    begun.set()
                yield numbered(first, 10)

        pipeline = ExportPipeline()
        pipeline.add("x", make(tmp_path / "x"), Limits(Overflow.BLOCK, queue_rows=40, batch_rows=20, batch_age_s=0.001))
        streaming = asyncio.create_task(pipeline.export_stream(source()))
        await begun.wait()
        streaming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await streaming
        report = (await pipeline.shutdown(30)).exporters["x"]
        assert report.balance == 0
        assert set(report.lane.dropped) <= {"cancelled"}
        return report.lane.delivered

    delivered = asyncio.run(asyncio.wait_for(test(), 60))
    assert delivered >= 450
    assert read(tmp_path / "x") == list(range(delivered))


# how many bytes


def own(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a copy that shares no memory."""
    return batch.take(pa.array(range(batch.num_rows), pa.int64()))


@pytest.mark.parametrize("overflow", list(Overflow))
def test_what_waits_keeps_to_its_bytes(tmp_path: Path, overflow: Overflow) -> None:
    """16 MB, a destination that hangs, and 40 MB of rows: what Arrow has allocated, what waits counted anew, and the metric agree;
    the bound is passed by no more than one batch, whichever the policy, and it is reached.
    """
    limit, batch = 16 << 20, numbered(0, 1000)
    limits = Limits(overflow, queue_rows=10**9, queue_bytes=limit, batch_rows=4000, batch_bytes=1 << 20)

    async def test() -> None:
        sink = GateSink()
        log = WriteAheadLog(tmp_path, sync=Sync.NEVER)
        pipeline = ExportPipeline()
        before = pa.total_allocated_bytes()
        pipeline.add("a", sink, limits, spill=SpillLog(log) if overflow is Overflow.SPILL else None)
        lane, most = pipeline._ports["a"].lane, 0
        for _ in range((40 << 20) // batch.nbytes):
            await pipeline.export(own(batch), timeout_s=0.0)
            queued = pipeline.report().exporters["a"].lane.queued_bytes
            held = pa.total_allocated_bytes() - before
            assert queued == lane.recount()[1] <= limit
            assert held <= 1.1 * limit + limits.batch_bytes + batch.nbytes, "memory that is not counted"
            most = max(most, queued)
        assert most >= limit - limits.batch_bytes if overflow is not Overflow.SAMPLE else most >= limit / 2
        told = {row.metric: row.last for row in pipeline.self_metrics() if row.labels == (("exporter", "a"),)}
        state = pipeline.report().exporters["a"]
        assert told["export.queue.size"] == state.lane.queued_bytes
        assert told["export.spilled"] == state.lane.spilled
        reasons = {Overflow.BLOCK: {"deadline"}, Overflow.DROP_NEWEST: {"newest"}, Overflow.DROP_OLDEST: {"oldest"}, Overflow.SPILL: set()}
        assert set(state.lane.dropped) == reasons.get(overflow, {"sampled"})
        sink.gate.set()
        await pipeline.drain()
        measured = sum(one.nbytes for one in sink.taken)
        assert abs(measured - state.lane.queued_bytes) <= 0.05 * limit or overflow is Overflow.SPILL
        report = (await pipeline.shutdown(30)).exporters["a"]
        assert report.balance == 0
        assert len(numbers(sink.taken)) == report.lane.delivered
        log.close()

    bounded(test)
