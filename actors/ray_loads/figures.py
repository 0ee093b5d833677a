"""What a flood records of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from ..clock import SECOND_NS
from ..errors import HarnessError
from . import service_lane
from .flow import FATES, Flow
from .mesh_account import FATES as MESSAGE_FATES
from .mesh_account import PATHS, Sums

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter
    from .lock_actors import Turn
    from .ray_work import StoreUse
    from .service_graph import Failure, Spread
    from .store_holder import StoreTurn

REMEMBERED: Final = 10_000  # numbers that a lock guarded, against one that is read twice
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
        now = {fate: getattr(flow.counts, fate) for fate in FATES}
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
        self._keepers = reporter.counter("flood.lock.keepers").record
        self._made: int | None = None
        self._term = 0
        self._forget()

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
            self._take(turn.term, turn.guarded)
        self._guarded(self._written)

    def keepers(self, made: int) -> None:
        """Record how many keepers were made here so far."""
        if made != self._made:
            self._keepers(made - (self._made or 0))
            self._made = made

    def _forget(self) -> None:
        self._read, self._floor, self._written = set[int](), 0, 0

    def _take(self, term: int, guarded: int) -> None:
        """Take a number that a holder read and raised by one; turns end in another order than they are told."""
        if term > self._term:
            self._term = term
            self._forget()
        if term < self._term or guarded < self._floor:
            return  # what it guards now is another number, or too many came after it
        if guarded in self._read:
            raise HarnessError("internal", f"the lock did not exclude: two of its holders read {guarded}")
        self._read.add(guarded)
        self._written = max(self._written, guarded + 1)
        if len(self._read) > 2 * REMEMBERED:
            self._floor = sorted(self._read)[REMEMBERED]
            self._read = {one for one in self._read if one >= self._floor}


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


class MeshFigures:
    """What the sender of a mesh tells of its messages."""

    def __init__(self, reporter: Reporter) -> None:
        self._latency = {path: reporter.histogram("mesh.latency", path=path).record for path in PATHS}
        self._messages = {fate: reporter.counter("mesh.messages", fate=fate).record for fate in MESSAGE_FATES}
        self._restarts = reporter.counter("mesh.restarts").record
        self._before: dict[str, int] = dict.fromkeys((*MESSAGE_FATES, "restarts"), 0)
        for record in (*self._messages.values(), self._restarts):
            record(0)  # that none is lost is told, not left out

    def answered(self, latency_s: float, *, same_node: bool) -> None:
        """Record one answer."""
        self._latency[PATHS[0] if same_node else PATHS[1]](latency_s)

    def record(self, sums: Sums, restarts: int) -> None:
        """Record what has changed since the last time."""
        now = {**asdict(sums), "restarts": restarts}
        for name, record in (*self._messages.items(), ("restarts", self._restarts)):
            if now[name] != self._before[name]:
                record(now[name] - self._before[name])
        self._before = now


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

    def turn(self, turn: StoreTurn) -> None:
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
