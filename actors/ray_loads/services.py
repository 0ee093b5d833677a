"""A service of a dependency graph, which Ray makes an actor of: takes requests and hands each on to all that it depends on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any, Final

from ..breaker import BreakerPolicy
from ..clock import Clock, SystemClock
from .board import claim
from .service_graph import Failure
from .service_lane import Fate, Lane

RETRY_S: Final = 0.05  # between two calls to a dependency of which the first failed


class Service:
    """One service. Its dependencies have a line each, so that one that does not answer keeps nothing from the others."""

    def __init__(
        self,
        name: str,
        board: str,
        room: int,
        timeout_s: float,
        policy: BreakerPolicy | None,
        others: Mapping[str, Any],
        clock: Clock | None = None,
    ) -> None:
        """`board` is where what clients ask is counted, "" where none do; `others` are the dependencies' handles by name."""
        self._name, self._board, self._timeout_s = name, board, timeout_s
        self._clock = clock or SystemClock()
        self._others = dict(others)
        self._lanes = {other: Lane(room, policy) for other in others}
        self._wanted = {other: asyncio.Event() for other in others}
        self._failure: Failure | None = None
        self._tasks: list[asyncio.Task[None]] = []
        if board:
            claim(board)

    async def pid(self) -> int:
        """Return its process, and begin to hand on."""
        self._tasks = self._tasks or [asyncio.create_task(self._hand_on(other)) for other in self._lanes]
        return os.getpid()

    async def offer(self) -> bool:
        """Take a request, if there is room for it at each dependency. The first that it cannot take is when it has failed."""
        if self._board:
            claim(self._board).add()
        full = next((other for other, lane in self._lanes.items() if lane.is_full), None)
        if full is not None:
            self._failure = self._failure or Failure(self._name, full, self._clock.boot_ns())
            return False
        for other, lane in self._lanes.items():
            lane.put()
            self._wanted[other].set()
        return True

    async def stand_still(self) -> None:
        """Stop this process, as one does that hangs: calls to it end by no answer."""
        os.kill(os.getpid(), signal.SIGSTOP)

    async def figures(self) -> tuple[Failure | None, dict[str, int], dict[str, dict[str, int]]]:
        """Return its failure; by dependency when the first call to it failed, 0 for never; and by dependency its calls by fate."""
        firsts = {other: lane.failed_ns for other, lane in self._lanes.items()}
        return self._failure, firsts, {other: lane.told() for other, lane in self._lanes.items()}

    async def _hand_on(self, other: str) -> None:
        """Hand on what waits for one dependency, one request after another, for ever."""
        lane, wanted = self._lanes[other], self._wanted[other]
        while True:
            while lane.waiting:
                fate = await self._ask(other) if lane.may_call(self._clock.boot_ns()) else Fate.DEGRADED
                lane.end(fate, self._clock.boot_ns())
                if fate not in {Fate.TAKEN, Fate.DEGRADED}:
                    await asyncio.sleep(RETRY_S)
            wanted.clear()
            await wanted.wait()

    async def _ask(self, other: str) -> Fate:
        """Call a dependency once, and say what became of that within the timeout."""
        call = asyncio.ensure_future(self._others[other].offer.remote())
        done, _ = await asyncio.wait({call}, timeout=self._timeout_s)
        if not done:
            call.cancel()
            return Fate.TIMED_OUT
        if call.exception() is not None:
            return Fate.DIED
        return Fate.TAKEN if call.result() else Fate.REFUSED
