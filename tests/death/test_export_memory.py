"""Memory of exporters, watched in a process of their own: long files, destinations that are down, and a limit that kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing import ROOT
from tests.support.memory_limit import memory_limited

MB = 1 << 20


def told(code: str, *arguments: object, within_s: float = 120.0) -> dict[str, Any]:
    """Run a child to its end and return what it says of itself."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=within_s)
    assert ended.returncode == 0, f"{ended.returncode}: {ended.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


STREAMING = """
import asyncio, json, sys
from pathlib import Path
from cluster.exporters.json_file import JsonArray, JsonLines
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from tests.support.killing import peak_bytes, reset_peak
from tests.support.sinks import numbered

kind, path, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
STEP = 5000
batch = numbered(0, STEP)

async def stream(path, rows):
    async def source():
        for _ in range(rows // STEP):
            yield batch
    pipeline = ExportPipeline()
    pipeline.add("x", {"json": JsonArray, "jsonl": JsonLines}[kind](path), Limits(Overflow.BLOCK, queue_rows=2 * STEP, batch_rows=STEP))
    await pipeline.export_stream(source())
    return (await pipeline.shutdown(3600)).exporters["x"].lane.delivered

asyncio.run(stream(path.with_name("warm"), 2 * STEP))
before = reset_peak()
delivered = asyncio.run(stream(path, rows))
grown, valid = peak_bytes() - before, 0
with path.open() as file:
    if kind == "json":
        assert next(file) == "[\\n"
    for line in file:
        if kind == "json" and line == "]\\n":
            break
        row = json.loads(line.rstrip(",\\n"))
        assert row["last"] == valid % STEP
        assert line.endswith(",\\n") or kind == "jsonl" or valid == rows - 1
        valid += 1
    assert not file.read()
print(json.dumps({"grown": grown, "delivered": delivered, "valid": valid}))
"""


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "most_bytes"), [(20_000, 8 * MB), pytest.param(10_000_000, 64 * MB, marks=[pytest.mark.soak, pytest.mark.timeout(0)])]
)
def test_json_is_written_as_a_stream(tmp_path: Path, kind: str, rows: int, most_bytes: int) -> None:
    """The resident memory of its process grows by less than a few batches take, however many rows there are; all of them are valid."""
    found = told(STREAMING, kind, tmp_path / "x", rows, within_s=7200)
    assert found["grown"] <= most_bytes
    assert found["delivered"] == found["valid"] == rows


DOWN = """
import json, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from actors.clock import VirtualClock
from actors.breaker import BreakerPolicy
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.spill import SpillLog
from cluster.exporters.wal import Sync, WriteAheadLog
from tests.support.killing import peak_bytes, reset_peak
from tests.support.sinks import numbered

folder, seconds, quota = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
RATE = 10_000
clock, base = VirtualClock(), numbered(0, RATE)
at = base.schema.get_field_index("last")

def rows(second):
    numbers = pa.array(np.arange(second * RATE, (second + 1) * RATE, dtype=np.float64))
    return base.set_column(at, base.schema.field(at), numbers)

log = WriteAheadLog(folder, max_bytes=quota, sync=Sync.NEVER, clock=clock)
lane = Lane(Limits(Overflow.SPILL, queue_rows=20_000, batch_rows=5_000), BreakerPolicy(5, 60.0), SpillLog(log))
lane.offer(rows(0), clock.boot_ns())
disk, before = 0, reset_peak()
for second in range(1, seconds):
    lane.offer(rows(second), clock.boot_ns())
    if lane.take(clock.boot_ns()) is not None:
        lane.failed(clock.boot_ns(), "ConnectionError", "down", 0.5)
    clock.advance(1.0)
    disk = max(disk, sum(path.stat().st_size for path in folder.iterdir()))
    assert lane.snapshot().queued <= 20_000
clock.advance(60.0)
expected = 0
while (batch := lane.take(clock.boot_ns(), at_once=True)) is not None:
    found = batch.column("last").to_numpy()
    assert found[0] == expected and (np.diff(found) == 1).all(), "order"
    expected += len(found)
    lane.succeeded(clock.boot_ns())
state = lane.snapshot()
print(json.dumps({"grown": peak_bytes() - before, "disk": disk, "left": log.disk_bytes, "delivered": state.delivered,
                  "dropped": state.dropped, "balance": state.balance, "expected": expected}))
log.close()
"""


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.soak)])
def test_a_destination_that_is_down_costs_disk_and_no_memory(tmp_path: Path, seconds: int) -> None:
    """At 10,000 rows a second: resident memory grows by a few batches, the disk keeps its bound, and all arrive in order afterwards."""
    quota = 1 << 30
    found = told(DOWN, tmp_path, seconds, quota, within_s=600)
    assert found["grown"] <= 32 * MB
    assert 0 < found["disk"] <= quota
    assert (found["delivered"], found["expected"], found["dropped"], found["balance"]) == (seconds * 10_000, seconds * 10_000, {}, 0)
    assert found["left"] <= 8 * MB, "the disk is given back"


def test_a_disk_that_is_full_takes_no_more_and_says_so(tmp_path: Path) -> None:
    """With a small bound it holds, what it took arrives in order, and the rest is counted."""
    quota = 2 * MB
    found = told(
        DOWN.replace("== expected and", ">= expected and").replace("expected += len(found)", "expected = found[-1] + 1"),
        tmp_path,
        20,
        quota,
    )
    assert quota / 2 < found["disk"] <= quota
    assert found["dropped"].keys() == {"spill_full"}
    assert found["delivered"] + found["dropped"]["spill_full"] == 200_000
    assert found["balance"] == 0


REAL = """
import asyncio, json, sys, time
from pathlib import Path
from actors.breaker import BreakerPolicy
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.spill import SpillLog
from cluster.exporters.wal import WriteAheadLog
from tests.support.killing import peak_bytes, reset_peak
from tests.support.sinks import FlakySink, numbered

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
rows, taken, until_s = numbered(0, 1000), 0, time.monotonic() + seconds

class Sink(FlakySink):
    def write(self, batch):
        global taken
        if time.monotonic() < until_s:
            raise ConnectionError("down")
        taken += batch.num_rows

async def main():
    log = WriteAheadLog(folder)
    pipeline = ExportPipeline()
    limits, policy = Limits(Overflow.SPILL, queue_rows=20_000), BreakerPolicy(5, 5.0)
    pipeline.add("x", Sink(lambda: None), limits, policy, SpillLog(log))
    before, disk, given, begun_s = reset_peak(), 0, 0, time.monotonic()
    while time.monotonic() < until_s:
        while given < (time.monotonic() - begun_s) * 10_000:
            await pipeline.export(rows)
            given += rows.num_rows
        disk = max(disk, log.disk_bytes)
        await asyncio.sleep(0.01)
    await pipeline.drain()
    report = (await pipeline.shutdown(60)).exporters["x"]
    print(json.dumps({"grown": peak_bytes() - before, "disk": disk, "given": given, "taken": taken, "balance": report.balance,
                      "spilled": report.lane.spilled, "dropped": report.lane.dropped}))

asyncio.run(main())
"""


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_minutes_without_a_destination_in_real_time(tmp_path: Path) -> None:
    """The same with a pipeline on the wall's clock."""
    found = told(REAL, tmp_path, 600, within_s=1200)
    assert found["grown"] <= 64 * MB
    assert 0 < found["disk"] <= 1 << 30
    assert found["taken"] == found["given"] > 5_500_000
    assert (found["dropped"], found["balance"], found["spilled"]) == ({}, 0, 0)


PRESSED = """
import asyncio, json, mmap, os, sys, time
from functools import partial
from pathlib import Path
import pyarrow as pa
group, seconds, hold_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
(group / "cgroup.procs").write_text(str(os.getpid()))
from actors.host import memory_available_share
from actors.limits import find_container
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.pressure import PressurePolicy
from cluster.run_exports import MEMORY_S, back_off
from tests.support.sinks import ListSink, numbered

MB, OTHERS = 1 << 20, 20
whole = numbered(0, 6000)
everything = pa.array(range(whole.num_rows), pa.int64())
share = partial(memory_available_share, find_container())

class Slow(ListSink):
    pause_s = 0.03
    def write(self, batch):
        time.sleep(self.pause_s)

async def main():
    sink, policy = Slow(), PressurePolicy(hold_s=hold_s)
    pipeline = ExportPipeline()
    pipeline.add("x", sink, Limits(Overflow.DROP_NEWEST, queue_rows=10**9, queue_bytes=128 * MB, batch_rows=10**6, batch_bytes=MB))
    looks, others = [], []  # that live under the same limit: from two fifths of the time on they take more and more, and give it back
    begun_s = time.monotonic()
    most_of_others = 0
    async def watch():
        nonlocal most_of_others
        while True:
            back_off(pipeline, share(), policy)
            done = (time.monotonic() - begun_s) / seconds
            while done > 0.8 and others:
                others.pop().close()
            while 0.4 < done < 0.8 and len(others) < min(OTHERS, OTHERS * (done - 0.4) / 0.3) and share() > 0.07:
                others.append(mmap.mmap(-1, 2 * MB))
                others[-1].write(b"x" * (2 * MB))
                most_of_others = len(others)
            state = pipeline.report().exporters["x"].lane
            looks.append((pipeline._pressure.share, state.queued_bytes, done))
            await asyncio.sleep(MEMORY_S)
    watching = asyncio.create_task(watch())
    given = 0
    while time.monotonic() - begun_s < seconds:
        await pipeline.export(whole.take(everything))
        given += 1
        await asyncio.sleep(max(0.0, begun_s + given * whole.nbytes / (100 * MB) - time.monotonic()))
    overload = len(looks)
    sink.pause_s = 0.0
    await pipeline.drain()
    until_s = time.monotonic() + 10 + 6 * hold_s
    while pipeline._pressure.share < 0.8 and time.monotonic() < until_s:
        await asyncio.sleep(MEMORY_S)
    before = pipeline.report().exporters["x"].lane
    for _ in range(40):
        await pipeline.export(whole.take(everything))
    await pipeline.drain()
    watching.cancel()
    after = pipeline.report().exporters["x"].lane
    events = [one.what for one in pipeline.audit if one.what.startswith("memory:")]
    print(json.dumps({"looks": looks[:overload], "last_share": looks[-1][0], "events": len(events), "dropped": before.dropped,
                      "dropped_after": after.produced - before.produced - after.delivered + before.delivered,
                      "balance": after.balance, "others_had_theirs": most_of_others == OTHERS}))
    await pipeline.shutdown()

asyncio.run(main())
"""


@pytest.mark.parametrize(("seconds", "hold_s"), [(5.0, 0.3), pytest.param(60.0, 5.0, marks=pytest.mark.soak)])
def test_a_limit_of_memory_is_no_death_for_exporters(seconds: float, hold_s: float) -> None:
    """Under 256 MB, with a queue of 128 MB that is full all the time, and others that need 40 MB: it is not killed, tells
    that it backs off, what waits falls until the others have theirs, and grows when it is there again; in the end nothing is dropped any
    more, and what was is counted.
    """
    with memory_limited(256 * MB) as group:
        found = told(PRESSED, group, seconds, hold_s, within_s=seconds + 120)
    looks = found["looks"]
    most = max(queued for _, queued, _ in looks)
    least = min(queued for _, queued, done in looks if 0.6 < done < 0.85)
    assert min(share for share, _, _ in looks) < 0.8, "memory was never short: this showed nothing"
    assert found["events"] >= 2
    assert most > 100 * MB, "the queue was not full: this showed nothing"
    assert found["others_had_theirs"]
    assert least < 0.8 * most, "what waits does not fall"
    assert max(queued for _, queued, done in looks if done > 0.85) > 1.1 * least, "it does not recover"
    assert found["dropped"].keys() == {"newest"}
    assert found["last_share"] >= 0.8
    assert (found["dropped_after"], found["balance"]) == (0, 0)
