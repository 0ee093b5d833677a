"""CpuLoad: keeps a share of the node's cores busy, as a closed loop on measured CPU time.

One thread a core, each with its own loop: it owes asked share * elapsed seconds of CPU, runs slices of about a millisecond
while it owes some, and sleeps at most 5 ms at a time else. What the machine had no room for is owed for 200 ms and then
dropped, so that a starved load does not burst later. Compiled kernels are loaded in `warm_up` only.

In slowdown mode the threads take their share of each core before everybody else (pinned, with real-time priority), so that what others do
takes 1 / (1 - share) times as long: a lower clock rate, simulated. All modes yield to heat, see `heat`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .clock import SECOND_NS, process_cpu_ns, thread_cpu_ns
from .heat import Heat, Reading
from .host import read_heat
from .kernels.ready import Kernel, make_kernels
from .kernels.table import KERNELS
from .lease import NOTE_NO_RECORDING, NOTE_NO_SENSOR, NOTE_SIMULATED_CLOCK, LeaseWatch
from .limits import find_container
from .messages import Amounts, Capacity, Operation
from .meters import LoadMeters, open_meters
from .others import OthersMeter
from .pacing import REPORT_S, Pacer, next_rounds, paced, thread_count
from .simulator import Option, SimulatorRecord, absolute, record_of
from .slowdown import bound_realtime, check_slowdown, go_realtime

SAMPLE_S: Final = 0.1
HEAT_S: Final = 0.4


@dataclass(slots=True)
class Worker:
    """What one thread tells the others; each figure has one writer."""

    operations: int = 0
    cpu_ns: int = 0
    recorded_ns: int = 0  # of cpu_ns; written by the thread that records
    trouble: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)


class CpuLoad:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        segment_path: str = "",
        sensors: Callable[[], Reading] = read_heat,
    ) -> None:
        options = record_of(operation.kind).resolve_options(operation.options)
        self._operation = operation
        self._capacity = capacity
        self._watch = watch
        self._shape = absolute(operation, capacity)
        self._kernel = KERNELS[str(options["kernel"])]
        peak_cores = self._shape.peak(operation.duration_s)
        self._threads = thread_count(options.get("cores", "all"), capacity.cpu_cores, peak_cores, operation.id)
        mode = options.get("mode", "own")
        self._slows = mode == "slowdown"
        if self._slows:
            check_slowdown(peak_cores / self._threads, operation.id)
        self._cpus = sorted(find_container().cpus) if self._slows or options.get("affinity") == "pinned" else []
        self._others = OthersMeter(watch) if mode == "host_total" else None
        self._sensors = sensors
        self._heat = Heat(float(options["heat_limit_c"]))
        self._others_cores = 0.0
        self._aside_cores = 0.0
        self._kernels: list[Kernel] = []
        self._rounds = self._kernel.rounds_first
        self._workers: list[Worker] = []
        self._segment_path = segment_path
        self._meters: LoadMeters | None = None

    def warm_up(self) -> None:
        """Load the kernel and find how many rounds a slice takes; see what others use before the start."""
        self._kernels = make_kernels(self._kernel.name, self._threads, self._operation.seed)
        self._meters = open_meters(self._segment_path, self._operation.seed)
        if self._segment_path and not self._meters.is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        if self._heat.limit_c and not self._sensors().available:
            self._watch.note(NOTE_NO_SENSOR)
            self._heat = Heat(0.0)
        if self._slows:
            bound_realtime()
            self._watch.note(NOTE_SIMULATED_CLOCK)
        for _ in range(12):
            before_ns = thread_cpu_ns()
            self._kernels[0](self._rounds)
            self._rounds = next_rounds(self._rounds, (thread_cpu_ns() - before_ns) / SECOND_NS, self._kernel.rounds_min)
        self.idle()

    def idle(self) -> None:
        """Publish CPU time and sample others; called about ten times a second until the start."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)
        self._sample(0.0)

    def _sample(self, elapsed_s: float) -> None:  # noqa: ARG002  # where what is asked is no CPU time, it counts
        """See what others use, in host-total mode."""
        if self._others is not None:
            self._others_cores = self._others.sample() / self._capacity.sharers

    def asked_cores(self, elapsed_s: float) -> float:
        """Return what the shape asks of this node now, after the ceiling, in cores; nothing while the load yields to heat."""
        return 0.0 if self._heat.yields else self._shape.value(elapsed_s) * self._watch.ceiling()

    def _share(self, elapsed_s: float) -> float:
        """Return what one thread owes per second: the asked cores, less what this process uses aside and others in host-total mode."""
        return min(1.0, max(0.0, self.asked_cores(elapsed_s) - self._aside_cores - self._others_cores) / self._threads)

    def run(self, start_ns: int) -> None:
        """Load until the operation's end or a stop; leaves the process when the lease ends."""
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        self._workers = [Worker() for _ in range(self._threads)]
        for index, worker in enumerate(self._workers):
            worker.thread = threading.Thread(target=self._work, args=(worker, index, start_ns, end_ns), name=f"cpu-{index}", daemon=True)
            worker.thread.start()
        assert self._meters is not None, "warm_up comes before run"
        try:
            self._follow(start_ns, end_ns, self._meters)
            for worker in self._workers:
                assert worker.thread is not None
                worker.thread.join()
                if worker.trouble is not None:
                    raise worker.trouble
        finally:  # also of a load that fails nothing is lost
            self._meters.close()

    def _follow(self, start_ns: int, end_ns: int, meters: LoadMeters) -> None:
        """Publish figures while the threads work; sample others in host-total mode."""
        clock, sampled_ns, felt_ns = self._watch.clock, start_ns, 0
        before_ns, before_cpu_ns, own_cores, before_aside_ns = start_ns, process_cpu_ns(), 0.0, thread_cpu_ns()
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on() and all(w.trouble is None for w in self._workers):
            cpu_ns = process_cpu_ns()
            if now_ns - sampled_ns >= SAMPLE_S * SECOND_NS:
                own_cores = (cpu_ns - before_cpu_ns) / (now_ns - before_ns)
                self._record_cores(meters, now_ns - before_ns)
                if not self._slows:  # there each thread owes its share of its core, whatever else this process does
                    aside_ns = thread_cpu_ns()
                    self._aside_cores, before_aside_ns = (aside_ns - before_aside_ns) / (now_ns - before_ns), aside_ns
                before_ns, before_cpu_ns, sampled_ns = now_ns, cpu_ns, now_ns
                self._sample((now_ns - start_ns) / SECOND_NS)
                meters.tick()
            if self._heat.limit_c and now_ns - felt_ns >= HEAT_S * SECOND_NS:
                felt_ns = now_ns
                self._feel(now_ns / SECOND_NS)
            self._publish((now_ns - start_ns) / SECOND_NS, own_cores, cpu_ns)
            clock.sleep(min(REPORT_S, max(0.0, (end_ns - now_ns) / SECOND_NS)))

    def _record_cores(self, meters: LoadMeters, elapsed_ns: int) -> None:
        """Record what each CPU was used by the thread that stays on it."""
        if not self._cpus:
            return
        for index, worker in enumerate(self._workers):
            cpu_ns = worker.cpu_ns
            if worker.recorded_ns:
                meters.record_core(self._cpus[index % len(self._cpus)], (cpu_ns - worker.recorded_ns) / elapsed_ns)
            worker.recorded_ns = cpu_ns

    def _feel(self, now_s: float) -> None:
        """Judge the processor's heat, and publish what has changed."""
        before, self._heat = self._heat, self._heat.judge(self._sensors(), now_s)
        if before.yields != self._heat.yields:
            self._watch.heat(yields=self._heat.yields, sensor=self._heat.sensor, celsius=self._heat.celsius)

    def _publish(self, elapsed_s: float, own_cores: float, cpu_ns: int) -> None:
        cores = self._capacity.cpu_cores
        self._watch.report(
            asked=self.asked_cores(elapsed_s) / cores,
            own=own_cores / cores,
            cpu_ns=cpu_ns,
            operations=sum(worker.operations for worker in self._workers),
        )

    def _work(self, worker: Worker, index: int, start_ns: int, end_ns: int) -> None:
        try:
            if self._cpus:
                os.sched_setaffinity(0, {self._cpus[index % len(self._cpus)]})
            if self._slows:
                go_realtime()
            self._pace(worker, index, start_ns, end_ns)
        except BaseException as trouble:  # told by run(), which the main thread is in
            worker.trouble = trouble

    def _pace(self, worker: Worker, index: int, start_ns: int, end_ns: int) -> None:
        """Keep one core as busy as asked; looks at the lease before each slice and each rest."""
        kernel, meters, watch, clock, pacer = self._kernels[index], self._meters, self._watch, self._watch.clock, Pacer()
        assert meters is not None, "warm_up comes before run"
        rounds, last_ns, last_cpu_ns = self._rounds, start_ns, thread_cpu_ns()
        if watch.may_go_on():
            watch.first_slice()  # the shape is followed from here, also where it asks for nothing yet or others fill the host
        while watch.may_go_on() and last_ns < end_ns:
            now_ns, cpu_ns = clock.boot_ns(), thread_cpu_ns()
            share = self._share((last_ns + now_ns - 2 * start_ns) / 2 / SECOND_NS)
            pacer.settle(share, (now_ns - last_ns) / SECOND_NS, (cpu_ns - last_cpu_ns) / SECOND_NS)
            last_ns, last_cpu_ns = now_ns, cpu_ns
            worker.cpu_ns = cpu_ns
            pause_s = pacer.pause_s(share)
            if pause_s > 0.0:
                clock.sleep(pause_s)
                continue
            kernel(rounds)
            worker.operations += rounds
            meters.record_slice((clock.boot_ns() - now_ns) / SECOND_NS, rounds)
            rounds = next_rounds(rounds, (thread_cpu_ns() - cpu_ns) / SECOND_NS, self._kernel.rounds_min)


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:  # noqa: ARG001  # the kernel's memory is in all
    """Return the cores at a peak, and the working set of a kernel that has a large one."""
    kernel = KERNELS.get(str(operation.options.get("kernel", "integer")))
    return Amounts(cpu_cores=peak, memory_bytes=kernel.memory_bytes if kernel else 0)


KERNEL: Final = Option(
    "kernel",
    "choice",
    "integer",
    "which loop runs",
    tuple(KERNELS),
    choice_help={name: kernel.help for name, kernel in KERNELS.items()},
)
HEAT_LIMIT: Final = Option(
    "heat_limit_c",
    "integer",
    85,
    "degrees Celsius of the processor at which the load rests until it is 5 cooler; 0: never. Without a sensor it does not rest",
    high=120,
)
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
            "mode",
            "choice",
            "own",
            "own: the load itself uses the fraction; host_total: the host as a whole does; slowdown: the load takes the fraction of each "
            "core before all others, which then run as at a lower clock rate (simulated)",
            ("own", "host_total", "slowdown"),
        ),
        KERNEL,
        Option("cores", "cores", "all", "how many threads share the load: one for each core, or a number", low=1),
        Option("affinity", "choice", "free", "whether each thread stays on one CPU", ("free", "pinned")),
        HEAT_LIMIT,
    ),
    supported=paced,
    metrics=("load.operations", "load.slice", "load.core.busy"),
    needs="numba, or its kept kernels; the mode slowdown needs CAP_SYS_NICE, the kernels what `describe` says",
    undo="threads and their priority end with its process",
    entry="cpu:CpuLoad",
    reserves=_reserves,
)
