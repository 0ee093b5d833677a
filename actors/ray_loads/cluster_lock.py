"""ClusterLock: actors contend for one lock that another actor keeps, as jobs do that guard something by an actor.

Each of the contenders takes one lock after the other: with the chance `contention` the shared one, else one of its own, and holds it for
a time of mean `hold`. The shared lock is given first come, first served, and is taken from a holder that does not give it back within
`lease`: a contender that dies stops nobody for longer. It guards a number that every holder reads and raises by one: who lost the lock
cannot write it, and the load ends with an error when two holders of its node read the same. `contest.contended_share` says how often a turn
waits.

With `scope: cluster` the contenders of all nodes that run the operation at the same time want the same lock. Its keeper runs on one of
them; when it dies, another takes its place, and turns that were under way count as failed. What a node's contenders hold and wait for is
free when its load ends, and when its simulator was silent for `lease` and for three seconds. Over nodes the number counts the turns of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from ..concurrency.contest import Draws
from ..errors import HarnessError
from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import SimulatorRecord
from .calls import CallFlood, Sent
from .figures import LockFigures
from .flow import Bounds, Outcome
from .lock_actors import Contender
from .lock_seat import Seat
from .options import METRICS, reserved, supported
from .ray_work import Ended, RayWork, name_over_nodes

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

CLOSE_S: Final = 1.6  # less than a run grants its loads to end
LOCK_METRICS: Final = tuple(f"flood.lock.{name}" for name in ("shared", "contended", "wait", "hold", "lost", "guarded", "keepers"))


class Contenders:
    """The actors that contend; each is a lane."""

    def __init__(self, work: RayWork, board: str, user: str, draws: Sequence[Draws], seat: Seat, figures: LockFigures) -> None:
        self.lanes = len(draws)
        self._work, self._board, self._user, self._draws, self._seat = work, board, user, draws, seat
        self._figures = figures
        self._actors: list[Any] = []

    def open(self) -> Iterator[list[Any]]:
        """Find or create the keeper and then create the contenders, one after another."""
        yield from self._seat.open()
        for draws in self._draws:
            self._actors.append(self._work.spawn(Contender, self._board, self._user, draws))
            yield [self._work.call(self._actors[-1], "pid")]
        self.change_keeper()

    def change_keeper(self) -> None:
        """Have all ask the keeper that there is now."""
        for actor in self._actors:
            self._work.call(actor, "use", self._seat.keeper, self._seat.term)

    def ask(self, lane: int) -> Any:
        """Ask a contender whether it lives."""
        return self._work.call(self._actors[lane], "pid")

    def send(self, lane: int) -> Any:
        """Have a contender take a lock once more."""
        return self._work.call(self._actors[lane], "contend")

    def finished(self, end: Ended) -> None:
        """Record the turn. Raises `HarnessError` where two held the lock at once."""
        self._figures.record(end.value)

    def close(self) -> None:
        """End all of them at once."""
        for actor in self._actors:
            self._work.kill(actor)


class ClusterLock(CallFlood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        count, contention, hold_s = int(options["contenders"]), float(options["contention"]), float(options["hold"])
        draws = [Draws(Random(f"{operation.seed}/{number}"), contention, hold_s) for number in range(count)]
        name = name_over_nodes(operation) if options["scope"] == "cluster" else ""
        self.seat = Seat(work, watch.clock, float(options["lease"]), operation.node, operation.id, name)
        self._lock_figures = LockFigures(reporter)
        self._contenders = Contenders(work, board, operation.node, draws, self.seat, self._lock_figures)
        self._questions: list[tuple[Any, str]] = []  # those whose turn failed, whether they live, and how it failed
        super().__init__(operation, capacity, watch, work, reporter, self._contenders, Bounds(count), 0)

    def idle(self) -> None:
        """Give a sign of life, and look after the keeper."""
        super().idle()
        self._tend()

    def attend(self, elapsed_s: float) -> float:
        """Look after the keeper; while there is none nobody is sent for the lock. Raises `HarnessError` where a contender has died."""
        del elapsed_s
        self._tend()
        self._hear()
        self.flow.bounds = Bounds(self._contenders.lanes if self.seat.keeper is not None else 0)
        return 1.0

    def _tend(self) -> None:
        if self.seat.tend():
            self._contenders.change_keeper()
        self._lock_figures.keepers(self.seat.made)

    def _hear(self) -> None:
        """Take the answers of those whose turn failed: one that lives failed with the keeper, or by being out of its reach."""
        ends = self._work.look([call for call, _ in self._questions])
        for (_, reason), end in zip(self._questions, ends, strict=True):
            if end is not None and end.outcome is Outcome.FAILED:
                raise HarnessError("lost", f"{self._operation.id}: a call failed: {reason}")
        self._questions = [one for one, end in zip(self._questions, ends, strict=True) if end is None]

    def _about(self, lane: int) -> int:
        return lane

    def _take_end(self, sent: Sent, end: Ended, now_s: float) -> None:
        if end.outcome is Outcome.FAILED and self.seat.is_shared and not self._stopping:
            self.flow.end(Outcome.FAILED)
            self._questions.append((self._contenders.ask(sent.about), end.reason))
        else:
            super()._take_end(sent, end, now_s)

    def _finish(self, elapsed: Callable[[], float]) -> None:
        until_s = elapsed() + CLOSE_S
        super()._finish(elapsed)
        self.seat.leave(max(0.0, until_s - elapsed()))

    def close(self) -> None:
        """End what was started, the keeper too."""
        super().close()
        self.seat.close()


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
        Option("scope", "choice", "node", "who wants the same lock: those of one node, or of all nodes", choices=("node", "cluster")),
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
