"""MemoryPressure: holds touched anonymous memory, up and down with its shape, at almost no CPU.

Whole segments of 16 MiB are mapped, populated in huge pages and unmapped one at a time, with a look at the lease between; the last one
is populated only in its first part, in steps of 64 KiB and without huge pages, so that no more is held than asked.
What is never done: memory shared with other processes, which would outlive a kill or count elsewhere.
"""

from __future__ import annotations

import errno
import functools
import mmap
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from . import procfs
from .clock import SECOND_NS, process_cpu_ns
from .exhaustion.refusal import RETRY_S, Refusals
from .heap import STATUS
from .lease import NOTE_NO_POPULATE, NOTE_NO_RECORDING, LeaseWatch
from .limits import Container, find_container
from .messages import Capacity, Operation
from .meters import open_reporter
from .release import LOOK_S, RELEASE_OPTIONS, Release, wait_until
from .simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute

if TYPE_CHECKING:
    from .capability import NodeFacts
    from .metrics.reporter import Reporter

MIB: Final = 1 << 20
SEGMENT_BYTES: Final = 16 * MIB
GRAIN_BYTES: Final = 64 << 10
HUGE_BYTES: Final = 2 * MIB  # a huge page of x86-64, and of arm64 with pages of 4 KiB
MADV_POPULATE_WRITE: Final = 23  # linux/mman.h, since 5.14; not in Python's mmap module
METRICS: Final = ("memory.populated", "memory.released", "memory.step")
_PAGE_BYTES: Final = mmap.PAGESIZE


class Segment:
    """One private anonymous mapping, populated from its start up to `used_bytes`; a `whole` one is populated at once, in huge pages."""

    def __init__(self, size_bytes: int, *, whole: bool) -> None:
        """Map it. Raises `OSError` (ENOMEM)."""
        self._map, self._offset = _map_aligned(size_bytes) if whole else (_map(size_bytes), 0)
        self._is_huge = whole
        self.used_bytes = 0
        self.populates = True
        self._advise("MADV_HUGEPAGE" if whole else "MADV_NOHUGEPAGE")

    def resize(self, used_bytes: int) -> None:
        """Populate or give back memory so that the first `used_bytes` are held; raises `OSError` (ENOMEM)."""
        if used_bytes > self.used_bytes:
            self._populate(self.used_bytes, used_bytes - self.used_bytes)
        elif used_bytes < self.used_bytes:
            self._give_back(used_bytes, self.used_bytes - used_bytes)
        self.used_bytes = used_bytes

    def _populate(self, start: int, length: int) -> None:
        try:
            self._map.madvise(MADV_POPULATE_WRITE, self._offset + start, length)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.populates = False  # an older kernel: touch one byte in each page
        if self._is_huge or not self.populates:
            self._touch(start, length)

    def _touch(self, start: int, length: int) -> None:
        """Write a byte to each page: of a huge page that it splits, the kernel takes back those that are zero (split_folio, Linux 6.12)."""
        with memoryview(self._map) as view:
            view[self._offset + start : self._offset + start + length : _PAGE_BYTES] = b"\x01" * -(-length // _PAGE_BYTES)

    def _give_back(self, start: int, length: int) -> None:
        """Give back a part. A huge page that is unmapped in part stays taken whole, unseen in any count: MADV_FREE splits it first."""
        if self._is_huge:
            self._advise("MADV_NOHUGEPAGE")  # khugepaged would fill what is given back
            self._advise("MADV_FREE", start, min(length, HUGE_BYTES))
        self._map.madvise(mmap.MADV_DONTNEED, self._offset + start, length)

    def _advise(self, name: str, start: int = 0, length: int = SEGMENT_BYTES) -> None:
        advice = getattr(mmap, name, None)
        try:
            if advice is not None:
                self._map.madvise(advice, self._offset + start, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: this kernel has no huge pages at all
                raise

    def close(self) -> None:
        """Unmap it."""
        self._map.close()


def _map(size_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _map_aligned(size_bytes: int) -> tuple[mmap.mmap, int]:
    """Return a mapping and where in it a multiple of 2 MiB begins; kernels before 6.7 do not place large mappings so by themselves."""
    made = _map(size_bytes)
    if _address(made) % HUGE_BYTES == 0:
        return made, 0
    made.close()
    made = _map(size_bytes + HUGE_BYTES)
    return made, -_address(made) % HUGE_BYTES


def _address(mapping: mmap.mmap) -> int:
    import ctypes  # noqa: PLC0415  # needed in the load process alone

    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class Reservoir:
    """The segments held. `step_towards` moves by at most one segment, so that the caller can look at its lease between."""

    def __init__(self) -> None:
        self._full: list[Segment] = []
        self._tail: Segment | None = None

    @property
    def held_bytes(self) -> int:
        """How many bytes are populated."""
        return len(self._full) * SEGMENT_BYTES + (self._tail.used_bytes if self._tail else 0)

    @property
    def populates(self) -> bool:
        """Whether the kernel populated what is held in one call each."""
        return all(segment.populates for segment in (*self._full, *([self._tail] if self._tail else [])))

    def step_towards(self, target_bytes: float) -> bool:
        """Move one step towards the target, rounded down to 64 KiB; return whether it is reached. Raises `OSError`."""
        target = int(target_bytes) // GRAIN_BYTES * GRAIN_BYTES
        missing = target - self.held_bytes
        if missing >= SEGMENT_BYTES and not self._tail:
            self._add_whole()
        elif missing > 0:
            self._grow_tail(missing)
        elif missing < 0:
            self._shrink(-missing)
        return self.held_bytes == target

    def _add_whole(self) -> None:
        segment = Segment(SEGMENT_BYTES, whole=True)
        segment.resize(SEGMENT_BYTES)
        self._full.append(segment)

    def _grow_tail(self, missing: int) -> None:
        self._tail = self._tail or Segment(SEGMENT_BYTES, whole=False)
        self._tail.resize(min(SEGMENT_BYTES, self._tail.used_bytes + missing))
        if self._tail.used_bytes == SEGMENT_BYTES:
            self._full.append(self._tail)
            self._tail = None

    def _shrink(self, surplus: int) -> None:
        if self._tail is None:
            self._tail = self._full.pop()
        if surplus < self._tail.used_bytes:
            self._tail.resize(self._tail.used_bytes - surplus)
            return
        self._tail.close()
        self._tail = None

    def release(self) -> None:
        """Give everything back."""
        for segment in (*self._full, *([self._tail] if self._tail else [])):
            segment.close()
        self._full, self._tail = [], None


def available_bytes() -> int:
    """Return what may still be used without swapping here, under the limits of this process's control groups."""
    from .host import memory_available_bytes  # noqa: PLC0415  # loaded where a reserve is asked for alone

    return memory_available_bytes(_container())


@functools.cache
def _container() -> Container:
    return find_container()


def own_anonymous_bytes() -> int:
    """Return this process's anonymous resident bytes."""
    return procfs.size_bytes(STATUS.read_text(encoding="ascii", errors="replace"), "RssAnon") or 0


class StepMeters:
    """What a load records of its steps: bytes up, bytes down, and how long each took. Call `record` at least every 100 ms."""

    def __init__(self, reporter: Reporter) -> None:
        self._populated = reporter.counter("memory.populated").record
        self._released = reporter.counter("memory.released").record
        self._step = reporter.histogram("memory.step").record
        self._tick, self.close = reporter.tick, reporter.close
        self._reporter = reporter
        for first in (self._populated, self._released):
            first(0.0)  # what recording takes of memory it takes now, before the ramp
        self._tick()

    def record(self, gained_bytes: int, took_s: float) -> None:
        """Record one step; one that moved nothing was only a look."""
        if gained_bytes:
            (self._populated if gained_bytes > 0 else self._released)(float(abs(gained_bytes)))
            self._step(took_s)
        self._tick()

    def refused(self) -> None:
        """Record that the kernel has no more memory for this process."""
        self._reporter.counter("load.refused", errno="ENOMEM").record(1.0)


class MemoryHolder(ABC):
    """What loads share that populate memory along their shape. Runs in a load process: `warm_up`, then `run`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        self._operation, self._watch, self._segment_path = operation, watch, segment_path
        self._shape = absolute(operation, capacity)
        self._unit_bytes = float(capacity.memory_bytes) if operation.unit == "fraction" else 1.0
        self._reservoir = Reservoir()
        self._steps: StepMeters | None = None

    def warm_up(self) -> None:
        """Take the code path once with one grain, so that the ramp brings nothing but its own pages; recording has its memory by then."""
        reporter, is_kept = open_reporter(self._segment_path, self._operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        self._steps = StepMeters(reporter)
        Segment(SEGMENT_BYTES, whole=True).close()
        self._reservoir.step_towards(GRAIN_BYTES)
        self._shape.value(0.0)  # of somebody else's package, it is imported now
        if not self._reservoir.populates:
            self._watch.note(NOTE_NO_POPULATE)
        self._rehearse()
        self._reservoir.release()
        baseline_bytes = own_anonymous_bytes()
        self._watch.baseline(baseline_bytes)
        self._begin(reporter, baseline_bytes)
        self.idle()

    def _rehearse(self) -> None:  # noqa: B027  # not every load has more
        """Take what else there is of the code path."""

    def _begin(self, reporter: Reporter, baseline_bytes: int) -> None:  # noqa: B027  # nor needs it
        """Get ready to record, above the bytes that are there before the ramp."""

    @abstractmethod
    def _follow(self, start_ns: int, meters: StepMeters) -> None:
        """Follow the shape until the operation's end or a stop."""

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def run(self, start_ns: int) -> None:
        """Follow the shape until the operation's end or a stop, then release; leaves the process when the lease ends."""
        assert self._steps is not None, "warm_up comes before run"
        try:
            self._follow(start_ns, self._steps)
        finally:  # also of a load that fails nothing is lost
            self._steps.close()
        self._reservoir.release()

    def _publish(self, asked_bytes: float, steps: int) -> None:
        unit = self._unit_bytes
        self._watch.report(asked=asked_bytes / unit, own=self._reservoir.held_bytes / unit, cpu_ns=process_cpu_ns(), operations=steps)


class MemoryPressure(MemoryHolder):
    """Holds as much as its shape asks, and gives it back at once or in steps."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        super().__init__(operation, capacity, watch, segment_path)
        options = RECORD.resolve_options(operation.options)
        self._reserve_bytes, self._release = int(options["reserve"]), Release.of(options)
        self._moves = 0
        self._refusals = Refusals()
        self._most, self._again_ns = 0, 0  # no more than this until then, where the kernel refused
        self._available = available_bytes if self._reserve_bytes else None

    def _rehearse(self) -> None:
        self._within_reserve(0.0, 0)

    def _follow(self, start_ns: int, meters: StepMeters) -> None:
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        clock = self._watch.clock
        self._watch.first_slice()
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            target = self._within_reserve(asked, self._reservoir.held_bytes)
            if self._try(target if now_ns >= self._again_ns else min(target, self._most), asked, meters):
                clock.sleep(min(LOOK_S, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))
        self._give_back(meters)

    def _try(self, target_bytes: float, asked_bytes: float, meters: StepMeters) -> bool:
        """Take one step towards a target; what the kernel refuses is told and asked for later. True when there is no more to do now."""
        try:
            is_there = self._move(target_bytes, asked_bytes, meters)
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            self._refuse(asked_bytes, meters)
            return True
        if self._refusals.meet(self._reservoir.held_bytes):
            self._watch.shortfall(0, 0, 0)
        return is_there

    def _refuse(self, asked_bytes: float, meters: StepMeters) -> None:
        """Hold what there is, and ask for more in `RETRY_S`."""
        now_ns, self._most = self._watch.clock.boot_ns(), self._reservoir.held_bytes
        self._again_ns = now_ns + round(RETRY_S * SECOND_NS)
        if self._refusals.refuse("ENOMEM", int(asked_bytes) // GRAIN_BYTES * GRAIN_BYTES, now_ns):
            meters.refused()
            self._watch.shortfall(errno.ENOMEM, self._refusals.short_of, self._most)
        self._publish(asked_bytes, self._moves)

    def _move(self, target_bytes: float, asked_bytes: float, meters: StepMeters) -> bool:
        """Take one step, and give a sign of life: on a starved machine a few steps take a second. True once the target is reached."""
        now_ns, before = self._watch.clock.boot_ns(), self._reservoir.held_bytes
        reached = self._reservoir.step_towards(target_bytes)
        meters.record(self._reservoir.held_bytes - before, (self._watch.clock.boot_ns() - now_ns) / SECOND_NS)
        self._moves += 1
        self._publish(asked_bytes, self._moves)
        return reached

    def _give_back(self, meters: StepMeters) -> None:
        """Give back in the steps that are asked for; a stop leaves the rest to be given back at once."""

        def lower_to(level: int) -> bool:
            while not self._move(level, level, meters):
                if not self._watch.may_go_on():
                    return False
            return True

        def wait(at_ns: int) -> bool:
            held = self._reservoir.held_bytes
            return wait_until(self._watch, at_ns, lambda: self._move(held, held, meters))

        self._release.follow(self._reservoir.held_bytes, self._watch.clock.boot_ns(), wait, lower_to)

    def _within_reserve(self, asked_bytes: float, held_bytes: int) -> float:
        """Return what may be held of what is asked, so that the reserve stays available to others; what others take, this gives back."""
        if self._available is None:
            return asked_bytes
        return min(asked_bytes, max(0.0, float(held_bytes + self._available() - self._reserve_bytes)))


def supported(facts: NodeFacts) -> Capability:
    """Return whether a node can hold memory as asked: populated in one call, and never swapped out."""
    if not facts.populates_memory:
        return Capability(
            "fallback",
            "the kernel has no MADV_POPULATE_WRITE: pages are touched one by one, the ramp takes more CPU",
            "Linux 5.14 or newer",
        )
    if facts.swap_bytes > 0:
        return Capability("fallback", "this host has swap: memory that was swapped out no longer counts as held", "swapoff -a")
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="MemoryPressure",
    family="memory",
    summary="Holds touched anonymous memory and follows its shape up and down.",
    units=("fraction", "bytes"),
    resource="memory_bytes",
    meter="anonymous_bytes",
    measure="anonymous resident bytes of the load process less their value before the ramp",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("reserve", "bytes", 0, "what stays available on the node whatever is asked: less is held where others need it"),
        *RELEASE_OPTIONS,
    ),
    metrics=(*METRICS, "load.refused"),
    supported=supported,
    entry="memory:MemoryPressure",
)
