"""Real blocks for a fill: reserved by the file system, or written from one buffer that is used again and again.

What is written goes past the page cache (O_DIRECT), so that neither memory nor a later sync of the journal pays for it; a file
system without that gets each chunk synced before the next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from typing import Final

from .. import proc

CHUNK_BYTES: Final = 4 << 20  # of one write, and of the only buffer
_NO_FALLOCATE: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def allocate(fd: int, offset: int, length: int) -> bool:
    """Reserve blocks; return False where the file system has no fallocate. Raises OSError for anything else."""
    try:
        proc.allocate(fd, offset, length)
    except OSError as error:
        if error.errno in _NO_FALLOCATE:
            return False
        raise
    return True


class Writer:
    """Writes chunks of noise, which no file system stores as nothing. Its buffer is made with the first of them."""

    def __init__(self) -> None:
        self._noise: mmap.mmap | None = None

    def write(self, fd: int, offset: int, length: int) -> int:
        """Write at most one chunk of whole blocks at `offset`; return the bytes written. Raises OSError."""
        if self._noise is None:
            self._noise = mmap.mmap(-1, CHUNK_BYTES)  # begins at a page, as direct access asks
            for _ in range(CHUNK_BYTES // mmap.PAGESIZE):
                self._noise.write(os.urandom(mmap.PAGESIZE))
        wanted = min(length, CHUNK_BYTES)
        with memoryview(self._noise) as noise, noise[:wanted] as chunk:
            if _set_direct(fd, on=True):
                try:
                    return os.pwritev(fd, [chunk], offset)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # its blocks are larger than ours, or what it said of itself is not true
                        raise
                    _set_direct(fd, on=False)
            written = os.pwritev(fd, [chunk], offset)
            os.fdatasync(fd)
            return written


def _set_direct(fd: int, *, on: bool) -> bool:
    """Go past the page cache from now on, or through it; return whether it goes past it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with contextlib.suppress(OSError):  # it has no direct access
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        return on
    return False
