"""A write-ahead log: numbered records in segment files, each with two checksums. What `append` returned for is found again.

    segment   0000000001.wal, ...   one folder, one owner (flock), the total of all sizes bounded
    record    head: magic, kind, payload length, number of the first row, rows, size in memory, crc32 of payload, crc32 of head; payload
    ack       a record without payload: all rows below its number are done; the first record of every segment is one

A record is in the page cache when `append` returns: it outlives the process. With `Sync.ALWAYS` it outlives the machine too. With
`Sync.INTERVAL` a write syncs all before it when the last sync is that long ago, and nothing does in between: what was written since then,
also before a long quiet time, may be lost to a power cut until the next such write, `sync` or `close`. All syncs are made by the caller of
`append` and `ack`, which waits for the device: a lane's is the event loop.

On opening, a torn tail is cut: the beginning of a record whose `append` never returned. A record whose payload is not what was written
keeps its place and is reported as broken when its turn comes; after a broken head the search goes on to the next whole one, and the bytes
between are counted in `lost_bytes`: nobody can say which rows they were. Segments whose rows are all done are deleted.

Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError

from ..files import make_folders, sync_folder

_MAGIC: Final = b"SXWL"
_HEAD: Final = struct.Struct("<4sB3xIQIQI")  # magic, kind, payload length, first row, rows, bytes in memory, crc32 of the payload
_CRC: Final = struct.Struct("<I")
_HEAD_SIZE: Final = _HEAD.size + _CRC.size
_ROWS, _ACK = 1, 2


class Sync(StrEnum):
    """When written records are forced to the device."""

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """Where a record lies. Ordered by the number of its first row."""

    first: int
    rows: int
    segment: int
    offset: int
    length: int
    size_bytes: int

    @property
    def after(self) -> int:
        """Number behind the last row."""
        return self.first + self.rows


class WriteAheadLog:
    """See the module. Not for several threads. Raises `HarnessError` (`busy`) when the folder has an owner, `os` when it cannot be used."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 1 << 30,
        segment_bytes: int = 8 << 20,
        sync: Sync = Sync.INTERVAL,
        interval_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self.folder = folder
        self.lost_bytes = 0  # of records with a broken head, when it was opened
        self.cut_bytes = 0  # of torn tails, likewise: never acknowledged
        self._max_bytes, self._segment_bytes = max_bytes, min(segment_bytes, max(4096, max_bytes // 4))
        self._sync, self._interval_ns = sync, round(interval_s * SECOND_NS)
        self._clock = clock or SystemClock()
        self._synced_ns = self._clock.boot_ns()
        self._entries: list[Entry] = []
        self._given = 0  # how many of them were read
        self._pending = 0  # rows of the rest
        self._live: Counter[int] = Counter()  # entries by segment
        self._acked = 0
        self._highest = 0
        self._sizes: dict[int, int] = {}
        self._current = 0
        self._fd = self._lock = -1
        try:
            if sync is Sync.NEVER:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            else:
                make_folders(folder, 0o700)  # else records that are durable may lie in a folder that is not
                sync_folder(folder)  # whoever made a segment may have died before it came to that
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except BlockingIOError as error:
            self.close()
            raise HarnessError("busy", f"the spill {folder} has an owner", "give each exporter a folder of its own") from error
        except OSError as error:
            self.close()
            raise HarnessError("os", f"cannot use the spill {folder}: {error}", "see the folder's owner, mode and free space") from error

    # what is there

    @property
    def pending_rows(self) -> int:
        """Rows that were not read since they were written or put back."""
        return self._pending

    @property
    def next_bytes(self) -> int:
        """Size in memory of the next record."""
        return self._entries[self._given].size_bytes if self._given < len(self._entries) else 0

    @property
    def after(self) -> int:
        """Number behind the highest row that was ever written."""
        return max(self._highest, self._acked)

    @property
    def disk_bytes(self) -> int:
        """Size of all segments."""
        return sum(self._sizes.values())

    # writing

    def append(self, first: int, rows: int, payload: bytes, size_bytes: int) -> bool:
        """Write a record; false when the bound leaves no room. Raises `OSError`, and then the log is as it was."""
        assert rows > 0 <= first, "a record has rows, and they are numbered"
        data = _record(_ROWS, first, rows, payload, size_bytes)
        if self.disk_bytes + len(data) + 2 * _HEAD_SIZE > self._max_bytes:
            return False
        if self._fd < 0 or self._sizes[self._current] + len(data) > self._segment_bytes:
            self._begin_segment()
        offset = self._write(data)
        insort(self._entries, Entry(first, rows, self._current, offset, len(payload), size_bytes), lo=self._given)
        self._pending += rows
        self._live[self._current] += 1
        self._highest = max(self._highest, first + rows)
        return True

    def ack(self, after: int) -> None:
        """Everything below this number is done. Raises `OSError`; then it may come again after a restart."""
        if after <= self._acked:
            return
        self._acked = after
        done = 0
        while done < self._given and self._entries[done].after <= after:
            self._live[self._entries[done].segment] -= 1
            done += 1
        del self._entries[:done]
        self._given -= done
        try:
            if self._fd >= 0:
                self._write(_record(_ACK, after, 0, b"", 0))
        finally:
            self._delete_done()  # a full disk, where the record finds no room, needs it most

    def sync(self) -> None:
        """Force what was written to the device. Raises `OSError`."""
        if self._fd >= 0:
            os.fdatasync(self._fd)
        self._synced_ns = self._clock.boot_ns()

    def _write(self, data: bytes) -> int:
        offset = self._sizes[self._current]
        try:
            _write_all(self._fd, data, offset)
            if self._sync is Sync.ALWAYS or (self._sync is Sync.INTERVAL and self._clock.boot_ns() - self._synced_ns >= self._interval_ns):
                self.sync()
        except OSError:
            with suppress(OSError):  # then the next record overwrites it, and a reader after a crash cuts or skips it
                os.ftruncate(self._fd, offset)
            raise
        self._sizes[self._current] = offset + len(data)
        return offset

    def _begin_segment(self) -> None:
        number = max(self._sizes, default=0) + 1
        path = self._path(number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        head = _record(_ACK, self._acked, 0, b"", 0)
        try:
            _write_all(fd, head, 0)
            if self._sync is not Sync.NEVER:
                if self._fd >= 0:
                    os.fdatasync(self._fd)  # the records of the segment that ends here
                os.fdatasync(fd)
                sync_folder(self.folder)
        except OSError:
            os.close(fd)
            with suppress(OSError):  # an empty segment harms nobody
                path.unlink()
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._current = fd, number
        self._sizes[number] = len(head)

    def _delete_done(self) -> None:
        """Delete segments without rows that are still needed; the current one only when it is worth it, and last.

        What says that rows are done may go before a new segment says so, on a full disk; then all older rows are gone as well.
        """
        needed = {number for number, entries in self._live.items() if entries}
        self._delete({*self._sizes} - needed - {self._current})
        if self._current not in needed and self._sizes.get(self._current, 0) > self._segment_bytes // 2:
            with suppress(OSError):  # no room for its successor: it is tried again at the next acknowledgement
                self._begin_segment()
            self._delete({*self._sizes} - needed - {self._current})

    def _delete(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            self._path(number).unlink(missing_ok=True)
            del self._sizes[number], self._live[number]

    # reading

    def read(self) -> tuple[Entry, bytes] | Entry:
        """Give out the next record, or only its place when its payload is broken; that one never comes again.

        Raises `OSError`, and then the record stays the next.
        """
        entry = self._entries[self._given]
        payload = self._payload(entry)
        self._pending -= self.remaining(entry)
        if payload:
            self._given += 1
            return entry, payload
        del self._entries[self._given]
        self._live[entry.segment] -= 1
        return entry

    def rewind(self) -> None:
        """Make everything pending again that was not acknowledged."""
        self._given = 0
        self._entries.sort()
        self._pending = sum(map(self.remaining, self._entries))

    def remaining(self, entry: Entry) -> int:
        """Return how many of a record's rows were not acknowledged: the last ones."""
        return entry.after - min(entry.after, max(entry.first, self._acked))

    def _payload(self, entry: Entry) -> bytes:
        """Return the payload of a record, empty when it is not what was written."""
        with self._path(entry.segment).open("rb") as file:
            file.seek(entry.offset)
            found = file.read(_HEAD_SIZE + entry.length)
        head = _head(found)
        whole = head is not None and head[2] == entry.length and zlib.crc32(found[_HEAD_SIZE:]) == head[6]
        return found[_HEAD_SIZE:] if whole else b""

    # opening and closing

    def _recover(self) -> None:
        for number in sorted(int(path.stem) for path in self.folder.glob("*.wal") if path.stem.isdigit()):
            self._scan(number)
        known: set[int] = set()
        entries = []
        for entry in sorted(self._entries):
            if entry.after > self._acked and entry.first not in known:
                known.add(entry.first)
                entries.append(entry)
        self._entries = entries
        self._live.update(entry.segment for entry in entries)
        self._pending = sum(map(self.remaining, entries))
        if self._sizes:
            self._current = max(self._sizes)
            self._fd = os.open(self._path(self._current), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._delete_done()

    def _scan(self, number: int) -> None:
        path = self._path(number)
        data = path.read_bytes()
        end = 0
        for offset, head in _heads(data):
            _, kind, length, first, rows, size_bytes, _ = head
            self.lost_bytes += offset - end
            end = offset + _HEAD_SIZE + length
            if end > len(data) and not any(True for _ in _heads(data, offset + _HEAD_SIZE)):
                end = offset  # a torn tail: `append` never returned for it
                break
            if kind == _ACK:
                self._acked = max(self._acked, first)
                continue
            end = min(end, len(data))
            self._entries.append(Entry(first, rows, number, offset, length, size_bytes))  # its checksum is looked at when it is read
            self._highest = max(self._highest, first + rows)
        if end < len(data):
            if _is_torn(data, end):
                self.cut_bytes += len(data) - end
            else:
                self.lost_bytes += len(data) - end
            os.truncate(path, end)
        if end:
            self._sizes[number] = end
        else:
            path.unlink()  # it was just begun, and does not even say which rows are done: it must not be the only one that is left

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:010}.wal"

    def close(self) -> None:
        """Give up the folder; what is pending stays there. Harmless when repeated."""
        if self._fd >= 0:
            with suppress(OSError):  # what was promised under ALWAYS is there already
                os.fdatasync(self._fd)
            os.close(self._fd)
        if self._lock >= 0:
            os.close(self._lock)
        self._fd = self._lock = -1


def _record(kind: int, first: int, rows: int, payload: bytes, size_bytes: int) -> bytes:
    head = _HEAD.pack(_MAGIC, kind, len(payload), first, rows, size_bytes, zlib.crc32(payload))
    return head + _CRC.pack(zlib.crc32(head)) + payload


_Head = tuple[bytes, int, int, int, int, int, int]


def _head(data: bytes, offset: int = 0) -> _Head | None:
    """Return the head at this place, if a whole one is there."""
    if len(data) - offset < _HEAD_SIZE or not data.startswith(_MAGIC, offset):
        return None
    (crc,) = _CRC.unpack_from(data, offset + _HEAD.size)
    return _HEAD.unpack_from(data, offset) if zlib.crc32(data[offset : offset + _HEAD.size]) == crc else None


def _is_torn(data: bytes, offset: int) -> bool:
    """Tell whether what begins here could be the beginning of a record: its head is cut short, or whole with too little behind it."""
    if len(data) - offset < _HEAD_SIZE:
        return _MAGIC.startswith(data[offset : offset + len(_MAGIC)])
    return _head(data, offset) is not None


def _heads(data: bytes, offset: int = 0) -> Iterator[tuple[int, _Head]]:
    """Yield whole heads in order; what is none is skipped up to the next."""
    while (offset := data.find(_MAGIC, offset)) >= 0:
        head = _head(data, offset)
        if head is None:
            offset += 1
            continue
        yield offset, head
        behind = offset + _HEAD_SIZE + head[2]
        # a length that leads past the end or to no head is still right if its own checksum is; but look inside when it is cut short
        offset = behind if behind <= len(data) else offset + _HEAD_SIZE


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
