"""The exporters of one run, beside its aggregator: rows go to every destination once they are on disk, and never before.

A thread with an event loop owns the pipeline. The aggregator's push puts a reference into a bounded inbox and goes on: nothing here
delays an acknowledgement, and that is why no destination may block. What the inbox has no room for, what came before this life and what
came after the run's end is read again from the run directory: see `export_feed`. A record goes to a destination at least once, and twice
only after a death of this process, as far back as the destination's last flush. Files that appear whole then begin anew.

Nothing here raises into the run: what fails is told in the report.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from actors.clock import SECOND_NS, Clock
from actors.errors import InputError, RefusedError
from actors.host import memory_available_share
from actors.limits import find_container
from scenarios.exporters import Destination, Exporters
from scenarios.model import Scenario

from . import export_changes as changes
from .export_feed import Feed
from .export_memory import Kept, added, load, save
from .export_story import PART, Story
from .export_traces import TraceLog
from .export_traces import settle as settle_traces
from .exporters import destinations as kinds
from .exporters.base import Exporter
from .exporters.context import Context
from .exporters.figures import ExporterReport, PipelineReport
from .exporters.pipeline import ExportPipeline
from .exporters.pressure import PressurePolicy
from .exporters.prometheus import Finding
from .exporters.rules import parse
from .exporters.spill import SpillLog
from .exporters.trace import KEPT, Tracer
from .exporters.wal import Sync, WriteAheadLog
from .files import make_folders, read_json
from .metrics.aggregator import Aggregator
from .metrics.own_stream import end_streams
from .metrics.store import Coverage

_LOG: Final = logging.getLogger(__name__)
TICK_S: Final = 1.0
MEMORY_S: Final = 0.1  # how often memory is looked at: at 100 MB/s that is 10 MB
SAVE_S: Final = 5.0
_UNHEARD_S: Final = 10.0
_ANSWER_S: Final = 20.0
BEHIND_S: Final = 10.0  # how long new rules wait for destinations that are behind
_GRACE_S: Final = 5.0  # beyond the drain: for the last figures, and for files to be finished
LATE: Final = "data came after the end and is not here yet"

Reports = list[dict[str, Any]]


class RunExports:
    """See the module. `context` is on each row that a destination gets.

    `tells`: its own metrics and events go into the run, as a stream of the aggregator's own. `traced`: how many paths of records may be
    under way and traced at once. Raises `StressError` when a spill cannot be had.
    """

    def __init__(
        self,
        core: Aggregator,
        wanted: Exporters,
        clock: Clock,
        *,
        context: Context | None = None,
        tells: bool = True,
        make: Callable[[Destination, Path], Exporter] = kinds.make,
        memory: Callable[[], float] | None = None,
        traced: int = KEPT,
    ) -> None:
        self._core, self._clock, self._make = core, clock, make
        self._context = context or Context(core.run_id)
        self._folder = kinds.state_folder(core.directory)
        self._wanted, self._paused = changes.load(self._folder, wanted)
        self._tracer, self._traces = Tracer(traced), TraceLog(core.directory, clock)
        self._memory = memory or partial(memory_available_share, find_container())
        self._kept = load(self._folder)
        self._begin_anew()
        self._story = Story(core, clock) if tells else None
        self._made: dict[str, Exporter] = {}
        self._spills: dict[str, SpillLog] = {}
        self._told: PipelineReport | None = None
        self._told_ns = self._saved_ns = clock.boot_ns()
        self._is_unsaved = False
        self._trouble: dict[str, str] = {}
        self._rates: dict[str, float] = {}
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="exports", daemon=True)
        self._thread.start()
        started.result()

    def _begin_anew(self) -> None:
        """Forget what does not go on: files that appear whole have nothing of an earlier life, so neither has their disk."""
        for one in self._wanted.destinations:
            kept = self._kept.setdefault(one.name, Kept())
            if kinds.KINDS[one.type].is_whole:
                kept.held, kept.report = Coverage(), None
                _remove(kinds.spill_of(one, self._core.directory))

    # asked from other threads

    def checks(self) -> tuple[Callable[[], Finding], ...]:
        """Return a check of each destination, for /readyz."""
        return tuple(partial(self._finding, one.name) for one in self._wanted.destinations)

    def health_checks(self) -> dict[str, Callable[[], tuple[Finding, Finding]]]:
        """Return for each destination what its own /healthz and /readyz say: that its calls succeed, and that rows get through."""
        return {one.name: partial(self._findings, one.name) for one in self._wanted.destinations}

    def _finding(self, name: str) -> Finding:
        return self._findings(name)[0]

    def _findings(self, name: str) -> tuple[Finding, Finding]:
        """Return whether a destination is well, and whether it is ready: well, not paused, and with room for more."""
        now_ns, called = self._clock.boot_ns(), f"exporter {name}"
        if self._told is None or now_ns - self._told_ns > _UNHEARD_S * SECOND_NS:
            silent = Finding(called, ok=False, reason="nothing was heard of it for a while")
            return silent, silent
        report = self._told.exporters[name]
        lane, last_ns = report.lane, report.lane.last_success_ns
        detail = {
            "breaker": lane.breaker.value,
            "queued_rows": lane.queued,
            "spilled_rows": lane.spilled,
            "last_success_s_ago": None if last_ns is None else round((now_ns - last_ns) / SECOND_NS, 1),
            "paused": report.is_paused,
        }
        well = Finding(called, report.health.ok, report.health.detail or lane.last_error, detail)
        limits = next(kinds.limits_of(one) for one in self._wanted.destinations if one.name == name)
        is_full = lane.queued >= limits.queue_rows or lane.queued_bytes >= limits.queue_bytes
        why = "paused" if report.is_paused else "its queue is full" if is_full else well.reason
        return well, Finding(called, well.ok and not report.is_paused and not is_full, why, detail)

    def status(self) -> Reports:
        """Return how each destination stands now. Raises `TimeoutError` when the thread does not answer."""
        return self.change()

    def change(self, pause: Sequence[str] = (), resume: Sequence[str] = (), sets: Sequence[str] = ()) -> Reports:
        """Pause and resume destinations and apply settings, all or nothing; return how each stands then.

        No row is lost or given twice by it: what waits stays, and each record goes by one set of rules. Raises `InputError`; and
        `RefusedError` for new rules while a destination is behind.
        """
        return asyncio.run_coroutine_threadsafe(self._change(pause, resume, sets), self._loop).result(_ANSWER_S)

    def finish(self, timeout_s: float | None = None) -> Reports:
        """End: let destinations take what they lack for this long, close them, and return each one's report. To be called once."""
        seconds = self._wanted.drain_s if timeout_s is None else timeout_s
        try:
            return asyncio.run_coroutine_threadsafe(self._finish(seconds), self._loop).result(seconds + 2 * _GRACE_S)
        except Exception as error:
            _LOG.exception("run %s: the exporters did not end as they should", self._core.run_id)
            end_streams(self._core, PART)
            why = f"the exporters did not end as they should: {type(error).__name__}: {error}"
            return [
                {"name": one.name, "type": one.type, "ok": False, "complete": False, "detail": why} for one in self._wanted.destinations
            ]
        finally:
            self._core.unwatch(self._feed.take)
            self._stop()

    def give_up(self) -> None:
        """End without an end: what is not finished stays so, and another life goes on from what is on disk."""
        self._core.unwatch(self._feed.take)
        self._stop()
        self._traces.add(self._tracer.collect(whole=False))
        self._traces.close()
        for exporter in self._made.values():
            kinds.give_up(exporter)

    def abandon(self) -> None:
        """End, and leave nothing: the run was not admitted, so no row was ever given."""
        self.give_up()
        for one in self._wanted.destinations:
            folder = kinds.spill_of(one, self._core.directory)
            _remove(folder)
            if folder is not None:
                with suppress(OSError):  # it has others, or is gone
                    folder.parent.rmdir()
        _remove(self._folder)

    def _stop(self) -> None:
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(_GRACE_S)
        for spill in self._spills.values():
            with suppress(OSError):
                spill.close()

    # the thread

    def _run(self, started: Future[None]) -> None:
        try:
            asyncio.run(self._work(started))
        except BaseException as error:
            if started.done():
                _LOG.exception("run %s: the exporters have ended", self._core.run_id)
            else:
                started.set_exception(error)

    async def _work(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended, self._closing = asyncio.Event(), asyncio.Event()
        self._changing = asyncio.Lock()
        self._pipeline = ExportPipeline(context=self._context, clock=self._clock, tracer=self._tracer)
        for one in self._wanted.destinations:
            self._add(one)
        for name in self._paused:
            self._pipeline.pause(name)
        await self._pipeline.set_rules(parse(kinds.rules_of(self._wanted)))
        limits = {one.name: kinds.limits_of(one) for one in self._wanted.destinations}
        self._feed = Feed(self._core, self._pipeline, limits, {name: self._kept[name].held for name in limits}, self._clock)
        self._look_at_memory()
        self._look()
        self._core.watch(self._feed.take)
        started.set_result(None)
        self._behind = [asyncio.create_task(self._feed.catch_up(name)) for name in limits]
        self._ticking = asyncio.create_task(self._tick())
        beside = [asyncio.create_task(self._feed.run()), asyncio.create_task(self._watch_memory())]
        await self._ended.wait()
        for task in beside:
            task.cancel()

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_S)
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        with suppress(OSError):  # there is no /proc to ask
            back_off(self._pipeline, self._memory())

    def _add(self, one: Destination) -> None:
        path, folder = kinds.path_of(one, self._core.directory), kinds.spill_of(one, self._core.directory)
        if path.is_relative_to(self._core.directory):
            make_folders(path.parent)
        if folder is not None:
            log = WriteAheadLog(folder, max_bytes=one.spill_bytes_max, sync=Sync(one.sync), clock=self._clock)
            self._spills[one.name] = SpillLog(log)
        self._made[one.name] = self._make(one, path)
        spill = self._spills.get(one.name)
        self._pipeline.add(one.name, self._made[one.name], kinds.limits_of(one), kinds.policy_of(one), spill, write_ahead=one.write_ahead)

    async def _tick(self) -> None:
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), TICK_S)
            is_last = self._closing.is_set()  # from here on nothing changes: the last turn tells all there is
            await self._send_story()  # what the disk refused, and the first window
            self._look()
            await self._send_story()
            self._settle()
            if paths := self._tracer.collect():
                await asyncio.to_thread(self._traces.add, paths)
            if self._is_unsaved and self._clock.boot_ns() - self._saved_ns >= SAVE_S * SECOND_NS:
                await self._save()

    async def _send_story(self) -> None:
        if self._story is not None and not self._story.is_sent:
            await asyncio.to_thread(self._story.send)

    def _look(self) -> None:
        """Look at every destination, and say what there is to say."""
        before, before_ns = self._told, self._told_ns
        self._told, self._told_ns = self._pipeline.report(), self._clock.boot_ns()
        seconds = (self._told_ns - before_ns) / SECOND_NS
        if before is not None and seconds > 0:
            for name, one in self._told.exporters.items():
                self._rates[name] = (one.lane.delivered - before.exporters[name].lane.delivered) / seconds
        if self._story is not None and self._story.is_sent:
            self._story.tell(self._told, self._pipeline.self_metrics(), self._pipeline.audit)

    def _settle(self) -> None:
        for name, records in self._feed.settled().items():
            self._kept[name].held.absorb(records)
            self._kept[name].report = None
            self._is_unsaved = True

    async def _save(self) -> None:
        kept = {name: Kept(one.held.copy(), one.report) for name, one in self._kept.items()}
        try:
            await asyncio.to_thread(save, self._folder, kept)
        except OSError as error:  # more comes twice after a death, no more
            _LOG.warning("run %s: what its exporters have is not written down: %s", self._core.run_id, error)
        else:
            self._is_unsaved, self._saved_ns = False, self._clock.boot_ns()

    # changes

    async def _change(self, pause: Sequence[str], resume: Sequence[str], sets: Sequence[str]) -> Reports:
        async with self._changing:
            if pause or resume or sets:
                await self._apply(pause, resume, sets)
            now = self._pipeline.report()
        return [
            self._about(one) | now.exporters[one.name].to_json() | {"rows_per_s": self._rates.get(one.name)}
            for one in self._wanted.destinations
        ]

    async def _apply(self, pause: Sequence[str], resume: Sequence[str], sets: Sequence[str]) -> None:
        self._check_open()
        changes.check_names([*pause, *resume], self._wanted)
        wanted = changes.applied(scenario_of(self._core.directory), self._wanted, sets) if sets else self._wanted
        rules = parse(kinds.rules_of(wanted))
        are_new = rules != parse(kinds.rules_of(self._wanted))
        if are_new:
            await self._all_up_to_date()
            self._check_open()  # the end may have begun meanwhile
        for before, after in zip(self._wanted.destinations, wanted.destinations, strict=True):  # from here on nothing can be refused
            if kinds.limits_of(before) != kinds.limits_of(after) or before.breaker != after.breaker:
                self._pipeline.configure(after.name, kinds.limits_of(after), kinds.policy_of(after))
        if are_new:
            await self._pipeline.set_rules(rules)
        self._wanted, self._paused = wanted, (self._paused | {*pause}) - {*resume}
        for name in (*pause, *resume):
            self._pipeline.pause(name, paused=name in self._paused)
        self._feed.limits = {one.name: kinds.limits_of(one) for one in wanted.destinations}
        if self._story is not None:
            words = [*(f"paused {name}" for name in pause), *(f"resumed {name}" for name in resume), *sets]
            told = {"exporters": changes.document(wanted), "paused": sorted(self._paused)}
            self._story.changed(f"exporters: {'; '.join(words)}", told)
        try:
            await asyncio.to_thread(changes.save, self._folder, wanted, self._paused)
        except OSError as error:
            _LOG.warning("run %s: the aggregator's next life will not know of this change: %s", self._core.run_id, error)

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise InputError("invalid_value", "the run is ending: its exporters do not change any more")

    async def _all_up_to_date(self) -> None:
        """Wait until no destination is behind: who is gets its records by itself, and new rules could give one to nobody, or twice."""
        _, late = await asyncio.wait(self._behind, timeout=BEHIND_S)
        if late:
            names = ", ".join(name for name, task in zip(self._made, self._behind, strict=True) if task in late)
            raise RefusedError("busy", f"{names}: rows from before are still on their way, by the rules of now", "try again later")

    def _about(self, one: Destination) -> dict[str, Any]:
        path, directory = kinds.path_of(one, self._core.directory), self._core.directory
        return {
            "name": one.name,
            "type": one.type,
            "path": str(path.relative_to(directory) if path.is_relative_to(directory) else path),
        }

    # the end

    async def _finish(self, timeout_s: float) -> Reports:
        until_s = self._loop.time() + timeout_s
        self._closing.set()
        await self._ticking
        if self._story is not None:  # the last rows that go out are those that say how rows go out
            await asyncio.to_thread(self._story.end)
        self._core.unwatch(self._feed.take)
        await self._feed.emptied(max(0.0, until_s - self._loop.time()))
        behind = [asyncio.create_task(self._up_to_date(name, task)) for name, task in zip(self._made, self._behind, strict=True)]
        _, late = await asyncio.wait(behind, timeout=max(0.0, until_s - self._loop.time()))
        for task in late:
            task.cancel()
        told = await self._pipeline.shutdown(max(0.0, until_s - self._loop.time()))
        self._told, self._told_ns = told, self._clock.boot_ns()
        held = await asyncio.to_thread(self._core.held)
        reports = [self._report(one, told.exporters[one.name], held) for one in self._wanted.destinations]
        self._kept = {report["name"]: Kept(self._feed.given[report["name"]], report) for report in reports}
        await self._save()
        await asyncio.to_thread(self._settle_traces)
        self._clear_spills()
        return reports

    def _settle_traces(self) -> None:
        self._traces.add(self._tracer.collect(whole=False))
        self._traces.close()
        try:
            settle_traces(self._core.directory)
        except OSError as error:  # the log stands, and is read as well
            _LOG.warning("run %s: its traces stay in the log: %s", self._core.run_id, error)
        if lost := self._tracer.untraced + self._traces.unwritten:
            _LOG.warning("run %s: %d paths of records were not traced", self._core.run_id, lost)

    async def _up_to_date(self, name: str, begun: asyncio.Task[None]) -> None:
        try:
            await begun
            await self._feed.catch_up(name)
        except Exception as error:  # told with its report: it is behind then
            self._trouble[name] = f"the run cannot be read again: {type(error).__name__}: {error}"

    def _report(self, one: Destination, now: ExporterReport, held: Coverage) -> dict[str, Any]:
        """Return a destination's report. `complete`: it has every row that the run holds, as far as its rules let them through."""
        about = self._about(one) | {
            "earlier_rows": self._feed.earlier_rows[one.name],
            "is_behind": not self._feed.given[one.name].holds(held),
            "cut_bytes": kinds.cut_bytes(self._made[one.name]),
            "spill_lost_bytes": self._spills[one.name].lost_bytes if one.name in self._spills else 0,
        }
        report = added(self._kept[one.name].report, about | now.to_json())
        spill = kinds.spill_of(one, self._core.directory)
        if spill is not None and now.lane.spilled:
            report["spill"] = str(spill)
        lost = sum(report["dropped_rows"].values()) + report["late_rows"] + report["spill_lost_bytes"]
        report["detail"] = self._trouble.get(one.name) or report["detail"]
        report["complete"] = not (lost or report["is_behind"] or now.lane.queued or now.lane.spilled or now.waiting or now.held)
        return report

    def _clear_spills(self) -> None:
        for spill in self._spills.values():
            if not spill.pending_rows:
                spill.close()
                _remove(spill.log.folder)
                with suppress(OSError):  # it has others
                    spill.log.folder.parent.rmdir()
        self._spills = {name: spill for name, spill in self._spills.items() if spill.pending_rows}


def back_off(pipeline: ExportPipeline, available: float, policy: PressurePolicy | None = None) -> None:
    """Tell a pipeline which share of memory (0..1) is available; while it is short, give back what was freed.

    Arrow keeps that for itself otherwise, and it would count as used, so that the pipeline's bounds never grew again.
    """
    if pipeline.memory(available, policy) < 1.0:
        pa.default_memory_pool().release_unused()


def exporters_of(manifest: Mapping[str, Any]) -> Exporters:
    """Return what the scenario in a run's manifest says of exporters; none when it says nothing, or cannot be read."""
    from scenarios import text  # noqa: PLC0415  # reads YAML too, which a run without exporters has no use for

    scenario = manifest.get("scenario") or {}
    return text.from_data(scenario).exporters if scenario.get("exporters") else Exporters()


def scenario_of(directory: Path) -> Scenario:
    """Return the scenario in the manifest of a run with exporters."""
    from scenarios import text  # noqa: PLC0415

    return text.from_data((read_json(directory / "manifest.json") or {})["scenario"])


def bring_up_to_date(core: Aggregator, clock: Clock, timeout_s: float) -> Reports | None:
    """Give the exporters of a run that has ended, or died, what they lack; return their reports, None when there is nothing to do.

    Never raises: a run's files do not depend on its exporters.
    """
    try:
        manifest = read_json(core.directory / "manifest.json") or {}
        wanted = exporters_of(manifest)
        if not wanted.destinations:
            return None
        end_streams(core, PART)
        settle_traces(core.directory)
        kept, held = load(kinds.state_folder(core.directory)), core.held()
        done = [kept[one.name] for one in wanted.destinations if one.name in kept]
        if len(done) == len(wanted.destinations) and all(one.report is not None and one.held.holds(held) for one in done):
            return None
        return RunExports(core, wanted, clock, context=Context.of(manifest, core.run_id), tells=False).finish(timeout_s)
    except Exception:
        _LOG.exception("run %s: its exporters could not be brought up to date", core.run_id)
        return None


def outdated(reports: Any) -> Reports:
    """Return reports of destinations for which data has come that they have not been given."""
    return [{**one, "complete": False, "is_behind": True, "detail": LATE} for one in reports]


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
