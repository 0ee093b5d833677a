"""The two shared pages between the guardian, the agent and the loads: leases go one way, figures the other.

The *control page* is written by the guardian alone (its memfd is sealed, so that everybody else maps it read-only); the
*stats page* is written by load processes, each in its own slot. Both hold a header and `SLOTS` slots of `SLOT_WORDS`
aligned 8-byte words; one word is one store, and one word decides whether a lease lives. This module never reads a clock.
Standard library only: the guardian uses it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

from .messages import Halt

MAGIC: Final = 0x53545243_4C555354  # "STRCLUST"
VERSION: Final = 2
SLOTS: Final = 128
SLOT_WORDS: Final = 32
HEADER_WORDS: Final = 16
WORD_BYTES: Final = 8
PAGE_BYTES: Final = (HEADER_WORDS + SLOTS * SLOT_WORDS) * WORD_BYTES

GENERATION_SHIFT: Final = 48
GENERATIONS: Final = 1 << 16
_LOW: Final = (1 << GENERATION_SHIFT) - 1

# Words of the header.
HEAD_MAGIC, HEAD_VERSION, HEAD_HEARTBEAT, HEAD_SLOTS, HEAD_HALT, HEAD_HALT_KEPT = range(6)
# Words of a control slot.
LEASE, STOP, CEILING, EPOCH, GATE, START, SHARERS = range(7)
# Words of a stats slot.
GENERATION, PID, STATE, BEAT, FIRST_SLICE, OPERATIONS, ASKED, OWN, CPU = range(9)

# Stop codes.
STOP_NONE, STOP_DRAIN, STOP_KILL = range(3)
# States of a load in its stats slot.
LOAD_NONE, LOAD_GATED, LOAD_READY, LOAD_RUNNING, LOAD_DONE, LOAD_FAILED = range(6)

F_SEAL_FUTURE_WRITE: Final = 0x10  # linux/fcntl.h; not in Python's fcntl module


def word_index(slot: int, word: int) -> int:
    """Return the index of a slot's word in `as_words()`; raises IndexError outside of the page."""
    if not (0 <= slot < SLOTS and 0 <= word < SLOT_WORDS):
        raise IndexError(f"no word {word} in slot {slot}")
    return HEADER_WORDS + slot * SLOT_WORDS + word


def pack_lease(generation: int, deadline_ns: int) -> int:
    """Return the lease word: generation in the high 16 bits, deadline in whole microseconds below; 0 ns is not live."""
    return (generation % GENERATIONS) << GENERATION_SHIFT | (deadline_ns // 1_000) & _LOW


def unpack_lease(word: int) -> tuple[int, int]:
    """Return (generation, deadline in ns) of a lease word."""
    return word >> GENERATION_SHIFT, (word & _LOW) * 1_000


def _pack_halt(halt: Halt) -> int:
    return halt.generation << 1 | halt.on


def _unpack_halt(word: int) -> Halt:
    return Halt(int(word) >> 1, bool(word & 1))


def _float_bits(value: float) -> int:
    return int(struct.unpack("=Q", struct.pack("=d", value))[0])


def _bits_float(bits: int) -> float:
    return float(struct.unpack("=d", struct.pack("=Q", bits))[0])


class _Page:
    """A mapped page seen as 64-bit words."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")

    def as_words(self) -> memoryview:
        """Return the page as native uint64 words, for `numpy.frombuffer` in compiled kernels."""
        return self._words

    def word(self, slot: int, word: int) -> int:
        """Return one word of a slot."""
        return int(self._words[word_index(slot, word)])

    def close(self) -> None:
        """Unmap; a page that kernels still look at stays mapped until they let go."""
        try:
            self._words.release()
            self._memory.close()
        except BufferError:
            return  # an exported view is alive: the mapping ends with it


def _check_header(words: memoryview) -> None:
    if words[HEAD_MAGIC] != MAGIC or words[HEAD_VERSION] != VERSION or words[HEAD_SLOTS] != SLOTS:
        raise ValueError(f"not a page of version {VERSION}: magic {words[HEAD_MAGIC]:#x}, version {words[HEAD_VERSION]}")


class ControlPage(_Page):
    """The read view of the control page. All times are nanoseconds of CLOCK_BOOTTIME."""

    @classmethod
    def from_fd(cls, fd: int) -> ControlPage:
        """Map the page behind a descriptor read-only; the descriptor may be closed afterwards.

        Raises OSError when it cannot be mapped, ValueError when it is another kind or version.
        """
        page = cls(mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ))
        _check_header(page.as_words())
        return page

    @property
    def heartbeat_ns(self) -> int:
        """When the guardian last gave a sign of life."""
        return int(self._words[HEAD_HEARTBEAT])

    @property
    def halt(self) -> Halt:
        """The halt that is in force; it is stored before any load ends by it."""
        return _unpack_halt(self._words[HEAD_HALT])

    @property
    def halt_kept(self) -> Halt:
        """The newest halt or resume that is on the guardian's disk."""
        return _unpack_halt(self._words[HEAD_HALT_KEPT])

    def lease(self, slot: int) -> tuple[int, int]:
        """Return (generation, deadline_ns); a deadline of 0 is not live."""
        return unpack_lease(self.word(slot, LEASE))

    def live(self, slot: int, generation: int, now_ns: int) -> bool:
        """Tell whether this generation of the slot may load now: one read of one word decides."""
        found, deadline_ns = self.lease(slot)
        return found == generation and now_ns < deadline_ns

    def over(self, slot: int, generation: int, now_ns: int) -> bool:
        """Tell whether this generation of the slot may never load again; one that has no lease yet still may."""
        found, deadline_ns = self.lease(slot)
        return found != generation or 0 < deadline_ns <= now_ns or self.stop(slot) == (generation, STOP_KILL)

    def stop(self, slot: int) -> tuple[int, int]:
        """Return (generation, STOP_NONE | STOP_DRAIN | STOP_KILL)."""
        word = self.word(slot, STOP)
        return word >> GENERATION_SHIFT, word & _LOW

    def ceiling(self, slot: int) -> float:
        """Return the throttle, 0..1, that multiplies what is asked."""
        return _bits_float(self.word(slot, CEILING))

    def epoch(self, slot: int) -> int:
        """Return the orchestrator's epoch that opened the slot."""
        return self.word(slot, EPOCH)

    def gate(self, slot: int) -> int:
        """Return the generation whose load is registered and may go on, else 0."""
        return self.word(slot, GATE)

    def start_ns(self, slot: int) -> int:
        """Return when load begins, 0 while that is not decided."""
        return self.word(slot, START)

    def sharers(self, slot: int) -> int:
        """Return how many raylets share this machine."""
        return self.word(slot, SHARERS)


class ControlWriter(ControlPage):
    """The guardian's own, writable view. Nobody else may hold one."""

    @classmethod
    def create(cls) -> tuple[ControlWriter, int]:
        """Make the page; returns (writer, descriptor to hand out, which can only be mapped read-only)."""
        fd = os.memfd_create("stress-cluster-control", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, PAGE_BYTES)
        writer = cls(mmap.mmap(fd, PAGE_BYTES))
        _write_header(writer.as_words())
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return writer, fd

    def write(self, slot: int, word: int, value: int) -> None:
        """Store one word."""
        self._words[word_index(slot, word)] = value

    def beat(self, now_ns: int) -> None:
        """Give a sign of life."""
        self._words[HEAD_HEARTBEAT] = now_ns

    def write_halt(self, halt: Halt, kept: Halt) -> None:
        """Publish the halt that is in force, and what of it is on disk."""
        self._words[HEAD_HALT], self._words[HEAD_HALT_KEPT] = _pack_halt(halt), _pack_halt(kept)

    def write_lease(self, slot: int, generation: int, deadline_ns: int) -> None:
        """Set generation and deadline in one store."""
        self.write(slot, LEASE, pack_lease(generation, deadline_ns))

    def write_stop(self, slot: int, generation: int, code: int) -> None:
        """Set the stop word of a generation."""
        self.write(slot, STOP, generation << GENERATION_SHIFT | code)

    def write_ceiling(self, slot: int, ceiling: float) -> None:
        """Set the throttle, 0..1."""
        self.write(slot, CEILING, _float_bits(ceiling))

    def reset_slot(self, slot: int, generation: int, epoch: int, sharers: int) -> None:
        """Prepare a slot for a new generation: no lease, no stop, full ceiling, closed gate."""
        self.write_lease(slot, generation, 0)
        self.write_stop(slot, generation, STOP_NONE)
        self.write_ceiling(slot, 1.0)
        self.write(slot, EPOCH, epoch)
        self.write(slot, GATE, 0)
        self.write(slot, START, 0)
        self.write(slot, SHARERS, sharers)


@dataclass(frozen=True, slots=True)
class LoadStats:
    """What a load says of itself: `asked` and `own` in the operation's unit, times in boottime nanoseconds."""

    generation: int
    pid: int
    state: int
    heartbeat_ns: int
    first_slice_ns: int
    operations: int
    asked: float
    own: float
    cpu_ns: int


class StatsPage(_Page):
    """The page that loads write and the agent reads; a load touches its own slot only."""

    @classmethod
    def create(cls) -> tuple[StatsPage, int]:
        """Make the page; returns (page, descriptor to hand out)."""
        fd = os.memfd_create("stress-cluster-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, PAGE_BYTES)
        page = cls(mmap.mmap(fd, PAGE_BYTES))
        _write_header(page.as_words())
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return page, fd

    @classmethod
    def from_fd(cls, fd: int) -> StatsPage:
        """Map the page behind a descriptor; raises OSError or, for another kind or version, ValueError."""
        page = cls(mmap.mmap(fd, PAGE_BYTES))
        _check_header(page.as_words())
        return page

    def begin(self, slot: int, generation: int, pid: int = 0) -> None:
        """Claim the slot for a load of this generation: all figures zero, the generation last.

        `pid` is the load's own process, 0 where a worker of Ray's does its work: what that one uses is others'.
        """
        self.put(slot, GENERATION, 0)
        for word in range(1, SLOT_WORDS):
            self.put(slot, word, 0)
        self.put(slot, PID, pid)
        self.put(slot, GENERATION, generation)

    def put(self, slot: int, word: int, value: int) -> None:
        """Store an unsigned integer word, such as `STATE`, `BEAT`, `OPERATIONS`, `CPU`."""
        self._words[word_index(slot, word)] = value

    def put_float(self, slot: int, word: int, value: float) -> None:
        """Store a float word, `ASKED` or `OWN`."""
        self.put(slot, word, _float_bits(value))

    def read(self, slot: int) -> LoadStats:
        """Return the slot's figures; each word is whole, the set is not one instant."""
        get = self.word
        return LoadStats(
            generation=get(slot, GENERATION),
            pid=get(slot, PID),
            state=get(slot, STATE),
            heartbeat_ns=get(slot, BEAT),
            first_slice_ns=get(slot, FIRST_SLICE),
            operations=get(slot, OPERATIONS),
            asked=_bits_float(get(slot, ASKED)),
            own=_bits_float(get(slot, OWN)),
            cpu_ns=get(slot, CPU),
        )


def _write_header(words: memoryview) -> None:
    words[HEAD_MAGIC], words[HEAD_VERSION], words[HEAD_SLOTS] = MAGIC, VERSION, SLOTS
