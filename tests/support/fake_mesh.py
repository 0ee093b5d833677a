"""A mesh without Ray: several senders at once on one virtual clock, members that really receive, and nodes and processes that die.

Every sender runs in a thread of its own, of which one runs at a time: who sleeps hands on to whoever wakes next, so that a seed replays.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.clock import SECOND_NS
from actors.ray_loads.flow import Outcome
from actors.ray_loads.mesh_members import Member
from actors.ray_loads.ray_work import Ended, StoreUse


class GoneError(Exception):
    """The node of this thread is dead."""


class Turns:
    """A clock of threads that take turns."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND_NS
        self.errors: list[BaseException] = []
        self._waiting: list[tuple[int, int, threading.Event]] = []
        self._numbers = itertools.count()
        self._over = threading.Event()

    def begin(self, life: Callable[[], object]) -> None:
        """Have a thread live from now on, once `run` is called."""
        turn = self._line_up(0.0)
        threading.Thread(target=self._live, args=(life, turn), daemon=True).start()

    def _line_up(self, for_s: float) -> threading.Event:
        turn = threading.Event()
        heapq.heappush(self._waiting, (self.now_ns + round(for_s * SECOND_NS), next(self._numbers), turn))
        return turn

    def _live(self, life: Callable[[], object], turn: threading.Event) -> None:
        turn.wait()
        try:
            with suppress(GoneError):  # its node was killed, as the test wants
                life()
        except BaseException as error:  # the test raises it
            self.errors.append(error)
        self._hand_on()

    def _hand_on(self) -> None:
        if not self._waiting:
            self._over.set()
            return
        at_ns, _, turn = heapq.heappop(self._waiting)
        self.now_ns = max(self.now_ns, at_ns)
        turn.set()

    def sleep(self, for_s: float) -> None:
        turn = self._line_up(max(for_s, 1e-6))
        self._hand_on()
        turn.wait()

    def run(self) -> None:
        """Let all live to their ends."""
        self._hand_on()
        assert self._over.wait(60), "somebody sleeps for ever"
        if self.errors:
            raise self.errors[0]


@dataclass
class FakeBoard:
    """A board of one node, and the word of all who serve there."""

    served: int = 0
    lowered_to: float = 1.0

    def add(self) -> None:
        self.served += 1

    def ceiling(self) -> float:
        return self.lowered_to

    def lower(self, to: float) -> None:
        self.lowered_to = to


@dataclass(eq=False)
class Served:
    """An actor."""

    member: Member
    place: str
    owner: str
    free_ns: int = 0
    killed: bool = False  # by a fault, not by its owner
    ended: bool = False
    ended_ns: int = 0
    calls: list[Call] = field(default_factory=list)
    delivered: list[tuple[str, int]] = field(default_factory=list)  # sender and number of each message whose answer arrived


@dataclass(eq=False)
class Call:
    """A call, and when its answer will be back."""

    server: Served
    method: str
    args: tuple[Any, ...]
    begins_ns: int
    runs_ns: int
    back_ns: int
    ran: bool = False
    value: Any = None
    end: Ended | None = None


class World:
    """The nodes and all actors on them. A dead node is known to be dead `notice_s` later, and calls to it fail as late.

    Of calls to the dead every second fails `late_s` later than that.
    """

    def __init__(
        self, turns: Turns, places: Sequence[str], work_s: float = 0.001, wire_s: float = 0.001, notice_s: float = 0.5, late_s: float = 0.0
    ) -> None:
        self.turns, self.alive, self.dead_ns = turns, set(places), dict[str, int]()
        self.work_ns, self.wire_ns, self.notice_ns = (round(one * SECOND_NS) for one in (work_s, wire_s, notice_s))
        self.late_ns = round(late_s * SECOND_NS)
        self.named: dict[str, Served] = {}
        self.actors: list[Served] = []

    def kill_node(self, place: str) -> None:
        """End a node, with all that runs on it."""
        self.alive.discard(place)
        self.dead_ns[place] = self.turns.now_ns
        for server in self.actors:
            if place in {server.place, server.owner} and not server.ended:
                self.end(server, killed=True)

    def kill_process(self, place: str, at: int) -> None:
        """End one of a node's actors, as the kernel does."""
        living = [server for server in self.actors if server.place == place and not server.ended]
        if living:
            self.end(living[at % len(living)], killed=True)

    def freeze(self, place: str, for_s: float) -> None:
        """Have a node's actors serve nobody for a time."""
        for server in self.actors:
            if server.place == place:
                server.free_ns = self.turns.now_ns + round(for_s * SECOND_NS)

    def end(self, server: Served, *, killed: bool) -> None:
        if server.ended:
            return
        for call in server.calls:  # what has run has run; its answer is on its way where its machine still is
            self.settle(call)
        server.ended, server.killed, server.ended_ns = True, killed, self.turns.now_ns

    def settle(self, call: Call) -> Ended | None:
        now_ns, server = self.turns.now_ns, call.server
        if call.end is not None:
            return call.end
        if not call.ran and not server.ended and call.runs_ns <= now_ns:
            call.ran, call.value = True, getattr(server.member, call.method)(*call.args)
        if call.ran and call.back_ns <= now_ns and not self._is_cut(call):
            call.end = Ended(Outcome.FINISHED, call.value, at_ns=call.back_ns)
            if call.method == "receive":
                server.delivered.append((call.args[0], call.args[1]))
        elif server.ended and now_ns >= self._noticed_ns(call):
            call.end = Ended(Outcome.FAILED, reason="ActorDiedError")
        return call.end

    def _is_cut(self, call: Call) -> bool:
        dead_ns = self.dead_ns.get(call.server.place)
        return dead_ns is not None and call.back_ns > dead_ns

    def _noticed_ns(self, call: Call) -> int:
        late_ns = self.late_ns if call.method == "receive" and call.args[1] % 2 else 0
        return self.dead_ns.get(call.server.place, call.server.ended_ns - self.notice_ns) + self.notice_ns + late_ns


class FakeMeshWork:
    """`RayWork` of one node's simulator."""

    def __init__(self, world: World, place: str) -> None:
        self.world, self.place = world, place
        self.outstanding_max = 0
        self._posted: list[Call] = []

    def places(self) -> frozenset[str]:
        world = self.world
        unnoticed = {place for place, at_ns in world.dead_ns.items() if world.turns.now_ns < at_ns + world.notice_ns}
        return frozenset(world.alive | unnoticed)

    def spawn(self, factory: type, *args: Any, calls_max: int = 0, at_once: int = 0, name: str = "") -> Any:
        if name in self.world.named and not self.world.named[name].ended:
            return None
        server = Served(factory(*args), self.place, self.place, self.world.turns.now_ns)
        self.world.named[name] = server
        self.world.actors.append(server)
        return server

    def find(self, prefix: str, known: Collection[str] = ()) -> dict[str, Any]:
        named = self.world.named.items()
        return {name: one for name, one in named if name.startswith(prefix) and name not in known and not one.ended}

    def call(self, victim: Served, method: str, *args: Any) -> Any:
        world = self.world
        begins_ns = max(victim.free_ns, world.turns.now_ns + world.wire_ns)
        victim.free_ns = begins_ns + (world.work_ns if method == "receive" else 0)
        call = Call(victim, method, args, begins_ns, victim.free_ns, victim.free_ns + world.wire_ns)
        victim.calls = [one for one in victim.calls if world.settle(one) is None] + [call]
        return call

    def post(self, victim: Served, method: str, *args: Any) -> Any:
        call = self.call(victim, method, *args)
        self._posted = [one for one in self._posted if self.world.settle(one) is None] + [call]
        self.outstanding_max = max(self.outstanding_max, len(self._posted))
        return call

    def look(self, calls: Sequence[Call]) -> list[Ended | None]:
        return [self.world.settle(call) for call in calls]

    def cancel(self, calls: Sequence[Call]) -> None:
        for call in calls:
            if self.world.settle(call) is None and call.begins_ns > self.world.turns.now_ns:
                call.end = Ended(Outcome.CANCELLED)

    def kill(self, victim: Served) -> None:
        self.world.end(victim, killed=False)

    def store_use(self) -> StoreUse:
        return StoreUse()
