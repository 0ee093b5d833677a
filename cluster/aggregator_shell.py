"""One run's aggregator in one process: takes windows, serves Prometheus, concludes the run, hands its files out.

A plain class without Ray. Ray may run its constructor again after its process died: it then recovers from the run directory.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError, InputError, StressError
from actors.messages import Event
from actors.origin import code_id
from actors.state import default_state_dir, open_state_dir
from scenarios.plan import Plan

from .conclusion import AFTER_S, Ending, conclude
from .exporters.prometheus import MetricsServer, Options
from .files import read_json, write_json_atomic, write_whole
from .metrics.aggregator import Aggregator
from .metrics.anomaly import hooks_of
from .metrics.anomaly_watch import AnomalyWatch
from .metrics.asking import About
from .metrics.own_stream import OwnStream, end_streams
from .metrics.question import Words
from .metrics.retention import Retention, cuts_of
from .metrics.stream import MetricStream
from .metrics.subscription import Subscription
from .metrics.window_feed import Window, WindowFeed
from .mirror import identity
from .near import NearFiles
from .outbox import Frames, Outbox, box_path
from .recovery import end_dead
from .stored import scenario_name

if TYPE_CHECKING:
    from .run_exports import RunExports

_LOG: Final = logging.getLogger(__name__)
LINGER_S = 30.0  # after the last question or window, or as long as the orchestrator idles if less: late data makes a new aggregator
ORPHANED_S = 300.0  # without windows, when a run never got its end: `recover` gives it one
HEARTBEAT_S = 1.0
LOOK_S = 10.0  # between two looks whether old windows are due to become longer
LATE_S: Final = 30.0  # that exporters have to take what came after the end


class AggregatorShell:
    """The aggregator of one run, writing under STATE on its own node."""

    def __init__(self, run: str, on_end: Callable[[], None], clock: Clock | None = None) -> None:
        self._run, self._clock, self._on_end = run, clock or SystemClock(), on_end
        self.directory = open_state_dir(default_state_dir(os.environ, os.geteuid())) / "runs" / run
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._prometheus = read_json(self.directory / "manifest.json") or {}
        options = _options_of(run, self._prometheus)
        self._core = Aggregator(run, self.directory, self._clock, buckets=options.buckets)
        self._near = NearFiles()
        self._server: MetricsServer | None = None
        self._outcome: dict[str, Any] | None = None
        self._touched_ns = self._clock.boot_ns()
        self._ending = threading.Event()
        self._manifest_lock = threading.Lock()
        self._retention = Retention.of_manifest(self._prometheus)
        self._feed = WindowFeed()
        self._core.watch(self._feed.take)
        self._anomalies: tuple[AnomalyWatch, OwnStream] | None = None
        self._anomalies_lock = threading.Lock()
        self._replaced_ns = 0
        self._linger_s = _linger_s(self._prometheus)
        self._exports: RunExports | None = None
        status = self._prometheus.get("status")
        if status == "running":  # only a predecessor that died leaves it so
            self._replaced_ns = self._clock.wall_ns()
            self._go_on_exporting()
        self._is_concluded = status not in {None, "running"}
        try:
            if status == "running":
                self._look_for_anomalies(self._prometheus)
        except StressError as error:  # a package that is gone meanwhile costs its findings, not the run
            _LOG.warning("run %s: no anomaly hooks: %s", run, error)
        try:
            self._serve(self._prometheus.get("prometheus"), self._with_checks(options))
        except StressError as error:  # a port that is taken meanwhile costs the endpoint, not the run
            _LOG.warning("run %s: no metrics endpoint: %s", run, error)
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._retain, name="retention", daemon=True).start()

    def hello(self) -> dict[str, Any]:
        """Say who this is and where it writes."""
        return {
            "code_id": code_id(),
            "run": self._run,
            "directory": str(self.directory),
            "directory_identity": identity(self.directory),
            "pid": os.getpid(),
        }

    def begin(self, manifest: Mapping[str, Any], plan: bytes, host: str, port: int | None) -> dict[str, Any]:
        """Write the manifest of a running run and its plan; open its exporters; serve Prometheus when a port is given.

        Raises `RefusedError` for a destination that cannot be written.
        """
        self._exports = self._new_exports(manifest)
        write_whole(self.directory / "plan.json", lambda file: _write(file, plan))
        self._retention = Retention.of_manifest(manifest)
        self._look_for_anomalies(manifest)
        options = Options.of_manifest(manifest)
        options = replace(options, buckets=self._core.use_buckets(options.buckets))
        self._serve({"host": host, "port": port} if port is not None else None, self._with_checks(options))
        endpoint = {"host": host, "port": self._server.port} if self._server else None
        self._linger_s = _linger_s(manifest)
        document = {**manifest, "status": "running", "exit_code": None, "prometheus": endpoint, "start": self._now()}
        with self._manifest_lock:
            write_json_atomic(self.directory / "manifest.json", {**document, "heartbeat": self._now()})
        return {"prometheus": endpoint}

    def push(self, node: str, incarnation: str, records: Frames) -> int:
        """Take windows of one stream, by their bytes or by their places in an outbox on this machine; see `near`.

        They are the oldest that their sender keeps, so it was told that all before the first of them is safe.
        Returns the last sequence number that is on disk: one before the first of these where that cannot be read here.
        """
        self._touched_ns = self._clock.boot_ns()
        path = box_path(self.directory.parent.parent, self._run, node, incarnation)
        with self._near.frames(path, records) as frames:
            held = self._core.push(node, incarnation, frames, records[0][0] - 1 if records else 0)
        if self._is_concluded:
            with self._manifest_lock:
                self._core.finish(self._outdated_summary())  # late data: a new segment and a new revision of the summary
        return held

    def expect(self, node: str, incarnation: str) -> None:
        """Announce a stream."""
        self._core.expect(node, incarnation)

    def started(self, skew_s: float) -> None:
        """Record how far apart load began on all nodes, so that it is drawn while the run goes on. Raises `HarnessError`."""
        self._record((), {"start.skew": skew_s})

    def conclude(self, ending: Ending) -> dict[str, Any]:
        """Judge the run, write its documents and files, and return the outcome."""
        self._end_anomalies()
        self._add_events(ending)
        exported = self._finish_exports()
        plan = Plan.from_json((self.directory / "plan.json").read_bytes())
        concluded = conclude(ending, plan, self)
        with self._manifest_lock:
            manifest = read_json(self.directory / "manifest.json") or {}
            manifest |= {"status": concluded.conclusion.status, "exit_code": concluded.conclusion.exit_code, "end": self._now()}
            manifest.pop("heartbeat", None)
            summary = self._core.finish(concluded.summary | exported, manifest)
            self._is_concluded = True
            self._outcome = {
                "status": concluded.conclusion.status,
                "exit_code": concluded.conclusion.exit_code,
                "message": concluded.findings[0].reason,
                "summary": summary,
            }
        self._feed.close()
        return self._outcome

    def outcome(self) -> dict[str, Any] | None:
        """Return the outcome once there is one."""
        return self._outcome

    def roll(self) -> bool:
        """Let old windows of a run that goes on become longer, as its settings say; tell whether any did. Raises `HarnessError`."""
        manifest = read_json(self.directory / "manifest.json") or {}
        if self._is_concluded or self._retention.fine_s is None or "start" not in manifest:
            return False
        plan = Plan.from_json((self.directory / "plan.json").read_bytes())
        began_s = dt.datetime.fromisoformat(manifest["start"]).timestamp()
        cuts_s = cuts_of(plan, self._core.dose_windows(), began_s, AFTER_S)
        return cuts_s is not None and self._core.roll(self._retention.target(self._clock.wall_ns() // 1000, cuts_s))

    def exporters(self, pause: Sequence[str] = (), resume: Sequence[str] = (), sets: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return how each exporter of a run that goes on stands, after these changes. Raises `InputError`; then nothing has changed."""
        exports = self._exports
        if exports is None:
            raise InputError(
                "not_found", f"run {self._run} has no exporters at work", "a scenario's `exporters`, or `run --export`, gives it some"
            )
        return exports.change(pause, resume, sets)

    def settle(self, dead: bool) -> dict[str, Any]:
        """Write what has arrived since into Parquet, and bring the documents up to date; a `dead` run without an end gets one."""
        exported: Mapping[str, Any] = {}
        if dead:
            self._end_anomalies()
        if dead and self._exports is not None:
            exported = self._finish_exports(LATE_S)  # whoever asks waits a minute, whatever the scenario allows
        elif dead or self._is_concluded:
            exported = self._export_late()
        with self._manifest_lock:
            return end_dead(self._core, exported) if dead else self._core.finish(self._summary_with(exported))

    def forget(self, node: str) -> list[dict[str, Any]]:
        """Give up what a run that has its end still waits for from a node; return those streams. A run that goes on waits."""
        if not self._is_concluded:
            return []
        with self._manifest_lock:
            return self._core.forget(node)

    def files(self) -> list[dict[str, Any]]:
        """Return the run directory's files, for mirroring."""
        self._touched_ns = self._clock.boot_ns()
        return self._core.files()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return bytes of one of them."""
        self._touched_ns = self._clock.boot_ns()
        return self._core.read(name, offset, size)

    def abandon(self) -> None:
        """End, and remove the directory: the run was not admitted."""
        if self._exports is not None:
            self._exports.abandon()
        self._core.close()
        shutil.rmtree(self.directory)
        self._ending.set()

    def leave(self) -> None:
        """End: the run directory is whole."""
        self._ending.set()

    # ---- what conclusion asks

    def evaluate(
        self,
        metric: str,
        stat: str,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        between: tuple[float, float] | None = None,
    ) -> float | None:
        """Return one figure over all matching windows."""
        return self._core.evaluate(metric, stat, node, labels, between)

    def windows(self, operation: str) -> list[tuple[float, float, float, float | None]]:
        """Return (start UTC s, requested, achieved, own) of each window of an operation."""
        own_table = self._core.query("dose.own", worker=operation)
        starts = [time.timestamp() for time in own_table["time"].to_pylist()]
        own = {round(start, 3): value for start, value in zip(starts, own_table["last"].to_pylist(), strict=True)}
        doses = self._core.dose_windows().get(operation, [])
        return [(dose.time_s, dose.requested, dose.achieved, own.get(round(dose.time_s, 3))) for dose in doses]

    def outstanding(self) -> Sequence[Mapping[str, Any]]:
        """Return the streams that have not arrived whole, or are whole no more because a file was damaged: their run is no passed one."""
        return [*self._core.outstanding(), *self._core.holed()]

    # ---- exporters

    def _new_exports(self, manifest: Mapping[str, Any]) -> RunExports | None:
        """Start what the run's scenario asks for. Raises `StressError` where it cannot be had."""
        if not (manifest.get("scenario") or {}).get("exporters"):
            return None  # and nothing of theirs is imported
        from .exporters.context import Context  # noqa: PLC0415
        from .exporters.destinations import check  # noqa: PLC0415
        from .run_exports import RunExports, exporters_of  # noqa: PLC0415

        wanted = exporters_of(manifest)
        if not wanted.destinations:
            return None
        if not self._replaced_ns:
            check(wanted, self.directory)
        return RunExports(self._core, wanted, self._clock, context=Context.of(manifest, self._run))

    def _go_on_exporting(self) -> None:
        """Take over from a predecessor that died; what cannot be had costs the exporters, never the run."""
        try:
            self._exports = self._new_exports(self._prometheus)
        except (StressError, OSError) as error:
            _LOG.warning("run %s: its exporters do not go on: %s", self._run, error)
            end_streams(self._core)

    def _with_checks(self, options: Options) -> Options:
        exports = self._exports
        return options if exports is None else replace(options, checks=exports.checks(), exporters=exports.health_checks())

    def _finish_exports(self, timeout_s: float | None = None) -> dict[str, Any]:
        """End the exporters; return what the summary says of them, nothing when there are none."""
        exports, self._exports = self._exports, None
        if exports is not None:
            return {"exporters": exports.finish(timeout_s)}
        late = self._export_late()  # they did not go on after a death, or the run was ended before
        said = (read_json(self.directory / "summary.json") or {}).get("exporters")
        return late or ({"exporters": said} if said else {})

    def _export_late(self) -> dict[str, Any]:
        """Give exporters what came after the end; return what the summary says of them then, nothing when nothing came."""
        if not ((read_json(self.directory / "manifest.json") or {}).get("scenario") or {}).get("exporters"):
            return {}
        from .run_exports import bring_up_to_date  # noqa: PLC0415

        reports = bring_up_to_date(self._core, self._clock, LATE_S)
        return {"exporters": reports} if reports is not None else {}

    def _summary_with(self, exported: Mapping[str, Any]) -> dict[str, Any] | None:
        return {**(read_json(self.directory / "summary.json") or {}), **exported} if exported else None

    def _outdated_summary(self) -> dict[str, Any] | None:
        """Return the summary with the word that exporters lack what has just come; None when there are none."""
        reports = (read_json(self.directory / "summary.json") or {}).get("exporters")
        if not reports:
            return None
        from .run_exports import outdated  # noqa: PLC0415

        return self._summary_with({"exporters": outdated(reports)})

    # ---- inside

    def _add_events(self, ending: Ending) -> None:
        """Append the control plane's story and figures to the run."""
        events = list(ending.events)
        if self._replaced_ns:
            words = "the aggregator died and was replaced; what it had acknowledged was on disk, and the rest was sent again"
            events.append(Event("aggregator_replaced", words, "warning", wall_ns=self._replaced_ns))
        told_ms = {"start.skew": ending.start_skew_ms, "halt.latency": ending.halt_latency_ms}
        self._record(events, {name: value / 1e3 for name, value in told_ms.items() if value is not None})

    def _record(self, events: Sequence[Event], gauges: Mapping[str, float]) -> None:
        """Append what the orchestrator tells to the run, as a stream of its own that ends here."""
        incarnation = f"orchestrator-{self._clock.boot_ns()}"
        path = self.directory.parent.parent / "outbox" / self._run / f"orchestrator-{incarnation}.box"
        box = Outbox(path, node="orchestrator", incarnation=incarnation, run=self._run)
        stream = MetricStream("orchestrator", incarnation, self._run, box, self._clock)
        for event in events:
            stream.event(event)
        for name, value in gauges.items():
            stream.observe(name, value)
        stream.finish()
        while records := stream.unacked():
            stream.ack(self._core.push("orchestrator", incarnation, records))

    def _look_for_anomalies(self, manifest: Mapping[str, Any]) -> None:
        """Call the hooks that the settings name with each window from now on. Raises `InputError` for a hook that cannot be had."""
        said = {path: one["value"] for path, one in (manifest.get("settings") or {}).items()}
        hooks = hooks_of(said.get("metrics.anomaly", ""))
        if hooks and self._anomalies is None:
            watch = AnomalyWatch(hooks, said["metrics.anomaly_window_s"], self._clock)
            self._anomalies = watch, OwnStream(self._core, "anomalies", self._clock)
            self._core.watch(watch.take)

    def _tell_anomalies(self) -> None:
        """Write what the hooks found since the last time into the run."""
        with self._anomalies_lock:
            if self._anomalies is None:
                return
            watch, stream = self._anomalies
            if stream.is_sent:
                rows, events = watch.news()
                if rows or events:
                    stream.close_window(rows, events)
            stream.send()

    def _end_anomalies(self) -> None:
        """Let the hooks see the last windows, and write what they found."""
        if self._anomalies is None:
            return
        watch, stream = self._anomalies
        self._core.unwatch(watch.take)
        watch.end()
        self._tell_anomalies()
        with self._anomalies_lock:
            self._anomalies = None
            stream.end()

    def _serve(self, endpoint: Mapping[str, Any] | None, options: Options) -> None:
        if endpoint and self._server is None:
            host, port, ask = endpoint["host"], endpoint["port"], self._core.answers.ask
            self._server = MetricsServer(self._core, host, port, self._clock, options, ask, self._follow)

    def _follow(self, words: Words) -> tuple[Subscription[Window], About]:
        """Return a stream of the windows that come, and whose they are. Raises `InputError` or `RefusedError`."""
        manifest = read_json(self.directory / "manifest.json") or {}
        return self._feed.subscribe(words), About.of(manifest, self._run, str(manifest.get("status") or ""))

    def _heartbeat(self) -> None:
        """Keep the manifest's heartbeat fresh while the run lives; end when nobody needs this process any more."""
        while not self._ending.wait(HEARTBEAT_S):
            idle_s = (self._clock.boot_ns() - self._touched_ns) / SECOND_NS
            if idle_s > (ORPHANED_S if self._unfinished() else self._linger_s):
                break
            try:
                self._beat()
            except Exception as error:  # a beat that the disk refuses is missed; who watches over the end goes on
                _LOG.warning("run %s: no sign of life in its manifest: %s", self._run, error)
        with ExitStack() as ending:  # each step whatever becomes of those before it: the process must not stay
            ending.callback(self._on_end)
            ending.callback(self._close)
            if self._server is not None:
                ending.callback(self._server.close)
            self._feed.close()

    def _beat(self) -> None:
        with self._manifest_lock:
            manifest = read_json(self.directory / "manifest.json")
            if manifest is not None and manifest.get("status") == "running":
                write_json_atomic(self.directory / "manifest.json", {**manifest, "heartbeat": self._now()})
        self._tell_anomalies()

    def _retain(self) -> None:
        """Roll up what has become old, as often as the settings make it worth its while; a failure costs nothing but room."""
        looked_ns = self._clock.boot_ns()
        while not self._ending.wait(LOOK_S):
            every_s = self._retention.every_s
            if every_s is None or self._clock.boot_ns() - looked_ns < every_s * SECOND_NS:
                continue
            looked_ns = self._clock.boot_ns()
            try:
                self.roll()
            except (StressError, OSError, ValueError) as error:
                _LOG.warning("run %s: old windows stay as they are for now: %s", self._run, error)

    def _close(self) -> None:
        """Give up the directory; what came late, up to the last moment, is in the files of a run that has its end."""
        if self._exports is not None:
            self._exports.give_up()
        exported = self._export_late() if self._is_concluded else {}
        with self._manifest_lock:
            if self._is_concluded and (exported or not self._core.is_settled):
                with suppress(HarnessError):  # the disk refuses: the log stands, and `recover` goes on from it
                    self._core.finish(self._summary_with(exported))
            self._core.close()

    def _unfinished(self) -> bool:
        return self._outcome is None and (read_json(self.directory / "manifest.json") or {}).get("status", "running") == "running"

    def _now(self) -> str:
        return dt.datetime.fromtimestamp(self._clock.wall_ns() / SECOND_NS, dt.UTC).isoformat()


def _options_of(run: str, manifest: Mapping[str, Any]) -> Options:
    """Return how a run's endpoint is served; settings that are none cost it its wishes, never the run."""
    try:
        return Options.of_manifest(manifest)
    except StressError as error:
        _LOG.warning("run %s: the endpoint is served as by default: %s", run, error)
        return Options(scenario=scenario_name(manifest))


def _linger_s(manifest: Mapping[str, Any]) -> float:
    """Return how long the aggregator of a run that has its end stays: no longer than the cluster's orchestrator would."""
    told = (manifest.get("settings") or {}).get("idle_exit_s") or {}
    return min(LINGER_S, float(told.get("value", LINGER_S)))


def _write(file: Any, data: bytes) -> None:
    file.write(data)


def offline(directory: Path, run: str) -> Aggregator:
    """Open a run directory without a cluster, as recovery does."""
    return Aggregator(run, directory, SystemClock())
