"""ClusterLock: actors contend for one lock that another actor keeps, as jobs do that guard something by an actor.

Each of the contenders asks for the lock, holds it for `hold` of CPU time and gives it back. The lock is given first come, first served,
and is taken from a holder that does not give it back within `lease`: a contender that dies stops nobody for longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

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


class Contenders:
    """The actors that contend; each is a lane."""

    def __init__(self, work: RayWork, board: str, count: int, hold_s: float, lease_s: float, figures: LockFigures) -> None:
        self.lanes = count
        self._work, self._board, self._hold_s, self._lease_s = work, board, hold_s, lease_s
        self._figures = figures
        self._actors: list[Any] = []
        self._keeper: Any = None

    def open(self) -> Iterator[list[Any]]:
        """Create the keeper and then the contenders, one after another."""
        self._keeper = self._work.spawn(LockKeeper, self._lease_s)
        yield [self._work.call(self._keeper, "pid")]
        for _ in range(self.lanes):
            self._actors.append(self._work.spawn(Contender, self._board, self._keeper, PATIENCE_S))
            yield [self._work.call(self._actors[-1], "pid")]

    def send(self, lane: int) -> Any:
        """Have a contender take the lock once more."""
        return self._work.call(self._actors[lane], "contend", self._hold_s)

    def finished(self, end: Ended) -> None:
        """Record how long it waited and held."""
        self._figures.record(*end.value)

    def close(self) -> None:
        """End all of them at once."""
        for actor in [*self._actors, self._keeper] if self._keeper is not None else []:
            self._work.kill(actor)


class ClusterLock(CallFlood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        count = int(options["contenders"])
        targets = Contenders(work, board, count, float(options["hold"]), float(options["lease"]), LockFigures(reporter))
        super().__init__(operation, capacity, watch, work, reporter, targets, Bounds(count), 0)


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    options = RECORD.resolve_options(operation.options)
    count = int(options["contenders"])
    flow = {"outstanding": 1, "waiting": 0, "work": min(float(options["hold"]), 1.0 / peak if peak else 1.0)}  # one at a time holds it
    return reserved(peak, flow, count + 1, count, capacity)


RECORD: Final = SimulatorRecord(
    name="ClusterLock",
    family="concurrency",
    summary="Ray actors contend for one lock that an actor keeps, first come, first served.",
    units=("per_second",),
    resource="cpu_cores",
    meter="served_calls",
    measure="times a second that contenders count in shared memory to have held the lock",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("contenders", "integer", 4, "actors that want the lock", low=1, high=64),
        Option("hold", "duration", 0.002, "CPU time for which it is held each time", low=0.0, high=10.0),
        Option("lease", "duration", 5.0, "time after which it is taken from a holder that does not give it back", low=0.1, high=600.0),
    ),
    supported=supported,
    metrics=(*METRICS, "flood.lock.wait", "flood.lock.hold", "flood.lock.lost"),
    needs="Ray worker processes for its actors",
    undo="its actors end with the simulator's actor, which owns them; the guardian ends their processes at the lease's end",
    entry="ray_loads.cluster_lock:ClusterLock",
    carrier="ray",
    reserves=_reserves,
)
