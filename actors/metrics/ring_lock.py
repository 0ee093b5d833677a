"""Who is attached to a ring: a byte of its file for each side, locked by the kernel and free again when its process is gone.

Locks of the open file description (Linux 3.15), not of the process: two mappings in one process exclude each other as well, and closing
another descriptor of the same file does not give the lock up. A forked child shares its parent's.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_SET, _GET = 37, 36  # F_OFD_SETLK, F_OFD_GETLK: the numbers of the generic Linux ABI, which x86-64 and arm64 share


class Role(enum.IntEnum):
    """The sides of a ring; the value is the byte that is locked."""

    PRODUCER = 0
    CONSUMER = 1


def take(fd: int, role: Role) -> bool:
    """Take a side for this open file until it is closed; false when another has it. Raises `OSError`."""
    try:
        fcntl.fcntl(fd, _SET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, role, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def give_up(fd: int, role: Role) -> None:
    """Leave a side; no error when this open file does not have it."""
    fcntl.fcntl(fd, _SET, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, role, 1, 0))


def holds(fd: int, role: Role) -> bool:
    """Tell whether another open file has this side now."""
    answer = fcntl.fcntl(fd, _GET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, role, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
