"""ClusterLock: actors contend for one lock that another actor keeps, as jobs do that guard something by an actor.

Each of the contenders takes one lock after the other: with the chance `contention` the shared one, else one of its own, and holds it for
a time of mean `hold`. The shared lock is given first come, first served, and is taken from a holder that does not give it back within
`lease`: a contender that dies stops nobody for longer. It guards a number that every holder reads and raises by one: who lost the lock
cannot write it, and the load ends with an error when two holders read the same. `contest.contended_share` says how often a turn waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from ..concurrency.contest import Draws
from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import SimulatorRecord
from .calls import CallFlood
from .figures import LockFigures
from .flow import Bounds
from .lock_actors import Contender, LockKeeper
from .options import METRICS, reserved, supported
from .ray_work import Ended, RayWork

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

PATIENCE_S: Final = 60.0
LOCK_METRICS: Final = tuple(f"flood.lock.{name}" for name in ("shared", "contended", "wait", "hold", "lost", "guarded"))


class Contenders:
    """The actors that contend; each is a lane."""

    def __init__(self, work: RayWork, board: str, draws: Sequence[Draws], lease_s: float, figures: LockFigures) -> None:
        self.lanes = len(draws)
        self._work, self._board, self._draws, self._lease_s = work, board, draws, lease_s
        self._figures = figures
        self._actors: list[Any] = []
        self._keeper: Any = None

    def open(self) -> Iterator[list[Any]]:
        """Create the keeper and then the contenders, one after another."""
        self._keeper = self._work.spawn(LockKeeper, self._lease_s)
        yield [self._work.call(self._keeper, "pid")]
        for draws in self._draws:
            self._actors.append(self._work.spawn(Contender, self._board, self._keeper, PATIENCE_S, draws))
            yield [self._work.call(self._actors[-1], "pid")]

    def send(self, lane: int) -> Any:
        """Have a contender take a lock once more."""
        return self._work.call(self._actors[lane], "contend")

    def finished(self, end: Ended) -> None:
        """Record the turn. Raises `HarnessError` where two held the lock at once."""
        self._figures.record(end.value)

    def close(self) -> None:
        """End all of them at once."""
        for actor in [*self._actors, self._keeper] if self._keeper is not None else []:
            self._work.kill(actor)


class ClusterLock(CallFlood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        count, contention, hold_s = int(options["contenders"]), float(options["contention"]), float(options["hold"])
        draws = [Draws(Random(f"{operation.seed}/{number}"), contention, hold_s) for number in range(count)]
        targets = Contenders(work, board, draws, float(options["lease"]), LockFigures(reporter))
        super().__init__(operation, capacity, watch, work, reporter, targets, Bounds(count), 0)


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    options = RECORD.resolve_options(operation.options)
    count = int(options["contenders"])
    flow = {"outstanding": 1, "waiting": 0, "work": 0.0}  # who holds a lock sleeps
    return reserved(peak, flow, count + 1, count, capacity).plus(Amounts(locks=count + 1))


RECORD: Final = SimulatorRecord(
    name="ClusterLock",
    family="concurrency",
    summary="Ray actors contend for one lock that an actor keeps, first come, first served.",
    units=("per_second",),
    resource="cpu_cores",
    meter="served_calls",
    measure="times a second that contenders count in shared memory to have held a lock",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("contenders", "integer", 4, "actors that want the lock", low=1, high=64),
        Option("contention", "fraction", 1.0, "share of turns that are of the shared lock, by chance"),
        Option("hold", "duration", 0.002, "mean time for which a lock is held, exponentially distributed", low=0.0001, high=10.0),
        Option("lease", "duration", 5.0, "time after which it is taken from a holder that does not give it back", low=0.1, high=600.0),
    ),
    supported=supported,
    metrics=(*METRICS, *LOCK_METRICS),
    needs="Ray worker processes for its actors",
    undo="its actors end with the simulator's actor, which owns them; the guardian ends their processes at the lease's end",
    entry="ray_loads.cluster_lock:ClusterLock",
    carrier="ray",
    reserves=_reserves,
)
