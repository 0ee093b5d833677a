"""ActorMesh: actors on all nodes of a hold, each node's sender calling those of every node, that outlive their processes and nodes.

A member whose process dies is made anew on its node, one whose node dies on another; what it had acknowledged and nobody knows any more
is counted as lost. A node that is throttled is spared by all: each acknowledgement tells its node's ceiling, and the lowest one counts.
At the end members stay until all senders have asked them what they know: `CLOSE_S` at most, less than a run grants its loads to end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ..clock import SECOND_NS
from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import SimulatorRecord
from . import board as boards
from .calls import INLINE_BYTES, Flood, Sent
from .figures import MeshFigures
from .flow import Bounds, Outcome
from .mesh import Mesh
from .mesh_account import Account, Ranges
from .options import METRICS, reserved, supported
from .ray_work import Ended, RayWork, name_over_nodes
from .starting import STEP_S

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

ANSWER_S: Final = 0.8  # of the time to close, for answers that are on their way
CLOSE_S: Final = 1.6


@dataclass(frozen=True, slots=True)
class Message:
    """What is remembered of a message on its way."""

    lane: int
    incarnation: int
    number: int
    sent_ns: int


class ActorMesh(Flood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        actors, spare = int(options["actors"]), int(options["spare"])
        self.account = Account()
        self.mesh = Mesh(work, watch.clock, self.account, board, name_over_nodes(operation), operation.node, actors, spare)
        self._most = int(options["outstanding"])
        self._payload, self._work_s, self._board = bytes(int(options["payload_bytes"])), float(options["work"]), board
        self._told = 1.0
        self._mesh_figures = MeshFigures(reporter)
        super().__init__(operation, capacity, watch, work, reporter, self.mesh, Bounds(self._most), len(self._payload))

    def idle(self) -> None:
        """Give a sign of life, and look who is there."""
        super().idle()
        self.mesh.tend(find=True)

    def run(self, start_ns: int) -> None:
        """Find everybody, then flood."""
        self.mesh.find()
        super().run(start_ns)

    def close(self) -> None:
        """End what was started; count what was not waited for as cancelled, and judge what nobody told of."""
        self.account.cancel(self.flow.outstanding)
        self.account.close()
        self._mesh_figures.record(self.account.sums, self.mesh.restarts)
        super().close()

    # ---- the flood

    def attend(self, elapsed_s: float) -> float:
        """Tell the members the ceiling, look after lost ones, and return the share of this sender."""
        del elapsed_s
        ceiling = self._watch.ceiling()
        if ceiling != self._told:
            self._told = ceiling
            with suppress(OSError):  # it goes with the load only
                boards.lower(self._board, ceiling)
        share = self.mesh.tend()
        self.flow.bounds = replace(self.flow.bounds, outstanding=self.mesh.bound(self._most))
        self._mesh_figures.record(self.account.sums, self.mesh.restarts)
        return share

    def _send(self, due_s: float) -> None:
        at = self.mesh.next_lane(self._most)
        if at is None:
            self.flow.refuse()
            return
        lane = self.mesh.lanes[at]
        number, sent_ns = self.account.send(lane.key), self._watch.clock.boot_ns()
        call = self._work.post(lane.handle, "receive", self._operation.node, number, self._payload, self._work_s)
        lane.outstanding += 1
        self._lane(at).append(Sent(call, due_s, Message(at, lane.incarnation, number, sent_ns)))

    def _take_end(self, sent: Sent, end: Ended, now_s: float) -> None:
        message: Message = sent.about
        lane = self.mesh.lanes[message.lane]
        lane.outstanding -= 1
        self.flow.end(end.outcome)
        if end.outcome is Outcome.FINISHED:
            self.account.acknowledge(lane.key, message.number)
            self._figures.response(max(0.0, now_s - sent.due_s))
            self._mesh_figures.answered((end.at_ns - message.sent_ns) / SECOND_NS, same_node=lane.place == self._work.place)
            if message.incarnation == lane.incarnation:
                lane.ceiling = float(end.value)
        elif end.outcome is Outcome.CANCELLED:
            self.account.cancel()
        else:
            self.account.fail()
            self.mesh.die(lane, message.incarnation, self._watch.clock.boot_ns() / SECOND_NS)

    # ---- the end

    def _finish(self, elapsed: Callable[[], float]) -> None:
        """Take the last answers, ask every member what it knows, and keep those of this node until the others have asked too."""
        self._stopping = True
        self.flow.close()
        self._work.cancel([sent.call for lane in self._lanes for sent in lane])
        until_s = elapsed() + CLOSE_S
        self._wait_until_empty(elapsed, ANSWER_S)
        self._read(elapsed, until_s)
        self._let_read(elapsed, until_s)

    def _read(self, elapsed: Callable[[], float], until_s: float) -> None:
        asked = {lane.key: self._work.call(lane.handle, "last_look", self._operation.node) for lane in self.mesh.open_lanes}
        while asked and elapsed() < until_s:
            for key, end in zip(list(asked), self._work.look(list(asked.values())), strict=True):
                if end is None:
                    continue
                del asked[key]
                if end.outcome is Outcome.FINISHED:
                    self.account.tell(key, Ranges(end.value), final=True)
                else:  # its node went, or ended before the others: who acknowledged is gone
                    self.account.die(key)
            self._pause(asked)

    def _let_read(self, elapsed: Callable[[], float], until_s: float) -> None:
        waited = self.mesh.senders()
        kept = [lane for lane in self.mesh.open_lanes if lane.kept]
        while kept and elapsed() < until_s:
            asked = [self._work.call(lane.handle, "asked") for lane in kept]
            while None in (ends := self._work.look(asked)) and elapsed() < until_s:
                self._pause(asked)
            kept = [lane for lane, end in zip(kept, ends, strict=True) if not self._all_asked(end, waited)]
            self._pause(kept)

    @staticmethod
    def _all_asked(end: Ended | None, waited: set[str]) -> bool:
        return end is not None and (end.outcome is not Outcome.FINISHED or waited <= set(end.value))

    def _pause(self, for_what: Any) -> None:
        if for_what:
            self._watch.clock.sleep(STEP_S)


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    options = RECORD.resolve_options(operation.options)
    return reserved(peak, {**options, "waiting": 0}, int(options["actors"]) + int(options["spare"]), 1, capacity)


RECORD: Final = SimulatorRecord(
    name="ActorMesh",
    family="concurrency",
    summary="Calls Ray actors of all nodes from all nodes; who dies is replaced, and what is lost by that is counted.",
    units=("per_second",),
    resource="cpu_cores",
    meter="served_calls",
    measure="messages a second of all nodes' senders that the members on this node count in shared memory as received",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("actors", "integer", 2, "members on each node", low=1, high=64),
        Option(
            "outstanding",
            "integer",
            60,
            "messages of a node's sender without an answer, at most: as many to each member",
            low=1,
            high=10_000,
        ),
        Option("work", "duration", 0.0, "CPU time that each message takes where it is received", low=0.0, high=10.0),
        Option("payload_bytes", "bytes", 1024, "size of each message's payload", low=0, high=INLINE_BYTES),
        Option("spare", "integer", 2, "members of lost nodes that a node takes in, at most; their room is reserved", low=0, high=64),
    ),
    supported=supported,
    metrics=(*METRICS, "mesh.latency", "mesh.messages", "mesh.restarts"),
    needs="Ray worker processes for its actors",
    undo="its actors end with the simulator's actor, which owns them; the guardian ends their processes at the lease's end",
    entry="ray_loads.actor_mesh:ActorMesh",
    carrier="ray",
    reserves=_reserves,
)
