"""MemoryAccess: reads a working set in an order, on a share of the node's cores.

The working set is mapped and written once in `warm_up`; from the start on each thread reads it in slices of about a millisecond, paced
by the same closed loop on CPU time as CpuLoad. The order follows from the option `seed` alone, so it is the same on every node. What is
never done: writes to the working set under load, and a clock read between two accesses.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from . import kernels
from .clock import SECOND_NS, process_cpu_ns, thread_cpu_ns
from .errors import InputError
from .kernels.orders import CHASE, FILL, LINK, PATTERNS
from .lease import NOTE_NO_RECORDING, LeaseWatch
from .messages import Amounts, Capacity, Operation
from .meters import LoadMeters, open_reporter
from .pacing import REPORT_S, Pacer, next_rounds, paced, thread_count
from .simulator import Option, SimulatorRecord, absolute

if TYPE_CHECKING:
    from .metrics.reporter import Recordable, Reporter

WORD: Final = 8
LINE: Final = 64
HASHED: Final = 4096  # accesses
TELL_S: Final = 0.5
METRICS: Final = ("load.slice", "load.operations", "memory.access", "memory.bandwidth", "memory.sequence")
_START_ROUNDS: Final = 20_000
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Walk:
    """What is read in which order: `words` of 8 bytes, a stride in words, and a seed that every choice follows from."""

    pattern: str
    words: int
    stride: int
    seed: int

    @property
    def code(self) -> int:
        """Return the kernel's number of the pattern."""
        return PATTERNS[self.pattern]

    def start(self, index: int, threads: int) -> int:
        """Return the state that thread `index` begins with: an even part of the way for an order, a number above 0 for chance."""
        if self.pattern in ("random", "hot_spot"):
            mixed = hashlib.sha256(f"{self.seed}/{index}".encode()).digest()
            return int.from_bytes(mixed[:8], "little") | 1
        lines = self.words * WORD // LINE
        return lines * index // threads * (LINE // WORD)


def walk_of(pattern: str, working_set: int, stride: int, seed: int, memory_bytes: int) -> Walk:
    """Return the walk that options describe. Raises `InputError` (`invalid_value`) for sizes that do not fit.

    The working set is rounded down to whole lines; it may take half of the node's memory at most.
    """
    most = memory_bytes // 2
    if not 2 * LINE <= working_set <= most:
        raise InputError("invalid_value", f"option 'working_set' must be {2 * LINE} to {most} bytes here, got {working_set}")
    if stride < WORD or stride % WORD or stride > working_set:
        raise InputError("invalid_value", f"option 'stride' must be a multiple of {WORD} up to the working set, got {stride}")
    return Walk(pattern, working_set // LINE * LINE // WORD, stride // WORD, seed)


class Area:
    """A private mapping that holds the words of a walk and one more. `read` goes through the compiled kernel."""

    def __init__(self, plan: Walk, kernel: Callable[..., int]) -> None:
        """Map it, write every word, and link the lines for a chase. Raises `OSError` (ENOMEM)."""
        self._map = mmap.mmap(-1, (plan.words + 1) * WORD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = (ctypes.c_uint64 * (plan.words + 1)).from_buffer(self._map)
        self._address = ctypes.addressof(self._words)
        self._plan, self._kernel = plan, kernel
        self._call(0, 0, FILL)
        if plan.code == CHASE:
            self._call(0, Walk("random", plan.words, 1, plan.seed).start(0, 1), LINK)

    def _call(self, rounds: int, state: int, code: int) -> int:
        return self._kernel(self._address, self._plan.words, rounds, state & _MASK, code, self._plan.stride)

    def read(self, rounds: int, state: int) -> int:
        """Read so many words from a state on; return the state after."""
        return self._call(rounds, state, self._plan.code)

    def sequence(self, count: int, state: int) -> list[int]:
        """Return the next `count` words that are read: each is its own index, or that of the next line in a chase."""
        found = []
        for _ in range(count):
            state = self.read(1, state)
            found.append(int(self._words[self._plan.words]))
        return found

    def close(self) -> None:
        """Unmap it."""
        del self._words
        self._map.close()


def hash_of(indexes: list[int]) -> int:
    """Return 48 bits of SHA-256 over a sequence of indexes: a number that a float holds exactly."""
    text = ",".join(map(str, indexes)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")


@dataclass(slots=True)
class _Walker:
    """What one thread tells the others; each figure has one writer."""

    state: int
    accesses: int = 0
    trouble: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)


class Figures:
    """The series of one load; `tick` at least every 100 ms."""

    def __init__(self, reporter: Reporter, pattern: str) -> None:
        self.meters = LoadMeters(reporter)
        self.access: Recordable = reporter.histogram("memory.access", pattern=pattern)
        self.bandwidth: Recordable = reporter.gauge("memory.bandwidth", pattern=pattern)
        self.sequence: Recordable = reporter.gauge("memory.sequence", pattern=pattern)


class MemoryAccess:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        """Make it. Raises `InputError` for options that do not fit the node."""
        options = RECORD.resolve_options(operation.options)
        self._operation, self._capacity, self._watch, self._segment_path = operation, capacity, watch, segment_path
        self._shape = absolute(operation, capacity)
        sizes = (int(options["working_set"]), int(options["stride"]), int(options["seed"]))
        self.walk = walk_of(str(options["pattern"]), *sizes, capacity.memory_bytes)
        self._threads = thread_count(options["cores"], capacity.cpu_cores, self._shape.peak(operation.duration_s), operation.id)
        self._walkers = [_Walker(self.walk.start(index, self._threads)) for index in range(self._threads)]
        self._rounds = _START_ROUNDS
        self._area: Area | None = None
        self._figures: Figures | None = None
        self._hash = 0

    def warm_up(self) -> None:
        """Load the kernel, write the working set, hash the order, and find how many accesses a slice takes."""
        reporter, is_kept = open_reporter(self._segment_path, self._operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        self._figures = Figures(reporter, self.walk.pattern)
        self._area = Area(self.walk, kernels.load_function("walk"))
        first = self.walk.start(0, self._threads)
        self._hash = hash_of(self._area.sequence(HASHED, first))
        for _ in range(12):
            before_ns = thread_cpu_ns()
            first = self._area.read(self._rounds, first)
            self._rounds = next_rounds(self._rounds, (thread_cpu_ns() - before_ns) / SECOND_NS)
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def asked_cores(self, elapsed_s: float) -> float:
        """Return what the shape asks of this node now, after the ceiling, in cores."""
        return self._shape.value(elapsed_s) * self._watch.ceiling()

    def run(self, start_ns: int) -> None:
        """Read until the operation's end or a stop; leaves the process when the lease ends."""
        assert self._area is not None, "warm_up comes before run"
        assert self._figures is not None, "warm_up comes before run"
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        for index, walker in enumerate(self._walkers):
            arguments = (walker, self._area, self._figures, start_ns, end_ns)
            walker.thread = threading.Thread(target=self._attend, args=arguments, name=f"walk-{index}", daemon=True)
            walker.thread.start()
        try:
            self._follow(self._figures, start_ns, end_ns)
            for walker in self._walkers:
                assert walker.thread is not None
                walker.thread.join()
                if walker.trouble is not None:
                    raise walker.trouble
        finally:  # also of a load that fails nothing is lost
            self._figures.meters.close()
        self._area.close()

    def _follow(self, figures: Figures, start_ns: int, end_ns: int) -> None:
        """Publish figures while the threads work."""
        clock, told_ns, told_accesses, told_cpu_ns = self._watch.clock, start_ns, 0, process_cpu_ns()
        own_cores = 0.0
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on() and all(w.trouble is None for w in self._walkers):
            accesses, cpu_ns = sum(walker.accesses for walker in self._walkers), process_cpu_ns()
            if now_ns - told_ns >= TELL_S * SECOND_NS:
                seconds = (now_ns - told_ns) / SECOND_NS
                own_cores = (cpu_ns - told_cpu_ns) / SECOND_NS / seconds
                figures.bandwidth.record((accesses - told_accesses) * WORD / seconds)
                figures.sequence.record(float(self._hash))
                told_ns, told_accesses, told_cpu_ns = now_ns, accesses, cpu_ns
            figures.meters.tick()
            cores, asked = self._capacity.cpu_cores, self.asked_cores((now_ns - start_ns) / SECOND_NS)
            self._watch.report(asked=asked / cores, own=own_cores / cores, cpu_ns=cpu_ns, operations=accesses)
            clock.sleep(min(REPORT_S, max(0.0, (end_ns - now_ns) / SECOND_NS)))

    def _attend(self, walker: _Walker, area: Area, figures: Figures, start_ns: int, end_ns: int) -> None:
        try:
            self._pace(walker, area, figures, start_ns, end_ns)
        except BaseException as trouble:  # told by run(), which the main thread is in
            walker.trouble = trouble

    def _pace(self, walker: _Walker, area: Area, figures: Figures, start_ns: int, end_ns: int) -> None:
        """Read as much as asked on one core; looks at the lease before each slice and each rest."""
        watch, clock, pacer, rounds = self._watch, self._watch.clock, Pacer(), self._rounds
        last_ns, last_cpu_ns = start_ns, thread_cpu_ns()
        if watch.may_go_on():
            watch.first_slice()
        while watch.may_go_on() and last_ns < end_ns:
            now_ns, cpu_ns = clock.boot_ns(), thread_cpu_ns()
            share = min(1.0, self.asked_cores((last_ns + now_ns - 2 * start_ns) / 2 / SECOND_NS) / self._threads)
            pacer.settle(share, (now_ns - last_ns) / SECOND_NS, (cpu_ns - last_cpu_ns) / SECOND_NS)
            last_ns, last_cpu_ns = now_ns, cpu_ns
            pause_s = pacer.pause_s(share)
            if pause_s > 0.0:
                clock.sleep(pause_s)
                continue
            walker.state = area.read(rounds, walker.state)
            walker.accesses += rounds
            used_s = (thread_cpu_ns() - cpu_ns) / SECOND_NS
            figures.access.record(used_s / rounds)
            figures.meters.record_slice((clock.boot_ns() - now_ns) / SECOND_NS, rounds)
            rounds = next_rounds(rounds, used_s)


def _reserves(peak_cores: float, operation: Operation, capacity: Capacity) -> Amounts:  # noqa: ARG001  # as every record's
    """Return cores, and the working set that is held beside them."""
    options = RECORD.resolve_options(operation.options)
    return Amounts(cpu_cores=peak_cores, memory_bytes=int(options["working_set"]))


RECORD: Final = SimulatorRecord(
    name="MemoryAccess",
    family="memory",
    summary="Reads a working set in an order, in sequence or at random, on a fraction of the node's cores.",
    units=("fraction",),
    resource="cpu_cores",
    meter="cpu_seconds",
    measure="CPU seconds of the load process per second, of the node's cores",
    tolerance=0.05,
    look_ms=5,
    options=(
        Option(
            "pattern",
            "choice",
            "random",
            "order of reads; pointer_chase: each address comes from the read before; hot_spot: 90 % of them in a tenth",
            tuple(PATTERNS),
        ),
        Option(
            "working_set",
            "bytes",
            64 << 20,
            "what is read, at most half of the node's memory, held from the start on",
            low=2 * LINE,
        ),
        Option("stride", "bytes", 64, "distance of two reads of the strided pattern, a multiple of 8", low=WORD),
        Option("seed", "integer", 1, "what chance follows from; the order is the same on all nodes"),
        Option("cores", "cores", "all", "how many threads share the load: one for each core, or a number"),
    ),
    metrics=METRICS,
    reserves=_reserves,
    supported=paced,
    entry="memory_access:MemoryAccess",
)
