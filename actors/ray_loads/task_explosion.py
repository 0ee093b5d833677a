"""TaskExplosion: submits Ray tasks at a rate, with a bounded number that have not ended.

Its tasks share this node's logical CPUs so that at most `workers` run at once; the rest waits at Ray. They get worker processes of their
own (by a runtime environment of their own), so that none of the users' is loaded or ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import SimulatorRecord
from .calls import CallFlood, bounds_of
from .options import METRICS, backpressure, reserved, supported
from .ray_work import Ended, RayWork
from .victims import serve

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter


class Tasks:
    """The tasks of this node: one lane."""

    lanes = 1

    def __init__(self, work: RayWork, board: str, workers: int, work_s: float) -> None:
        self._work, self._board, self._workers, self._work_s = work, board, workers, work_s

    def open(self) -> Iterator[list[Any]]:
        """Have Ray start worker processes, by as many tasks as may run at once."""
        yield [self.send(0) for _ in range(self._workers)]

    def send(self, lane: int) -> Any:
        """Submit one task."""
        del lane
        return self._work.submit(serve, self._board, b"", self._work_s, at_once=self._workers)

    def finished(self, end: Ended) -> None:
        """Nothing is returned."""

    def close(self) -> None:
        """Nothing is held here: what has not begun was cancelled, and the worker processes are ended by the carrier."""


class TaskExplosion(CallFlood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        targets = Tasks(work, board, int(options["workers"]), float(options["work"]))
        super().__init__(operation, capacity, watch, work, reporter, targets, bounds_of(options, 1), 0)


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    options = RECORD.resolve_options(operation.options)
    return reserved(peak, options, int(options["workers"]), 1, capacity)


RECORD: Final = SimulatorRecord(
    name="TaskExplosion",
    family="concurrency",
    summary="Submits Ray tasks at a rate, with a bounded number outstanding and a choice of back-pressure.",
    units=("per_second",),
    resource="cpu_cores",
    meter="served_calls",
    measure="tasks a second that Ray's worker processes count in shared memory as done",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("workers", "integer", 2, "tasks that run at once: each asks for its share of the node's logical CPUs", low=1, high=64),
        *backpressure(Option("outstanding", "integer", 1000, "tasks that have not ended, at most", low=1, high=100_000)),
    ),
    supported=supported,
    metrics=METRICS,
    needs="logical CPUs of Ray that nobody else holds",
    undo="tasks end with the simulator's actor, which owns them; the guardian ends their processes at the lease's end",
    entry="ray_loads.task_explosion:TaskExplosion",
    carrier="ray",
    reserves=_reserves,
)
