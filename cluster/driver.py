"""Starting a run from a command, a notebook or a job: the Ray driver is a child process of its own.

The process that returns the exit code never hosts Ray: Ray ends a driver whose GCS died without `finally`, and a busy notebook
cell must not look like a dead driver. `start` spawns the child in a session of its own, so that Ctrl-C in a terminal reaches only
this process, which then asks the child to stop. A child that ends without a verdict is an error (3).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors.clock import SECOND_NS, SystemClock
from actors.errors import StressError
from actors.state import open_state_dir

from .files import write_json_atomic
from .settings import Settings, state_path

LOG_TAIL_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run and how; crosses to the child as JSON."""

    scenario_text: str
    run: str
    out: Path
    settings: Settings
    address: str | None = None
    nodes: int | None = None
    seed: int = 0
    detach: bool = False
    timeout_s: float | None = None
    allow_head: bool = False
    allow_starve: bool = False
    assume_yes: bool = False
    prometheus_port: int | None = None
    replay_plan: str = ""
    replay_of: str | None = None
    scenario_name: str = ""
    held: bool = False  # for a caller that may let go, and for no longer than it runs: see `held`

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps({**asdict(self), "out": str(self.out)})

    @classmethod
    def from_json(cls, line: str, settings: Settings) -> RunRequest:
        """Return the request with its settings already made into a value."""
        raw = json.loads(line)
        return cls(**{**raw, "out": Path(raw["out"]), "settings": settings})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str
    exit_code: int
    message: str
    run_dir: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


class DriverProcess:
    """The child that drives a run. Read `events` to its end, or call `wait`."""

    def __init__(self, request: RunRequest, process: subprocess.Popen[bytes], events_fd: int, log: Path) -> None:
        self.request = request
        self.pid = process.pid
        self._process, self._log = process, log
        self._events = os.fdopen(events_fd, "r", encoding="utf-8")
        self._outcome: Outcome | None = None
        self._sending = threading.Lock()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what the child tells, until it ends."""
        for line in self._events:
            event = json.loads(line)
            if event["type"] == "outcome":
                run_dir = Path(event["run_dir"]) if event.get("run_dir") else None
                self._outcome = Outcome(event["status"], event["exit_code"], event["message"], run_dir, event.get("summary") or {})
            yield event

    def stop(self, reason: str, *, as_planned: bool = False) -> None:
        """Ask for a graceful stop: the run ends, everything is undone, the outcome follows. May be called from a signal handler.

        `as_planned`: what it was for is over, so that it is judged by what it did until now and is not cancelled.
        """
        cause = "passed" if as_planned else "cancelled"
        with contextlib.suppress(OSError, ValueError):  # the child is gone already
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), (json.dumps({"stop": reason, "cause": cause}) + "\n").encode())

    def kill(self) -> None:
        """End the child at once; leases and the guardian end and undo what it began."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def wait(self) -> Outcome:
        """Read to the end and return the outcome; a child without one is an error, told with the tail of its log."""
        for _ in self.events():
            pass
        code = self._process.wait()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._events.close()
        if self._outcome is None:
            self._outcome = self._died(code)
        return self._outcome

    def _died(self, code: int) -> Outcome:
        """Say what a dead child leaves, after waiting for the guardian to have ended and undone it."""
        left = wait_until_clean(self.request.settings, self.request.run)
        tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip() if self._log.exists() else ""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        undone = f"on this machine {left} remains" if left else "on this machine its load and faults are gone and undone"
        message = f"the driver process {how} before a verdict; {undone}"
        if tail and code >= 0:
            message += f"; its last words: {tail.splitlines()[-1]}"
        run_dir = self.request.out / self.request.run
        return Outcome("error", 3, message, run_dir if mark_died(run_dir, message) else None)


def start(request: RunRequest) -> DriverProcess:
    """Start the child that drives this run."""
    state_dir = open_state_dir(state_path(request.settings))
    log = state_dir / "drivers" / f"{request.run}.log"
    log.parent.mkdir(exist_ok=True, mode=0o700)
    reading, writing = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.driver_main", str(writing)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    assert process.stdin is not None
    os.write(process.stdin.fileno(), (request.to_json() + "\n").encode())
    return DriverProcess(request, process, reading, log)


def wait_until_clean(settings: Settings, run: str, patience_s: float = 0.0) -> str:
    """Wait until this machine's guardian holds nothing of a run; return what is left in words, or nothing."""
    from actors.guardian import GuardianClient  # noqa: PLC0415  # the command line starts without it

    clock = SystemClock()
    deadline_ns = clock.boot_ns() + round((patience_s or settings.lease_s + 5.0) * SECOND_NS)
    while True:
        try:
            with GuardianClient.connect(state_path(settings), role="cli", spawn=True) as guardian:
                status = guardian.call("status")
        except StressError as error:
            return f"an unknown rest (the guardian does not answer: {error})"
        slots = [slot["operation"] for slot in status["slots"] if slot["run"] == run]
        records = [f"{record['kind']} {record['detail']}" for record in status["records"] if record.get("run", run) == run]
        if not slots and not records:
            return ""
        if clock.boot_ns() > deadline_ns:
            return ", ".join([*slots, *records])
        clock.sleep(0.1)


def mark_died(run_dir: Path, message: str) -> bool:
    """Write down in a run directory's manifest that its driver died; returns whether there is a directory."""
    path = run_dir / "manifest.json"
    if not path.exists():
        return run_dir.exists()
    manifest = json.loads(path.read_text())
    if manifest.get("status") == "running":
        write_json_atomic(path, {**manifest, "status": "error", "exit_code": 3, "message": message, "end": _now_iso()})
    return True


def _now_iso() -> str:
    import datetime as dt  # noqa: PLC0415

    return dt.datetime.fromtimestamp(SystemClock().wall_ns() / SECOND_NS, dt.UTC).isoformat()
