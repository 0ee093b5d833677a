"""An event loop on a virtual clock: what would wait moves the clock instead, so that hours of `asyncio.sleep` take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from actors.clock import SECOND_NS, VirtualClock

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Looks and does not wait."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for something that never comes"
        if timeout > 0:
            self.clock.now_ns += max(1, round(timeout * SECOND_NS))
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Selector(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock.now_ns / SECOND_NS


def run(clock: VirtualClock, main: Coroutine[Any, Any, T]) -> T:
    """Return what `main` returns, run on this clock; what it leaves running is cancelled."""
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(main)


async def pass_time(for_s: float) -> None:
    """Move the clock; others that wait meanwhile have their turn."""
    await asyncio.sleep(for_s)
