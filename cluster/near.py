"""Records read where they lie: the aggregator maps the outbox of an agent on its own machine instead of getting its bytes.

The agent sends the places of frames (`outbox.Place`). Large ones are mapped, so that a window's arrays are views of the file and no
process holds a copy of them; small ones are read, which costs less. Who cannot read a place here (another machine, another state folder)
takes none of its records, and the agent sends their bytes.

A mapped file that is made shorter kills its readers (SIGBUS). No outbox is ever made shorter than the records in it: see `outbox`. A disk
that cannot be read does the same, so all bytes are read once in the usual way first; they are mapped right after that.

What is still looked at keeps its file, removed or not, so what may be kept so is bounded; beyond that records are read into memory.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .outbox import Bytes, Place

MAPPED_BYTES: Final = 256 << 10  # of a frame that is mapped: to map one costs as much as to copy some 50 KB
KEPT_BYTES: Final = 256 << 20  # of files that are not the outbox any more, and that arrays keep all the same
_LOOK_BYTES: Final = 256 << 10


class NearFiles:
    """The outboxes that one aggregator maps. For any thread."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._lock = threading.RLock()  # a mapping may end wherever memory is collected, here too
        self._mapped: Counter[tuple[int, int]] = Counter()  # how often by device and inode
        self._sizes: dict[tuple[int, int], int] = {}

    @contextmanager
    def frames(self, path: Path, records: Iterable[tuple[int, bytes | Place]]) -> Iterator[list[tuple[int, Bytes]]]:
        """Give records with their frames, up to the first whose place cannot be read here.

        Pages of theirs that were looked at meanwhile do not count as this process's memory afterwards.
        """
        found: list[tuple[int, Bytes]] = []
        try:
            found.extend(self._resolved(path, records))
            yield found
        finally:
            for _, frame in found:
                give_back(frame)

    def kept(self) -> int:
        """Return the sizes of all files of which something is mapped, in bytes."""
        with self._lock:
            return sum(self._sizes.values())

    def _resolved(self, path: Path, records: Iterable[tuple[int, bytes | Place]]) -> Iterator[tuple[int, Bytes]]:
        fd = -1
        try:
            for sequence, one in records:
                if isinstance(one, Place):
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK) if fd < 0 else fd
                    yield sequence, self._frame(fd, one)
                else:
                    yield sequence, one
        except OSError:  # it is not here, or not readable: the rest is sent as bytes
            return
        finally:
            if fd >= 0:
                os.close(fd)

    def _frame(self, fd: int, place: Place) -> Bytes:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_ino != place.inode or place.offset + place.size > found.st_size:
            raise FileNotFoundError("the file of this name is another one")
        if place.size < MAPPED_BYTES or not self._may_map((found.st_dev, found.st_ino)):
            return os.pread(fd, place.size, place.offset)
        _look(fd, place)
        begin = place.offset - place.offset % mmap.ALLOCATIONGRANULARITY
        made = mmap.mmap(fd, place.offset + place.size - begin, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=begin)
        self._count((found.st_dev, found.st_ino), found.st_size, made)
        return memoryview(made)[place.offset - begin :]

    def _may_map(self, file: tuple[int, int]) -> bool:
        with self._lock:
            return sum(size for other, size in self._sizes.items() if other != file) <= self._kept_bytes

    def _count(self, file: tuple[int, int], size: int, made: mmap.mmap) -> None:
        with self._lock:
            self._mapped[file] += 1
            self._sizes[file] = size
        weakref.finalize(made, self._forget, file).atexit = False

    def _forget(self, file: tuple[int, int]) -> None:
        with self._lock:
            self._mapped[file] -= 1
            if not self._mapped[file]:
                del self._mapped[file], self._sizes[file]


def give_back(frame: Bytes | None) -> None:
    """Let the pages of a mapped frame count no more as this process's memory; who looks at them again, or does right now, finds them."""
    if isinstance(frame, memoryview) and isinstance(frame.obj, mmap.mmap):
        frame.obj.madvise(mmap.MADV_DONTNEED)


def _look(fd: int, place: Place) -> None:
    """Read all bytes of a place once and keep none. Raises `OSError` where the disk does not give them."""
    room, at, end = bytearray(_LOOK_BYTES), place.offset, place.offset + place.size
    while at < end:
        read = os.preadv(fd, [memoryview(room)[: end - at]], at)
        if not read:
            raise FileNotFoundError("the file ends before the record does")
        at += read
