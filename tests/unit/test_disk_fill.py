from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import SECOND_NS
from actors.disk import (
    MIB,
    STEP_BYTES,
    check_place,
    fill_dir,
    fill_paths,
    fill_token,
    next_bytes,
    next_step_bytes,
    room_bytes,
    shares,
)
from actors.errors import RefusedError
from actors.exhaustion.refusal import Refusals
from actors.messages import Operation, SlotTicket

DISK = Operation("0.DiskFill@n1", "DiskFill", "n1", 0.0, 9.0, "bytes", {"kind": "constant", "level": 1})


@pytest.mark.parametrize(
    ("asked", "held", "room", "want"),
    [
        pytest.param(10 * MIB, 0, 1 << 40, 10 * MIB, id="as-asked"),
        pytest.param(10 * MIB + 5, 0, 1 << 40, 10 * MIB, id="in-whole-MiB"),
        pytest.param(3 * STEP_BYTES, STEP_BYTES, 1 << 40, 2 * STEP_BYTES, id="one-step-at-a-time-up"),
        pytest.param(MIB, 3 * STEP_BYTES, 1 << 40, MIB, id="all-the-way-down-at-once"),
        pytest.param(10 * MIB, 6 * MIB, 4 * MIB, 4 * MIB, id="gives-back-when-the-room-shrinks"),
        pytest.param(10 * MIB, 0, 0, 0, id="no-room"),
    ],
)
def test_what_to_hold_next(asked: float, held: int, room: int, want: int) -> None:
    """A fill grows in steps within the room, and shrinks at once."""
    assert next_bytes(asked, held, room) == want


@pytest.mark.parametrize(
    ("step", "took_s", "want"),
    [
        pytest.param(8 * MIB, 0.01, 16 * MIB, id="twice-as-much-where-it-was-quick"),
        pytest.param(8 * MIB, 0.07, 8 * MIB, id="as-much-where-it-was-right"),
        pytest.param(8 * MIB, 0.4, 4 * MIB, id="half-where-it-was-slow"),
        pytest.param(3 * MIB, 9.0, 2 * MIB, id="never-less-than-the-least"),
        pytest.param(STEP_BYTES, 0.0, STEP_BYTES, id="never-more-than-the-most"),
    ],
)
def test_a_request_takes_about_a_tenth_of_a_second(step: int, took_s: float, want: int) -> None:
    """How much the next one grows follows from how long the last one took."""
    assert next_step_bytes(step, took_s, 2 * MIB) == want


@given(whole=st.integers(0, 1 << 40), more=st.integers(0, 1 << 40), files=st.integers(1, 32))
def test_shares_are_equal_and_grow_with_the_whole(whole: int, more: int, files: int) -> None:
    """They differ by one byte at most, none is lost, and no file shrinks while the whole grows."""
    found = shares(whole, files)
    assert sum(found) == whole
    assert max(found) - min(found) <= 1
    assert all(after >= before for before, after in zip(found, shares(whole + more, files), strict=True))


def test_refusals_count_once_a_second_and_are_taken_back() -> None:
    """The first number and the largest request stay until all of that is held."""
    refusals, second = Refusals(), SECOND_NS
    assert [refusals.refuse("ENOSPC", 10, at) for at in (5 * second, 5 * second + 9, 6 * second)] == [True, False, True]
    assert refusals.refuse("EDQUOT", 7, 9 * second)
    assert (refusals.code, refusals.short_of) == (errno.ENOSPC, 10)
    assert [refusals.meet(held) for held in (9, 10, 10)] == [False, True, False]


def test_the_room_leaves_the_reserve(tmp_path: Path) -> None:
    """What is held counts as room; the reserve does not."""
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    assert abs(room_bytes(tmp_path, 7 * MIB, free - 3 * MIB) - 10 * MIB) < 512 * MIB  # others write here too
    assert room_bytes(tmp_path, 0, 1 << 62) == 0


def test_where_the_file_lies(tmp_path: Path) -> None:
    """The folder is the option's, else STATE's; two slots of one operation never share a file."""
    assert fill_dir(DISK, tmp_path) == tmp_path / "fill"
    assert fill_dir(replace(DISK, options={"dir": "/data/./x/"}), tmp_path) == Path("/data/x")
    assert fill_token(DISK, 1, 5) != fill_token(DISK, 2, 5) != fill_token(replace(DISK, id="other"), 2, 5)
    three = fill_paths(replace(DISK, options={"files": 3}), SlotTicket(1, 5), tmp_path, "0123456789abcdef")
    assert [path.name for path in three] == [f".stress-cluster-01234567-{fill_token(DISK, 1, 5, file)}.fill" for file in range(3)]


def test_a_folder_that_nobody_watches_is_refused(tmp_path: Path) -> None:
    """Another file system than STATE's is; a folder beside it, and one that is made later, are not."""
    with pytest.raises(RefusedError, match="another file system") as refused:
        check_place(replace(DISK, options={"dir": "/proc"}), tmp_path)
    assert refused.value.code == "capability"
    check_place(replace(DISK, options={"dir": str(tmp_path)}), tmp_path)
    check_place(DISK, tmp_path)
