"""All destinations of one process: rows in, rules, one lane per destination, and a report that adds up.

One owner and no locks: every piece of state belongs to the event loop that the pipeline was made in, and changes between two awaits
only. asyncio rather than a thread with a queue, because the owner waits for many things at once (each lane's next deadline, each
destination's answer, producers that wait for room), which a loop does without polling; destinations may block, so each has a thread
that runs its calls and hands the outcome back. Other threads come in by `asyncio.run_coroutine_threadsafe`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterable, Collection
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from actors.breaker import BreakerPolicy
from actors.clock import Clock, SystemClock
from actors.errors import InputError
from actors.metrics.histogram import Histogram

from ..metrics.windows import METRICS, Row
from .base import Exporter, Health
from .context import Context
from .figures import ExporterReport, PipelineReport, rows_of
from .lane import Lane
from .limits import Limits, Overflow, Reason
from .port import Port, Wait, wait_for
from .pressure import Pressure, PressurePolicy
from .rows import Spill
from .rules import RuleSet
from .trace import Origin, Tracer

_AUDIT: Final = 1000


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A change while running."""

    at_ns: int
    what: str


class ExportPipeline:
    """See the module. Make it inside a running loop, and end it with `shutdown`. `context` says whose rows they are."""

    def __init__(
        self,
        *,
        context: Context | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
        tracer: Tracer | None = None,
        wait: Wait = wait_for,
    ) -> None:
        self._context = context or Context()
        self._clock = clock or SystemClock()
        self._chance = random.Random(seed)
        self._wait = wait
        self.tracer = tracer or Tracer()
        self.audit: deque[AuditEvent] = deque(maxlen=_AUDIT)
        self._ports: dict[str, Port] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}  # of `_ports`: get nothing new, and end
        self._ended: dict[str, ExporterReport] = {}
        self._last_calls: dict[str, Histogram] = {}  # of those that ended in this window of the pipeline's own metrics
        self._rules = RuleSet()
        self._received = self._unrouted = 0
        self._pressure = Pressure()
        self._told: PipelineReport | None = None
        self._is_closed = False

    # destinations and rules

    def add(
        self,
        name: str,
        exporter: Exporter,
        limits: Limits | None = None,
        policy: BreakerPolicy | None = None,
        spill: Spill | None = None,
        *,
        write_ahead: bool = False,
    ) -> None:
        """Add a destination; what its spill holds from an earlier life is delivered first.

        The name may be one that was removed and has ended. Its figures then begin anew: the last report of its namesake is gone, and
        so is what that did since the last call of `self_metrics`. Raises `InputError` for a name in use, or to spill without a spill.
        """
        self._check_open()
        if name in self._ports:
            raise InputError("invalid_value", f"there is an exporter {name!r} already", "remove it first, or give another name")
        limits = limits or Limits()
        _check_spill(limits, has_spill=spill is not None, write_ahead=write_ahead)
        lane = Lane(limits, policy or BreakerPolicy(), spill, write_ahead=write_ahead)
        self._ended.pop(name, None)
        self._last_calls.pop(name, None)
        if self._told is not None:
            self._told = replace(self._told, exporters={other: told for other, told in self._told.exporters.items() if other != name})
        rules = self._rules.chains.get(name, ())
        self._ports[name] = Port(name, exporter, lane, rules, self._context, self._clock, self._chance.random, self._wait)
        self._ports[name].shrink(self._pressure.share)
        self._note(f"added {name}")

    async def remove(self, name: str, timeout_s: float = 5.0) -> ExporterReport:
        """Take a destination out: it gets nothing new, and has this long to take what waits. Returns its last report.

        Who cancels this only stops waiting: the end goes on, and another call (or `shutdown`) waits for the same one, with the shorter
        time of both.
        """
        if name in self._leaving:
            self._ports[name].hurry(timeout_s)
        else:
            ending = self._end(name, self._port(name), timeout_s)
            self._leaving[name] = asyncio.get_running_loop().create_task(ending, name=f"end of export {name}")
            self._note(f"removed {name}")
        await asyncio.shield(self._leaving[name])
        return self._ended[name]

    async def _end(self, name: str, port: Port, timeout_s: float) -> None:
        try:
            await port.finish(timeout_s)
        finally:
            self._ended[name], self._last_calls[name] = port.report(), port.close_window()
            del self._ports[name], self._leaving[name]

    def configure(self, name: str, limits: Limits | None = None, policy: BreakerPolicy | None = None) -> None:
        """Change a destination's limits while it runs. Both or none. Raises `InputError` to spill without a spill."""
        port = self._port(name)
        _check_spill(limits or port.limits, has_spill=port.lane.has_spill)
        port.change(limits or port.limits, policy or port.lane.policy)
        self._note(f"configured {name}: {port.limits} {port.lane.policy}")

    def pause(self, name: str, *, paused: bool = True) -> None:
        """Stop calling a destination, or go on. What comes meanwhile waits within its bounds; a drain and the end send it all the same."""
        self._port(name).pause(paused=paused)
        self._note(f"{'paused' if paused else 'resumed'} {name}")

    async def set_rules(self, rules: RuleSet) -> None:
        """Replace all rules at once, between two batches. Raises `InputError` and changes nothing when they name unknown exporters."""
        rules.check(self._taking())
        now_ns = self._clock.boot_ns()
        self._rules = rules
        waits = [wait for name in self._taking() for wait in self._ports[name].replace_rules(tuple(rules.chains.get(name, ())), now_ns)]
        self._note(f"rules: {len(rules.routes)} routes, {sum(map(len, rules.chains.values()))} in chains")
        if waits:
            await asyncio.wait(waits)

    def memory(self, available: float, policy: PressurePolicy | None = None) -> float:
        """Tell how large a share of memory (0..1) is available, some times a second; return the share of its bounds each lane now has."""
        before, self._pressure = self._pressure, self._pressure.look(available, self._clock.boot_ns(), policy or PressurePolicy())
        if self._pressure.share != before.share:
            for port in self._ports.values():
                port.shrink(self._pressure.share)
            self._note(f"memory: {available:.3f} available, bounds at {self._pressure.share:.3f}")
        return self._pressure.share

    # rows

    async def export(
        self, batch: pa.RecordBatch, timeout_s: float | None = None, *, to: Collection[str] | None = None, origin: Origin | None = None
    ) -> None:
        """Take rows for every destination that the rules name; `to`: of these only, and the rest is not counted as unrouted.

        Waits only for destinations that block when full, and at most this long (None: for ever); then what found no room is dropped
        there and counted as `deadline`, or as `cancelled` when the caller is. `origin` is the record whose rows they are: its paths
        are traced. Raises `InputError` for other columns than the contract's; then nothing was taken.
        """
        self._check_open()
        if not batch.schema.equals(METRICS):
            raise InputError("invalid_document", f"rows have the columns {batch.schema.names}", f"expected {METRICS.names}")
        now_ns = self._clock.boot_ns()
        self._received += batch.num_rows
        split, unrouted = self._rules.split(batch, [name for name in self._taking() if to is None or name in to])
        self._unrouted += unrouted if to is None else 0
        waits = {}
        for name, rows in split.items():
            path = self.tracer.begin(origin, name) if origin is not None else None
            port = self._ports[name]
            wait = port.accept(rows, now_ns, path)
            if wait is not None:
                waits[wait] = port
        if waits:
            await self._until_admitted(waits, timeout_s)
        else:
            await asyncio.sleep(0)  # a producer in a tight loop lets the lanes work, and the other producers in

    async def export_stream(self, batches: AsyncIterable[pa.RecordBatch]) -> int:
        """Take rows from a stream, one batch at a time: no more than one is in hand. Return how many rows came."""
        rows = 0
        async for batch in batches:
            await self.export(batch)
            rows += batch.num_rows
        return rows

    async def _until_admitted(self, waits: dict[asyncio.Future[None], Port], timeout_s: float | None) -> None:
        reason = Reason.CANCELLED
        try:
            await asyncio.wait(waits, timeout=timeout_s)
            reason = Reason.DEADLINE
        finally:
            for wait, port in waits.items():
                if not wait.done():
                    port.give_up(wait, reason)

    async def room(self, name: str, batch: pa.RecordBatch) -> None:
        """Wait until a destination has room for these rows, so that none would be dropped for lack of it; also when it ends first."""
        await self._port(name).room(batch)

    # figures

    def positions(self) -> dict[str, tuple[int, int]]:
        """Return, by destination, the number behind its last row, and the one below which the process may die: see `Port.settled`.

        Numbers count the rows that came through the rules into a destination's lane.
        """
        return {name: (port.lane.after, port.settled()) for name, port in self._ports.items()}

    def report(self) -> PipelineReport:
        """Return everything as it stands; destinations that were removed keep their last report, until a namesake is added."""
        return PipelineReport(self._received, self._unrouted, self._ended | {name: port.report() for name, port in self._ports.items()})

    def self_metrics(self) -> list[Row]:
        """Close a window of the pipeline's own metrics and return its rows (`export.*`); counters hold what came since the last call."""
        now, before = self.report(), self._told
        self._told = now
        ended, self._last_calls = self._last_calls, {}
        return rows_of(now, before, ended | {name: port.close_window() for name, port in self._ports.items()})

    def health(self) -> dict[str, Health]:
        """Return the health of each destination; ready means that all are ok."""
        return {name: self._ports[name].health() for name in self._taking()}

    async def drain(self) -> None:
        """Send everything that waits, and flush; returns when nothing waits any more, however long that takes."""
        await asyncio.gather(*(port.drain() for port in self._ports.values()))

    async def shutdown(self, timeout_s: float = 5.0) -> PipelineReport:
        """End every destination at once within this time; a hung one is left behind, with what it did not take counted or spilled."""
        self._is_closed = True
        names = list(self._ports)
        done = await asyncio.gather(*(self.remove(name, timeout_s) for name in names), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return self.report()

    def _taking(self) -> tuple[str, ...]:
        """Return the destinations that take rows: all but those that are leaving."""
        return tuple(name for name in self._ports if name not in self._leaving)

    def _port(self, name: str) -> Port:
        if name not in self._taking():
            raise InputError("unknown_name", f"there is no exporter {name!r}", f"there are: {', '.join(self._taking()) or 'none'}")
        return self._ports[name]

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("invalid_value", "this pipeline was shut down", "make a new one")

    def _note(self, what: str) -> None:
        self.audit.append(AuditEvent(self._clock.boot_ns(), what))


def _check_spill(limits: Limits, *, has_spill: bool, write_ahead: bool = False) -> None:
    if not has_spill and (limits.overflow is Overflow.SPILL or write_ahead):
        raise InputError("invalid_value", "an exporter without a spill cannot spill", "add it with a spill, or choose another overflow")
