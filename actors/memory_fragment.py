"""MemoryFragment: holds memory of which half is freed in holes that no larger request fits into.

Memory is populated as by MemoryPressure. Blocks are laid on each of its segments in an arena of its own; once what is asked is held,
every second block is freed. No hole is given back to the kernel, as by an allocator whose freed blocks lie between live ones: what is
resident stays while what is live halves. What is never done: freed memory held beyond the shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .arena import ALIGN_BYTES, Arena, fragmentation
from .clock import SECOND_NS
from .errors import InputError
from .heap import library_heap, process_heap
from .lease import LeaseWatch
from .memory import GRAIN_BYTES, SEGMENT_BYTES, MemoryHolder, StepMeters, supported
from .memory import METRICS as STEP_METRICS
from .messages import Capacity, Operation
from .release import LOOK_S
from .simulator import Option, SimulatorRecord

if TYPE_CHECKING:
    from .metrics.reporter import Reporter

BLOCK_MIN_BYTES: Final = 16 << 10
BLOCK_MAX_BYTES: Final = SEGMENT_BYTES // 4
SPLIT_MAX: Final = 0.999
TELL_S: Final = 0.5  # how often figures that did not change are recorded
METRICS: Final = (
    *STEP_METRICS,
    "memory.live",
    "memory.free",
    "memory.hole",
    "memory.fragmentation",
    "memory.overhead",
    "memory.allocated",
    "memory.freed",
    "memory.refused",
)


def block_bytes(asked: int, split: float, peak_bytes: float) -> int:
    """Return the size of blocks that splits the free half of `peak_bytes` to at least `split`: the asked one, halved as often as needed.

    With equal holes the fragmentation is 1 - 1 / holes. Raises `InputError` (`invalid_value`) for a peak too small for it.
    """
    size = asked // ALIGN_BYTES * ALIGN_BYTES
    while holes(size, int(peak_bytes) // GRAIN_BYTES * GRAIN_BYTES) * (1.0 - split) < 1.0 - 1e-9:
        size = size // 2 // ALIGN_BYTES * ALIGN_BYTES
        if size < BLOCK_MIN_BYTES:
            least = round(2 * BLOCK_MIN_BYTES / (1.0 - split))
            raise InputError("invalid_value", f"{peak_bytes:.0f} bytes cannot be split to {split:.1%}", f"about {least} bytes can")
    return size


def holes(block: int, held_bytes: int) -> int:
    """Return how many blocks are freed of what is held: every second one of each segment, but not a rest that is smaller."""
    whole, rest = divmod(held_bytes, SEGMENT_BYTES)
    return whole * (SEGMENT_BYTES // block // 2) + rest // block // 2


class Shards:
    """The arenas over what is held: one for each whole segment and one for the rest. Pure."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.allocated = self.freed = 0  # blocks, ever
        self._arenas: list[Arena] = []
        self._split = 0  # how many of them, from the first on, are split

    def lay(self, held_bytes: int) -> None:
        """Lay blocks on what is newly held, and forget those on what is held no longer."""
        sizes = [SEGMENT_BYTES] * (held_bytes // SEGMENT_BYTES)
        sizes += [held_bytes % SEGMENT_BYTES] if held_bytes % SEGMENT_BYTES else []
        same = 0
        while same < min(len(sizes), len(self._arenas)) and sizes[same] == self._arenas[same].size_bytes:
            same += 1
        self.freed += sum(len(arena.blocks) for arena in self._arenas[same:])
        del self._arenas[same:]
        self._split = min(self._split, same)
        self._arenas += [self._full(size) for size in sizes[same:]]

    def _full(self, size_bytes: int) -> Arena:
        """Return an arena without a free byte: its last block is what remains."""
        arena = Arena(size_bytes)
        while arena.free_bytes:
            arena.allocate(min(self.block, arena.free_bytes))
            self.allocated += 1
        return arena

    @property
    def is_split(self) -> bool:
        """Whether every second block is free everywhere."""
        return self._split == len(self._arenas)

    def split(self) -> None:
        """Free every second block where none is free yet; one that is smaller than the others stays."""
        for arena in self._arenas[self._split :]:
            for offset, size_bytes in list(arena.blocks.items())[1::2]:
                if size_bytes == self.block:
                    arena.free(offset)
                    self.freed += 1
        self._split = len(self._arenas)

    def can_place(self, size_bytes: int) -> bool:
        """Tell whether a request finds a hole; it is given back at once."""
        for arena in self._arenas:
            offset = arena.allocate(size_bytes)
            if offset is not None:
                arena.free(offset)
                return True
        return False

    @property
    def live_bytes(self) -> int:
        """Bytes in blocks."""
        return sum(arena.live_bytes for arena in self._arenas)

    @property
    def free_bytes(self) -> int:
        """Bytes in holes."""
        return sum(arena.free_bytes for arena in self._arenas)

    @property
    def largest_hole_bytes(self) -> int:
        """The most that one request can get."""
        return max((arena.largest_hole_bytes for arena in self._arenas), default=0)

    @property
    def fragmentation(self) -> float:
        """Which share of the free bytes one request cannot get."""
        return fragmentation(self.free_bytes, self.largest_hole_bytes)


class Teller:
    """The load's own figures: as they change, and twice a second."""

    def __init__(self, reporter: Reporter, shards: Shards, baseline_bytes: int) -> None:
        self._shards, self._baseline_bytes = shards, baseline_bytes
        self._gauges = {name: reporter.gauge(name).record for name in ("memory.live", "memory.free", "memory.hole", "memory.fragmentation")}
        self._counters = {name: reporter.counter(name).record for name in ("memory.allocated", "memory.freed", "memory.refused")}
        self._overhead = reporter.gauge
        self._told = {"memory.allocated": 0, "memory.freed": 0}

    def tell(self) -> None:
        """Record all figures, and try a request that only a larger hole could take."""
        shards = self._shards
        free, hole = shards.free_bytes, shards.largest_hole_bytes
        values = (shards.live_bytes, free, hole, shards.fragmentation)
        for record, value in zip(self._gauges.values(), values, strict=True):
            record(float(value))
        for figure in (process_heap(shards.live_bytes, self._baseline_bytes), library_heap()):
            self._overhead("memory.overhead", source=figure.source).record(figure.ratio)
        for name, total in (("memory.allocated", shards.allocated), ("memory.freed", shards.freed)):
            self._counters[name](float(total - self._told[name]))
            self._told[name] = total
        if hole < free:
            self._counters["memory.refused"](float(not shards.can_place(hole + 1)))


class MemoryFragment(MemoryHolder):
    """Holds as much as its shape asks, in blocks of which every second is free."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        """Make it. Raises `InputError` for options that do not fit together."""
        super().__init__(operation, capacity, watch, segment_path)
        options = RECORD.resolve_options(operation.options)
        peak_bytes = self._shape.peak(operation.duration_s)
        self._shards = Shards(block_bytes(int(options["block"]), float(options["fragmentation"]), peak_bytes))
        self._teller: Teller | None = None

    def _rehearse(self) -> None:
        trial = Shards(BLOCK_MIN_BYTES)
        trial.lay(GRAIN_BYTES)
        trial.split()

    def _begin(self, reporter: Reporter, baseline_bytes: int) -> None:
        self._teller = Teller(reporter, self._shards, baseline_bytes)

    def _follow(self, start_ns: int, meters: StepMeters) -> None:
        assert self._teller is not None, "warm_up comes before run"
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        clock, shards, steps, told_ns = self._watch.clock, self._shards, 0, start_ns
        self._watch.first_slice()
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            before = self._reservoir.held_bytes
            reached = self._reservoir.step_towards(asked)
            meters.record(self._reservoir.held_bytes - before, (clock.boot_ns() - now_ns) / SECOND_NS)
            shards.lay(self._reservoir.held_bytes)
            steps += 1
            self._publish(asked, steps)
            if not reached:
                continue
            if not shards.is_split:
                self._teller.tell()  # all that is held is live still
                shards.split()
                told_ns = 0
            if now_ns - told_ns >= TELL_S * SECOND_NS:
                self._teller.tell()
                told_ns = now_ns
            clock.sleep(min(LOOK_S, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))


RECORD: Final = SimulatorRecord(
    name="MemoryFragment",
    family="memory",
    summary="Holds memory of which half is free in holes that are too small for a larger request.",
    units=("fraction", "bytes"),
    resource="memory_bytes",
    meter="anonymous_bytes",
    measure="anonymous resident bytes of the load process less their value before the ramp",
    tolerance=0.02,
    look_ms=50,
    options=(
        Option("fragmentation", "fraction", 0.9, "share of the free bytes that no single request can get, at the peak", high=SPLIT_MAX),
        Option(
            "block",
            "bytes",
            64 << 10,
            "size of blocks and holes; smaller where the fragmentation asks for it",
            low=BLOCK_MIN_BYTES,
            high=BLOCK_MAX_BYTES,
        ),
    ),
    metrics=METRICS,
    supported=supported,
    entry="memory_fragment:MemoryFragment",
)
