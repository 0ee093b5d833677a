"""A tree of relays between many agents and one aggregator: who hands to whom, and what a relay does with what it is handed.

A relay gathers the calls of its children into one bundle, hands that upward, and answers each call with what came back. So the
aggregator has a few callers instead of thousands, and one sync makes a bundle durable instead of one window. Records go up as they
are, byte for byte: rows of single nodes are what users see, and each record's number and checksum are judged where they are kept.

A relay holds nothing that is its own. It answers only what the aggregator answered, that is, what is on the aggregator's disk; until
then every record is in the outbox of the agent that sealed it, which hands it in again, to another relay if need be. A relay that
dies therefore loses nothing, one that is replaced has nothing to read back, and what arrives by two ways is skipped by the
aggregator's own rule (`intake.following`). What a relay holds is bounded: a call that finds no room is answered `BUSY`.

Decisions only, no clock and no calls: instants are nanoseconds of the caller's boot clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final

from actors.clock import MILLISECOND_NS, SECOND_NS
from actors.errors import InputError

from .store import Stream

ROOT: Final = ""  # the aggregator's name among those that windows are handed to
OTHERS: Final = 3  # relays of the same level that one turns to when its own does not answer

Records = tuple[tuple[int, bytes], ...]
Part = tuple[Stream, Records]


# who hands to whom


@dataclass(frozen=True, slots=True)
class Layout:
    """A tree. `ways` has for every node and relay where it hands its windows: its own parent first, then the others to turn to."""

    ways: Mapping[str, tuple[str, ...]]
    hosts: Mapping[str, str]  # relay -> node on which it runs
    levels: tuple[tuple[str, ...], ...]  # relays by level, those of the agents first; empty when agents hand to the aggregator

    def children(self, name: str) -> tuple[str, ...]:
        """Return those whose own parent this is, in order."""
        return tuple(sorted(child for child, ways in self.ways.items() if ways[0] == name))


def layout(nodes: Iterable[str], fan_in: int) -> Layout:
    """Return the tree in which nobody has more than `fan_in` children; the same for the same names, in whatever order they come.

    Raises `InputError` when `fan_in` is under 2.
    """
    if fan_in < 2:
        raise InputError("invalid_value", f"a tree with a fan-in of {fan_in} never ends in one root, it must be at least 2")
    names = sorted(set(nodes))
    ways: dict[str, tuple[str, ...]] = {}
    hosts: dict[str, str] = {}
    levels: list[tuple[str, ...]] = []
    members = names
    while len(members) > fan_in:
        groups = _groups(members, -(-len(members) // fan_in))
        level = tuple(f"relay-{len(levels) + 1}-{at:04d}" for at in range(len(groups)))
        for at, group in enumerate(groups):
            ways.update((member, _ways(level, at, place)) for place, member in enumerate(group))
        for relay, group in zip(level, _groups(names, len(groups)), strict=True):
            hosts[relay] = group[len(levels) % len(group)]  # a node that hosts on one level does not host on the next, where it can be
        levels.append(level)
        members = list(level)
    ways.update((member, (ROOT,)) for member in members)
    return Layout(ways, hosts, tuple(levels))


def _groups(members: Sequence[str], count: int) -> list[list[str]]:
    """Return the members in this many groups of neighbours, whose sizes differ by one at most."""
    edges = [at * len(members) // count for at in range(count + 1)]
    return [list(members[first:last]) for first, last in pairwise(edges)]


def _ways(level: tuple[str, ...], home: int, place: int) -> tuple[str, ...]:
    """Return the relay at `home`, then others; neighbours begin with different ones, so that no relay gets all children of a dead one."""
    rest = [level[(home + 1 + at) % len(level)] for at in range(len(level) - 1)]
    first = place % len(rest) if rest else 0
    return (level[home], *(rest[first:] + rest[:first])[:OTHERS])


# to whom, and when


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient those are who hand windows on. Nanoseconds."""

    gather_ns: int = 50 * MILLISECOND_NS  # how long the first call of a bundle waits for others
    wait_ns: int = 200 * MILLISECOND_NS  # after one try that failed; twice as long after each further one
    wait_max_ns: int = 5 * SECOND_NS
    away_ns: int = 10 * SECOND_NS  # how long one stays with others before it tries its own again; twice as long each time it was in vain
    away_max_ns: int = 320 * SECOND_NS


class Way:
    """To whom one child hands its windows, and when it may try again."""

    def __init__(self, ways: tuple[str, ...], pace: Pace, chance: random.Random) -> None:
        self._ways, self._pace, self._chance = ways, pace, chance
        self._at = 0
        self._failed = 0
        self._left_ns = 0
        self._away_ns = pace.away_ns
        self.ready_ns = 0

    def target(self, now_ns: int) -> str:
        """Return whom to hand the next windows; not before `ready_ns`."""
        if self._at and now_ns - self._left_ns >= self._away_ns:
            self._at = 0
            self._away_ns = min(2 * self._away_ns, self._pace.away_max_ns)  # or all would fall back on a dead one in step, level by level
        return self._ways[self._at]

    def taken(self) -> None:
        """Note that windows were taken."""
        self._failed = 0
        if not self._at:
            self._away_ns = self._pace.away_ns

    def unreachable(self, now_ns: int) -> None:
        """Note that nobody answered: turn to the next, and wait the longer the more have been tried."""
        if not self._at:
            self._left_ns = now_ns
        self._at = (self._at + 1) % len(self._ways)
        self.refused(now_ns)

    def refused(self, now_ns: int) -> None:
        """Note that the windows were not taken by one that lives: it has no room, or gets no answer itself. Others would fare no better."""
        longest_ns = min(self._pace.wait_ns << min(self._failed, 10), self._pace.wait_max_ns)
        self._failed += 1
        self.ready_ns = now_ns + round(longest_ns * self._chance.uniform(0.5, 1.0))


# a relay


class Outcome(Enum):
    """What became of a call."""

    HELD = "held"  # the aggregator answered; `held` says up to where each part is on its disk
    BUSY = "busy"  # no room: hand it in again later
    FAILED = "failed"  # nobody above answered, whatever may have been done: hand it in again
    REPLACED = "replaced"  # the same child has handed in more since; its later call is answered


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered; `held` has the last number on disk for each of its parts, in their order."""

    call: int
    outcome: Outcome
    held: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is handed upward in one call. `number` names it in the answer."""

    number: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """A child's call that waits for its answer."""

    call: int
    sender: str
    parts: tuple[Part, ...]
    since_ns: int
    size: int


def size_of(parts: Iterable[Part]) -> int:
    """Return the bytes of the records in these parts."""
    return sum(len(data) for _, records in parts for _, data in records)


class Relay:
    """One relay's calls: those that gather, and those of the one bundle that is on its way up.

    Holds at most `max_bytes`, or one call that alone is larger. Not thread-safe: its shell guards it.
    """

    def __init__(self, pace: Pace, *, max_bytes: int = 64 << 20, bundle_bytes: int = 8 << 20) -> None:
        self._pace, self._max_bytes, self._bundle_bytes = pace, max_bytes, bundle_bytes
        self._waiting: dict[str, _Call] = {}  # by sender, oldest first
        self._flying: list[_Call] = []
        self._number = 0
        self.held_bytes = 0

    def offer(self, call: int, sender: str, parts: Sequence[Part], now_ns: int) -> list[Answer]:
        """Take a call; return the answers that are known now, to this one or to an earlier one of the same child.

        A child waits for one answer at a time: what it handed in before and has given up on makes room.
        """
        answers = []
        earlier = self._waiting.pop(sender, None)
        if earlier is not None:
            self.held_bytes -= earlier.size
            answers.append(Answer(earlier.call, Outcome.REPLACED))
        size = size_of(parts)
        if self.held_bytes and self.held_bytes + size > self._max_bytes:
            return [*answers, Answer(call, Outcome.BUSY)]
        self._waiting[sender] = _Call(call, sender, tuple(parts), now_ns, size)
        self.held_bytes += size
        return answers

    def due_ns(self) -> int | None:
        """Return when the next bundle is to be taken; None while one is on its way or nothing waits."""
        if self._flying or not self._waiting:
            return None
        since_ns = next(iter(self._waiting.values())).since_ns
        return since_ns if self.held_bytes >= self._bundle_bytes else since_ns + self._pace.gather_ns

    def take(self) -> Bundle:
        """Return the oldest calls as a bundle of about `bundle_bytes`, each stream once and each record once.

        It is on its way until `answered` or `failed`.
        """
        assert not self._flying, "one bundle at a time: what comes meanwhile gathers"
        size = 0
        for call in list(self._waiting.values()):
            if self._flying and size + call.size > self._bundle_bytes:
                break
            self._flying.append(self._waiting.pop(call.sender))
            size += call.size
        found: dict[Stream, dict[int, bytes]] = {}
        for call in self._flying:
            for stream, records in call.parts:
                found.setdefault(stream, {}).update(records)
        self._number += 1
        return Bundle(self._number, tuple((stream, tuple(sorted(records.items()))) for stream, records in sorted(found.items())))

    def answered(self, number: int, held: Mapping[Stream, int]) -> list[Answer]:
        """Return the answers to a bundle's calls, given the last number of each stream that is on the aggregator's disk."""
        return [Answer(call.call, Outcome.HELD, tuple(held[stream] for stream, _ in call.parts)) for call in self._landed(number)]

    def failed(self, number: int) -> list[Answer]:
        """Return the answers to a bundle's calls, when it met no answer: each child has its records still."""
        return [Answer(call.call, Outcome.FAILED) for call in self._landed(number)]

    def _landed(self, number: int) -> list[_Call]:
        """Return the calls of the bundle that is on its way, if it is this one; an answer that comes too late answers nobody."""
        if number != self._number:
            return []
        landed, self._flying = self._flying, []
        self.held_bytes -= sum(call.size for call in landed)
        return landed
