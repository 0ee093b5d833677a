"""What a flood records of itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..clock import SECOND_NS
from .flow import FATES, Flow
from .mesh_account import FATES as MESSAGE_FATES
from .mesh_account import PATHS, Sums

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter


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
        self.spilled(0)  # that nothing was is told, not left out
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
