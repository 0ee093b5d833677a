"""One destination in action: its lane, its rules, its thread, and the producers that wait for room. All in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pyarrow as pa

from actors.breaker import BreakerPolicy, State
from actors.clock import SECOND_NS, Clock
from actors.metrics.histogram import Histogram

from .base import Exporter, Health, RejectedError, UnfinishedError
from .context import Context
from .figures import ExporterReport, Latencies
from .lane import Lane
from .limits import Limits, Overflow, Reason
from .rows import pieces
from .rules import Chain, Rule
from .trace import Path
from .worker import Worker

Wait = Callable[[asyncio.Event, float | None], Awaitable[None]]


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait until the event is set, or this long."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


@dataclass(slots=True)
class _Waiting:
    """A producer and what it still holds."""

    parts: deque[tuple[pa.RecordBatch, Path | None]]
    admitted: asyncio.Future[None]


class Port:
    """See the module. `chance` gives numbers in 0..1 for the jitter of retries; `wait` is replaced where time is virtual."""

    def __init__(
        self,
        name: str,
        exporter: Exporter,
        lane: Lane,
        rules: Iterable[Rule],
        context: Context,
        clock: Clock,
        chance: Callable[[], float],
        wait: Wait,
    ) -> None:
        self.name, self.exporter, self.lane = name, exporter, lane
        self.chain = Chain(tuple(rules))
        self._limits, self._share = lane.limits, 1.0
        self._context, self._clock, self._chance, self._wait = context, clock, chance, wait
        self._worker = Worker(name)
        self._wake = asyncio.Event()
        self._waiting: deque[_Waiting] = deque()
        self._is_opened = False  # belongs to the worker's thread
        self._is_ending = False
        self.is_paused = False
        self._freed = asyncio.Event()  # set when there may be room that there was not
        self._unflushed_ns: int | None = None
        self._is_firm = True  # whether all that was written was flushed as well
        self._settled = lane.after
        self._at_once = False
        self._idle = asyncio.Event()
        self._calls = Latencies()
        self._flushes = self._flush_failures = 0
        self._until_s = float("inf")  # of the loop's time: when the end has to be reached
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"export {name}")
        self._task.add_done_callback(self._over)

    # taking rows

    def accept(self, batch: pa.RecordBatch, now_ns: int, path: Path | None = None) -> asyncio.Future[None] | None:
        """Put rows through the rules and into the lane. Return what to wait for when some have to wait for room."""
        made = self.chain.apply(batch)
        if path is not None:
            path.hop("routed", now_ns, batch.num_rows)
            if self.chain.rules:
                path.hop("through the rules", now_ns, made.num_rows)
        return self._put(made, now_ns, path)

    def _put(self, batch: pa.RecordBatch, now_ns: int, path: Path | None = None) -> asyncio.Future[None] | None:
        if path is not None:
            path.open_rows = batch.num_rows
        parts = deque((part, path) for part in pieces(batch, self.lane.limits))
        waiting = _Waiting(parts, asyncio.get_running_loop().create_future())
        if self._task.done():
            self._refuse(waiting, Reason.SHUTDOWN)
            return None
        self._waiting.append(waiting)
        self._admit(now_ns)
        return None if waiting.admitted.done() else waiting.admitted

    def _admit(self, now_ns: int) -> None:
        """Let producers in, first come first served. Only BLOCK makes anybody wait."""
        while self._waiting:
            first = self._waiting[0]
            while first.parts:
                part, path = first.parts[0]
                blocks = self.lane.limits.overflow is Overflow.BLOCK and not self._is_hopeless(part)
                if blocks and not self.lane.fits(part):
                    return
                first.parts.popleft()
                self.lane.offer(part, now_ns, path)
            self._waiting.popleft()
            if not first.admitted.done():
                first.admitted.set_result(None)
            self._wake.set()

    def _is_hopeless(self, part: pa.RecordBatch) -> bool:
        return bool(part.num_rows == 1 and part.nbytes > self.lane.limits.queue_bytes)

    def give_up(self, admitted: asyncio.Future[None], reason: Reason) -> None:
        """Drop and count what a producer still holds; nothing when it was let in meanwhile."""
        for waiting in [waiting for waiting in self._waiting if waiting.admitted is admitted]:
            self._waiting.remove(waiting)
            self._refuse(waiting, reason)
        self._admit(self._clock.boot_ns())

    def _refuse(self, waiting: _Waiting, reason: Reason) -> None:
        if not waiting.admitted.done():
            waiting.admitted.set_result(None)
        for part, path in waiting.parts:
            self.lane.refuse(part, reason, self._clock.boot_ns(), path)

    def _over(self, _: asyncio.Task[None]) -> None:
        """Let everybody go who waits for the task, however it ended."""
        self._idle.set()
        self._freed.set()
        waiting, self._waiting = list(self._waiting), deque()
        for one in waiting:
            if not one.admitted.done():
                one.admitted.set_result(None)
        for one in waiting:
            self._refuse(one, Reason.SHUTDOWN)

    # giving them to the destination

    async def _run(self) -> None:
        while True:
            now_ns = self._clock.boot_ns()
            self._admit(now_ns)
            batch = None if self._holds_back() else self.lane.take(now_ns, at_once=self._at_once or self._is_ending)
            if batch is not None:
                await self._send(batch)
            elif self._flush_due_ns() <= now_ns:
                await self._flush()
            elif self.lane.is_idle and not self._waiting and self._is_ending:
                return
            else:
                if self.lane.is_idle:
                    self._at_once = False
                    self._idle.set()
                await self._pause(now_ns)

    async def _pause(self, now_ns: int) -> None:
        due = None if self._holds_back() else self.lane.due_ns(now_ns)
        if due is not None and (self._at_once or self._is_ending):
            due = max(now_ns, self.lane.blocked_until_ns())
        due = self._flush_due_ns() if due is None else min(due, self._flush_due_ns())
        self._wake.clear()
        await self._wait(self._wake, None if due >= _NEVER_NS else max(0, due - now_ns) / SECOND_NS)

    def _holds_back(self) -> bool:
        return self.is_paused and not (self._at_once or self._is_ending)

    def _flush_due_ns(self) -> int:
        if self._unflushed_ns is None:
            return _NEVER_NS
        if self.lane.is_idle and (self._at_once or self._is_ending):
            return 0
        return self._unflushed_ns + round(self.lane.limits.flush_s * SECOND_NS)

    async def _send(self, batch: pa.RecordBatch) -> None:
        began_ns = self._clock.boot_ns()
        try:
            await self._worker.call(partial(self._write, batch))
        except RejectedError as error:
            self.lane.rejected(self._clock.boot_ns(), str(error))
        except UnfinishedError as error:  # earlier rows are lost; this batch was not taken
            self.lane.failed(self._clock.boot_ns(), type(error).__name__, str(error), self._chance())
            self.lane.unfinished(error.rows, str(error))
        except Exception as error:
            self.lane.failed(self._clock.boot_ns(), type(error).__name__, f"{type(error).__name__}: {error}", self._chance())
        else:
            now_ns = self._clock.boot_ns()
            self.lane.succeeded(now_ns)
            self._is_firm = False
            if self._unflushed_ns is None:
                self._unflushed_ns = now_ns
        self._calls.record((self._clock.boot_ns() - began_ns) / SECOND_NS)
        self._freed.set()

    def _write(self, batch: pa.RecordBatch) -> None:
        if not self._is_opened:
            self.exporter.open()
            self._is_opened = True
        self.exporter.write(self._context.on(batch))

    async def _flush(self) -> None:
        self._unflushed_ns = None
        self._flushes += 1
        try:
            await self._worker.call(self.exporter.flush)
        except Exception as error:
            self._flush_failures += 1
            self.lane.note(f"flush: {type(error).__name__}: {error}")
        else:
            self._is_firm = True
            self.settled()

    # changes and the end

    def change(self, limits: Limits, policy: BreakerPolicy) -> None:
        """Put other limits in force; what producers hold is cut anew."""
        self.lane.change(limits.shrunk(self._share), policy)
        self._limits = limits
        for waiting in self._waiting:
            waiting.parts = deque((part, path) for old, path in waiting.parts for part in pieces(old, self.lane.limits))
        self._wake.set()
        self._freed.set()

    def pause(self, *, paused: bool) -> None:
        """Call the destination no more, or again. Rows wait meanwhile, within the lane's bounds; a drain and the end do not."""
        self.is_paused = paused
        self._wake.set()

    @property
    def limits(self) -> Limits:
        """Limits as they were set, before any shrinking."""
        return self._limits

    def shrink(self, share: float) -> None:
        """Use this share of the bounds from now on. What waits beyond them goes out first; nothing is dropped for it."""
        self._share = share
        self.change(self._limits, self.lane.policy)

    def replace_rules(self, rules: tuple[Rule, ...], now_ns: int) -> list[asyncio.Future[None]]:
        """Put other rules in force; open windows of the old ones come out first. Return what to wait for."""
        if rules == self.chain.rules:
            return []
        old, self.chain = self.chain, Chain(rules, self.chain.counts)
        found = [self._put(batch, now_ns) for batch in old.drain()]
        return [future for future in found if future is not None]

    async def room(self, batch: pa.RecordBatch) -> None:
        """Wait until there is room for all of these rows, so that none would be dropped for lack of it, or until the end."""
        while not (self.lane.takes_whole(batch) or self._task.done()):
            self._freed.clear()
            await self._freed.wait()

    async def drain(self) -> None:
        """Send everything that waits now, whatever its age, and flush; returns as well when the end overtakes it."""
        if self._task.done():
            return
        self._at_once = True
        self._idle.clear()
        self._wake.set()
        await self._idle.wait()

    async def finish(self, timeout_s: float) -> None:
        """Send what waits within this time, then give the rest up: to the spill if there is one, else dropped and counted. Once only."""
        loop = asyncio.get_running_loop()
        self.hurry(timeout_s)
        for batch in self.chain.drain():
            self._put(batch, self._clock.boot_ns())
        self._is_ending = True
        self._wake.set()
        await asyncio.wait({self._task})
        self._over(self._task)
        try:
            self.lane.finish(self._clock.boot_ns())
        finally:
            await self._close(max(_CLOSE_S_MIN, self._until_s - loop.time()))
        if self._task.done() and not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    def hurry(self, timeout_s: float) -> None:
        """Bound the time that sending may still take; a shorter one counts. A call of close that is out already keeps its own."""
        loop = asyncio.get_running_loop()
        if loop.time() + timeout_s < self._until_s:
            self._until_s = loop.time() + timeout_s
            loop.call_later(timeout_s, self._task.cancel)

    async def _close(self, timeout_s: float) -> None:
        closing = self._worker.call(self.exporter.close)
        self._worker.stop()
        try:
            await asyncio.wait_for(closing, timeout_s)
        except TimeoutError:
            self.lane.note(f"close: no answer within {timeout_s:g} s")
        except UnfinishedError as error:
            self.lane.unfinished(error.rows, str(error))
        except Exception as error:
            self.lane.note(f"close: {type(error).__name__}: {error}")

    # figures

    def settled(self) -> int:
        """Return the lane's number below which no row is lost when this process dies: dropped, on disk, or delivered and flushed.

        It stands still while rows wait outside of the lane: in open windows of the rules, or with producers.
        """
        if self._is_firm and not self.chain.held and not self._waiting:
            self._settled = self.lane.settled
        return self._settled

    def health(self) -> Health:
        """Tell whether rows get through: the breaker first, then what the destination says of itself."""
        if self._task.done() and not self._is_ending:
            return Health(ok=False, detail="its task has ended")
        if self.lane.breaker.state is not State.CLOSED:
            return Health(ok=False, detail=f"breaker {self.lane.breaker.state.value}: {self.lane.snapshot().last_error}")
        return Health(ok=True, detail="paused") if self._holds_back() else self.exporter.health()

    def close_window(self) -> Histogram:
        """Return the durations of calls since this was last asked, in seconds."""
        return self._calls.close_window()

    def report(self) -> ExporterReport:
        """Return the destination at this moment."""
        waiting = sum(part.num_rows for one in self._waiting for part, _ in one.parts)
        return ExporterReport(
            self.name,
            self.lane.snapshot(),
            replace(self.chain.counts),
            self.chain.held,
            waiting,
            self._calls.histogram(),
            self.health(),
            self._flushes,
            self._flush_failures,
            self.is_paused,
        )


_NEVER_NS: Final = 1 << 62
_CLOSE_S_MIN: Final = 0.25  # also when the drain took all the time: a file is finished in less
