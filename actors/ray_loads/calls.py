"""Drives a flood: asks its `Flow` what to send, sends it through `RayWork`, and counts what became of it.

Response times count from when a call fell due to when its end was seen, which is looked for every 5 ms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..clock import SECOND_NS
from ..errors import HarnessError
from ..lease import LeaseWatch
from ..messages import Capacity, Operation
from ..option import Value
from ..simulator import absolute
from .figures import Figures
from .flow import Bounds, Flow, Outcome, Strategy
from .ray_work import Ended, RayWork
from .starting import STEP_S, await_started

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

STEP_CALLS: Final = 64  # sent between two looks at the lease: about 15 ms of the sender
LOOK_CALLS: Final = 256  # of each lane, oldest first: a lane's calls end about in the order in which they were sent
REPORT_S: Final = 0.05
STORE_S: Final = 0.5
GRACE_S: Final = 1.0  # for calls that run when the flood ends
GONE_S: Final = 5.0
INLINE_BYTES: Final = 100 * 1024  # smaller arguments travel within the call, larger ones through the object store
FREED_LATE: Final = 2  # payloads that a mailbox still holds after their calls ended: measured


class Openable(Protocol):
    """What is started for a flood and ended with it."""

    def open(self) -> Iterator[list[Any]]:
        """Start it step by step, for processes that start keep a core busy: each step gives the calls whose end lets the next begin."""
        ...

    def close(self) -> None:
        """End it at once."""
        ...


class Targets(Openable, Protocol):
    """What is flooded. Calls of one lane are served about in order."""

    lanes: int

    def send(self, lane: int) -> Any:
        """Send one call; None when it was refused."""
        ...

    def finished(self, end: Ended) -> None:
        """Take what a call returned."""
        ...


@dataclass(slots=True)
class Sent:
    """A call on its way. `about` is what its sender wants to know of it when it ends."""

    call: Any
    due_s: float
    about: Any = None


def bounds_of(options: dict[str, Value], lanes: int) -> Bounds:
    """Return the bounds that options ask for: `outstanding` a lane, fewer where their payloads would pass `in_flight_bytes`.

    What a lane frees late counts as in flight, where payloads go through the object store.
    """
    outstanding = int(options["outstanding"]) * lanes
    payload = int(options.get("payload_bytes", 0))
    if payload > INLINE_BYTES:
        fit = int(options["in_flight_bytes"]) // payload - FREED_LATE * lanes
        outstanding = min(outstanding, max(1, fit))
    return Bounds(
        outstanding=outstanding,
        strategy=Strategy(str(options["backpressure"])),
        waiting=int(options["waiting"]),
        tokens_per_s=float(options["tokens_per_s"]),
        burst=int(options["burst"]),
    )


class Flood(ABC):
    """One flood, whoever it sends to. `warm_up`, `idle`, `run` and `close` are called by one thread; `stop` may be called by any."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        work: RayWork,
        reporter: Reporter,
        victims: Openable,
        bounds: Bounds,
        payload_bytes: int,
    ) -> None:
        self.flow = Flow(bounds, operation.seed)
        self._operation = operation
        self._shape = absolute(operation, capacity)
        self._watch = watch
        self._work = work
        self._victims = victims
        self._payload_bytes = payload_bytes
        self._lanes: list[deque[Sent]] = []
        self._figures = Figures(reporter)
        self._spilled_before = 0
        self._stopping = False
        self._reported_ns = self._store_ns = 0
        self._asked = 0.0

    # ---- the life

    def stop(self) -> None:
        """End soon; `run` then ends what is outstanding."""
        self._stopping = True

    def warm_up(self) -> None:
        """Start what is flooded, and return when it is ready. Raises `HarnessError`."""
        await_started(self._victims.open(), self._operation.id, self._watch, self._work, lambda: self._stopping)
        if self._stopping:
            return
        self._spilled_before = self._work.store_use().spilled_bytes

    def idle(self) -> None:
        """Give a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=0, operations=0)

    def run(self, start_ns: int) -> None:
        """Flood until the end, a stop, or the lease's end; then cancel what is outstanding and wait for its end."""
        clock = self._watch.clock
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        self._watch.first_slice()
        while (now_ns := clock.boot_ns()) < end_ns and not self._stopping and self._watch.may_go_on():
            elapsed_s = (now_ns - start_ns) / SECOND_NS
            self._settle(elapsed_s)
            share = self.attend(elapsed_s)
            self._asked = self._shape.value(elapsed_s) * min(self._watch.ceiling(), share)
            due = self.flow.step(elapsed_s, self._asked, STEP_CALLS)
            for due_s in due:
                self._send(due_s)
            self._report(now_ns)
            if len(due) < STEP_CALLS:
                clock.sleep(min(STEP_S, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))
        self._finish(lambda: (clock.boot_ns() - start_ns) / SECOND_NS)
        self._count_spilled()

    def attend(self, elapsed_s: float) -> float:
        """Do what is to be done beside sending, every 5 ms while the flood runs; return which share of the asked rate it may have."""
        del elapsed_s
        return 1.0

    def close(self) -> None:
        """End what was started, also when `run` did not come to its end; count what was outstanding as cancelled."""
        self._victims.close()
        self.flow.close()
        self.flow.end(Outcome.CANCELLED, self.flow.outstanding)
        self._figures.record(self.flow, 0)
        self._figures.close()

    # ---- calls

    @abstractmethod
    def _send(self, due_s: float) -> None:
        """Send one call that was accepted and fell due then."""

    @abstractmethod
    def _take_end(self, sent: Sent, end: Ended, now_s: float) -> None:
        """Take how a call ended."""

    def _lane(self, index: int) -> deque[Sent]:
        """Return the calls on their way in a lane, oldest first."""
        while len(self._lanes) <= index:
            self._lanes.append(deque())
        return self._lanes[index]

    def _settle(self, now_s: float) -> None:
        """Take the calls that ended since the last look."""
        for index, lane in enumerate(self._lanes):
            looked = [lane[at] for at in range(min(LOOK_CALLS, len(lane)))]
            if not looked:
                continue
            ends = self._work.look([sent.call for sent in looked])
            for sent, end in zip(looked, ends, strict=True):
                if end is not None:
                    self._take_end(sent, end, now_s)
            if any(ends):
                left = [sent for sent, end in zip(looked, ends, strict=True) if end is None]
                self._lanes[index] = deque([*left, *list(lane)[len(looked) :]])

    def _finish(self, elapsed: Callable[[], float]) -> None:
        """Cancel what is outstanding; what runs may end by itself within `GRACE_S`, and is then ended with what serves it."""
        self._stopping = True
        self.flow.close()
        self._work.cancel([sent.call for lane in self._lanes for sent in lane])
        self._wait_until_empty(elapsed, GRACE_S)
        if self.flow.outstanding:
            self._victims.close()
            self._wait_until_empty(elapsed, GONE_S)

    def _wait_until_empty(self, elapsed: Callable[[], float], wait_s: float) -> None:
        deadline_s = elapsed() + wait_s
        while self.flow.outstanding and elapsed() < deadline_s:
            self._settle(elapsed())
            self._watch.clock.sleep(STEP_S)

    # ---- figures

    def _report(self, now_ns: int) -> None:
        if now_ns - self._reported_ns < REPORT_S * SECOND_NS:
            return
        own = self._figures.rate(self.flow.counts.finished, now_ns)
        self._reported_ns = now_ns
        self._watch.report(asked=self._asked, own=own, cpu_ns=0, operations=self.flow.counts.finished)
        self._figures.record(self.flow, self.flow.outstanding * self._payload_bytes)
        if now_ns - self._store_ns >= STORE_S * SECOND_NS:
            self._store_ns = now_ns
            self._count_spilled()

    def _count_spilled(self) -> None:
        if self._payload_bytes > INLINE_BYTES:
            spilled = self._work.store_use().spilled_bytes
            self._figures.spilled(spilled - self._spilled_before)
            self._spilled_before = spilled


class CallFlood(Flood):
    """A flood of what is there from the beginning, in turn among those with the least on their way: a call that fails ends it."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        work: RayWork,
        reporter: Reporter,
        targets: Targets,
        bounds: Bounds,
        payload_bytes: int,
    ) -> None:
        super().__init__(operation, capacity, watch, work, reporter, targets, bounds, payload_bytes)
        self._targets = targets
        self._next_lane = 0

    def _send(self, due_s: float) -> None:
        lane = min(range(self._targets.lanes), key=self._behind)
        self._next_lane = (lane + 1) % self._targets.lanes
        call = self._targets.send(lane)
        if call is None:
            self.flow.refuse()
        else:
            self._lane(lane).append(Sent(call, due_s, self._about(lane)))

    def _about(self, lane: int) -> Any:
        """Return what is to be known of a call of a lane when it ends."""
        del lane
        return None

    def _behind(self, lane: int) -> tuple[int, int]:
        """Return how far a lane is from being the next: by what is on its way, then by whose turn it is."""
        return len(self._lane(lane)), (lane - self._next_lane) % self._targets.lanes

    def _take_end(self, sent: Sent, end: Ended, now_s: float) -> None:
        if end.outcome is Outcome.FAILED and self._stopping:  # it ran, and was ended with what served it
            self.flow.end(Outcome.CANCELLED)
            return
        self.flow.end(end.outcome)
        if end.outcome is Outcome.FINISHED:
            self._figures.response(max(0.0, now_s - sent.due_s))
            self._targets.finished(end)
        if end.outcome is Outcome.FAILED:
            raise HarnessError("lost", f"{self._operation.id}: a call failed: {end.reason}")
