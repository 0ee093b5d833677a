"""What a flood records of itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..clock import SECOND_NS
from ..errors import HarnessError
from .flow import FATES, Flow

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter
    from .lock_actors import Turn


class Figures:
    """What a flood records."""

    def __init__(self, reporter: Reporter) -> None:
        self._fates = {fate: reporter.counter("flood.calls", fate=fate).record for fate in FATES}
        self._outstanding = reporter.gauge("flood.outstanding").record
        self._waiting = reporter.gauge("flood.waiting").record
        self._payload = reporter.gauge("flood.payload").record
        self._blocked = reporter.counter("flood.blocked").record
        self._operations = reporter.counter("load.operations").record
        self.spilled = reporter.counter("flood.spilled").record
        self.response = reporter.histogram("flood.response").record
        self._tick, self.close = reporter.tick, reporter.close
        self._before: dict[str, int] = dict.fromkeys(FATES, 0)
        self._blocked_before_s = 0.0
        self._rated = (0, 0)

    def record(self, flow: Flow, payload_bytes: int) -> None:
        """Record what has changed since the last time."""
        now = asdict(flow.counts)
        for fate in FATES:
            if now[fate] != self._before[fate]:
                self._fates[fate](now[fate] - self._before[fate])
        if now["finished"] > self._before["finished"]:
            self._operations(now["finished"] - self._before["finished"])
        self._before = now
        self._outstanding(flow.outstanding)
        self._waiting(flow.waiting)
        self._payload(payload_bytes)
        self._blocked(flow.blocked_s - self._blocked_before_s)
        self._blocked_before_s = flow.blocked_s
        self._tick()

    def rate(self, finished: int, now_ns: int) -> float:
        """Return how many finished a second since the last call."""
        before, then_ns = self._rated
        self._rated = (finished, now_ns)
        return (finished - before) * SECOND_NS / max(1, now_ns - then_ns) if then_ns else 0.0


class LockFigures:
    """What contenders for a lock tell of each turn, and whether the lock let in one at a time: what it guards took each number once."""

    def __init__(self, reporter: Reporter) -> None:
        self._wait = reporter.histogram("flood.lock.wait").record
        self._hold = reporter.histogram("flood.lock.hold").record
        self._shared = reporter.counter("flood.lock.shared").record
        self._contended = reporter.counter("flood.lock.contended").record
        self._lost = reporter.counter("flood.lock.lost").record
        self._guarded = reporter.gauge("flood.lock.guarded").record
        self._next, self._ahead = 0, set[int]()
        self._kept = 0

    def record(self, turn: Turn) -> None:
        """Record one turn. Raises `HarnessError` (`internal`) where two held the lock at once."""
        if turn.guarded is None:
            return
        self._shared(1)
        self._hold(turn.held_s)
        self._lost(0 if turn.kept else 1)
        self._contended(1 if turn.waited_s else 0)
        if turn.waited_s:
            self._wait(turn.waited_s)
        if turn.kept:
            self._take(turn.guarded)
        self._guarded(self._kept)

    def _take(self, guarded: int) -> None:
        """Count a number that a holder read and raised by one; turns end in another order than they are told."""
        if guarded < self._next or guarded in self._ahead:
            raise HarnessError("internal", f"the lock did not exclude: two of its holders read {guarded}")
        self._ahead.add(guarded)
        self._kept += 1
        while self._next in self._ahead:
            self._ahead.remove(self._next)
            self._next += 1
