"""CpuPressure: makes processes wait for a CPU for a share of the time, as the kernel's pressure stall information counts it.

Two threads stay on each core and begin to work at the same instants, so that one waits while the other works. Both work the share of a
core that a slow loop finds: more while fewer wait than was asked, less while more do, and never more than was asked at the peak, which is
enough where nobody else makes wait. What others wait for counts, so that beside a busy neighbour the load rests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .clock import SECOND_NS, thread_cpu_ns
from .cpu import HEAT_LIMIT, KERNEL, CpuLoad, Worker
from .heat import Reading
from .host import read_heat
from .lease import LeaseWatch
from .limits import cpu_stalled_s, find_container
from .messages import Amounts, Capacity, Operation
from .pacing import LOOK_S, PressureLoop, next_rounds
from .simulator import AVAILABLE, NO_KERNELS, Capability, SimulatorRecord
from .stalls import Stalls

if TYPE_CHECKING:
    from .capability import NodeFacts

WINDOW_S: Final = 0.5
PERIOD_S: Final = 0.05
THREADS_A_CORE: Final = 2
NO_STALL: Final = "the kernel does not tell for how long processes wait (/proc/pressure/cpu)"
ALLOW_STALL: Final = "a kernel with CONFIG_PSI, started with psi=1 where that is not the default"


class CpuPressure(CpuLoad):
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        segment_path: str = "",
        sensors: Callable[[], Reading] = read_heat,
        stalled_s: Callable[[], float | None] = cpu_stalled_s,
    ) -> None:
        super().__init__(operation, capacity, watch, segment_path, sensors)
        self._cpus = sorted(find_container().cpus)[: self._threads]
        self._threads *= THREADS_A_CORE
        self._loop = PressureLoop(self._shape.peak(operation.duration_s))
        self._stalls = Stalls(stalled_s, WINDOW_S, NO_STALL, ALLOW_STALL)

    def _share(self, elapsed_s: float) -> float:
        """Return what one thread owes per second: what the loop has found, nothing while nothing is asked."""
        return self._loop.share if self.asked_cores(elapsed_s) > 0.0 else 0.0

    def _pace(self, worker: Worker, index: int, start_ns: int, end_ns: int) -> None:
        """Work a share of each period from its beginning on; looks at the lease before each slice and each rest."""
        kernel, meters, watch, clock = self._kernels[index], self._meters, self._watch, self._watch.clock
        assert meters is not None, "warm_up comes before run"
        rounds, period_ns = self._rounds, round(PERIOD_S * SECOND_NS)
        if watch.may_go_on():
            watch.first_slice()
        while watch.may_go_on() and (begun_ns := clock.boot_ns()) < end_ns:
            next_ns, begun_cpu_ns = begun_ns + period_ns - (begun_ns - start_ns) % period_ns, thread_cpu_ns()
            owed_ns = self._share((begun_ns - start_ns) / SECOND_NS) * period_ns
            while (used_ns := thread_cpu_ns() - begun_cpu_ns) < owed_ns and watch.may_go_on():
                then_ns = clock.boot_ns()
                kernel(rounds)
                worker.operations += rounds
                meters.record_slice((clock.boot_ns() - then_ns) / SECOND_NS, rounds)
                rounds = next_rounds(rounds, (thread_cpu_ns() - begun_cpu_ns - used_ns) / SECOND_NS, self._kernel.rounds_min)
            worker.cpu_ns = thread_cpu_ns()
            while watch.may_go_on() and (left_ns := next_ns - clock.boot_ns()) > 0:
                clock.sleep(min(LOOK_S, left_ns / SECOND_NS))

    def _sample(self, elapsed_s: float) -> None:
        """See for which share of the last half second somebody waited, and follow it once the load has begun."""
        grown = self._stalls.look(self._watch.clock.boot_ns())
        if elapsed_s > 0.0:
            self._loop.settle(self.asked_cores(elapsed_s), self._stalls.share, grown.elapsed_s)

    def _publish(self, elapsed_s: float, own_cores: float, cpu_ns: int) -> None:  # noqa: ARG002  # CPU time is not what was asked
        operations = sum(worker.operations for worker in self._workers)
        self._watch.report(asked=self.asked_cores(elapsed_s), own=self._stalls.share, cpu_ns=cpu_ns, operations=operations)


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:  # noqa: ARG001  # the peak says it
    """Return the cores of two threads on each, which work no more than the share that is asked at the peak."""
    return Amounts(cpu_cores=capacity.cpu_cores * min(1.0, THREADS_A_CORE * peak))


def _supported(facts: NodeFacts) -> Capability:
    if not facts.has_numba:
        return NO_KERNELS
    if not facts.has_cpu_pressure:
        return Capability("unavailable", NO_STALL, ALLOW_STALL)
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="CpuPressure",
    family="cpu",
    summary="Makes processes wait for a CPU for a share of the time.",
    units=("fraction",),
    resource="cpu_cores",
    of_time=True,
    meter="cpu_pressure",
    measure="share of the time for which some process of the machine waited for a CPU (PSI `some`), whoever made it wait",
    tolerance=0.05,
    look_ms=5,
    options=(KERNEL, HEAT_LIMIT),
    supported=_supported,
    metrics=("load.operations", "load.slice", "load.core.busy"),
    needs="/proc/pressure/cpu",
    undo="threads end with their process",
    entry="cpu_pressure:CpuPressure",
    reserves=_reserves,
)
