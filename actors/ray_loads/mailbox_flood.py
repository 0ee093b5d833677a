"""MailboxFlood: calls Ray actors of this node faster than they serve, with a bounded number of calls in their mailboxes.

The simulator's actor sends to mailboxes in turn, at most `outstanding` to each that have not ended. With `reject` Ray's own bound
(`max_pending_calls` of the handles) stands behind ours. Payloads above 100 KiB go through the object store, as Ray does with any argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import SimulatorRecord
from .calls import CallFlood, bounds_of
from .flow import Strategy
from .options import METRICS, MIB, backpressure, reserved, supported
from .ray_work import Ended, RayWork
from .victims import Mailbox

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter


class Mailboxes:
    """The actors that are flooded; each is a lane."""

    def __init__(self, work: RayWork, board: str, count: int, payload: bytes, work_s: float, calls_max: int) -> None:
        self.lanes = count
        self._work, self._board, self._payload, self._work_s, self._calls_max = work, board, payload, work_s, calls_max
        self._actors: list[Any] = []

    def open(self) -> Iterator[list[Any]]:
        """Create the actors one after another; each is ready once it has told its process."""
        for _ in range(self.lanes):
            self._actors.append(self._work.spawn(Mailbox, self._board, calls_max=self._calls_max))
            yield [self._work.call(self._actors[-1], "pid")]

    def send(self, lane: int) -> Any:
        """Send one call to an actor."""
        return self._work.call(self._actors[lane], "serve", self._payload, self._work_s)

    def finished(self, end: Ended) -> None:
        """Nothing is returned."""

    def close(self) -> None:
        """End the actors at once."""
        for actor in self._actors:
            self._work.kill(actor)


class MailboxFlood(CallFlood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        actors = int(options["actors"])
        payload = bytes(int(options["payload_bytes"]))
        refusing = options["backpressure"] == Strategy.REJECT  # Ray counts a call a little longer than it takes to see its end
        targets = Mailboxes(work, board, actors, payload, float(options["work"]), int(options["outstanding"]) if refusing else 0)
        super().__init__(operation, capacity, watch, work, reporter, targets, bounds_of(options, actors), len(payload))


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    options = RECORD.resolve_options(operation.options)
    actors = int(options["actors"])
    return reserved(peak, options, actors, actors, capacity)


RECORD: Final = SimulatorRecord(
    name="MailboxFlood",
    family="concurrency",
    summary="Calls Ray actors faster than they serve, with bounded mailboxes and a choice of back-pressure.",
    units=("per_second",),
    resource="cpu_cores",
    meter="served_calls",
    measure="calls a second that the flooded actors count in shared memory as served",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("actors", "integer", 2, "actors that are flooded", low=1, high=64),
        *backpressure(Option("outstanding", "integer", 100, "calls in one mailbox that have not ended, at most", low=1, high=10_000)),
        Option("payload_bytes", "bytes", 1024, "size of each call's payload", low=0, high=64 * MIB),
        Option(
            "in_flight_bytes",
            "bytes",
            32 * MIB,
            "payloads above 100 KiB that are in the object store at once, of all mailboxes; fewer calls are outstanding then",
            low=1,
        ),
    ),
    supported=supported,
    metrics=(*METRICS, "flood.spilled"),
    needs="Ray worker processes for its actors",
    undo="its actors end with the simulator's actor, which owns them; the guardian ends their processes at the lease's end",
    entry="ray_loads.mailbox_flood:MailboxFlood",
    carrier="ray",
    reserves=_reserves,
)
