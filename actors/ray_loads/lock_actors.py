"""The actors of a lock that a whole cluster wants: who keeps it, and who contends for it. Plain classes; Ray makes actors of them."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any, Final

from ..clock import SECOND_NS, SystemClock
from ..concurrency.contest import Draws
from .board import claim
from .lock_line import LockLine

SILENT_S: Final = 3.0  # of a simulator that gives a sign of life each second


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that was given: its token, the number that it guards, and how long it was waited for (0.0 when it was free)."""

    token: int
    guarded: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One time that a lock was held, in seconds as its keeper saw it; `guarded`: what the shared lock guards, None of a lock of one's own.

    `kept`: whether it was held to the end, so that what it guards could be written. `term`: which keeper's number that is.
    """

    waited_s: float
    held_s: float
    kept: bool
    guarded: int | None = None
    term: int = 0


class LockKeeper:
    """Keeps one lock and the number that it guards, for users: the simulators whose contenders want it.

    Every call is answered at once but those that wait for the lock and `stay`. A holder that is silent for `lease_s` loses the lock, and
    with it the right to write the number. A user that gives no sign of life for as long, and for `SILENT_S`, has left, and all that its
    contenders hold or wait for is free at once.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._line = LockLine()
        self._turns: dict[int, asyncio.Event] = {}
        self._users: dict[str, asyncio.Event] = {}
        self._seen_ns: dict[str, int] = {}
        self._left: set[str] = set()
        self._wanted_by: dict[int, str] = {}
        self._clock = SystemClock()
        self._given_ns: dict[int, int] = {}
        self._guarded = 0

    async def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    async def stay(self, user: str) -> None:
        """Return when the user has left. While this does not end the user knows that the keeper lives."""
        self._note(user)
        left = self._users[user] = asyncio.Event()
        await left.wait()

    async def here(self, user: str) -> None:
        """Take a sign of life of a user, and see who has given none."""
        self._note(user)
        silent_ns = round(max(self._lease_s, SILENT_S) * SECOND_NS)
        for other in [other for other, seen_ns in self._seen_ns.items() if self._clock.boot_ns() - seen_ns > silent_ns]:
            await self.leave(other)

    async def leave(self, user: str) -> None:
        """Take that nobody of a user's wants the lock any more: what its contenders hold or wait for is given to others."""
        self._left.add(user)
        self._seen_ns.pop(user, None)
        left = self._users.pop(user, None)
        if left is not None:
            left.set()
        for token in [token for token, who in self._wanted_by.items() if who == user]:
            self._line.withdraw(token)
            turn = self._turns.pop(token, None)
            if turn is not None:
                turn.set()
        self._call_next()

    async def users(self) -> tuple[str, ...]:
        """Return who has not left."""
        return tuple(self._users)

    async def acquire(self, user: str) -> Held:
        """Wait for the lock and return what holds it. Raises `LookupError` when the user has left."""
        if user in self._left:
            raise LookupError(f"{user} has left")
        asked_ns = self._clock.boot_ns()
        token = self._line.enter()
        self._wanted_by[token] = user
        waits = self._line.holder != token
        turn = self._turns[token] = asyncio.Event()
        self._call_next()
        await turn.wait()
        if self._line.holder != token:
            self._wanted_by.pop(token, None)
            raise LookupError(f"{user} has left")
        given_ns = self._given_ns[token] = self._clock.boot_ns()
        asyncio.get_running_loop().call_later(self._lease_s, self._expire, token)
        return Held(token, self._guarded, (given_ns - asked_ns) / SECOND_NS if waits else 0.0)

    async def release(self, token: int, guarded: int) -> tuple[bool, float]:
        """Write the guarded number and give the lock to the next; return whether it was still held, and for how many seconds it was.

        A token that does not hold the lock any more writes nothing.
        """
        held_s = (self._clock.boot_ns() - self._given_ns.pop(token)) / SECOND_NS
        self._wanted_by.pop(token, None)
        kept = self._line.leave(token)
        if kept:
            self._guarded = guarded
        self._call_next()
        return kept, held_s

    async def figures(self) -> tuple[int, int, int]:
        """Return how many wait, how many holders lost the lock because their time was over, and the number that it guards."""
        return self._line.waiting, self._line.expired, self._guarded

    def _note(self, user: str) -> None:
        self._left.discard(user)
        self._seen_ns[user] = self._clock.boot_ns()

    def _expire(self, token: int) -> None:
        if self._line.expire(token):
            self._call_next()

    def _call_next(self) -> None:
        turn = self._turns.pop(self._line.holder, None) if self._line.holder is not None else None
        if turn is not None:
            turn.set()


class Contender:
    """Takes a lock, holds it, gives it back: one after another. The shared lock by chance, else one of its own, which nobody else wants."""

    def __init__(self, board: str, user: str, draws: Draws) -> None:
        self._board = board
        self._user = user
        self._keeper: Any = None
        self._term = -1
        self._draws = draws
        self._clock = SystemClock()
        claim(board)

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    def use(self, keeper: Any, term: int) -> None:
        """Ask this keeper from now on."""
        self._keeper, self._term = keeper, term

    def contend(self) -> Turn:
        """Hold a lock once, raise what it guards, and return the turn. Waits as long as the keeper lives."""
        is_shared, hold_s = self._draws.next()
        turn = self._shared(hold_s) if is_shared else self._own(hold_s)
        claim(self._board).add()
        return turn

    def _shared(self, hold_s: float) -> Turn:
        held: Held = self._keeper.acquire.remote(self._user).future().result()
        self._clock.sleep(hold_s)
        released = self._keeper.release.remote(held.token, held.guarded + 1).future()
        kept, held_s = released.result()
        return Turn(held.waited_s, held_s, kept, held.guarded, self._term)

    def _own(self, hold_s: float) -> Turn:
        begun_ns = self._clock.boot_ns()
        self._clock.sleep(hold_s)
        return Turn(0.0, (self._clock.boot_ns() - begun_ns) / SECOND_NS, kept=True)
