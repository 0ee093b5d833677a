"""Virtual time: one heap of events for the whole world, a clock per machine, and processes that can be stopped and killed."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

SECOND = 1_000_000_000
MS = 1_000_000
PPM = 1_000_000


class Timeline:
    """The world's true time in ns and what happens when. Events of one instant happen in the order in which they were made."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._heap: list[tuple[int, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0
        self.events = 0

    def at(self, when_ns: int, call: Callable[..., Any], *args: Any) -> None:
        """Have something happen at an instant, now at the earliest."""
        self._count += 1
        heapq.heappush(self._heap, (max(self.now_ns, when_ns), self._count, call, args))

    def after(self, delay_ns: int, call: Callable[..., Any], *args: Any) -> None:
        """Have something happen a little later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._count, call, args))

    def run_until(self, end_ns: int) -> None:
        """Let everything happen up to an instant."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end_ns:
            self.now_ns, _, call, args = pop(heap)
            self.events += 1
            call(*args)
        self.now_ns = end_ns


class LocalClock:
    """A machine's boot clock: an offset of its own, and a drift in parts per million."""

    def __init__(self, timeline: Timeline, offset_ns: int, drift_ppm: int) -> None:
        self._timeline = timeline
        self.drift_ppm = drift_ppm
        self._base_ns, self._offset_ns = timeline.now_ns, offset_ns

    def now(self) -> int:
        """Return the local boot time."""
        passed = self._timeline.now_ns - self._base_ns
        return self._offset_ns + passed + passed * self.drift_ppm // PPM

    def when(self, local_ns: int) -> int:
        """Return the first true instant at which the clock shows at least this."""
        passed = local_ns - self._offset_ns
        return self._base_ns - (-passed * PPM // (PPM + self.drift_ppm))


class Process:
    """Something that runs: stopped it keeps what comes in for later, dead it drops it."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.alive = True
        self.holds = 0
        self.stopped = False  # by SIGSTOP, not by a suspended machine
        self._backlog: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def take(self, call: Callable[..., Any], *args: Any) -> None:
        """Take an event now, after the stop, or never."""
        if not self.alive:
            return
        if self.holds:
            self._backlog.append((call, args))
        else:
            call(*args)

    def after(self, delay_ns: int, call: Callable[..., Any], *args: Any) -> None:
        """Schedule an event of this process."""
        self.timeline.after(delay_ns, self.take, call, *args)

    def hold(self) -> None:
        """SIGSTOP, or the whole machine is suspended."""
        self.holds += 1

    def release(self) -> None:
        """SIGCONT: what was queued is taken in its order."""
        self.holds -= 1
        if self.holds == 0:
            backlog, self._backlog = self._backlog, []
            for call, args in backlog:
                self.timeline.after(0, self.take, call, *args)
