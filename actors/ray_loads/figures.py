"""What a flood records of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from ..clock import SECOND_NS
from . import service_lane
from .flow import FATES, Flow

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter
    from .ray_work import StoreUse
    from .service_graph import Failure, Spread
    from .store_holder import Turn

ANSWERS: Final = ("taken", "refused")  # to a client's request


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
    """What contenders for a lock tell of each time that they held it."""

    def __init__(self, reporter: Reporter) -> None:
        self._wait = reporter.histogram("flood.lock.wait").record
        self._hold = reporter.histogram("flood.lock.hold").record
        self._lost = reporter.counter("flood.lock.lost").record

    def record(self, wait_s: float, hold_s: float, kept: bool) -> None:
        """Record one time: the wait for it, its length, and whether it was held to its end."""
        self._wait(wait_s)
        self._hold(hold_s)
        self._lost(0 if kept else 1)


class SpreadFigures:
    """What a cascade records: how far the failure has come, who failed when, and what became of the calls between services."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._depth = reporter.gauge("cascade.depth").record
        self._time = reporter.gauge("cascade.time").record
        self._failed = reporter.gauge("cascade.failed").record
        self._share = reporter.gauge("cascade.blast.radius").record
        self._requests = {fate: reporter.counter("cascade.requests", fate=fate).record for fate in ANSWERS}
        self._calls = {fate: reporter.counter("cascade.calls", fate=fate).record for fate in service_lane.FATES}
        self._before: dict[tuple[str, str, str], int] = {}

    def answered(self, *, is_taken: bool) -> None:
        """Record the answer to a client's request."""
        self._requests["taken" if is_taken else "refused"](1)

    def calls(self, service: str, fates: Mapping[str, Mapping[str, int]]) -> None:
        """Record what became of a service's calls to each dependency since the last time."""
        for other, counts in fates.items():
            for fate, count in counts.items():
                more = count - self._before.get((service, other, fate), 0)
                self._before[service, other, fate] = count
                if more:
                    self._calls[fate](more)

    def spread(self, spread: Spread) -> None:
        """Record how far the failure has come."""
        self._depth(spread.depth)
        self._time(spread.span_s)
        self._failed(spread.failed)
        self._share(spread.share)

    def order(self, spread: Spread, failures: Mapping[str, Failure]) -> None:
        """Record of each service that has failed its round, from 0, and how long after the first it did."""
        first_ns = min((one.at_ns for one in failures.values()), default=0)
        for number, names in enumerate(spread.rounds):
            for name in names:
                self._reporter.gauge("cascade.round", service=name).record(number)
                self._reporter.gauge("cascade.after", service=name).record((failures[name].at_ns - first_ns) / 1e9)


class StoreFigures:
    """What pressure on an object store records."""

    def __init__(self, reporter: Reporter) -> None:
        self._put = reporter.histogram("store.put").record
        self._get = reporter.histogram("store.get").record
        self._operations = reporter.counter("load.operations").record
        self._held = reporter.gauge("store.held").record
        self._used = reporter.gauge("store.used").record
        self._files = reporter.gauge("store.files").record
        self._spilled = reporter.counter("store.spilled").record
        self._restored = reporter.counter("store.restored").record
        self._tick, self.close = reporter.tick, reporter.close

    def turn(self, turn: Turn) -> None:
        """Record how long each put and get took."""
        for spent_s in turn.puts_s:
            self._put(spent_s)
        for spent_s in turn.gets_s:
            self._get(spent_s)
        if done := len(turn.puts_s) + len(turn.gets_s):
            self._operations(done)

    def store(self, before: StoreUse, now: StoreUse, held_bytes: int, files_bytes: int) -> None:
        """Record what the raylet counts, what is held, and what lies on disk."""
        self._held(held_bytes)
        self._used(now.used_bytes)
        self._files(files_bytes)
        self._spilled(now.spilled_bytes - before.spilled_bytes)
        self._restored(now.restored_bytes - before.restored_bytes)
        self._tick()
