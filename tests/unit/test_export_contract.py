"""What every exporter promises, for each of ours, plain and buffered: alone, and behind a lane, also one that writes ahead.

And the how-to's own exporter.
"""

from __future__ import annotations

import asyncio
import csv
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.clock import VirtualClock
from cluster.exporters.arrow_file import ArrowFile, ParquetFile
from cluster.exporters.base import Exporter, RejectedError, UnfinishedError
from cluster.exporters.buffered import Buffered
from cluster.exporters.context import EXPORTED
from cluster.exporters.csv_file import CsvFile
from cluster.exporters.json_file import JsonArray, JsonLines
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.spill import SpillLog
from cluster.exporters.wal import WriteAheadLog
from tests.support.sinks import CONTEXT, ListSink, numbered

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-exporter.md"

Read = Callable[[Path], list[int]]
EXPORTERS: dict[str, tuple[Callable[[Path], Any], Read]] = {
    "json": (JsonArray, lambda path: [int(row["last"]) for row in json.loads(path.read_text())]),
    "jsonl": (JsonLines, lambda path: [int(json.loads(line)["last"]) for line in path.read_text().splitlines()]),
    "csv": (CsvFile, lambda path: [int(float(row["last"])) for row in csv.DictReader(path.read_text().splitlines())]),
    "parquet": (ParquetFile, lambda path: [int(value) for value in pq.read_table(path).column("last").to_pylist()]),
    "arrow": (ArrowFile, lambda path: [int(value) for value in pa.ipc.open_file(path).read_all().column("last").to_pylist()]),
}


Subject = tuple[Callable[[Path], Any], Read]
WRAPS: dict[str, Callable[[Any], Any]] = {"plain": lambda sink: sink, "buffered": lambda sink: Buffered(sink, Limits(batch_rows=10))}


@pytest.fixture(params=[(name, wrap) for name in EXPORTERS for wrap in WRAPS], ids="-".join)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each exporter as it is and buffered: how it is made, and how its rows are read."""
    name, wrap = request.param
    make, read = EXPORTERS[name]
    return lambda path: WRAPS[wrap](make(path)), read


def test_alone(tmp_path: Path, subject: Subject) -> None:
    """close is harmless before open and twice; what was written and closed is there; health is ok."""
    make, read = subject
    never: Exporter = make(tmp_path / "never")
    never.close()
    assert not (tmp_path / "never").exists()
    sink: Exporter = make(tmp_path / "x")
    sink.open()
    for first in range(0, 30, 10):
        sink.write(CONTEXT.on(numbered(first, 10)))
        sink.flush()
        assert sink.health().ok
    sink.close()
    sink.close()
    assert read(tmp_path / "x") == list(range(30))


def test_a_folder_that_is_not_there_is_a_failure_that_passes(tmp_path: Path, subject: Subject) -> None:
    """write raises OSError until the folder is there, says so in its health, and then works."""
    make, read = subject
    sink: Exporter = make(tmp_path / "later" / "x")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            sink.write(CONTEXT.on(numbered(0, 10)))
        assert not sink.health().ok
    (tmp_path / "later").mkdir()
    sink.write(CONTEXT.on(numbered(0, 10)))
    sink.close()
    assert sink.health().ok
    assert read(tmp_path / "later" / "x") == list(range(10))


@pytest.mark.parametrize("ahead", [False, True], ids=["in-memory", "write-ahead"])
def test_behind_a_lane(tmp_path: Path, subject: Subject, ahead: bool) -> None:
    """Queued and batched, in memory or through a log on disk, the same rows arrive, once and in order."""
    make, read = subject

    async def send() -> None:
        log = WriteAheadLog(tmp_path / "spill")
        pipeline = ExportPipeline()
        limits = Limits(Overflow.SPILL, queue_rows=50, batch_rows=20)
        pipeline.add("x", make(tmp_path / "x"), limits, spill=SpillLog(log), write_ahead=ahead)
        for first in range(0, 300, 7):
            await pipeline.export(numbered(first, 7))
        report = await pipeline.shutdown()
        log.close()
        assert (report.exporters["x"].lane.delivered, report.exporters["x"].balance) == (301, 0)

    asyncio.run(send())
    assert read(tmp_path / "x") == list(range(301))


def test_each_row_that_a_destination_gets_says_whose_it_is(tmp_path: Path) -> None:
    """Run, scenario and node are on 100 % of them, also on those that waited on disk for an earlier life's destination."""

    async def life(sink: ListSink, rows: int, within_s: float) -> None:
        log = WriteAheadLog(tmp_path)
        pipeline = ExportPipeline(context=CONTEXT)
        pipeline.add("a", sink, Limits(Overflow.SPILL, queue_rows=10, batch_rows=5), spill=SpillLog(log))
        await pipeline.export(numbered(0, rows))
        await pipeline.shutdown(within_s)
        log.close()

    asyncio.run(life(ListSink(ConnectionError("down") for _ in range(10**6)), 30, 0.1))
    sink = ListSink()
    asyncio.run(life(sink, 20, 30))
    assert sorted(sink.numbers) == sorted([*range(30), *range(20)])
    assert all(batch.schema.equals(EXPORTED) for batch in sink.taken)
    got = [row for batch in sink.taken for row in batch.to_pylist()]
    assert [(row["run"], row["scenario"], row["node"]) for row in got] == [("run-1", "small", "n1")] * 50


@pytest.mark.parametrize(
    ("limits", "want"),
    [
        pytest.param(Limits(batch_rows=25, batch_age_s=1000.0), [30, 30, 30], id="rows"),
        pytest.param(Limits(batch_bytes=2 * numbered(0, 10).nbytes, batch_age_s=1000.0), [20, 20, 20, 20, 10], id="bytes"),
        pytest.param(Limits(batch_age_s=4.0), [50, 40], id="age"),
    ],
)
def test_a_buffer_holds_no_more_than_its_limits(limits: Limits, want: list[int]) -> None:
    """Whichever of rows, bytes and age is reached first hands all on as one batch; flush and close hand on the rest."""
    clock, sink = VirtualClock(), ListSink()
    buffered = Buffered(sink, limits, clock)
    for first in range(0, 90, 10):
        buffered.write(numbered(first, 10))
        assert buffered.rows < limits.batch_rows
        assert buffered.size_bytes < limits.batch_bytes
        clock.advance(1.0)
    buffered.close()
    assert ([batch.num_rows for batch in sink.taken], sink.numbers) == (want, list(range(90)))
    buffered.write(numbered(90, 1))
    buffered.flush()
    assert (sink.numbers[-1], sink.calls[-1], buffered.rows) == (90, "flush", 0)


def test_a_buffer_whose_exporter_fails_keeps_what_it_took_and_no_more() -> None:
    """The batch that reaches a limit is not taken when handing on fails; what was taken arrives once, or is told as lost at the end."""
    sink = ListSink([OSError("down"), OSError("down"), None, OSError("down")])
    buffered = Buffered(sink, Limits(batch_rows=15))
    buffered.write(numbered(0, 10))
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            buffered.write(numbered(10, 10))
        assert buffered.rows == 10
    buffered.write(numbered(10, 10))
    assert sink.numbers == list(range(20))
    buffered.write(numbered(20, 7))
    with pytest.raises(UnfinishedError, match="down") as raised:
        buffered.close()
    assert (raised.value.rows, buffered.rows, sink.calls[-1]) == (7, 0, "close")


def test_a_rejected_batch_takes_along_what_waits_with_it() -> None:
    """Rows that were taken are told as lost; the batch that was not is rejected when it comes again."""
    sink = ListSink([RejectedError("400"), RejectedError("400"), None])
    buffered = Buffered(sink, Limits(batch_rows=15))
    buffered.write(numbered(0, 10))
    with pytest.raises(UnfinishedError, match="400") as raised:
        buffered.write(numbered(10, 15))
    assert (raised.value.rows, buffered.rows) == (10, 0)
    with pytest.raises(RejectedError):
        buffered.write(numbered(10, 15))
    buffered.write(numbered(25, 15))
    assert sink.numbers == list(range(25, 40))


def test_what_a_hung_sink_did_not_take_comes_in_the_next_life(tmp_path: Path) -> None:
    """With a spill nothing is dropped at shutdown: the next pipeline on the folder delivers the rest, and only that."""

    async def life(sink: ListSink, rows: int, first: int) -> Any:
        log = WriteAheadLog(tmp_path)
        pipeline = ExportPipeline()
        pipeline.add("a", sink, Limits(Overflow.SPILL, queue_rows=40, batch_rows=20), spill=SpillLog(log))
        for at in range(first, first + rows, 10):
            await pipeline.export(numbered(at, 10))
        report = await pipeline.shutdown(0.2 if rows else 30)
        log.close()
        return report.exporters["a"]

    down = ListSink(ConnectionError("down") for _ in range(10**6))
    report = asyncio.run(life(down, 200, 0))
    assert (report.lane.spilled, report.lane.dropped, report.balance) == (200, {}, 0)
    up = ListSink()
    report = asyncio.run(life(up, 0, 0))
    assert (report.lane.recovered, report.lane.delivered, report.balance) == (200, 200, 0)
    assert up.numbers == list(range(200))


def test_the_how_to_works_as_it_is_written(tmp_path: Path) -> None:
    """The page's own code, run: rows of the routed metric arrive, filtered ones and others do not, and the report says so."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    space: dict[str, Any] = {}
    exec("\n".join(blocks), space)  # it is our own page
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "s"))
    batches = [
        numbered(0, 30, metric="probe.requests"),
        numbered(100, 5),
        numbered(200, 5, metric="probe.requests", labels=(("probe", "internal-1"),)),
    ]
    report = asyncio.run(space["send"](str(tmp_path / "s"), batches))
    receiver.setblocking(False)
    got = []
    for _ in range(report["successes"]):
        got += json.loads(receiver.recv(1 << 16))
    receiver.close()
    assert [row["last"] for row in got] == list(range(30))
    assert {(row["run"], row["scenario"], row["node"]) for row in got} == {("tuning-7", "burst", "n1")}
    assert (report["delivered_rows"], report["filtered_rows"], report["dropped_rows"]) == (30, 5, {})


def test_the_how_tos_exporter_rejects_what_no_datagram_holds(tmp_path: Path) -> None:
    """Rows that are too many for one datagram are rejected and counted, as the page says."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec("\n".join(blocks), space)  # it is our own page
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "s"))

    async def send() -> Any:
        pipeline = ExportPipeline()
        pipeline.add("d", space["DatagramExporter"](str(tmp_path / "s")), Limits(batch_rows=1000))
        await pipeline.export(numbered(0, 1000))
        return (await pipeline.shutdown()).exporters["d"].lane

    lane = asyncio.run(send())
    receiver.close()
    assert lane.dropped == {"rejected": 1000}
    assert "a datagram holds" in lane.last_error
