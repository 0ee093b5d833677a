"""The child process that drives one run: `python -m cluster.driver_main EVENTS_FD`, started by `driver.start`.

Reads the request and later words ({"stop": reason, "cause": cause}) from standard input, whose end means that the starter is gone; tells
what happens as JSON lines on EVENTS_FD. It leads a session of its own, and holds no load: what it began ends without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.clock import SECOND_NS, SystemClock
from actors.errors import HarnessError, RefusedError, StressError
from actors.guardian import GuardianClient, GuardianError
from actors.messages import Event
from actors.origin import PACKAGES, code_id
from actors.proc import read_stat
from actors.state import ENV_STATE_DIR, open_state_dir
from scenarios import text

from .driver import RunRequest, wait_until_clean
from .embedded import EmbeddedRay, environment
from .lean import leave_out
from .mirror import mirror
from .run_state import Phase
from .settings import Settings, state_path

FOLLOW_S = 0.25
SALVAGE_S = 20.0
GRACE_S = 3.0
GOES_ON = "running"  # the status of a detached run whose load runs
REFUSALS = frozenset({"halted", "budget", "busy", "code_mismatch", "unsupported"})


class Driver:
    """Drives one run to its outcome."""

    def __init__(self, request: RunRequest, events_fd: int) -> None:
        self._request, self._settings, self._clock = request, request.settings, SystemClock()
        self._events = os.fdopen(events_fd, "w", encoding="utf-8", buffering=1)
        self._stop_reason, self._stop_cause = "", "cancelled"
        self._starter = os.getppid()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._state_dir = open_state_dir(state_path(request.settings))
        os.environ[ENV_STATE_DIR] = str(self._state_dir)  # an embedded Ray's actors find STATE where the settings put it
        self._embedded: EmbeddedRay | None = None
        self._run_dir, self._has_files = request.out / request.run, False
        self._orchestrator: Any = None

    def heed_signals(self) -> None:
        """Take signals as a wish to stop. Called again after Ray has connected: it takes SIGTERM for itself then and would just exit."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self.ask_stop(f"signal {signal.Signals(number).name}"))

    def ask_stop(self, reason: str, cause: str = "cancelled") -> None:
        """Note that the run should end, the first time for what; safe in a signal handler."""
        self._stop_cause = self._stop_cause if self._stop_reason else cause
        self._stop_reason = self._stop_reason or reason
        self._stopping.set()

    def run(self) -> int:
        """Run to the end; returns the exit code. Every way out tells an outcome."""
        outcome: dict[str, Any]
        try:
            with self._guardian() as guardian:
                try:
                    self._connect(guardian)
                    outcome = self._drive()
                finally:
                    self._ended.set()
                    with self._writing_report():
                        left = self._tear_down()
        except StressError as error:
            outcome = self._failed(error)
            left = ""
        except Exception as error:
            import traceback  # noqa: PLC0415

            traceback.print_exc()
            outcome = self._failed(HarnessError("internal", f"the driver failed: {type(error).__name__}: {error}"))
            left = ""
        if outcome["status"] != GOES_ON:
            left = left or wait_until_clean(self._settings, self._request.run)
        if left and outcome["status"] == "passed":
            outcome |= {"status": "error", "exit_code": 3}
        if left:
            outcome["message"] += f"; on this machine {left} remains and will be undone by the guardian at its lease's end"
        self._tell("outcome", **outcome)
        return int(outcome["exit_code"])

    # ---- set-up

    def _guardian(self) -> GuardianClient:
        with refusing():
            return GuardianClient.connect(
                self._state_dir,
                role="driver",
                code_id=code_id(),
                watch=[os.getpid()],
                cluster="embedded",
                node=f"driver-{os.getpid()}",
                epoch=0,
                incarnation=os.getpid(),
            )

    def _connect(self, guardian: GuardianClient) -> None:
        request = self._request
        if request.address is None:
            self._embedded = EmbeddedRay(
                guardian, self._state_dir, request.run, request.nodes or 0, self._settings.lease_s, on_death=self._embedded_died
            )
            os.environ.update(environment(self._embedded.folder))
            self._tell("phase", phase="starting Ray")
            with refusing():
                self._embedded.start()
        address = self._embedded.address if self._embedded else request.address
        begun_ns = self._clock.boot_ns()
        from . import ray_port  # noqa: PLC0415  # Ray reads its environment when it is imported

        assert address is not None
        ray_port.connect(address, ship=() if self._embedded else shipped(self._settings))
        self.heed_signals()
        seconds = (self._clock.boot_ns() - begun_ns) / SECOND_NS
        self._orchestrator = ray_port.orchestrator(orchestrator_config(self._settings))
        if self._embedded is not None:  # its raylets join while the orchestrator's process starts
            self._embedded.await_nodes()
            seconds = self._embedded.seconds
        self._tell("ray", address=address, seconds=seconds, embedded=self._embedded is not None)

    def _embedded_died(self) -> None:
        """End at once when the embedded Ray has died: calls into it may hang. The guardian undoes, the starter tells and writes it down."""
        print("the embedded Ray died", flush=True)
        os._exit(3)

    # ---- the run

    def _drive(self) -> dict[str, Any]:
        submission = submission_of(self._request)
        if self._embedded is None and not self._request.assume_yes:
            self._tell("plan", **self._orchestrator.call("preview", submission, timeout_s=180.0, group="control"))
            self._tell(
                "event", kind="waiting", severity="info", message="load starts in 3 s; Ctrl-C stops here (--yes skips this)", node=""
            )
            if self._stopping.wait(GRACE_S):
                return self._outcome("cancelled", 130, "stopped before any load", {})
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        admitted = self._orchestrator.call("submit", submission, timeout_s=180.0, group="control")
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._mirror(only=("manifest.json", "plan.json"))
        self._tell("plan", **admitted["preview"])
        for drift in admitted["drift"]:
            self._tell("event", kind="drift", severity="warning", message=drift, node="")
        try:
            outcome = self._follow()
        except StressError as error:
            outcome = self._salvage(error)
        if outcome["status"] == GOES_ON:
            self._mirror(only=("manifest.json",))
            return self._outcome(GOES_ON, 0, outcome["message"], {})
        self._mirror()
        self._has_files = True
        summary = outcome.get("summary", {})
        return self._outcome(outcome["status"], outcome["exit_code"], outcome["message"], summary)

    def _beat(self) -> None:
        """Hold the driver's lease: nothing else happens on this thread, so that writing files is no death.

        What a caller holds is kept for a caller that runs: for one that is stopped, or gone while somebody keeps its pipe, the lease ends.
        """
        from . import ray_port  # noqa: PLC0415

        while not self._ended.wait(self._settings.lease_s / 5):
            if self._request.held and not runs(self._starter):
                continue
            with contextlib.suppress(StressError, ray_port.RayError):  # the next beat tries again; without any the run ends
                self._orchestrator.call("beat", self._request.run, timeout_s=self._settings.lease_s, group="exchange")

    def _follow(self) -> dict[str, Any]:
        """Tell events and progress, pass a stop on, until there is an outcome, or, detached, load that runs on without us.

        Raises when the orchestrator is lost.
        """
        cursor, phase, mirrored_ns = 0, "", 0
        unheard_ns = self._clock.boot_ns()
        while True:
            if self._stopping.is_set() and self._stop_reason:
                reason, self._stop_reason = self._stop_reason, ""
                self._orchestrator.call("stop", self._request.run, self._stop_cause, reason, group="control")
            try:
                news = self._orchestrator.call("follow", self._request.run, cursor, timeout_s=5.0, group="control")
                unheard_ns = self._clock.boot_ns()
            except StressError as error:
                if error.code != "timeout" or self._clock.boot_ns() - unheard_ns > 30 * SECOND_NS:
                    raise
                continue
            cursor = news["cursor"]
            for event in news["events"]:
                self._tell("event", **{key: event[key] for key in ("kind", "severity", "message", "node")})
            if news["phase"] != phase:
                phase = news["phase"]
                self._tell("phase", phase=phase)
            self._tell("progress", **news["progress"])
            if news["outcome"] is not None:
                outcome: dict[str, Any] = news["outcome"]
                return outcome
            if self._request.detach and phase == Phase.RUNNING and not self._stopping.is_set():
                return {"status": GOES_ON, "message": f"Follow it with `stress-cluster watch {self._request.run}`"}
            if self._clock.boot_ns() - mirrored_ns > 2 * SECOND_NS:
                mirrored_ns = self._clock.boot_ns()
                self._mirror(only=("manifest.json",))
            self._stopping.wait(FOLLOW_S) if not self._stopping.is_set() else self._clock.sleep(FOLLOW_S)

    def _salvage(self, cause: StressError) -> dict[str, Any]:
        """Replace an orchestrator that died: leases end the load, the new one has what is left ended, delivered and concluded."""
        self._tell("event", kind="orchestrator_lost", severity="error", message=f"the orchestrator was lost: {cause}", node="")
        from . import ray_port  # noqa: PLC0415
        from .conclusion import Ending  # noqa: PLC0415

        remaining: list[str] = []
        outcome: dict[str, Any] = {"status": "error", "exit_code": 3, "summary": {}, "message": f"the orchestrator was lost: {cause}"}
        try:
            self._orchestrator = ray_port.orchestrator(orchestrator_config(self._settings))
            recovered = self._orchestrator.call("recover", SALVAGE_S, timeout_s=SALVAGE_S + 90.0, group="control")
            remaining = recovered["remaining"]
            aggregator = ray_port.aggregator(self._request.run)
            if aggregator is not None:
                event = Event("orchestrator_lost", str(cause), "error", wall_ns=self._clock.wall_ns())
                reasons = (("error", f"the orchestrator was lost: {cause}"), *(("error", words) for words in remaining))
                ending = Ending(self._request.run, reasons, (), (event,), 0, None, None)
                outcome = aggregator.call("conclude", ending, timeout_s=120.0)
        except StressError as error:
            outcome["message"] += f"; and it could not be replaced: {error}"
        return outcome

    # ---- files

    def _mirror(self, only: tuple[str, ...] = ()) -> None:
        """Copy the run directory's closed files from the aggregator; what cannot be had now is had at the end or by `recover`."""
        from . import ray_port  # noqa: PLC0415

        actor = ray_port.aggregator(self._request.run)
        try:
            if actor is None:
                raise HarnessError("lost", "the aggregator is gone")
            mirror(actor, self._run_dir, only)
        except StressError as error:
            if not only:
                self._tell(
                    "event", kind="mirror_failed", severity="warning", message=f"the run directory is not whole here: {error}", node=""
                )
        else:
            if not only and actor is not None:
                actor.send("leave")

    @contextlib.contextmanager
    def _writing_report(self) -> Iterator[None]:
        """Write the report of a run that has ended beside what is done meanwhile: the end of an embedded Ray is mostly waiting."""
        writing = threading.Thread(target=self._write_report, name="report") if self._has_files else None
        if writing is not None:
            writing.start()
        try:
            yield
        finally:
            if writing is not None:
                writing.join()

    def _write_report(self) -> None:
        from .analysis import report  # noqa: PLC0415  # needs pyarrow

        try:
            report.write(self._run_dir, report.read(self._run_dir, self._clock.wall_ns()))
        except (StressError, OSError, ValueError, KeyError) as error:
            self._tell("event", kind="report_failed", severity="warning", message=f"report.html was not written: {error}", node="")

    # ---- the end

    def _tear_down(self) -> str:
        """Leave the cluster; end an embedded Ray, without leave since nobody in it stays behind, and say what of it is left."""
        from . import ray_port  # noqa: PLC0415

        if self._embedded is None:
            with contextlib.suppress(StressError, ray_port.RayError, RuntimeError):  # a cluster that is gone cannot be left politely
                ray_port.disconnect()
            return ""
        try:
            outcomes = self._embedded.stop()
        except StressError as error:
            return f"the embedded Ray ({error})"
        bad = [
            f"{outcome['kind']}: {outcome['outcome']} {outcome.get('detail', '')}"
            for outcome in outcomes
            if outcome["outcome"] not in {"undone", "expired"}
        ]
        return ", ".join(bad)

    def _failed(self, error: StressError) -> dict[str, Any]:
        status = {2: "invalid", 6: "refused", 1: "failed"}.get(error.exit_code, "error")
        run_dir = str(self._run_dir) if self._run_dir.exists() else None
        why = {"code": error.code, "error": error.message, "hint": error.hint}
        return {"status": status, "exit_code": error.exit_code, "message": str(error), **why, "run_dir": run_dir, "summary": {}}

    def _outcome(self, status: str, exit_code: int, message: str, summary: dict[str, Any]) -> dict[str, Any]:
        return {"status": status, "exit_code": exit_code, "message": message, "run_dir": str(self._run_dir), "summary": summary}

    def _tell(self, what: str, /, **data: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more; the run is ended by the closed standard input
            self._events.write(json.dumps({"type": what, **data}, default=str) + "\n")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what this machine's guardian refuses before a run, such as anything under a halt, into the run's refusal (6)."""
    try:
        yield
    except GuardianError as error:
        if error.code in REFUSALS:
            raise RefusedError(error.code, error.message, error.hint) from error
        raise


def submission_of(request: RunRequest) -> Any:
    """Return what is submitted for a request: its scenario, and what its settings have resolved to."""
    from .orchestrator_api import Submission  # noqa: PLC0415  # imports the planner

    settings = request.settings
    manifest = {
        "schema": 1,
        "run": request.run,
        "scenario": text.to_data(text.load(request.scenario_text, "scenario")),
        "seed": request.seed,
        "code_id": code_id(),
        "versions": versions(),
        "settings": settings.to_json(),
        "replay_of": request.replay_of,
        "out": str(request.out / request.run),
    }
    return Submission(
        run=request.run,
        scenario=request.scenario_text,
        seed=request.seed,
        allow_head=request.allow_head,
        allow_starve=request.allow_starve,
        profile=settings.profile,
        detached=request.detach,
        timeout_s=request.timeout_s,
        prometheus_port=request.prometheus_port if request.prometheus_port is not None else settings.prometheus.port,
        prometheus_host=settings.prometheus.host,
        replay_plan=request.replay_plan,
        manifest=manifest,
        code_id=code_id(),
        config=orchestrator_config(settings),
        caps=caps_of(settings),
    )


def caps_of(settings: Settings) -> dict[str, float]:
    """Return the series caps of a run's nodes, as `cardinality.Caps` names them."""
    found = settings.metrics
    return {
        "series": found.max_series,
        "by_metric": found.max_series_by_metric,
        "by_label": found.max_label_values,
        "idle_s": found.idle_s,
    }


def orchestrator_config(settings: Settings) -> Any:
    """Return the orchestrator's part of the settings."""
    from .orchestrator_api import OrchestratorConfig  # noqa: PLC0415  # imports the planner

    return OrchestratorConfig(
        profile=settings.profile,
        lease_s=settings.lease_s,
        renew_s=settings.renew_s,
        sample_hz=settings.sample_hz,
        stale_s=settings.stale_s,
        prepare_timeout_s=settings.prepare_timeout_s,
        stop_grace_s=settings.stop_grace_s,
        idle_exit_s=settings.idle_exit_s,
        window_s=settings.metrics.window_s,
        outbox_max_bytes=settings.outbox.max_bytes,
        nodes_max=settings.budget.max_nodes,
        cpu_fraction=settings.budget.cpu_fraction,
        memory_fraction=settings.budget.memory_fraction,
        disk_bytes_max=settings.budget.disk_bytes,
        duration_s_max=settings.budget.max_duration_s,
        code_id=code_id(),
    )


def shipped(settings: Settings) -> tuple[Path, ...]:
    """Return the package folders to send to a standing cluster, so that every node runs this code; none where it has it already."""
    if settings.ship == "never":
        return ()
    import importlib  # noqa: PLC0415

    return tuple(Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES)


def versions() -> dict[str, str]:
    """Return the versions that a reader of a result wants to know."""
    import platform  # noqa: PLC0415
    from importlib import metadata  # noqa: PLC0415

    found = {name: metadata.version(name) for name in ("ray", "numpy", "numba", "pyarrow", "psutil")}
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a working directory
        found["stress-cluster"] = metadata.version("stress-cluster")
    return {**found, "python": platform.python_version(), "kernel": platform.release()}


def runs(parent: int) -> bool:
    """Tell whether the process that started this one is there and not stopped."""
    stat = read_stat(parent)
    return os.getppid() == parent and stat is not None and stat.state not in "TtZX"


def listen(driver: Driver) -> None:
    """Pass on what the starter says; its end is a stop."""
    for line in sys.stdin:
        with contextlib.suppress(ValueError):
            word = json.loads(line)
            if "stop" in word:
                driver.ask_stop(str(word["stop"]), str(word["cause"]))
    driver.ask_stop("the process that started the run is gone")


def main() -> int:
    """Drive one run."""
    leave_out()
    events_fd = int(sys.argv[1])
    line = sys.stdin.readline()
    raw = json.loads(line)
    from .settings import from_dict  # noqa: PLC0415

    driver = Driver(RunRequest.from_json(line, from_dict(raw["settings"])), events_fd)
    driver.heed_signals()
    threading.Thread(target=listen, args=(driver,), name="listener", daemon=True).start()
    code = driver.run()
    sys.stdout.flush()
    os._exit(code)  # Ray's own exit handlers may wait for a cluster that is gone


if __name__ == "__main__":
    raise SystemExit(main())
