"""Shared memory between one process that records and one that reads: a directory of series and their cumulative cells.

    header page    magic, version, capacity, window, closed, refused series, counts of samples that were not stored, by reason;
                   two texts that the reader writes and the recorder reads at each drain: the recording policy and the path of a ring,
                   with a checksum, and how often the recorder found them damaged or no policy (H_BAD_TEXTS)
    directory      capacity x 256 bytes: ready, kind, length, key (JSON of name and labels)
    cells          capacity x 128 bytes: 16 words, see the names below
    buckets        capacity x 64 KiB: uint32 counts by sign, octave, sub-bucket

Cells only grow (bucket counts modulo 2^32), so the reader takes differences and a recorder that dies in mid-drain leaves
nothing torn: each bucket is a sample counted or not. `SEQUENCE` is odd during a drain; it makes extremes and sums of a
series agree with its counts, and is waited for a bounded number of times. The memory is a memfd, so what was never touched
takes no pages: readers look only at octaves whose bit is set in `TOUCHED`, because reading a hole through a mapping fills it.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import HarnessError, InputError
from .histogram import BUCKETS, OCTAVES, OVERFLOW, SUB, Counts, Keys
from .registry import Kind

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Buckets = npt.NDArray[np.uint32]

MAGIC: Final = 0x31474553_54534353
VERSION: Final = 2
_PAGE: Final = 4096
_ENTRY: Final = 256
_KEY: Final = _ENTRY - 8
_ROW_WORDS: Final = 16
_BUCKET_BYTES: Final = 2 * BUCKETS * 4
_LOOKS: Final = 50
_POLICY_AT: Final = 1024  # of the header page
_RING_AT: Final = 3840

# words of the header
H_MAGIC, H_VERSION, H_CAPACITY, H_WINDOW, H_CLOSED, H_REFUSED_SERIES, H_REFUSED_SAMPLES = range(7)
H_LEFT_LEVEL, H_LEFT_FILTER, H_BACKLOG, H_TEXT_SEQUENCE, H_POLICY_BYTES, H_RING_BYTES, H_RAW, H_BAD_TEXTS, H_TEXT_CHECK = range(7, 16)
RAW_NONE, RAW_ON, RAW_UNAVAILABLE = range(3)  # of H_RAW: whether single samples leave through a ring
# words of a series
SEQUENCE, STAMP, COUNT, SUM, MIN, MAX, LAST, ZERO, OVER, UNDER, INVALID, TOUCHED, TOUCHED_NEGATIVE = range(13)

KINDS: Final = (Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM)


@dataclass(frozen=True, slots=True)
class Cells:
    """One series as read at one instant: cumulative count, sum, invalid samples and buckets; last, min and max of `stamp`'s window."""

    count: int
    sum: float
    last: float
    min: float
    max: float
    stamp: int
    invalid: int
    special: tuple[int, int, int]  # zero, overflow, underflow
    octaves: npt.NDArray[np.intp]  # touched ones; those of negative values follow at OCTAVES
    buckets: Buckets  # len(octaves) x SUB


class Segment:
    """The mapped memory. `create` it where it is read, `open` it by `path` where it is written."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, size)
        whole = np.frombuffer(self._map, np.uint8)
        self.header: Words = whole[:_PAGE].view(np.uint64)
        self.capacity = int(self.header[H_CAPACITY])
        cells_at = _PAGE + self.capacity * _ENTRY
        buckets_at = _buckets_at(self.capacity)
        self._directory = whole[_PAGE:cells_at].reshape(self.capacity, _ENTRY)
        self.words: Words = whole[cells_at : cells_at + self.capacity * _ROW_WORDS * 8].view(np.uint64).reshape(self.capacity, _ROW_WORDS)
        self.floats: Floats = self.words.view(np.float64)
        self.buckets: Buckets = whole[buckets_at:].view(np.uint32).reshape(self.capacity, 2 * OCTAVES, SUB)

    @classmethod
    def create(cls, capacity: int = 64) -> Segment:
        """Make an empty segment for this many series. Raises `HarnessError` when the system gives no memory file."""
        size = _buckets_at(capacity) + capacity * _BUCKET_BYTES
        try:
            fd = os.memfd_create("stress-cluster-metrics", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            os.pwrite(fd, np.array([MAGIC, VERSION, capacity, 1], np.uint64).tobytes(), 0)
        except OSError as error:
            raise HarnessError("os", f"cannot make a metrics segment of {capacity} series: {error}") from error
        return cls(fd, size)

    @classmethod
    def open(cls, path: str) -> Segment:
        """Map the segment of another process. Raises `HarnessError` when it is gone or no segment of this version."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            size = os.fstat(fd).st_size
            head = os.pread(fd, 24, 0)
        except OSError as error:
            raise HarnessError("os", f"cannot open the metrics segment {path}: {error}") from error
        found = np.frombuffer(head, np.uint64).tolist() if len(head) == 24 else []
        if found[:2] != [MAGIC, VERSION] or size != _buckets_at(found[2]) + found[2] * _BUCKET_BYTES:
            os.close(fd)
            raise HarnessError("internal", f"{path} is no metrics segment of version {VERSION}")
        return cls(fd, size)

    @property
    def path(self) -> str:
        """Where another process of the same user finds this memory while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def resident_bytes(self) -> int:
        """Memory that the segment really takes."""
        return os.fstat(self._fd).st_blocks * 512

    @property
    def closed(self) -> bool:
        """Whether the recorder made its last drain."""
        return bool(self.header[H_CLOSED])

    def close(self) -> None:
        """Give up the file; the memory goes when the last view of it does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def texts(self, known: int) -> tuple[int, str, str] | None:
        """Return (sequence, recording policy, path of a ring) when they are newer than `known` and not being written now.

        The sequence alone would do where loads keep their order; the checksum tells torn texts on any processor. What does not match it is
        counted and looked at again by the next drain.
        """
        before = int(self.header[H_TEXT_SEQUENCE])
        if before == known or before % 2:
            return None
        policy, ring = self._text(_POLICY_AT, H_POLICY_BYTES), self._text(_RING_AT, H_RING_BYTES)
        if before != int(self.header[H_TEXT_SEQUENCE]):
            return None
        if _check(before, policy, ring) != int(self.header[H_TEXT_CHECK]):
            self.header[H_BAD_TEXTS] += np.uint64(1)
            return None
        return before, policy.decode(), ring.decode()

    def _text(self, at: int, size_word: int) -> bytes:
        return self._map[at : min(at + int(self.header[size_word]), _PAGE)]

    # the writer's side

    def claim(self, row: int, kind: Kind, name: str, labels: tuple[tuple[str, str], ...]) -> bool:
        """Enter a series in the directory; false when the row is past the capacity or its key is too long."""
        key = json.dumps([name, *labels], separators=(",", ":")).encode()
        if row >= self.capacity or len(key) > _KEY:
            return False
        self.floats[row, MIN], self.floats[row, MAX] = np.inf, -np.inf
        entry = self._directory[row]
        entry[8 : 8 + len(key)] = np.frombuffer(key, np.uint8)
        entry[1] = KINDS.index(kind)
        entry[2:4].view(np.uint16)[0] = len(key)
        entry[0] = 1
        return True

    # the reader's side

    def series(self, known: int = 0) -> Iterator[tuple[int, Kind, str, tuple[tuple[str, str], ...]]]:
        """Yield (row, kind, name, labels) of the series after the first `known` ones."""
        for row in range(known, self.capacity):
            entry = self._directory[row]
            if not entry[0]:
                return
            size = int(entry[2:4].view(np.uint16)[0])
            name, *labels = json.loads(entry[8 : 8 + size].tobytes())
            yield row, KINDS[int(entry[1])], name, tuple((label, value) for label, value in labels)

    def publish(self, policy: str, ring: str | None = None) -> None:
        """Give the recorder a policy and the path of a ring for raw samples; in force from its next drain. One thread at a time.

        A ring of None leaves the one that was published before, "" takes it away. Raises `InputError` when a text is too long.
        """
        check_policy_text(policy)
        rules, path = policy.encode(), self._text(_RING_AT, H_RING_BYTES) if ring is None else ring.encode()
        _check_room(path, _PAGE - _RING_AT, "the path of a ring", "use the ring's own path, under /proc")
        self.header[H_TEXT_SEQUENCE] += np.uint64(1)  # odd: being written
        for at, size_word, text in ((_POLICY_AT, H_POLICY_BYTES, rules), (_RING_AT, H_RING_BYTES, path)):
            self._map[at : at + len(text)] = text
            self.header[size_word] = len(text)
        self.header[H_TEXT_CHECK] = _check(int(self.header[H_TEXT_SEQUENCE]) + 1, rules, path)
        self.header[H_TEXT_SEQUENCE] += np.uint64(1)

    def next_window(self) -> int:
        """Begin a new window for extremes; return the one that ends. Drains that begin later belong to the new one."""
        ending = int(self.header[H_WINDOW])
        self.header[H_WINDOW] = ending + 1
        return ending

    def read(self, row: int) -> Cells:
        """Return a copy of one series, outside a drain where that can be had within a bounded wait."""
        for _ in range(_LOOKS):
            before = int(self.words[row, SEQUENCE])
            cells = self._copy(row)
            if before % 2 == 0 and before == int(self.words[row, SEQUENCE]):
                return cells
            os.sched_yield()
        return cells

    def _copy(self, row: int) -> Cells:
        words, floats = self.words[row].tolist(), self.floats[row].tolist()
        octaves = _bits(words[TOUCHED] | words[TOUCHED_NEGATIVE] << OCTAVES)
        return Cells(
            count=words[COUNT],
            sum=floats[SUM],
            last=floats[LAST],
            min=floats[MIN],
            max=floats[MAX],
            stamp=words[STAMP],
            invalid=words[INVALID],
            special=(words[ZERO], words[OVER], words[UNDER]),
            octaves=octaves,
            buckets=self.buckets[row, octaves],
        )


def check_policy_text(text: str) -> None:
    """Raise `InputError` for the text of a recording policy that no segment has room for."""
    _check_room(text.encode(), _RING_AT - _POLICY_AT, "a recording policy", "use fewer or shorter rules")


def _check_room(text: bytes, room: int, what: str, remedy: str) -> None:
    if len(text) > room:
        raise InputError("invalid_value", f"{what} of {len(text)} bytes; at most {room}", remedy)


def _check(sequence: int, policy: bytes, ring: bytes) -> int:
    """Return the checksum of the header's texts, which are at home under one sequence number only."""
    return zlib.crc32(b"%d,%d," % (sequence, len(policy)) + policy + ring)


def _buckets_at(capacity: int) -> int:
    end = _PAGE + capacity * (_ENTRY + _ROW_WORDS * 8)
    return -(-end // _PAGE) * _PAGE


def _bits(mask: int) -> npt.NDArray[np.intp]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return np.array(found, np.intp)


def difference(now: Cells, base: Cells | None) -> tuple[Keys, Counts]:
    """Return keys and counts of what a histogram gained since `base`; counts are exact below 2^32 a bucket and window."""
    gained = now.buckets.copy()
    special = list(now.special)
    if base is not None:
        at = np.searchsorted(now.octaves, base.octaves)
        gained[at] -= base.buckets
        special = [later - earlier for later, earlier in zip(special, base.special, strict=True)]
    rows, subs = np.nonzero(gained)
    octaves = now.octaves[rows]
    sizes = (octaves % OCTAVES) * SUB + subs + 1
    keys = np.concatenate([np.where(octaves < OCTAVES, sizes, -sizes), [0, OVERFLOW, -OVERFLOW]])
    counts = np.concatenate([gained[rows, subs].astype(np.int64), special])
    order = np.argsort(keys, kind="stable")
    order = order[counts[order] != 0]
    return keys[order].astype(np.int16), counts[order]
