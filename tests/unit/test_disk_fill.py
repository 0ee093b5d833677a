from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors.disk import MIB, STEP_BYTES, check_place, fill_dir, fill_path, fill_token, next_bytes, room_bytes
from actors.errors import RefusedError
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
    assert fill_path(DISK, SlotTicket(1, 5), tmp_path, "0123456789abcdef").name == f".stress-cluster-01234567-{fill_token(DISK, 1, 5)}.fill"


def test_a_folder_that_nobody_watches_is_refused(tmp_path: Path) -> None:
    """Another file system than STATE's is; a folder beside it, and one that is made later, are not."""
    with pytest.raises(RefusedError, match="another file system") as refused:
        check_place(replace(DISK, options={"dir": "/proc"}), tmp_path)
    assert refused.value.code == "capability"
    check_place(replace(DISK, options={"dir": str(tmp_path)}), tmp_path)
    check_place(DISK, tmp_path)
