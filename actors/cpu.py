"""CpuLoad: keeps a share of the node's cores busy, as a closed loop on measured CPU time.

One thread a core, each with its own loop: it owes asked share * elapsed seconds of CPU, runs slices of about a millisecond
while it owes some, and sleeps at most 5 ms at a time else. What the machine had no room for is owed for 200 ms and then
dropped, so that a starved load does not burst later. Compiled kernels are loaded in `warm_up` only.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from . import control, kernels
from .clock import SECOND_NS, process_cpu_ns, thread_cpu_ns
from .errors import InputError
from .host import BusyMeter
from .lease import NOTE_NO_RECORDING, LeaseWatch
from .messages import Capacity, Operation
from .meters import LoadMeters, open_meters
from .option import Value
from .simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute

if TYPE_CHECKING:
    from .capability import NodeFacts

SLICE_S: Final = 0.001
LOOK_S: Final = 0.005
SPREAD_S: Final = 0.010  # a partly busy core works and rests within about this long
FORGET_S: Final = 0.2
REPORT_S: Final = 0.02
SAMPLE_S: Final = 0.1
OTHERS_WINDOW_S: Final = 0.6
_START_ROUNDS: Final = 20_000


@dataclass(slots=True)
class Pacer:
    """Decides when one thread runs: a debt of CPU seconds that grows by what is asked and falls by what was used. Pure."""

    debt_s: float = 0.0

    def settle(self, asked_cores: float, elapsed_s: float, used_s: float) -> None:
        """Account for an interval; at most what was asked in the last `FORGET_S` stays owed, or overdrawn."""
        most = FORGET_S * asked_cores
        self.debt_s = max(-FORGET_S, min(most, self.debt_s + asked_cores * elapsed_s - used_s))

    def pause_s(self, asked_cores: float) -> float:
        """Return how long to rest, 0 while CPU time is owed; never more than `LOOK_S`.

        A rest ends when the debt is asked * (1 - asked) * SPREAD_S: work and rest then take SPREAD_S together.
        """
        if self.debt_s > 0.0:
            return 0.0
        if asked_cores < 1e-6:  # less than a slice in a thousand seconds
            return LOOK_S
        wanted = asked_cores * (1.0 - min(asked_cores, 1.0)) * SPREAD_S
        return min(LOOK_S, (wanted - self.debt_s) / asked_cores + 1e-6)


def next_rounds(rounds: int, used_s: float) -> int:
    """Return how many rounds take about `SLICE_S`, from how long the last slice took; at most doubled or divided by eight."""
    if used_s <= 0.0:
        return rounds * 2
    factor = min(2.0, max(0.125, SLICE_S / used_s))
    return max(100, round(rounds * factor))


class OthersMeter:
    """How many cores others use on this machine: busy cores less the CPU time of all loads of ours, of whatever slot.

    Over the last `OTHERS_WINDOW_S`, so that ticks of the clock and late reports of other loads do not count.
    """

    def __init__(self, watch: LeaseWatch, busy: BusyMeter | None = None) -> None:
        self._watch = watch
        self._busy = busy or BusyMeter(clock=watch.clock)
        self._slots: dict[tuple[int, int], int] = {}
        self._ours_s = 0.0
        self._samples: deque[tuple[int, float]] = deque(maxlen=256)

    def _account(self) -> float:
        """Return CPU seconds of our loads so far; one counts from when it was first seen, one that ended adds no more."""
        stats = self._watch.stats
        stats.put(self._watch.slot, control.CPU, process_cpu_ns())
        found = ((slot, stats.word(slot, control.GENERATION)) for slot in range(control.SLOTS))
        seen = {(slot, generation): stats.word(slot, control.CPU) for slot, generation in found if generation}
        self._ours_s += sum(max(0, cpu_ns - self._slots[key]) for key, cpu_ns in seen.items() if key in self._slots) / SECOND_NS
        self._slots = seen
        return self._ours_s

    def sample(self) -> float:
        """Return the cores that others use, at least 0; 0 before two samples were taken."""
        now_ns, busy_s = self._busy.read()
        self._samples.append((now_ns, busy_s - self._account()))
        while len(self._samples) > 2 and self._samples[1][0] <= now_ns - OTHERS_WINDOW_S * SECOND_NS:
            self._samples.popleft()
        (then_ns, then_s), (last_ns, last_s) = self._samples[0], self._samples[-1]
        return max(0.0, (last_s - then_s) * SECOND_NS / (last_ns - then_ns)) if last_ns > then_ns else 0.0


@dataclass(slots=True)
class _Worker:
    """What one thread tells the others; each figure has one writer."""

    operations: int = 0
    trouble: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)


class CpuLoad:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        options = RECORD.resolve_options(operation.options)
        self._operation = operation
        self._capacity = capacity
        self._watch = watch
        self._shape = absolute(operation, capacity)
        self._kernel_name = str(options["kernel"])
        self._threads = thread_count(options["cores"], capacity.cpu_cores, self._shape.peak(operation.duration_s), operation.id)
        self._host_total = options["mode"] == "host_total"
        self._others = OthersMeter(watch) if self._host_total else None
        self._others_cores = 0.0
        self._kernel: kernels.Kernel | None = None
        self._rounds = _START_ROUNDS
        self._workers: list[_Worker] = []
        self._segment_path = segment_path
        self._meters: LoadMeters | None = None

    def warm_up(self) -> None:
        """Load the kernel and find how many rounds a slice takes; see what others use before the start."""
        self._kernel = kernels.load_kernel(self._kernel_name)
        self._meters = open_meters(self._segment_path, self._operation.seed)
        if self._segment_path and not self._meters.is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        for _ in range(12):
            before_ns = thread_cpu_ns()
            self._kernel(self._rounds, 1)
            self._rounds = next_rounds(self._rounds, (thread_cpu_ns() - before_ns) / SECOND_NS)
        self.idle()

    def idle(self) -> None:
        """Publish CPU time and sample others; called about ten times a second until the start."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)
        if self._others is not None:
            self._others_cores = self._others.sample() / self._capacity.sharers

    def asked_cores(self, elapsed_s: float) -> float:
        """Return what the shape asks of this node now, after the ceiling, in cores."""
        return self._shape.value(elapsed_s) * self._watch.ceiling()

    def _share(self, elapsed_s: float) -> float:
        """Return what one thread owes per second: the asked cores, less others' in host-total mode, spread evenly."""
        return min(1.0, max(0.0, self.asked_cores(elapsed_s) - self._others_cores) / self._threads)

    def run(self, start_ns: int) -> None:
        """Load until the operation's end or a stop; leaves the process when the lease ends."""
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        self._workers = [_Worker() for _ in range(self._threads)]
        for index, worker in enumerate(self._workers):
            worker.thread = threading.Thread(target=self._work, args=(worker, index, start_ns, end_ns), name=f"cpu-{index}", daemon=True)
            worker.thread.start()
        assert self._meters is not None, "warm_up comes before run"
        try:
            self._follow(start_ns, end_ns, self._meters.tick)
            for worker in self._workers:
                assert worker.thread is not None
                worker.thread.join()
                if worker.trouble is not None:
                    raise worker.trouble
        finally:  # also of a load that fails nothing is lost
            self._meters.close()

    def _follow(self, start_ns: int, end_ns: int, tick: Callable[[], None]) -> None:
        """Publish figures while the threads work; sample others in host-total mode."""
        clock, sampled_ns = self._watch.clock, start_ns
        before_ns, before_cpu_ns, own_cores = start_ns, process_cpu_ns(), 0.0
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on() and all(w.trouble is None for w in self._workers):
            cpu_ns = process_cpu_ns()
            if now_ns - sampled_ns >= SAMPLE_S * SECOND_NS:
                own_cores = (cpu_ns - before_cpu_ns) / (now_ns - before_ns)
                before_ns, before_cpu_ns, sampled_ns = now_ns, cpu_ns, now_ns
                if self._others is not None:
                    self._others_cores = self._others.sample() / self._capacity.sharers
                tick()
            self._publish((now_ns - start_ns) / SECOND_NS, own_cores, cpu_ns)
            clock.sleep(min(REPORT_S, max(0.0, (end_ns - now_ns) / SECOND_NS)))

    def _publish(self, elapsed_s: float, own_cores: float, cpu_ns: int) -> None:
        cores = self._capacity.cpu_cores
        self._watch.report(
            asked=self.asked_cores(elapsed_s) / cores,
            own=own_cores / cores,
            cpu_ns=cpu_ns,
            operations=sum(worker.operations for worker in self._workers),
        )

    def _work(self, worker: _Worker, index: int, start_ns: int, end_ns: int) -> None:
        try:
            self._pace(worker, index, start_ns, end_ns)
        except BaseException as trouble:  # told by run(), which the main thread is in
            worker.trouble = trouble

    def _pace(self, worker: _Worker, index: int, start_ns: int, end_ns: int) -> None:
        """Keep one core as busy as asked; looks at the lease before each slice and each rest."""
        kernel, meters, watch, clock, pacer = self._kernel, self._meters, self._watch, self._watch.clock, Pacer()
        assert kernel is not None, "warm_up comes before run"
        assert meters is not None, "warm_up comes before run"
        rounds, last_ns, last_cpu_ns = self._rounds, start_ns, thread_cpu_ns()
        if watch.may_go_on():
            watch.first_slice()  # the shape is followed from here, also where it asks for nothing yet or others fill the host
        while watch.may_go_on() and last_ns < end_ns:
            now_ns, cpu_ns = clock.boot_ns(), thread_cpu_ns()
            share = self._share((last_ns + now_ns - 2 * start_ns) / 2 / SECOND_NS)
            pacer.settle(share, (now_ns - last_ns) / SECOND_NS, (cpu_ns - last_cpu_ns) / SECOND_NS)
            last_ns, last_cpu_ns = now_ns, cpu_ns
            pause_s = pacer.pause_s(share)
            if pause_s > 0.0:
                clock.sleep(pause_s)
                continue
            kernel(rounds, index + 1)
            worker.operations += rounds
            meters.record_slice((clock.boot_ns() - now_ns) / SECOND_NS, rounds)
            rounds = next_rounds(rounds, (thread_cpu_ns() - cpu_ns) / SECOND_NS)


def thread_count(cores: Value, capacity_cores: float, peak_cores: float, operation_id: str) -> int:
    """Return how many threads share the load: one for each core of the node's share, or as many as asked.

    Raises `InputError` (`invalid_value`) when fewer cores are named than the peak needs.
    """
    if cores == "all":
        return max(1, math.ceil(capacity_cores - 1e-9))
    if peak_cores > int(cores) + 1e-9:
        raise InputError(
            "invalid_value",
            f"{operation_id} asks {peak_cores:.2f} cores at its peak and names {cores}",
            "raise the option `cores` or lower the fraction",
        )
    return int(cores)


def _supported(facts: NodeFacts) -> Capability:
    if not facts.has_numba:
        return Capability("unavailable", "numba is not installed, so there are no compiled kernels", "pip install numba")
    if facts.nice > 0 and not facts.may_raise_nice:
        return Capability(
            "fallback",
            f"runs at nice {facts.nice}: weaker than other processes on a busy host",
            "run Ray with CAP_SYS_NICE, or with a limit of nice (ulimit -e) that lets it be raised",
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="CpuLoad",
    family="cpu",
    summary="Keeps a fraction of the node's cores busy, by a closed loop on measured CPU time.",
    units=("fraction",),
    resource="cpu_cores",
    meter="cpu_seconds",
    measure="CPU seconds of the load process per second, of the node's cores; in host_total mode busy cores of the host",
    tolerance=0.05,
    look_ms=5,
    options=(
        Option(
            "mode", "choice", "own", "own: the load itself uses the fraction; host_total: the host as a whole does", ("own", "host_total")
        ),
        Option("kernel", "choice", "integer", "which compiled loop runs", kernels.NAMES),
        Option("cores", "cores", "all", "how many threads share the load: one for each core, or a number", low=1),
    ),
    supported=_supported,
    metrics=("load.operations", "load.slice"),
    needs="numba, or its kept kernels",
    entry="cpu:CpuLoad",
)
