"""What became of the messages that one sender of a mesh sent, and who stands in for members that died. Pure.

A message is acknowledged once its receiver has answered. Every acknowledged one is accounted for:

    sent         = acknowledged + failed + cancelled + outstanding
    acknowledged = lost + unread + held

A member keeps what it received in memory, as services that are actors do. Whoever takes a dead one's place is asked what it knows of us:
what was acknowledged and is not among that is `lost`. At the end every member is asked; what a living one cannot tell any more is `unread`,
which says nothing either way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

TURN_S: Final = 2.0  # how long each in line is given to stand in before the next one may
PATHS: Final = ("same_node", "cross_node")
FATES: Final = ("acknowledged", "failed", "lost", "unread")

Pairs = tuple[tuple[int, int], ...]


class Ranges:
    """A set of whole numbers, kept as half-open ranges: numbers that come about in order take no more room than their gaps."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        whole = list(pairs)
        self._starts = [start for start, _ in whole]
        self._ends = [end for _, end in whole]

    def add(self, number: int) -> bool:
        """Add one; False when it was there."""
        at = bisect_right(self._starts, number)
        if at and number < self._ends[at - 1]:
            return False
        joins_before = bool(at) and self._ends[at - 1] == number
        joins_after = at < len(self._starts) and self._starts[at] == number + 1
        if joins_before and joins_after:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_before:
            self._ends[at - 1] += 1
        elif joins_after:
            self._starts[at] -= 1
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number + 1)
        return True

    def __len__(self) -> int:
        """How many numbers there are."""
        return sum(self._ends) - sum(self._starts)

    @property
    def pairs(self) -> Pairs:
        """The ranges in order, each from its first number to the one after its last."""
        return tuple(zip(self._starts, self._ends, strict=True))

    def common(self, other: Ranges) -> Ranges:
        """Return what is in both."""
        found, mine, theirs = [], list(self.pairs), list(other.pairs)
        while mine and theirs:
            start, end = max(mine[-1][0], theirs[-1][0]), min(mine[-1][1], theirs[-1][1])
            if start < end:
                found.append((start, end))
            (mine if mine[-1][0] >= theirs[-1][0] else theirs).pop()  # from the end: nothing before it reaches into what is left
        return Ranges(reversed(found))


@dataclass(slots=True)
class Sums:
    """How many messages so far."""

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    unread: int = 0


@dataclass(slots=True)
class Book:
    """What one member has acknowledged and still has to answer for."""

    held: Ranges = field(default_factory=Ranges)
    last: int = 0
    dead: bool = False
    read: bool = False


class Account:
    """One sender's account. Members are named by anything hashable; numbers rise by one for each member."""

    def __init__(self) -> None:
        self.sums = Sums()
        self._books: dict[object, Book] = {}

    @property
    def held(self) -> int:
        """How many acknowledged messages are known to be kept, or not known to be lost."""
        return sum(len(book.held) for book in self._books.values())

    def send(self, member: object) -> int:
        """Return the number of the next message to a member."""
        book = self._books.setdefault(member, Book())
        book.last += 1
        self.sums.sent += 1
        return book.last

    def acknowledge(self, member: object, number: int) -> None:
        """Take an answer, which may arrive after its member is known to be dead."""
        if self._books[member].held.add(number):
            self.sums.acknowledged += 1

    def fail(self) -> None:
        """Count a message without an answer: it may or may not have been received."""
        self.sums.failed += 1

    def cancel(self, count: int = 1) -> None:
        """Count messages that were taken back, or not waited for any more."""
        self.sums.cancelled += count

    def die(self, member: object) -> None:
        """Note that a member is dead. What it held is lost unless somebody who takes its place knows it."""
        self._books.setdefault(member, Book()).dead = True

    def tell(self, member: object, known: Ranges, *, final: bool = False) -> int:
        """Take what a living member knows of us; returns how many acknowledged messages are lost by that. `final`: nothing follows."""
        book = self._books.setdefault(member, Book())
        kept = book.held.common(known)
        lost = len(book.held) - len(kept)
        book.held, book.dead, book.read = kept, False, final
        self.sums.lost += lost
        return lost

    def close(self) -> None:
        """Judge what nobody was asked for: of the dead all is lost, of the living nothing is known."""
        for book in self._books.values():
            if not book.read:
                if book.dead:
                    self.sums.lost += len(book.held)
                else:
                    self.sums.unread += len(book.held)
                book.held, book.read = Ranges(), True


def may_stand_in(member: str, me: str, living: Collection[str], dead_for_s: float) -> bool:
    """Tell whether a node may take in a member of a lost node now.

    All nodes come to the same order from the member's name and the living nodes: the first may at once, each further one `TURN_S` later, so
    that lost members spread over the living, and one that does not act stops nobody.
    """
    order = sorted({*living, me})
    first = crc32(member.encode()) % len(order)
    return dead_for_s >= TURN_S * ((order.index(me) - first) % len(order))
