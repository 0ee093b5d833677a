"""What files hold on to: numbered files when they grow too long, what a power cut leaves under each sync policy, and disks that fail."""

from __future__ import annotations

import asyncio
import csv
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from actors.breaker import BreakerPolicy
from actors.clock import SECOND_NS, VirtualClock
from cluster.exporters.arrow_file import ParquetFile
from cluster.exporters.csv_file import CsvFile
from cluster.exporters.files import rotated
from cluster.exporters.json_file import JsonArray, JsonLines
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.wal import Sync, WriteAheadLog
from cluster.metrics.store import RunStore, read_run
from cluster.outbox import Kind, Outbox, parse
from tests.support.power import Disk
from tests.support.sinks import CONTEXT, numbered
from tests.support.windows import entry

MAKE: dict[str, Callable[..., CsvFile | JsonLines]] = {"csv": CsvFile, "jsonl": JsonLines}
Growing = CsvFile | JsonLines


def rows_in(path: Path) -> list[int]:
    """Return which rows a file holds; asserts that it is whole: a header once, widths alike, every line a document."""
    if path.suffix == ".jsonl":
        return [int(json.loads(line)["last"]) for line in path.read_text().splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        records = list(csv.reader(file))
    if not records:
        return []
    assert {len(record) for record in records} == {len(records[0])}
    assert sum("metric" in record for record in records) == 1, "a header that is not there once"
    return [int(float(record[records[0].index("last")])) for record in records[1:]]


def all_rows(path: Path) -> list[int]:
    """Return the rows of a file and of those that it once was, in the order of their writing."""
    return [row for one in [*rotated(path), *([path] if path.exists() else [])] for row in rows_in(one)]


# files that have become too long


@pytest.mark.parametrize("kind", MAKE)
def test_a_file_that_is_full_gets_a_number(tmp_path: Path, kind: str) -> None:
    """Each file is whole with its own header and no longer than asked; a new life goes on with the next number; nothing is overwritten."""
    path = tmp_path / f"x.{kind}"
    for life in range(3):
        sink = MAKE[kind](path, rotate_bytes=2000)
        for first in range(life * 60, life * 60 + 60, 5):
            sink.write(CONTEXT.on(numbered(first, 5)))
        sink.close()
        whole = {one: one.read_bytes() for one in rotated(path)}
        assert all(len(found) <= 2000 for found in whole.values())
    assert all(one.read_bytes() == found for one, found in whole.items())
    assert [one.name for one in rotated(path)] == [f"x.{number:04}.{kind}" for number in range(1, len(whole) + 1)]
    assert len(whole) >= 8
    assert all(map(rows_in, whole)), "a file without a row"
    assert all_rows(path) == list(range(180))


def test_a_batch_that_is_longer_than_a_file_has_one_for_itself(tmp_path: Path) -> None:
    """No file holds only a header, and numbers go on behind the highest that is there."""
    (tmp_path / "x.0041.csv").write_text("somebody's\n")
    (tmp_path / "x.12.csv").write_text("no number of ours\n")
    sink = CsvFile(tmp_path / "x.csv", rotate_bytes=100)
    for first in range(0, 30, 10):
        sink.write(CONTEXT.on(numbered(first, 10)))
    sink.close()
    assert [one.name for one in rotated(tmp_path / "x.csv")] == ["x.0041.csv", "x.0042.csv", "x.0043.csv"]
    assert [rows_in(tmp_path / name) for name in ("x.0042.csv", "x.0043.csv", "x.csv")] == [
        list(range(first, first + 10)) for first in range(0, 30, 10)
    ]


def test_a_new_label_is_in_the_header_from_then_on(tmp_path: Path) -> None:
    """Files that were full before keep their header, those that come after it have the wider one from the start."""
    path = tmp_path / "x.csv"
    sink = CsvFile(path, rotate_bytes=3000)
    for first in range(0, 100, 5):
        sink.write(CONTEXT.on(numbered(first, 5, labels=(("probe", "p"),) if first == 50 else ())))
    sink.close()
    headers = [one.read_text().splitlines()[0] for one in (*rotated(path), path)]
    assert [header.endswith(",label.probe") for header in headers] == sorted(header.endswith(",label.probe") for header in headers)
    assert len(set(headers)) == 2
    assert all_rows(path) == list(range(100))


@pytest.mark.parametrize("step", ["flush", "rename"])
@pytest.mark.parametrize("kind", MAKE)
def test_a_rotation_that_fails_is_tried_again(tmp_path: Path, kind: str, step: str) -> None:
    """The batch is not taken, the file stands, and the same batch goes in once later."""
    path = tmp_path / f"x.{kind}"
    sink = MAKE[kind](path, rotate_bytes=700)
    sink.write(CONTEXT.on(numbered(0, 5)))
    before = path.read_bytes()
    target = (os, "fdatasync") if step == "flush" else (Path, "rename")
    with mock.patch.object(*target, side_effect=OSError(errno.EIO, "Input/output error")), pytest.raises(OSError, match="Input"):
        sink.write(CONTEXT.on(numbered(5, 5)))
    assert (path.read_bytes(), rotated(path)) == (before, [])
    sink.write(CONTEXT.on(numbered(5, 5)))
    sink.close()
    assert all_rows(path) == list(range(10))


# policies, and power cuts


@pytest.mark.parametrize(("sync", "syncs"), [(Sync.ALWAYS, 10), (Sync.INTERVAL, 5), (Sync.NEVER, 0)])
@pytest.mark.parametrize("kind", MAKE)
def test_when_a_file_is_synced(tmp_path: Path, kind: str, sync: Sync, syncs: int) -> None:
    """`always` with each batch, `interval` as often as its second is over, `never` not even when it is flushed and closed."""
    clock = VirtualClock()
    sink = MAKE[kind](tmp_path / f"x.{kind}", sync=sync, clock=clock)
    with Disk(tmp_path).watched() as disk:
        sink.write(CONTEXT.on(numbered(0, 1)))
        assert bool(disk.syncs) == (sync is not Sync.NEVER), "of its name"
        before = disk.syncs
        for at in range(10):
            clock.advance(0.5)
            sink.write(CONTEXT.on(numbered(at, 1)))
        assert disk.syncs - before == syncs
        sink.flush()
        sink.close()
        assert bool(disk.syncs) == (sync is not Sync.NEVER)


@pytest.mark.parametrize("rotate_bytes", [None, 3000], ids=["one-file", "rotated"])
@pytest.mark.parametrize("kind", MAKE)
def test_what_a_file_took_under_always_outlives_a_power_cut(tmp_path: Path, kind: str, rotate_bytes: int | None) -> None:
    """After each sync of a life with rotations, a wider header and a restart: every row that `write` returned for is there, names too."""
    (tmp_path / "disk").mkdir()
    path, taken = tmp_path / "disk" / f"x.{kind}", list[int]()
    disk = Disk(tmp_path / "disk")

    def look() -> None:
        found = all_rows(disk.cut(tmp_path / "cut") / path.name)
        assert set(taken) <= set(found), f"lost at sync {disk.syncs}"
        assert len(found) == len(set(found))

    disk.look = look
    with disk.watched():
        for life in range(3):
            sink = MAKE[kind](path, sync=Sync.ALWAYS, rotate_bytes=rotate_bytes)
            for first in range(life * 40, life * 40 + 40, 5):
                sink.write(CONTEXT.on(numbered(first, 5, labels=((f"l{life}", "v"),))))
                taken += range(first, first + 5)
                look()
            sink.close()
    assert disk.syncs >= 30


@pytest.mark.parametrize(("sync", "least"), [(Sync.INTERVAL, 27), (Sync.NEVER, 0)])
@pytest.mark.parametrize("kind", MAKE)
def test_what_other_policies_may_lose(tmp_path: Path, kind: str, sync: Sync, least: int) -> None:
    """`interval` loses at most what was written since the last second, `never` all that the kernel has not written by itself."""
    (tmp_path / "disk").mkdir()
    clock, disk = VirtualClock(), Disk(tmp_path / "disk")
    with disk.watched():
        sink = MAKE[kind](tmp_path / "disk" / f"x.{kind}", sync=sync, clock=clock)
        for at in range(30):
            clock.advance(0.25)
            sink.write(CONTEXT.on(numbered(at, 1)))
        found = all_rows(disk.cut(tmp_path / "cut") / f"x.{kind}")
        assert found == list(range(len(found)))
        assert least <= len(found) < 30
        sink.close()


@pytest.mark.parametrize("make", [JsonArray, ParquetFile])
def test_a_whole_file_is_there_after_a_power_cut_or_the_old_one_is(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    """At no sync is there half a file under its name; when `close` has returned it is the new one."""
    (tmp_path / "disk").mkdir()
    path, disk = tmp_path / "disk" / "x", Disk(tmp_path / "disk")

    def rows(found: Path) -> int:
        return pq.read_metadata(found).num_rows if make is ParquetFile else len(json.loads(found.read_text()))

    def look() -> None:
        found = disk.cut(tmp_path / "cut") / "x"
        assert not found.exists() or rows(found) in (5, 10)

    disk.look = look
    with disk.watched():
        for count in (5, 10):
            sink = make(path)
            sink.write(CONTEXT.on(numbered(0, count)))
            sink.close()
            assert rows(disk.cut(tmp_path / "cut") / "x") == count


def test_what_a_log_took_under_always_outlives_a_power_cut(tmp_path: Path) -> None:
    """Every record that `append` returned for and nobody acknowledged is found after each sync, folders and segments included."""
    (tmp_path / "disk").mkdir()
    folder, disk = tmp_path / "disk" / "a" / "b", Disk(tmp_path / "disk")
    waiting = set[int]()

    def look() -> None:
        there = disk.cut(tmp_path / "cut") / "a" / "b"
        found = set[int]()
        if there.exists():
            log = WriteAheadLog(there, sync=Sync.NEVER)
            assert log.lost_bytes == 0
            while log.pending_rows:
                one = log.read()
                assert isinstance(one, tuple)
                found.add(one[0].first)
            log.close()
        assert waiting <= found, f"lost at sync {disk.syncs}"

    disk.look = look
    with disk.watched():
        for life in range(3):
            log = WriteAheadLog(folder, segment_bytes=4096, sync=Sync.ALWAYS)
            for at in range(life * 20, life * 20 + 20):
                assert log.append(at, 1, bytes(500), 1)
                waiting.add(at)
                if at % 5 == 4:
                    for _ in range(3):
                        log.read()
                    waiting -= set(range(min(waiting), min(waiting) + 3))
                    log.ack(min(waiting))
            log.close()
    assert disk.syncs > 60


def test_what_a_run_directory_took_outlives_a_power_cut(tmp_path: Path) -> None:
    """Every record that `append` returned for is read with its events after each sync, through settlings and a restart."""
    (tmp_path / "disk").mkdir()
    directory, disk = tmp_path / "disk" / "runs" / "r", Disk(tmp_path / "disk")
    taken = set[float]()

    def look() -> None:
        there = disk.cut(tmp_path / "cut") / "runs" / "r"
        contents = read_run(there) if there.exists() else None
        found = set(contents.metrics["last"].to_pylist()) if contents else set()
        assert taken <= found, f"lost at sync {disk.syncs}"
        if contents:
            assert sorted(contents.events["message"].to_pylist()) == sorted(f"{at:g}.0" for at in found)

    disk.look = look
    with disk.watched():
        for life in range(2):
            store = RunStore(directory)
            for at in range(life * 6 + 1, life * 6 + 7):
                store.append([entry(at)])
                taken.add(float(at))
                if at % 3 == 0:
                    store.settle()
            store.close()
    assert disk.syncs > 30


def test_what_a_synced_outbox_took_outlives_a_power_cut(tmp_path: Path) -> None:
    """With `sync` every sealed record is there after each sync, and the folder of the stream with it."""
    (tmp_path / "disk").mkdir()
    path, disk = tmp_path / "disk" / "outbox" / "r" / "n1-a.box", Disk(tmp_path / "disk")
    with disk.watched():
        box = Outbox(path, node="n1", incarnation="a", run="r", sync=True)
        for at in range(1, 6):
            box.append(Kind.WINDOW, b"%d" % at)
            left = Outbox(disk.cut(tmp_path / "cut") / "outbox" / "r" / path.name)
            assert [parse(data).payload for _, data in left.unacked()] == [b"%d" % one for one in range(1, at + 1)]
            left.close()
        box.close()


# disks that fail


class Trouble:
    """Calls of the system that fail while `is_on`."""

    def __init__(self, code: int, calls: tuple[str, ...]) -> None:
        self.code, self.calls, self.is_on = code, calls, False
        self.seen = 0

    @contextmanager
    def patches(self) -> Iterator[None]:
        patches = [mock.patch.object(os, name, self._like(getattr(os, name))) for name in self.calls]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()

    def _like(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            writes = real.__name__ != "open" or bool(arguments[1] & os.O_RDWR)
            if not self.is_on or not writes:
                return real(*arguments, **more)
            self.seen += 1
            if real.__name__ == "pwrite":
                real(arguments[0], arguments[1][:40], arguments[2])  # a part of it gets there
            raise OSError(self.code, os.strerror(self.code))

        call.__name__ = real.__name__
        return call


TROUBLES = {
    "no-space": (errno.ENOSPC, ("pwrite",)),
    "io-error": (errno.EIO, ("pwrite",)),
    "io-error-of-sync": (errno.EIO, ("fdatasync",)),
    "no-space-and-no-cut": (errno.ENOSPC, ("pwrite", "ftruncate")),
    "read-only": (errno.EROFS, ("pwrite", "ftruncate", "open")),
    "no-access-to-a-deleted-file": (errno.EACCES, ("open",)),
    "deleted-folder": (errno.ENOENT, ()),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("kind", MAKE)
def test_a_file_goes_on_when_its_disk_is_well_again(tmp_path: Path, kind: str, trouble: str) -> None:
    """Whatever the disk does: no crash, each lost row counted, a row within the longest wait after the repair, and nothing torn."""
    asyncio.run(asyncio.wait_for(_through(tmp_path, kind, trouble), 60))


async def _through(folder: Path, kind: str, name: str) -> None:
    clock, bad = VirtualClock(), Trouble(*TROUBLES[name])
    path, aside = folder / "there" / f"x.{kind}", folder / "aside"
    path.parent.mkdir()
    repaired_ns = 0

    async def wait(event: asyncio.Event, timeout_s: float | None) -> None:
        if timeout_s is None:
            await event.wait()
        else:
            clock.advance(timeout_s)
            await asyncio.sleep(0)

    policy = BreakerPolicy(threshold=3, reset_s=8.0, probes=1, backoff_s=0.1, backoff_s_max=8.0)
    pipeline = ExportPipeline(clock=clock, seed=1, wait=wait)
    sink = MAKE[kind](path, sync=Sync.ALWAYS, clock=clock)
    limits = Limits(Overflow.DROP_OLDEST, queue_rows=40, batch_rows=10, batch_age_s=0.01)
    pipeline.add("x", sink, limits, policy)
    with bad.patches():
        for first in range(0, 30, 10):
            await pipeline.export(numbered(first, 10))
            await pipeline.drain()
        bad.is_on = True
        if name == "deleted-folder":
            path.parent.rename(aside)
        elif name == "no-access-to-a-deleted-file":
            path.rename(folder / f"x.aside.{kind}")
        before = clock.boot_ns()
        while clock.boot_ns() - before < 100 * SECOND_NS:
            await pipeline.export(numbered(30 + (clock.boot_ns() - before) // SECOND_NS, 1))
        lane = pipeline.report().exporters["x"].lane
        assert (lane.delivered, lane.balance, pipeline.health()["x"].ok) == (30, 0, False)
        assert sum(lane.failures.values()) > 5
        bad.is_on = False
        if name == "deleted-folder":
            aside.rename(path.parent)
        repaired_ns = clock.boot_ns()
        await pipeline.export(numbered(1000, 1))
        await pipeline.drain()
    report = await pipeline.shutdown(30)
    lane = report.exporters["x"].lane
    assert report.exporters["x"].balance == 0
    assert lane.last_success_ns is not None
    assert lane.last_success_ns - repaired_ns <= policy.backoff_s_max * SECOND_NS
    assert lane.produced - sum(lane.dropped.values()) == lane.delivered
    assert set(lane.dropped) <= {"oldest"}
    found = all_rows(path) if name != "no-access-to-a-deleted-file" else [*rows_in(folder / f"x.aside.{kind}"), *rows_in(path)]
    assert len(found) == lane.delivered, "torn or doubled rows"
    assert (found[:30], found[-1]) == (list(range(30)), 1000)
    assert bad.seen > 0 or not bad.calls
    assert stat.S_ISREG(path.stat().st_mode)
