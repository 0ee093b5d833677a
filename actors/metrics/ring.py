"""A ring in shared memory between one process that pushes raw samples and one that drains them.

    header page   line 0     magic, version, capacity, columns, policy
                  line 2     the producer's: HEAD (records published), RESERVED (records begun), REFUSED (dropped as newest), CLOSED
                  line 4     the consumer's: TAIL (records taken or skipped), SKIPPED (dropped as oldest), and how to undo half a step
    data          columns x capacity words of 8 bytes; a column is contiguous, so a block is one or two copies

Each word has one writer, so nothing is locked: a push is bounded by its own copy, a drain by what was published, and either side may be
stopped or killed anywhere without stopping the other. A lock of the kernel's is taken once, when a side attaches, and goes with its
process: it keeps a second producer or consumer out. Counts never wrap (2^64), slots do.

Order. A record's words are stored before HEAD, and HEAD is loaded before the words are read, so what lies below HEAD is whole. The
compiled form (`ring_kernels`) says so with release stores and acquire loads. This file relies on x86-64, which keeps the order of
stores and that of loads (Intel SDM vol. 3A, 8.2.2; AMD APM vol. 2, 7.2) and moves aligned 8-byte words whole; each access here is a C
call of its own, which no compiler reorders. The one pair that x86 may reorder is a store and a later load of another word. So records are
linearizable, and the answers `full` and `empty` are not: each is true of the other side's count as it was seen, which may be older than
that side's own last step. One side may hear `full` while the other hears `empty` of a ring that was neither for long; nothing is lost
or doubled by it, a drop is counted and a drain is repeated. On another processor both sides are `unsupported`.

Overflow. `DROP_NEWEST`: what finds no room is refused, told to the caller and counted by the producer. `DROP_OLDEST`: the producer
overwrites; RESERVED moves before the words do, and the consumer looks at it after its copy, so a record that was overwritten meanwhile is
thrown away and counted, never handed out torn. At every quiescent point offered = taken + dropped + buffered.

Deaths. A producer killed in mid-push leaves what it had not published invisible; one killed right after HEAD has not counted what it
refused of that one push. A consumer killed between its copy and TAIL leaves the block to its successor: it is read again, never lost.
"""

from __future__ import annotations

import mmap
import os
import platform
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..clock import MILLISECOND_NS, Clock
from ..errors import HarnessError, InputError, RefusedError
from .ring_lock import Role, give_up, holds, take

Block = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MAGIC: Final = 0x474E4952_54534353
VERSION: Final = 1
DATA_AT: Final = 4096
CAPACITY_MAX: Final = 1 << 28
COLUMNS_MAX: Final = 8
DROP_NEWEST: Final = 0
DROP_OLDEST: Final = 1
ORDERED: Final = frozenset({"x86_64", "AMD64", "amd64"})  # machines whose stores and loads keep their order

# words of the header; lines are 64 bytes, and neighbours are fetched in pairs, so each side has a pair of its own
R_MAGIC, R_VERSION, R_CAPACITY, R_COLUMNS, R_POLICY = range(5)
HEAD, RESERVED, REFUSED, CLOSED = range(16, 20)
TAIL, SKIPPED, NEXT_TAIL, OLD_SKIPPED = range(32, 36)

# columns of a raw sample
VALUE, SERIES, TIME = range(3)
SAMPLE_COLUMNS: Final = 3


@dataclass(frozen=True, slots=True)
class RingState:
    """Records so far: `offered` = `taken` + `dropped` + `buffered`. Exact while neither side moves."""

    offered: int
    taken: int
    dropped: int
    buffered: int


class Ring:
    """The mapped memory. `create` it on one side, `open` it by `path` on the other; then make a `Producer` and a `Consumer`."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        self.words = memoryview(self._map)[:DATA_AT].cast("Q")
        self.capacity = self.words[R_CAPACITY]
        self.columns = self.words[R_COLUMNS]
        self.policy = self.words[R_POLICY]
        self.data: Block = np.frombuffer(self._map, np.float64, self.columns * self.capacity, DATA_AT).reshape(self.columns, self.capacity)

    @classmethod
    def create(cls, capacity: int = 1 << 16, columns: int = 1, policy: int = DROP_NEWEST) -> Ring:
        """Make an empty ring of `capacity` records (a power of two) of `columns` 8-byte words.

        Raises `InputError` for another shape, `HarnessError` when the system gives no memory file.
        """
        _check_shape(capacity, columns, policy)
        size = DATA_AT + columns * capacity * 8
        try:
            fd = os.memfd_create("stress-cluster-ring", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            os.pwrite(fd, np.array([MAGIC, VERSION, capacity, columns, policy], np.uint64).tobytes(), 0)
        except OSError as error:
            raise HarnessError("os", f"cannot make a ring of {capacity} records: {error}") from error
        return cls(fd, size)

    @classmethod
    def open(cls, path: str) -> Ring:
        """Map the ring of another process. Raises `HarnessError` when it is gone, no ring of this version, or its counts cannot be."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HarnessError("os", f"cannot open the ring {path}: {error}") from error
        try:
            wrong = _wrong(fd)
            if not wrong:
                return cls(fd, os.fstat(fd).st_size)
        except (OSError, ValueError) as error:  # ValueError: cut short between the look and the mapping
            os.close(fd)
            raise HarnessError("os", f"cannot map the ring {path}: {error}") from error
        os.close(fd)
        raise HarnessError("internal", f"{path} {wrong}")

    @property
    def path(self) -> str:
        """Where another process of the same user finds this memory while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def state(self) -> RingState:
        """Return the counts; exact while neither side moves."""
        words = self.words
        tail, skipped, head, refused = words[TAIL], words[SKIPPED], words[HEAD], words[REFUSED]
        waiting = head - tail
        begun = max(words[RESERVED], head)
        lapped = min(waiting, max(0, begun - self.capacity - tail))  # overwritten, and not yet skipped by the consumer
        return RingState(head + refused, tail - skipped, refused + skipped + lapped, waiting - lapped)

    def close(self) -> None:
        """Give up the file; the memory goes when the last view of it does. Close the sides first: a mapping keeps their locks."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Producer:
    """The side that pushes. One thread at a time; raises `RefusedError` where the order of stores is not kept, or the side is taken."""

    def __init__(self, ring: Ring) -> None:
        _attach(ring, Role.PRODUCER)
        self.ring = ring
        self._words: memoryview[int] = ring.words
        self._cells = [memoryview(column).cast("B").cast("d") for column in ring.data]
        self._column = self._cells[0]
        self._mask = ring.capacity - 1
        self._keeps_oldest = ring.policy == DROP_NEWEST
        self._limit = 0  # below this HEAD there was room at the last look
        self._words[CLOSED] = 0

    def push(self, value: float) -> bool:
        """Push one record of one column; false when it was dropped (and counted)."""
        words = self._words
        head = words[HEAD]
        if head >= self._limit and not self._has_room(head):
            return False
        self._column[head & self._mask] = value
        words[HEAD] = head + 1
        return True

    def _has_room(self, head: int) -> bool:
        """Look at the other side again; make room, or count a drop, where there is none."""
        if not self._keeps_oldest:
            self._reserve(head + 1)
            return True
        self._limit = self._words[TAIL] + self.ring.capacity  # only grows, so an old look is never too large
        if head >= self._limit:
            self._words[REFUSED] += 1
            return False
        return True

    def push_many(self, block: Block) -> int:
        """Push records, `columns` x n or n; return how many were taken. The rest is counted as dropped."""
        rows = np.atleast_2d(block)
        taken = self.offer(rows)
        lost = rows.shape[1] - taken
        if lost:
            self._words[REFUSED] += lost
        return taken

    def offer(self, rows: Block) -> int:
        """Push what finds room of `columns` x n records; return how many. What is left is still the caller's and not counted."""
        assert rows.shape[0] == self.ring.columns, f"a record has {self.ring.columns} words, got {rows.shape[0]}"
        words, capacity, count = self._words, self.ring.capacity, int(rows.shape[1])
        head = words[HEAD]
        if self._keeps_oldest:
            count = min(count, capacity - (head - words[TAIL]))
        else:
            self._reserve(head + min(count, capacity))  # that is every slot; more would outlive a death and make a successor's records torn
        if count:
            kept = min(count, capacity)  # of a block longer than the ring the end survives
            _copy_in(self.ring.data, (head + count - kept) & self._mask, rows[:, count - kept : count])
            words[HEAD] = head + count
        return count

    def _reserve(self, end: int) -> None:
        """Tell that slots up to `end` are being overwritten; never less than a producer that died in mid-push had told."""
        self._words[RESERVED] = max(self._words[RESERVED], end)

    def push_within(self, block: Block, timeout_s: float, clock: Clock) -> int:
        """Push records, waiting for room up to `timeout_s`; return how many were taken. The rest is counted as dropped."""
        rows = np.atleast_2d(block)
        deadline_ns = clock.boot_ns() + round(timeout_s * 1e9)
        taken = self.offer(rows)
        while taken < rows.shape[1] and clock.boot_ns() < deadline_ns:
            clock.sleep(MILLISECOND_NS / 1e9)
            taken += self.offer(rows[:, taken:])
        if taken < rows.shape[1]:
            self._words[REFUSED] += rows.shape[1] - taken
        return taken

    def close(self) -> None:
        """Say that nothing more comes, so that the consumer knows that nothing is missing, and leave the side to another."""
        self._words[CLOSED] = 1
        give_up(self.ring.fd, Role.PRODUCER)


class Consumer:
    """The side that drains. One thread at a time; errors as `Producer`."""

    def __init__(self, ring: Ring) -> None:
        _attach(ring, Role.CONSUMER)
        self.ring = ring
        self._words: memoryview[int] = ring.words
        self._mask = ring.capacity - 1
        if self._words[NEXT_TAIL] != self._words[TAIL]:  # an earlier consumer died between SKIPPED and TAIL
            self._words[SKIPPED] = self._words[OLD_SKIPPED]
            self._words[NEXT_TAIL] = self._words[TAIL]

    def drain(self, limit: int | None = None) -> Block:
        """Take up to `limit` whole records, oldest first; return a copy of `columns` x n."""
        count = min(self._words[HEAD] - self._words[TAIL], self.ring.capacity)
        out = np.empty((self.ring.columns, count if limit is None else min(count, limit)))
        return out[:, : self.drain_into(out)] if out.shape[1] else out

    def drain_into(self, out: Block) -> int:
        """Take as many whole records as `out` (`columns` x n) has room for; return how many. Allocates nothing that stays."""
        words = self._words
        head, tail = words[HEAD], words[TAIL]
        begin = max(tail, head - self.ring.capacity)
        count = min(head - begin, int(out.shape[1]))
        _copy_out(self.ring.data, begin & self._mask, out[:, :count])
        if self.ring.policy == DROP_OLDEST:
            torn = min(count, max(0, words[RESERVED] - self.ring.capacity - begin))  # overwritten during the copy
            if torn:
                out[:, : count - torn] = out[:, torn:count].copy()
            self._step(begin + count, words[SKIPPED] + begin - tail + torn)
            return count - torn
        words[NEXT_TAIL] = words[TAIL] = tail + count
        return count

    def _step(self, tail: int, skipped: int) -> None:
        """Move TAIL and SKIPPED, so that a death in between is found and undone by the next consumer."""
        words = self._words
        words[OLD_SKIPPED] = words[SKIPPED]
        words[NEXT_TAIL] = tail
        words[SKIPPED] = skipped
        words[TAIL] = tail

    def close(self) -> None:
        """Leave the side to another consumer."""
        give_up(self.ring.fd, Role.CONSUMER)

    @property
    def closed(self) -> bool:
        """Whether the producer said that nothing more comes."""
        return bool(self._words[CLOSED])

    def has_producer(self) -> bool:
        """Tell whether a process is attached as producer now; a killed one is not."""
        return holds(self.ring.fd, Role.PRODUCER)


def _check_shape(capacity: int, columns: int, policy: int) -> None:
    if not (0 < capacity <= CAPACITY_MAX and capacity & (capacity - 1) == 0):
        raise InputError("invalid_value", f"a ring's capacity is a power of two up to {CAPACITY_MAX}, got {capacity}")
    if not 1 <= columns <= COLUMNS_MAX or policy not in (DROP_NEWEST, DROP_OLDEST):
        raise InputError("invalid_value", f"a ring has 1 to {COLUMNS_MAX} columns and policy 0 or 1, got {columns} and {policy}")


def _wrong(fd: int) -> str:
    """Return what keeps a file from being a ring, or ""."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, DATA_AT, 0)
    if len(head) < DATA_AT:
        return f"is no ring: it has {size} bytes"
    words = np.frombuffer(head, np.uint64).tolist()
    if words[:2] != [MAGIC, VERSION]:
        return f"is no ring of version {VERSION}"
    capacity, columns, policy = words[R_CAPACITY], words[R_COLUMNS], words[R_POLICY]
    try:
        _check_shape(capacity, columns, policy)
    except InputError as error:
        return f"is a damaged ring: {error}"
    if size != DATA_AT + columns * capacity * 8:
        return f"is a damaged ring: {size} bytes do not hold {capacity} records of {columns} words"
    waiting = words[HEAD] - words[TAIL]
    if waiting < 0 or (policy == DROP_NEWEST and waiting > capacity):
        return f"is a damaged ring: {words[HEAD]} records pushed, {words[TAIL]} taken, room for {capacity}"
    return ""


def _attach(ring: Ring, role: Role) -> None:
    if platform.machine() not in ORDERED:
        reason = f"a {platform.machine()} processor may reorder the stores of interpreted code"
        raise RefusedError(
            "unsupported", f"no shared-memory ring here: {reason}", "use summary mode, or the compiled kernels, which order them"
        )
    if not take(ring.fd, role):
        raise RefusedError("busy", f"this ring has a {role.name.lower()} already", "a ring joins one producer and one consumer")


def _copy_in(data: Block, at: int, rows: Block) -> None:
    """Store records from slot `at` on, around the end."""
    first = min(rows.shape[1], data.shape[1] - at)
    data[:, at : at + first] = rows[:, :first]
    if first < rows.shape[1]:
        data[:, : rows.shape[1] - first] = rows[:, first:]


def _copy_out(data: Block, at: int, out: Block) -> None:
    """Fetch records from slot `at` on, around the end."""
    first = min(out.shape[1], data.shape[1] - at)
    out[:, :first] = data[:, at : at + first]
    if first < out.shape[1]:
        out[:, first:] = data[:, : out.shape[1] - first]
