"""The write-ahead log: what was written is found again, torn tails are cut, flipped bits are found and counted, the bound holds."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from actors.breaker import BreakerPolicy
from actors.clock import VirtualClock
from actors.errors import HarnessError
from cluster import files
from cluster.exporters import wal
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.spill import SpillLog
from cluster.exporters.wal import Sync, WriteAheadLog
from tests.support.sinks import numbered, numbers


def drained(log: WriteAheadLog) -> list[tuple[int, bytes]]:
    """Read all that is pending; broken records as empty payloads."""
    found = []
    while log.pending_rows:
        one = log.read()
        found.append((one[0].first, one[1]) if isinstance(one, tuple) else (one.first, b""))
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.wal"))


def test_what_was_written_is_found_in_order(tmp_path: Path) -> None:
    """Records survive a close, over several segments, and acknowledged ones do not come again."""
    log = WriteAheadLog(tmp_path, segment_bytes=4096)
    records = [(at * 3, bytes([at]) * 500) for at in range(50)]
    for first, payload in records:
        assert log.append(first, 3, payload, 900)
    assert len(segments(tmp_path)) > 3
    log.close()
    log = WriteAheadLog(tmp_path, segment_bytes=4096)
    assert (log.pending_rows, log.after, log.next_bytes) == (150, 150, 900)
    assert drained(log) == records
    log.ack(60)
    log.close()
    log = WriteAheadLog(tmp_path)
    assert drained(log) == records[20:]
    log.ack(150)
    log.close()
    assert len(segments(tmp_path)) == 1
    log = WriteAheadLog(tmp_path)
    assert (log.pending_rows, log.after) == (0, 150), "numbers go on where they were"
    log.close()


def test_the_bound_holds(tmp_path: Path) -> None:
    """Past its bound the log refuses, on disk it is never larger, and what is done makes room."""
    log = WriteAheadLog(tmp_path, max_bytes=20_000)
    taken = 0
    while log.append(taken, 1, bytes(900), 900):
        taken += 1
        assert sum(path.stat().st_size for path in segments(tmp_path)) == log.disk_bytes <= 20_000
    assert taken > 15
    for _ in range(taken):
        log.read()
    log.ack(taken)
    assert log.append(taken, 1, bytes(900), 900)
    log.close()


def test_numbers_go_on_when_all_segments_were_deleted(tmp_path: Path) -> None:
    """What was acknowledged stays so when the segments that said it are gone."""
    log = WriteAheadLog(tmp_path, segment_bytes=4096)
    for at in range(40):
        log.append(at, 1, bytes(900), 900)
        log.read()
        log.ack(at + 1)
    assert len(segments(tmp_path)) == 1
    log.close()
    log = WriteAheadLog(tmp_path)
    assert (log.after, log.pending_rows) == (40, 0)
    log.append(40, 1, bytes(9), 9)
    log._begin_segment()
    log.close()
    segments(tmp_path)[0].unlink()
    log = WriteAheadLog(tmp_path)
    assert log.after == 40, "the newest segment alone says so"
    log.close()


def test_a_log_has_one_owner(tmp_path: Path) -> None:
    """A second one on the folder is refused, until the first is closed."""
    log = WriteAheadLog(tmp_path)
    with pytest.raises(HarnessError, match="has an owner"):
        WriteAheadLog(tmp_path)
    log.close()
    WriteAheadLog(tmp_path).close()


@pytest.mark.parametrize("size", [1, 30, 43, 44, 100, 499])
def test_a_torn_tail_is_cut(tmp_path: Path, size: int) -> None:
    """A part of a record at the end, of whatever length, is removed, and the log goes on behind the last whole one."""
    log = WriteAheadLog(tmp_path)
    log.append(0, 2, b"a" * 100, 1)
    log.append(2, 2, b"b" * 100, 1)
    log.close()
    torn = wal._record(1, 4, 2, b"c" * 500, 1)
    (path,) = segments(tmp_path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + torn[:size])
    log = WriteAheadLog(tmp_path)
    assert (path.stat().st_size, log.cut_bytes) == (whole, size)
    assert log.append(4, 1, b"d", 1)
    assert drained(log) == [(0, b"a" * 100), (2, b"b" * 100), (4, b"d")]
    log.close()


@pytest.mark.parametrize("size", [0, 20])
def test_numbers_outlive_a_segment_that_was_just_begun(tmp_path: Path, size: int) -> None:
    """A death before the first record of a segment was whole: it goes, and what the older ones said stays in force."""
    log = WriteAheadLog(tmp_path)
    for at in range(10):
        log.append(at, 1, b"x", 1)
        log.read()
    log.ack(10)
    log.close()
    (tmp_path / "0000000002.wal").write_bytes(wal._record(2, 10, 0, b"", 0)[:size])
    for _ in range(2):
        log = WriteAheadLog(tmp_path)
        assert (log.after, log.pending_rows, len(segments(tmp_path))) == (10, 0, 1)
        log.close()


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    """Whichever bit flips, no record comes back changed: it is broken, or its bytes are counted as lost; the others are whole."""
    folder = tmp_path_factory.mktemp("flip")
    log = WriteAheadLog(folder)
    records = [(at, bytes([65 + at]) * 60) for at in range(8)]
    for first, payload in records:
        log.append(first, 1, payload, 60)
    log.close()
    (path,) = segments(folder)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    log = WriteAheadLog(folder)
    found = drained(log)
    assert set(found) - {(first, b"") for first, _ in records} <= set(records)
    missing = len(records) - len([one for one in found if one[1]])
    if place % len(data) >= wal._HEAD_SIZE:  # behind the segment's own first record, which has no rows
        assert missing == 1
        assert (len(found), log.lost_bytes) == (8, 0) or (len(found) == 7 and log.lost_bytes > 60)
    assert log.cut_bytes == 0, "damage is no torn tail"
    log.close()


def test_rot_while_running_is_counted_by_the_lane(tmp_path: Path) -> None:
    """Rows whose record rots on disk are dropped as corrupt, exactly those, and the lane's sum holds."""
    clock, log = VirtualClock(), WriteAheadLog(tmp_path)
    lane = Lane(Limits(Overflow.SPILL, queue_rows=10, batch_rows=10), BreakerPolicy(), SpillLog(log))
    for first in range(0, 50, 10):
        lane.offer(numbered(first, 10), clock.boot_ns())
    (path,) = segments(tmp_path)
    entry = log._entries[1]
    with path.open("r+b") as file:
        file.seek(entry.offset + wal._HEAD_SIZE + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    got = []
    while (batch := lane.take(clock.boot_ns(), at_once=True)) is not None:
        got += numbers([batch])
        lane.succeeded(clock.boot_ns())
    assert got == [*range(20), *range(30, 50)]
    state = lane.snapshot()
    assert (state.dropped, state.balance) == ({"corrupt": 10}, 0)
    log.close()


def test_a_sink_that_is_down_for_long_loses_nothing(tmp_path: Path) -> None:
    """Ten minutes of rows go to disk with memory bounded; then all arrive in order, and the disk is given back."""
    clock, log = VirtualClock(), WriteAheadLog(tmp_path, max_bytes=64 << 20, segment_bytes=1 << 16)
    lane = Lane(Limits(Overflow.SPILL, queue_rows=1000, batch_rows=500), BreakerPolicy(3, 60.0), SpillLog(log))
    rows = numbered(0, 60_000)
    for second in range(600):
        lane.offer(rows.slice(second * 100, 100), clock.boot_ns())
        if lane.take(clock.boot_ns()) is not None:
            lane.failed(clock.boot_ns(), "ConnectionError", "down", 0.5)
        clock.advance(1.0)
        assert lane.snapshot().queued <= 1000
    assert lane.snapshot().spilled > 50_000
    clock.advance(60.0)
    got = []
    while (batch := lane.take(clock.boot_ns(), at_once=True)) is not None:
        got += numbers([batch])
        lane.succeeded(clock.boot_ns())
    assert got == list(range(60_000))
    assert log.disk_bytes <= 1 << 17
    log.close()


def test_a_restart_goes_on_where_the_last_life_stopped(tmp_path: Path) -> None:
    """With the log ahead, undelivered rows come first in the next life; what was delivered does not come again."""
    clock = VirtualClock()
    limits = Limits(Overflow.SPILL, queue_rows=100, batch_rows=7)
    got: list[int] = []
    for life in range(4):
        log = WriteAheadLog(tmp_path)
        lane = Lane(limits, BreakerPolicy(), SpillLog(log), write_ahead=True)
        lane.offer(numbered(life * 50, 50), clock.boot_ns())
        for _ in range(3 if life < 3 else 100):
            if (batch := lane.take(clock.boot_ns(), at_once=True)) is not None:
                got += numbers([batch])
                lane.succeeded(clock.boot_ns())
        lane.finish(clock.boot_ns())
        log.close()
    assert got == list(range(200))


def test_a_disk_that_refuses_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves no trace, and the next record is found."""
    log = WriteAheadLog(tmp_path)
    log.append(0, 1, b"a" * 100, 1)
    real = os.pwrite
    with monkeypatch.context() as patched:

        def half(fd: int, data: memoryview, offset: int) -> int:
            real(fd, data[:50], offset)
            raise OSError(28, "No space left on device")

        patched.setattr(wal.os, "pwrite", half)
        with pytest.raises(OSError, match="No space"):
            log.append(1, 1, b"b" * 100, 1)
    assert log.pending_rows == 1
    assert segments(tmp_path)[0].stat().st_size == log.disk_bytes
    assert log.append(1, 1, b"c" * 100, 1)
    log.close()
    log = WriteAheadLog(tmp_path)
    assert drained(log) == [(0, b"a" * 100), (1, b"c" * 100)]
    log.close()


def test_a_full_disk_gets_its_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not even an acknowledgement can be written, segments that are done are deleted all the same; the log goes on later."""
    log = WriteAheadLog(tmp_path, segment_bytes=4096)
    for at in range(40):
        log.append(at, 1, bytes(900), 900)
    drained(log)
    before = log.disk_bytes

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(wal.os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            log.ack(40)
        assert len(segments(tmp_path)) == 1
        assert sum(path.stat().st_size for path in segments(tmp_path)) == log.disk_bytes <= 4096 < before
    assert log.append(40, 1, b"x", 1)
    log.close()
    log = WriteAheadLog(tmp_path)
    assert drained(log)[-1] == (40, b"x")
    log.close()


def test_the_folders_that_it_makes_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new folder's name is made durable, outermost first, and its own always, unless syncing was left to the kernel."""
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    WriteAheadLog(tmp_path / "a" / "b").close()
    assert synced == [tmp_path, tmp_path / "a"]
    WriteAheadLog(tmp_path / "a" / "b").close()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a"], "who made the last may have died before it came to that"
    WriteAheadLog(tmp_path / "c", sync=Sync.NEVER).close()
    assert len(synced) == 3


@pytest.mark.parametrize(("sync", "syncs"), [(Sync.ALWAYS, 10), (Sync.INTERVAL, 5), (Sync.NEVER, 0)])
def test_when_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: Sync, syncs: int) -> None:
    """`always` syncs each record before it returns, `interval` as often as its time is over, `never` leaves it to the kernel."""
    clock = VirtualClock()
    log = WriteAheadLog(tmp_path, sync=sync, interval_s=2.0, clock=clock)
    log.append(0, 1, b"x", 1)
    calls = []
    monkeypatch.setattr(wal.os, "fdatasync", calls.append)
    for at in range(10):
        clock.advance(1.0)
        log.append(at + 1, 1, b"x", 1)
    assert len(calls) == syncs
    monkeypatch.undo()
    log.close()
