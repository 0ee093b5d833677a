"""The outbox: sealed records of one stream on the disk of the node that made them, until the aggregator has them.

A stream is (node, agent incarnation); its sequence numbers begin at 1 and have no gaps. One file per stream:

    head      magic, length, crc32, JSON {node, incarnation, run, first} and blanks, up to a multiple of 8 bytes
    record    magic, kind, length, sequence, crc32, payload          (a frame; sent as it stands, or by its place: see `near`)

The file is read up to the first record that is not whole, so a death in mid-write loses only that one, which nobody was
promised. What is acknowledged is dropped by rewriting the file (temporary name, fsync, rename); the last record names the
end of the stream, and its acknowledgement removes the file. One owner at a time, by flock.

A record is in the page cache when `append` returns: it survives the death of the process, not of the machine. With `sync`
it survives that too.

A record never changes once it is whole, and its file is never made shorter than the records in it: it is replaced or removed, and who
has mapped it keeps it as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from actors.errors import HarnessError

from .files import make_folders, sync_folder

_HEAD: Final = struct.Struct("<6sHII")  # magic, version, length, crc32
_HEAD_MAGIC: Final = b"SCBOX\n"
_FRAME: Final = struct.Struct("<4sB3xIQI")  # magic, kind, length, sequence, crc32 of kind, sequence and payload
_FRAME_MAGIC: Final = b"SCRC"
_COMPACT_BYTES: Final = 4 << 20
_COPIED_BYTES: Final = 1 << 20  # at once, to a file without what is acknowledged
_PARTS: Final = 512  # that one call writes; the system takes 1024
_ALIGNED: Final = 8  # so that the arrays in a payload that is a multiple of this lie where a processor likes them
SUFFIX: Final = ".box"

Bytes = bytes | memoryview  # a view is one of bytes, and does not change


class Kind(IntEnum):
    """What a record is."""

    WINDOW = 1
    SAMPLES = 3  # single samples: an Arrow IPC stream
    END = 2  # nothing follows; payload is JSON {"clean": bool}


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record."""

    sequence: int
    kind: Kind
    payload: Bytes


class Place(NamedTuple):
    """Where a frame lies: its stream's file, by inode, offset and size in bytes. Goes instead of it to who can read that file."""

    inode: int
    offset: int
    size: int


Frames = Sequence[tuple[int, bytes | Place]]  # by sequence number, as they are pushed


def _head_of(kind: int, sequence: int, parts: Sequence[Bytes]) -> bytes:
    """Return what goes before a payload, which may lie in several places."""
    crc = zlib.crc32(struct.pack("<BQ", kind, sequence))
    for part in parts:
        crc = zlib.crc32(part, crc)
    return _FRAME.pack(_FRAME_MAGIC, kind, sum(map(len, parts)), sequence, crc)


def frame(record: Record) -> bytes:
    """Return the bytes of a record."""
    return b"".join((_head_of(record.kind, record.sequence, (record.payload,)), record.payload))


def parse(data: Bytes) -> Record:
    """Return the record of a frame; its payload is a part of the data where that is a view. Raises `ValueError` when it is not whole."""
    if len(data) < _FRAME.size:
        raise ValueError(f"a record has at least {_FRAME.size} bytes, got {len(data)}")
    magic, kind, length, sequence, _ = _FRAME.unpack_from(data)
    payload = data[_FRAME.size : _FRAME.size + length]
    if magic != _FRAME_MAGIC or len(payload) != length or data[: _FRAME.size] != _head_of(kind, sequence, (payload,)):
        raise ValueError("a record is torn or not one of ours")
    return Record(sequence, Kind(kind), payload)


class OutboxFullError(Exception):
    """The record does not fit, or the disk has no room: keep it and try again with the next window."""


class Outbox:
    """The file of one stream. Not thread-safe: its stream guards it.

    With `node`, `incarnation` and `run` it begins a stream; without, it takes over the file of a stream whose owner is gone.
    Raises `HarnessError`: `busy` while the file has an owner, `os` when it exists already, is missing or cannot be read or made,
    `internal` when it is no outbox.
    """

    def __init__(
        self, path: Path, *, node: str = "", incarnation: str = "", run: str = "", max_bytes: int = 256 << 20, sync: bool = False
    ) -> None:
        self.path = path
        self.node, self.incarnation, self.run = node, incarnation, run
        self._max_bytes = max_bytes
        self._sync = sync
        self._index: list[tuple[int, int, int]] = []  # sequence, offset, size
        self._acked_bytes = 0
        self._ended = False
        self._next = 1
        self._end = 0
        self._fd = self._create() if node else _open(path, os.O_RDWR)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError as error:
            self.close()
            raise HarnessError("busy", f"the outbox {path} has an owner") from error
        except HarnessError:
            self.close()
            raise

    def _create(self) -> int:
        """Make the file with its head before it has its name, so that nobody finds it without."""
        temporary = self.path.with_suffix(".new")
        head = _head({"node": self.node, "incarnation": self.incarnation, "run": self.run, "first": 1})
        try:
            if self._sync:
                make_folders(self.path.parent, 0o700)
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = _open_new(temporary)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(fd, [head], 0)
            os.link(temporary, self.path)
            temporary.unlink()
            sync_folder(self.path.parent)
        except OSError as error:
            with suppress(OSError):  # it was not made
                temporary.unlink()
            raise HarnessError("os", f"cannot make the outbox {self.path}: {error}") from error
        return fd

    @property
    def last(self) -> int:
        """Sequence number of the newest record; 0 before the first."""
        return self._next - 1

    @property
    def ended(self) -> bool:
        """Whether the newest record names the end."""
        return self._ended

    @property
    def unacked_bytes(self) -> int:
        """Bytes of the records that wait for their acknowledgement."""
        return sum(size for _, _, size in self._index)

    @property
    def has_ample_room(self) -> bool:
        """Whether records may be larger than they need be: the first half is not full."""
        return self.unacked_bytes < self._max_bytes // 2

    def append(self, kind: Kind, *payload: Bytes) -> int:
        """Seal a record and return its sequence number. Raises `OutboxFullError`; then nothing has changed.

        A payload of several parts is written from where they lie. Samples find room in the first half only, so that they take none from
        windows.
        """
        assert not self._ended, "a stream that has ended takes no more records"
        data = [_head_of(kind, self._next, payload), *payload]
        size = sum(map(len, data))
        room = {Kind.SAMPLES: self._max_bytes // 2, Kind.WINDOW: self._max_bytes, Kind.END: self._max_bytes + 4096}[kind]
        if self.unacked_bytes + size > room:
            raise OutboxFullError(f"{self.path} holds {self.unacked_bytes} bytes, its limit is {room}")
        try:
            _write(self._fd, data, self._end)
            if self._sync:
                os.fdatasync(self._fd)
        except OSError as error:
            with suppress(OSError):  # a torn tail is overwritten by the next record and ends no reading before it
                os.ftruncate(self._fd, self._end)
            raise OutboxFullError(f"cannot write {self.path}: {error}") from error
        self._index.append((self._next, self._end, size))
        self._end += size
        self._next += 1
        self._ended = kind is Kind.END
        return self.last

    def seal(self) -> None:
        """Name the end of a stream whose owner died before it could: what it had not sealed is lost, so the end is not clean."""
        if not self._ended:
            self.append(Kind.END, b'{"clean": false}')

    def unacked(self, max_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
        """Return the oldest records (sequence, frame) up to this size, and at least one if there is any."""
        return [(sequence, os.pread(self._fd, length, offset)) for sequence, offset, length in self._oldest(max_bytes)]

    def places(self, max_bytes: int) -> list[tuple[int, Place]]:
        """Return where the same records lie, none of which is read."""
        inode = os.fstat(self._fd).st_ino if self._index else 0
        return [(sequence, Place(inode, offset, length)) for sequence, offset, length in self._oldest(max_bytes)]

    def _oldest(self, max_bytes: int) -> Iterator[tuple[int, int, int]]:
        size = 0
        for at, entry in enumerate(self._index):
            size += entry[2]
            if at and size > max_bytes:
                return
            yield entry

    def ack(self, sequence: int) -> None:
        """Drop the records up to this one; the acknowledged end removes the file."""
        keep = [entry for entry in self._index if entry[0] > sequence]
        self._acked_bytes += sum(size for _, _, size in self._index) - sum(size for _, _, size in keep)
        self._index = keep
        if self._ended and not keep:
            self.remove()
        elif self._acked_bytes > max(_COMPACT_BYTES, self.unacked_bytes):
            self._compact()

    def remove(self) -> None:
        """Delete the file, whatever it holds. Harmless when it is gone already."""
        with suppress(FileNotFoundError):  # its acknowledged end removed it
            self.path.unlink()
        with suppress(OSError):  # other streams of the run are still there
            self.path.parent.rmdir()
        self.close()

    def close(self) -> None:
        """Give up the file and leave it for whoever drains it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _load(self) -> None:
        head, offset = _read_head(self._fd, self.path)
        self.node, self.incarnation, self.run = head["node"], head["incarnation"], head["run"]
        self._next = int(head["first"])
        for record, size in _records(self._fd, offset):
            if record.sequence != self._next:
                break
            self._index.append((record.sequence, offset, size))
            self._ended = record.kind is Kind.END
            self._next += 1
            offset += size
        self._end = offset

    def _compact(self) -> None:
        first = self._index[0][0] if self._index else self._next
        head = _head({"node": self.node, "incarnation": self.incarnation, "run": self.run, "first": first})
        begin, end = self._index[0][1] if self._index else self._end, self._end
        temporary = self.path.with_suffix(".new")
        try:
            fd = _open_new(temporary)
        except (HarnessError, OSError):
            return  # the old file is whole; a later acknowledgement tries again
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(fd, [head], 0)
            for at in range(begin, end, _COPIED_BYTES):
                _write(fd, [os.pread(self._fd, min(_COPIED_BYTES, end - at), at)], len(head) + at - begin)
            os.fsync(fd)
            temporary.replace(self.path)
        except OSError:
            os.close(fd)
            with suppress(OSError):  # the rename may have failed because it is gone
                temporary.unlink()
            return
        os.close(self._fd)
        sync_folder(self.path.parent)
        shift = len(head) - begin
        self._fd, self._acked_bytes, self._end = fd, 0, end + shift
        self._index = [(sequence, offset + shift, size) for sequence, offset, size in self._index]


def box_path(state_dir: Path, run: str, node: str, incarnation: str) -> Path:
    """Return where the outbox of an agent lies for one run."""
    return state_dir / "outbox" / run / f"{node}-{incarnation}{SUFFIX}"


def leftovers(folder: Path) -> list[Path]:
    """Return the outboxes under STATE/outbox, those of live agents included: opening one tells (`busy`)."""
    return sorted(folder.glob(f"*/*{SUFFIX}"))


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HarnessError("os", f"cannot open the outbox {path}: {error}") from error


def _open_new(path: Path) -> int:
    """Make a file that is nobody else's: one that a dead owner left under this name may be the outbox itself, which had two names then."""
    path.unlink(missing_ok=True)
    return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _head(fields: dict[str, str | int]) -> bytes:
    body = json.dumps(fields).encode()
    body += b" " * (-(_HEAD.size + len(body)) % _ALIGNED)
    return _HEAD.pack(_HEAD_MAGIC, 1, len(body), zlib.crc32(body)) + body


def _read_head(fd: int, path: Path) -> tuple[dict[str, str], int]:
    found = os.pread(fd, _HEAD.size, 0)
    if len(found) == _HEAD.size:
        magic, version, length, crc = _HEAD.unpack(found)
        body = os.pread(fd, length, _HEAD.size) if magic == _HEAD_MAGIC and version == 1 else b""
        if body and zlib.crc32(body) == crc:
            return json.loads(body), _HEAD.size + length
    raise HarnessError("internal", f"{path} is no outbox of version 1", "move it away; nothing in it can be read")


def _records(fd: int, offset: int) -> Iterator[tuple[Record, int]]:
    """Yield whole records and their sizes from here on."""
    while len(found := os.pread(fd, _FRAME.size, offset)) == _FRAME.size:
        magic, _, length, _, _ = _FRAME.unpack(found)
        if magic != _FRAME_MAGIC:
            return
        size = _FRAME.size + length
        try:
            record = parse(os.pread(fd, size, offset))
        except ValueError:
            return
        yield record, size
        offset += size


def _write(fd: int, parts: Sequence[Bytes], offset: int) -> None:
    left = deque(memoryview(part) for part in parts)
    while left:
        written = os.pwritev(fd, list(islice(left, _PARTS)), offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]
