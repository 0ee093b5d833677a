"""DiskIO in this process on virtual time: what it moves when, how its file is made and opened, and each refusal of the disk."""

from __future__ import annotations

import errno
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import held
from test_exhaustion_refusals import Log, Refusing, operation
from test_holder import CAPACITY

from actors.errors import InputError
from actors.exhaustion import disk_io
from actors.exhaustion.refusal import errno_word
from actors.lease import NOTE_NO_DIRECT, NOTE_NO_RECORDING
from actors.meters import LoadMeters
from actors.metrics.reporter import MemoryReporter
from actors.simulator import check_here, record_of

PAGE = mmap.PAGESIZE
RATE = 16.0 * (1 << 20)


class Disk:
    """A DiskIO in this process on virtual time, with what it moved."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *, level: float = 1.0, duration_s: float = 3.0, **options: Any) -> None:
        self.watch, self.reporter, self.moves = Log(), MemoryReporter(), []
        self.watch.level = level
        patch.setattr(disk_io, "open_meters", lambda path, seed: LoadMeters(self.reporter, is_kept=False))
        given = {"dir": str(folder), "file_bytes": 8 << 20, "block_bytes": 1 << 20, **options}
        one = replace(operation("DiskIO", RATE, duration_s, **given), unit="per_second")
        self.load = record_of("DiskIO").make(one, CAPACITY, self.watch, "gone")
        self.load.warm_up()
        real = self.load._file.move

        def move(block: int) -> int:
            self.moves.append((self.watch.clock.boot_ns() / 1e9 - 1000.0, block))
            return real(block)

        self.load._file.move = move

    def run(self) -> None:
        self.load.run(self.watch.clock.boot_ns())


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Disk]]:
    def make(**options: Any) -> Disk:
        return Disk(tmp_path, monkeypatch, **options)

    before = held.nameless(os.getpid())
    yield make
    assert held.nameless(os.getpid()) == before


@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("direct", [True, False])
def test_a_rate_is_moved_block_by_block(disk: Any, direction: str, direct: bool) -> None:
    """Under half of the ceiling half of the rate is moved, evenly, in the order of the file; what it tells and records is that."""
    one = disk(level=0.5, direction=direction, direct=direct)
    before = held.io_bytes(os.getpid())
    one.run()
    rate, whole = RATE / 2 / (1 << 20), round(3.0 * RATE / 2 / (1 << 20))
    assert len(one.moves) == pytest.approx(whole, abs=1)
    assert all(abs(at_s - (place + 1) / rate) <= 0.051 for place, (at_s, _) in enumerate(one.moves))
    assert [block for _, block in one.moves] == [place % 8 for place in range(len(one.moves))]
    assert one.watch.asked[-1] == RATE / 2
    assert one.watch.own[-1] == pytest.approx(RATE / 2, rel=0.3)
    assert one.watch.operations[-1] == pytest.approx(len(one.moves), abs=2)
    assert sum(value for value, _ in one.reporter.samples("load.operations")) == len(one.moves) == len(one.reporter.samples("load.slice"))
    assert one.watch.notes[0] == NOTE_NO_RECORDING
    assert one.reporter.closed
    if one.load._file.is_direct or direction == "write":
        assert held.io_bytes(os.getpid()) - before >= 0.9 * len(one.moves) * (1 << 20)


def test_blocks_by_chance_are_all_met_and_the_same_again(disk: Any) -> None:
    """Every block comes, in no order, and for the same seed in the same."""
    drawn = []
    for _ in range(2):
        one = disk(order="random")
        one.run()
        drawn.append([block for _, block in one.moves])
    assert drawn[0] == drawn[1] != sorted(drawn[0])
    assert set(drawn[0]) == set(range(8))


def test_a_stop_ends_the_moving_at_once(disk: Any) -> None:
    """No block is moved after the look that says so, and the file is closed."""
    one = disk()
    one.watch.looks = 10
    one.run()
    assert len(one.moves) <= 10
    assert one.watch.clock.boot_ns() < 1_001 * 10**9


def test_the_file_is_written_whole_before_the_start(disk: Any, tmp_path: Path) -> None:
    """All of its blocks are on the disk and hold data that nothing packs; while it is written the load gives signs of life."""
    one = disk(direct=False)
    fd = one.load._file._fd
    stat = os.fstat(fd)
    assert (stat.st_size, stat.st_blocks * 512, stat.st_nlink, list(tmp_path.iterdir())) == (8 << 20, 8 << 20, 0, [])
    assert one.watch.asked == [0.0] * 9
    assert len(zlib.compress(os.pread(fd, 8 << 20, 7 << 20))) > 0.99 * (1 << 20)
    one.load._file.close()


FLAGS = [
    ({"direct": True}, [os.O_DIRECT], []),
    ({"direct": True, "sync": True}, [os.O_DIRECT | os.O_DSYNC], []),
    ({"direct": False}, [os.O_DSYNC], []),
    ({"direct": False, "sync": True}, [os.O_DSYNC], []),
    ({"direct": True}, [os.O_DIRECT, os.O_DSYNC], [NOTE_NO_DIRECT]),
]


@pytest.mark.parametrize(("options", "flags", "notes"), FLAGS)
def test_how_the_file_is_opened(
    options: dict[str, bool], flags: list[int], notes: list[int], disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Direct where it can be, else each write waits for the disk; that it cannot be is noted."""
    asked: list[int] = []
    real = disk_io.open_nameless

    def opens(folder: Path, flag: int) -> int:
        asked.append(flag)
        if notes and flag & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return real(folder, 0)

    monkeypatch.setattr(disk_io, "open_nameless", opens)
    one = disk(**options)
    assert asked == flags
    assert one.load._file.is_direct is (options["direct"] and not notes)
    assert one.watch.notes == [NOTE_NO_RECORDING, *notes]
    one.load._file.close()


@pytest.mark.parametrize("word", ["ENOSPC", "EDQUOT", "EMFILE", "EPERM"])
@pytest.mark.parametrize("call", ["open_nameless", "allocate"])
def test_a_disk_without_room_is_an_error_before_the_start(word: str, call: str, disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel says of the file ends the warm-up with its number; only a refusal of direct access is gone around."""
    opened: list[int] = []
    real = disk_io.open_nameless
    monkeypatch.setattr(disk_io, "open_nameless", lambda *args: opened.append(real(*args)) or opened[-1])
    monkeypatch.setattr(disk_io, call, Refusing(None, 0, OSError(getattr(errno, word), "no room")))
    with pytest.raises(OSError, match="no room") as refused:
        disk()
    assert errno_word(refused.value.errno) == word
    for fd in opened:  # a load process ends by this, and its file with it
        os.close(fd)


@pytest.mark.parametrize("block", [512, PAGE, PAGE + 1, 3 << 20])
def test_blocks_are_whole_pages_and_the_file_whole_blocks(block: int, disk: Any) -> None:
    """What is moved at once begins and ends at a page, as direct access asks; a file has as many blocks as fit."""
    one = disk(block_bytes=block)
    size = -(-block // PAGE) * PAGE
    assert one.load._block_bytes == size
    assert one.load._file.blocks == math.floor((8 << 20) / size)
    one.load._file.close()


def test_a_rate_at_which_no_block_comes_due_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """`per_second: 16` was meant as 16 MiB: the refusal says that it is bytes; a rate of one block in its time is let through."""
    one = replace(operation("DiskIO", 16.0, 10.0, block_bytes=1 << 16), unit="per_second")
    with pytest.raises(InputError, match="16 bytes a second are less than one block of 65536 bytes in 10 s"):
        check_here(one, tmp_path)
    check_here(replace(one, shape={"kind": "constant", "level": (1 << 16) / 10.0}), tmp_path)
    assert list(tmp_path.iterdir()) == []
