"""The frame of this family's loads: as many units as are asked; 20 looks a second at the lease, the units and their locks."""

from __future__ import annotations

from typing import Final, Protocol

from ..clock import SECOND_NS, process_cpu_ns
from ..lease import NOTE_NO_RECORDING, LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..meters import open_reporter
from ..simulator import absolute
from .figures import LockMeters
from .locks import LockFigures

LOOK_S: Final = 0.05
THREAD_BYTES: Final = 128 << 10  # what a thread of this family touches of its stack and of the interpreter


class Contest(Protocol):
    """What contends, and the locks it contends for."""

    @property
    def size(self) -> int:
        """How many units work."""
        ...

    @property
    def operations(self) -> int:
        """Units of work that were finished."""
        ...

    def resize(self, count: int) -> None:
        """Have so many units."""
        ...

    def look(self) -> None:
        """Look at the units; raises the first error of any."""
        ...

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the locks as they are now."""
        ...

    def counts(self) -> dict[str, int]:
        """Return what else was counted since the beginning, by metric."""
        ...

    def close(self) -> None:
        """Stop all and wait for them; raises what `look` would, and where a lock is not free again."""
        ...


class ContestLoad:
    """Runs in a load process: `warm_up`, then `run`. A subclass says what contends."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        self.operation = operation
        self._watch = watch
        self._shape = absolute(operation, capacity)
        self._segment_path = segment_path
        self._meters: LockMeters | None = None
        self._contest: Contest | None = None

    def contest(self, meters: LockMeters) -> Contest:
        """Return what contends, without any units yet."""
        raise AssertionError(f"{type(self).__name__} does not say what contends, with {meters}")

    def warm_up(self) -> None:
        """Open what is recorded into, and make what needs time."""
        reporter, is_kept = open_reporter(self._segment_path, self.operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        self._meters = LockMeters(reporter)
        self._contest = self.contest(self._meters)
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def run(self, start_ns: int) -> None:
        """Follow the shape until the operation's end or a stop, then have all leave; leaves the process when the lease ends.

        Raises what went wrong in any thread, task or process of the load.
        """
        assert self._contest is not None, "warm_up comes before run"
        assert self._meters is not None, "warm_up comes before run"
        contest, meters, watch = self._contest, self._meters, self._watch
        end_ns = start_ns + round(self.operation.duration_s * SECOND_NS)
        watch.first_slice()
        try:
            try:
                while (now_ns := watch.clock.boot_ns()) < end_ns and watch.may_go_on():
                    asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * watch.ceiling()
                    contest.resize(round(asked))
                    contest.look()
                    meters.take(contest.figures(), contest.operations, contest.counts())
                    watch.report(asked=asked, own=float(contest.size), cpu_ns=process_cpu_ns(), operations=contest.operations)
                    watch.clock.sleep(min(LOOK_S, max(0.0, (end_ns - watch.clock.boot_ns()) / SECOND_NS)))
            finally:
                contest.close()
        finally:  # also of a load that fails nothing is lost
            meters.take(contest.figures(), contest.operations, contest.counts())
            meters.close()


def threads_and_locks(units: float, threads: int, locks: int) -> Amounts:
    """Return what so many units take, each of so many threads and locks."""
    count = -int(-units // 1)
    return Amounts(tasks=count * threads, memory_bytes=count * threads * THREAD_BYTES, locks=count * locks)
