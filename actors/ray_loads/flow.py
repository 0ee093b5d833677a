"""How many calls a flood sends now: an open schedule against a bound of what may be outstanding, by a strategy of back-pressure. Pure.

Every offer has one fate, and every accepted call one end:

    offered  = accepted + dropped + rejected + waiting
    accepted = finished + failed + cancelled + outstanding

An offer that finds the bound reached is, by strategy:

    block         not made: the source stands still, and for how long is counted (`blocked_s`)
    drop_newest   put behind those that wait; dropped where `waiting` of them do
    drop_oldest   put behind those that wait; the one that waits longest is dropped where there are too many
    reject        refused with an error
    shed          dropped with a chance that rises from 0 at half of the bound to 1 at the bound
    token_bucket  dropped; so is one that finds no token (`tokens_per_s`, at most `burst` of them kept), whatever is outstanding
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields
from enum import StrEnum
from random import Random
from typing import Final

CATCH_UP_S: Final = 0.5  # how much of the schedule may be owed; what the sender was later with than that is `missed`
BLOCK_S: Final = 0.05  # how much a blocked source keeps for the moment in which it may go on


class Strategy(StrEnum):
    """What becomes of an offer that finds no room."""

    BLOCK = "block"
    DROP_NEWEST = "drop_newest"
    DROP_OLDEST = "drop_oldest"
    REJECT = "reject"
    SHED = "shed"
    TOKEN_BUCKET = "token_bucket"  # noqa: S105  # the name of a strategy


class Outcome(StrEnum):
    """How an accepted call ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Bounds:
    """`outstanding` calls at most, `waiting` offers at most before them (of the two that drop), and the bucket of `token_bucket`."""

    outstanding: int
    strategy: Strategy = Strategy.BLOCK
    waiting: int = 0
    tokens_per_s: float = 0.0
    burst: int = 1


@dataclass(slots=True)
class Counts:
    """How many so far. `missed` are offers that fell due and were not made, because the sender was too slow."""

    offered: int = 0
    accepted: int = 0
    dropped: int = 0
    rejected: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    missed: int = 0


FATES: Final = tuple(one.name for one in fields(Counts))


class Flow:
    """One source of calls. `step` says what to send, the owner says with `refuse` and `end` what became of it."""

    def __init__(self, bounds: Bounds, seed: int) -> None:
        self.bounds = bounds
        self.counts = Counts()
        self.blocked_s = 0.0
        self._chance = Random(seed)
        self._owed = 0.0
        self._last_s = self._due_s = 0.0
        self._tokens = float(bounds.burst)
        self._waiting: deque[float] = deque()

    @property
    def outstanding(self) -> int:
        """How many accepted calls have not ended."""
        counts = self.counts
        return counts.accepted - counts.finished - counts.failed - counts.cancelled

    @property
    def waiting(self) -> int:
        """How many offers wait to be accepted."""
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more calls may be outstanding."""
        return max(0, self.bounds.outstanding - self.outstanding)

    def step(self, now_s: float, asked_per_s: float, most: int) -> list[float]:
        """Return when each call that is to be sent now fell due, oldest first, and count them as accepted.

        `now_s` counts from the start and never falls; at most `most` offers are made in one step.
        """
        elapsed_s, self._last_s = now_s - self._last_s, now_s
        self._owed += asked_per_s * elapsed_s
        self._tokens = min(float(self.bounds.burst), self._tokens + self.bounds.tokens_per_s * elapsed_s)
        sent: list[float] = []
        self._take_waiting(sent)
        made = min(math.floor(self._owed), most)
        if self.bounds.strategy is Strategy.BLOCK:
            made = min(made, self.room)
        for index in range(made):
            self._offer(self._due(now_s, self._owed - index - 1, asked_per_s), sent)
        self._owed -= made
        self._forget(asked_per_s)
        return sent

    def _due(self, now_s: float, later: float, asked_per_s: float) -> float:
        """Return when an offer fell due after which `later` more did, at the rate of now; never before the one before it."""
        ago_s = later / asked_per_s if later < asked_per_s * now_s else 0.0
        self._due_s = max(self._due_s, now_s - ago_s)
        return self._due_s

    def _forget(self, asked_per_s: float) -> None:
        """Bound what is owed: a full source was blocked for that long, a slow sender missed it."""
        blocked = self.bounds.strategy is Strategy.BLOCK and not self.room
        excess = self._owed - max(1.0, asked_per_s * (BLOCK_S if blocked else CATCH_UP_S))
        if excess <= 0.0:
            return
        if blocked:
            self._owed -= excess
            self.blocked_s += excess / asked_per_s if asked_per_s else 0.0
        else:
            whole = math.floor(excess)
            self._owed -= whole
            self.counts.missed += whole

    def _take_waiting(self, sent: list[float]) -> None:
        while self._waiting and self.room:
            self._accept(self._waiting.popleft(), sent)

    def _accept(self, due_s: float, sent: list[float]) -> None:
        self.counts.accepted += 1
        sent.append(due_s)

    def _offer(self, due_s: float, sent: list[float]) -> None:
        self.counts.offered += 1
        strategy = self.bounds.strategy
        if strategy in {Strategy.DROP_NEWEST, Strategy.DROP_OLDEST}:
            self._queue(due_s, sent, newest=strategy is Strategy.DROP_NEWEST)
        elif strategy is Strategy.REJECT and not self.room:
            self.counts.rejected += 1
        elif self._drops(strategy):
            self.counts.dropped += 1
        else:
            self._accept(due_s, sent)

    def _drops(self, strategy: Strategy) -> bool:
        """Tell whether an offer is dropped at once; one that the bucket lets through takes its token."""
        if strategy is Strategy.SHED:
            return self._chance.random() < self._shed_chance()
        if strategy is Strategy.TOKEN_BUCKET:
            if not self.room or self._tokens < 1.0:
                return True
            self._tokens -= 1.0
        return False

    def _queue(self, due_s: float, sent: list[float], *, newest: bool) -> None:
        if self.room and not self._waiting:
            self._accept(due_s, sent)
        elif len(self._waiting) < self.bounds.waiting:
            self._waiting.append(due_s)
        else:
            self.counts.dropped += 1
            if not newest and self._waiting:
                self._waiting.popleft()
                self._waiting.append(due_s)

    def _shed_chance(self) -> float:
        half = self.bounds.outstanding / 2
        return 1.0 if not self.room else max(0.0, (self.outstanding - half) / half)

    def refuse(self, count: int = 1) -> None:
        """Take back calls that were to be sent and that the other side refused: they are rejected, not accepted."""
        self.counts.accepted -= count
        self.counts.rejected += count

    def end(self, outcome: Outcome, count: int = 1) -> None:
        """Count the end of accepted calls."""
        assert count <= self.outstanding, f"{count} calls ended, {self.outstanding} are outstanding"
        if outcome is Outcome.FINISHED:
            self.counts.finished += count
        elif outcome is Outcome.FAILED:
            self.counts.failed += count
        else:
            self.counts.cancelled += count

    def close(self) -> None:
        """Drop what waits: nothing is offered any more."""
        self.counts.dropped += len(self._waiting)
        self._waiting.clear()
