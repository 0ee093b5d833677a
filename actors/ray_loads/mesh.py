"""Who is in a mesh: the members of all nodes as one sender sees them, and those that it keeps itself.

Each node's simulator keeps `actors` members, named `<mesh>/<home>/<index>/<incarnation>` in the run's namespace, where the simulators of
the other nodes find them. A member whose process died is made anew by its keeper. When Ray holds a whole node for dead, the others take its
members in, each node at most `spare`: `may_stand_in` says who, and that a name is given once settles it where two disagree. A new
incarnation is asked what it knows before it is sent anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..clock import SECOND_NS, Clock
from .flow import Outcome
from .mesh_account import Account, Ranges, may_stand_in
from .mesh_members import Member
from .ray_work import RayWork

FIND_S: Final = 0.5  # between two looks for members that are new, while some may be
AGAIN_S: Final = 0.5  # between two incarnations of a member that one keeper makes
RESTARTS_MAX: Final = 64  # of one keeper: what keeps on dying is left dead


@dataclass(slots=True)
class Lane:
    """One member as its sender sees it. `kept`: by this simulator."""

    home: str
    index: int
    incarnation: int = -1
    handle: Any = None
    greeting: Any = None  # the question that it has to answer first
    place: str = ""
    ceiling: float = 1.0
    is_open: bool = False
    dead_s: float | None = None
    outstanding: int = 0
    kept: bool = False
    restarted_s: float = -math.inf

    @property
    def key(self) -> str:
        """Its name among the members, whichever incarnation."""
        return f"{self.home}/{self.index}"


class Mesh:
    """The lanes of one sender, by number. `tend` keeps them up to date and never waits."""

    def __init__(self, work: RayWork, clock: Clock, account: Account, board: str, name: str, me: str, actors: int, spare: int) -> None:
        self.lanes: list[Lane] = []
        self.restarts = 0
        self.lost_homes: set[str] = set()
        self._work, self._clock, self._account = work, clock, account
        self._board, self._name, self._me, self._actors, self._spare = board, f"{name}/", me, actors, spare
        self._by_key: dict[str, Lane] = {}
        self._known: set[str] = set()
        self._found_s = -math.inf
        self._next = 0
        self._places = frozenset({work.place})

    # ---- the members of this node

    def open(self) -> Iterator[list[Any]]:
        """Make this node's members one after another; each is ready once it has told its process."""
        for index in range(self._actors):
            lane = self._lane(self._me, index)
            self._make(lane)
            yield [self._work.call(lane.handle, "pid")]

    def close(self) -> None:
        """End those that are kept here."""
        for lane in self.lanes:
            if lane.kept:
                self._work.kill(lane.handle)

    def _make(self, lane: Lane) -> bool:
        """Make the next incarnation of a member here; False when another node was quicker."""
        incarnation = lane.incarnation + 1
        name = f"{self._name}{lane.key}/{incarnation}"
        handle = self._work.spawn(Member, self._board, self._work.place, name=name)
        if handle is None:
            return False
        self._known.add(name)
        self._greet(lane, incarnation, handle, kept=True)
        return True

    def _lane(self, home: str, index: int) -> Lane:
        lane = Lane(home, index)
        if lane.key not in self._by_key:
            self._by_key[lane.key] = lane
            self.lanes.append(lane)
        return self._by_key[lane.key]

    def _greet(self, lane: Lane, incarnation: int, handle: Any, *, kept: bool) -> None:
        lane.incarnation, lane.handle, lane.kept, lane.is_open, lane.dead_s = incarnation, handle, kept, False, None
        lane.greeting = self._work.call(handle, "hello", self._me)

    # ---- while the load lives

    def tend(self, *, find: bool = False) -> float:
        """Find who is new, greet, make anew who died; return the lowest ceiling of the members' nodes. `find`: some may be new."""
        now_s = self._clock.boot_ns() / SECOND_NS
        if (find or any(not lane.is_open for lane in self.lanes)) and now_s - self._found_s >= FIND_S:
            self._found_s = now_s
            self._places = self._work.places()
            self._find()
        for lane in self.lanes:
            if lane.greeting is not None:
                self._hear(lane, now_s)
            elif lane.dead_s is not None:
                self._replace(lane, now_s)
            elif lane.is_open and lane.ceiling < 1.0 and not lane.outstanding:  # nothing else would tell when it rises
                lane.greeting = self._work.call(lane.handle, "hello", self._me)
        return min((lane.ceiling for lane in self.lanes if lane.is_open), default=1.0)

    def find(self) -> None:
        """Find now who is new."""
        self._found_s = -math.inf
        self.tend(find=True)

    def _find(self) -> None:
        for name, handle in self._work.find(self._name, self._known).items():
            self._known.add(name)
            home, index, incarnation = name.removeprefix(self._name).rsplit("/", 2)
            lane = self._lane(home, int(index))
            if int(incarnation) > lane.incarnation:
                self._greet(lane, int(incarnation), handle, kept=False)

    def _hear(self, lane: Lane, now_s: float) -> None:
        """Take the answer to a greeting, if it has come."""
        (end,) = self._work.look([lane.greeting])
        if end is None:
            return
        lane.greeting = None
        if end.outcome is not Outcome.FINISHED:
            self.die(lane, lane.incarnation, now_s)
            return
        lane.place, lane.ceiling, known = end.value
        if not lane.is_open:
            self._account.tell(lane.key, Ranges(known))
            lane.is_open = True

    def die(self, lane: Lane, incarnation: int, now_s: float) -> None:
        """Take that a call to this incarnation failed."""
        if incarnation == lane.incarnation and lane.dead_s is None:
            lane.is_open, lane.greeting, lane.dead_s = False, None, now_s
            self._account.die(lane.key)

    def _replace(self, lane: Lane, now_s: float) -> None:
        assert lane.dead_s is not None
        if self.restarts >= RESTARTS_MAX or now_s - lane.restarted_s < AGAIN_S:
            return
        if lane.kept or self._may_take_in(lane, now_s - lane.dead_s):
            lane.restarted_s = now_s
            self.restarts += self._make(lane)

    def _may_take_in(self, lane: Lane, dead_for_s: float) -> bool:
        if not lane.place or lane.place in self._places:
            return False  # its keeper may make it anew, or has ended as it should
        self.lost_homes.add(lane.home)
        if sum(one.kept for one in self.lanes) >= self._actors + self._spare:
            return False
        living = {one.place for one in self.lanes if one.place in self._places}
        return may_stand_in(lane.key, self._work.place, living, dead_for_s)

    # ---- what is sent

    @property
    def open_lanes(self) -> list[Lane]:
        """Those that can be sent to."""
        return [lane for lane in self.lanes if lane.is_open]

    def bound(self, outstanding: int) -> int:
        """Return how many messages may be outstanding in all: what the dead still hold back counts for nobody."""
        return (outstanding if self.open_lanes else 0) + sum(lane.outstanding for lane in self.lanes if not lane.is_open)

    def next_lane(self, outstanding: int) -> int | None:
        """Return the next member in turn that has less than its share of what may be outstanding."""
        count = len(self.open_lanes)
        for step in range(len(self.lanes)):
            at = (self._next + step) % len(self.lanes)
            if self.lanes[at].is_open and self.lanes[at].outstanding < math.ceil(outstanding / count):
                self._next = (at + 1) % len(self.lanes)
                return at
        return None

    def senders(self) -> set[str]:
        """Return the nodes whose simulators still send, as far as is known: those that keep an open member."""
        return {lane.home for lane in self.open_lanes} - self.lost_homes
