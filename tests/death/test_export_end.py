"""The end of exporters on real disks and clocks: a destination that hangs, and a disk that is full, and is made room on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import read_run
from cluster.run_exports import RunExports, bring_up_to_date
from scenarios.exporter_form import EXPORTERS
from scenarios.exporters import Breaker, Destination, Exporters
from tests.support.sinks import GateSink
from tests.support.waiting import until
from tests.support.windows import end, record

RUN = "20260101-120000-ended-1a2b"
CLOCK = SystemClock()
DISK_BYTES = 256 << 10


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Aggregator]:
    """The aggregator of a run."""
    made = Aggregator(RUN, tmp_path / "state" / "runs" / RUN, CLOCK)
    yield made
    made.close()


def pushed(core: Aggregator, first: int, count: int) -> None:
    """Give the run these records."""
    assert core.push("n1", "a", [record("n1", at) for at in range(first, first + count)]) == first + count - 1


@pytest.mark.parametrize("drain_s", [1.0, pytest.param(5.0, marks=pytest.mark.soak)])
def test_a_hung_destination_holds_up_the_end_no_longer_than_said(core: Aggregator, drain_s: float) -> None:
    """The end comes half a second after the drain's time at the latest, and says what was not delivered and on which disk it lies;
    a destination that is well has everything by then.
    """
    hung = {name: GateSink() for name in ("memory", "disk")}
    plain = {"memory": Destination("jsonl", "a.jsonl", name="memory"), "well": Destination("jsonl", "b.jsonl", name="well")}
    wanted = Exporters(
        destinations=(*plain.values(), Destination("jsonl", "c.jsonl", name="disk", spill=True, overflow="spill")), drain_s=drain_s
    )

    def make(one: Destination, path: Path) -> Any:
        from cluster.exporters import destinations

        return hung.get(one.name) or destinations.make(one, path)

    exports = RunExports(core, wanted, CLOCK, make=make, tells=False)
    pushed(core, 1, 100)
    for sink in hung.values():
        assert sink.entered.wait(10)
    begun_s = time.monotonic()
    memory, well, disk = exports.finish()
    took_s = time.monotonic() - begun_s
    assert drain_s <= took_s <= drain_s + 0.5
    assert (memory["delivered_rows"], memory["dropped_rows"], memory["complete"]) == (0, {"shutdown": 300}, False)
    assert (disk["delivered_rows"], disk["spilled_rows"], disk["dropped_rows"]) == (0, 300, {})
    assert list(Path(disk["spill"]).glob("*.wal"))
    assert (well["delivered_rows"], well["complete"]) == (300, True)
    for sink in hung.values():
        sink.gate.set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(folder: Path) -> None:
    """Take the last byte of a disk."""
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (1 << 14, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    left = os.statvfs(folder)
    assert left.f_bavail * left.f_frsize < 4096


def test_a_runs_file_on_a_full_disk_goes_on_when_there_is_room(core: Aggregator, small_disk: Path) -> None:
    """The run goes on without it, its file holds whole rows only, what its queue had no room for is counted; a tenth of a second after
    there is room again it goes on, and the file holds what is said to be delivered.
    """
    path = small_disk / "m.jsonl"
    wait = Breaker(threshold=100, backoff_s=0.02, backoff_s_max=0.1)
    wanted = Exporters(
        destinations=(
            Destination("jsonl", str(path), name="small", queue_rows=200, batch_rows=20, batch_age_s=0.01, breaker=wait),
            Destination("jsonl", "m.jsonl", name="well", batch_age_s=0.01),
        )
    )
    exports = RunExports(core, wanted, CLOCK, tells=False)
    checks = {check().name: check for check in exports.checks()}
    pushed(core, 1, 10)
    until(lambda: path.exists() and path.stat().st_size, 10, "the first rows")
    fill_up(small_disk)
    for first in range(11, 311, 20):
        pushed(core, first, 20)
    until(lambda: exports._loop.call_soon_threadsafe(exports._look) and not checks["exporter small"]().ok, 10, "a check that is not ok")
    assert "No space left on device" in checks["exporter small"]().reason
    found = ""

    def is_whole() -> bool:  # each attempt writes what there is room for, and takes it back at once
        nonlocal found
        found = path.read_text()
        return found.endswith("\n")

    until(is_whole, 10, "a file of whole rows")
    for line in found.splitlines():
        json.loads(line)
    before = path.stat().st_size
    (small_disk / "filler").unlink()
    began_s = time.monotonic()
    until(lambda: path.stat().st_size > before, 10, "rows after there is room", every_s=0.002)
    assert time.monotonic() - began_s < wait.backoff_s_max + 1.0, "the longest wait, and a write on a busy machine"
    small, well = exports.finish()
    core.finish()
    rows = read_run(core.directory).metrics.num_rows
    assert rows == 930
    assert (well["delivered_rows"], well["complete"]) == (rows, True)
    assert small["failures"].keys() == {"OSError"}
    assert (small["dropped_rows"].keys(), small["complete"]) == ({"newest"}, False)
    assert small["delivered_rows"] + small["dropped_rows"]["newest"] == rows
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == small["delivered_rows"]


def test_a_whole_file_that_finds_no_room_does_not_appear_and_is_counted(core: Aggregator, small_disk: Path) -> None:
    """Its rows are told as unfinished, no part of it has its name or stays, and a later pass, with room, writes it whole."""
    wanted = Exporters(destinations=(Destination("parquet", str(small_disk / "m.parquet"), batch_age_s=0.01),), drain_s=1.0)
    scenario = {"version": 1, "name": "small", "plan": {"CpuLoad": {"fraction": 0.1}, "for": 5}, "exporters": EXPORTERS.write(wanted)}
    (core.directory / "manifest.json").write_text(json.dumps({"run": RUN, "status": "running", "scenario": scenario}))
    exports = RunExports(core, wanted, CLOCK, tells=False)
    pushed(core, 1, 200)
    until(lambda: list(small_disk.iterdir()), 10, "the file's beginning")
    fill_up(small_disk)
    pushed(core, 201, 300)
    (report,) = exports.finish()
    assert (report["complete"], "No space" in report["detail"]) == (False, True)
    assert sum(report["dropped_rows"].values()) == 1500 - report["delivered_rows"]
    assert report["delivered_rows"] == 0
    assert [one.name for one in small_disk.iterdir()] == ["filler"]
    (small_disk / "filler").unlink()
    core.push("n1", "a", [end(501)])
    core.finish({}, None)
    (report,) = bring_up_to_date(core, CLOCK, 10.0) or [{}]
    assert report["complete"], report
    assert pq.read_metadata(small_disk / "m.parquet").num_rows == 1500
