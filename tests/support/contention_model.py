"""Contenders for one lock as a simulation of discrete events, beside the formula and beside real ones."""

from __future__ import annotations

import heapq
from collections import deque
from random import Random

from actors.concurrency.contest import Draws


class Simulated:
    """Contenders whose holds have a mean of `hold_s`. The shared lock is held for `call_s` longer; between two turns pass `apart_s`."""

    def __init__(
        self, contenders: int, contention: float, seed: int, hold_s: float = 1.0, call_s: float = 0.0, apart_s: float = 0.0
    ) -> None:
        self._draws = [Draws(Random(f"{seed}/{at}"), contention, hold_s) for at in range(contenders)]
        self._call_s, self._apart_s = call_s, apart_s
        self._events = [(0.0, at, "asks") for at in range(contenders)]
        self._busy = False
        self._waiting: deque[tuple[int, float]] = deque()
        self.turns = self.contended = 0

    def contended_share(self, turns: int) -> float:
        """Return the share of so many turns that found the shared lock held."""
        while self.turns < turns:
            now, at, what = heapq.heappop(self._events)
            getattr(self, f"_{what}")(now, at)
        return self.contended / self.turns

    def _asks(self, now: float, at: int) -> None:
        is_shared, hold_s = self._draws[at].next()
        self.turns += 1
        if not is_shared:
            heapq.heappush(self._events, (now + hold_s + self._apart_s, at, "asks"))
        elif self._busy:
            self.contended += 1
            self._waiting.append((at, hold_s + self._call_s))
        else:
            self._holds(now, at, hold_s + self._call_s)

    def _holds(self, now: float, at: int, hold_s: float) -> None:
        self._busy = True
        heapq.heappush(self._events, (now + hold_s, at, "leaves"))

    def _leaves(self, now: float, at: int) -> None:
        self._busy = False
        heapq.heappush(self._events, (now + self._apart_s, at, "asks"))
        if self._waiting:
            self._holds(now, *self._waiting.popleft())
