"""The actors of a lock that a whole cluster wants: who keeps it, and who contends for it. Plain classes; Ray makes actors of them."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ..clock import SECOND_NS, SystemClock
from .board import claim
from .lock_line import LockLine
from .victims import burn


class LockKeeper:
    """Keeps one lock; every call but the one that asks for it is answered at once. A holder that is silent for `lease_s` loses it."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._line = LockLine()
        self._turns: dict[int, asyncio.Event] = {}

    async def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    async def acquire(self) -> int:
        """Wait for the lock and return the token that holds it."""
        token = self._line.enter()
        turn = self._turns[token] = asyncio.Event()
        self._call_next()
        await turn.wait()
        asyncio.get_running_loop().call_later(self._lease_s, self._expire, token)
        return token

    async def release(self, token: int) -> bool:
        """Give the lock to the next; False when it was not held any more."""
        held = self._line.leave(token)
        self._call_next()
        return held

    async def figures(self) -> tuple[int, int]:
        """Return how many wait, and how many holders lost the lock because their time was over."""
        return self._line.waiting, self._line.expired

    def _expire(self, token: int) -> None:
        if self._line.expire(token):
            self._call_next()

    def _call_next(self) -> None:
        turn = self._turns.pop(self._line.holder, None) if self._line.holder is not None else None
        if turn is not None:
            turn.set()


class Contender:
    """Takes the lock, works while it holds it, gives it back: one after another."""

    def __init__(self, board: str, keeper: Any, patience_s: float) -> None:
        self._board = board
        self._keeper = keeper
        self._patience_s = patience_s
        self._clock = SystemClock()
        claim(board)

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    def contend(self, hold_s: float) -> tuple[float, float, bool]:
        """Hold the lock once, for this much CPU time; return how long it waited and held, in seconds, and whether it held it to the end.

        Raises `TimeoutError` when the lock does not come within its patience.
        """
        asked_ns = self._clock.boot_ns()
        token = self._keeper.acquire.remote().future().result(timeout=self._patience_s)
        had_ns = self._clock.boot_ns()
        burn(hold_s)
        held_ns = self._clock.boot_ns() - had_ns
        kept = self._keeper.release.remote(token).future().result(timeout=self._patience_s)
        claim(self._board).add()
        return (had_ns - asked_ns) / SECOND_NS, held_ns / SECOND_NS, bool(kept)
