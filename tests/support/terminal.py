"""A user's terminal: the command with a STATE, an OUT and a HOME of its own, and what it started on this machine, seen through /proc."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from actors.metrics.labels import strange
from actors.metrics.registry import CATALOGUE
from cluster.metrics.store import read_metrics

from . import waiting

# What a command line holds, by the part that a process plays. The first that fits counts.
ROLES: Final = {
    "load": "actors.load",
    "driver": "cluster.driver_main",
    "host": "cluster.embedded_host",
    "guardian": "/guardian-",
    "command": "cluster.cli",
    "agent": "_AgentActor",
    "simulator": "SimulatorActor",
    "orchestrator": "_OrchestratorActor",
    "aggregator": "_AggregatorActor",
    "target": "_ProbeTarget",
    "raylet": "/raylet/raylet",
    "gcs": "gcs_server",
}


@dataclass(frozen=True, slots=True)
class Process:
    """A live process (zombies are none)."""

    pid: int
    parent: int
    session: int
    state: str
    command: str
    marked: str

    @property
    def role(self) -> str:
        """Return which part it plays, "" for any other."""
        return next((role for role, mark in ROLES.items() if mark in self.command), "")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def processes() -> Iterator[Process]:
    """Give all live processes of this machine."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # gone while we looked, or of another user
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if stat[0] not in "ZX" and command:
                    environ = (folder / "environ").read_bytes().decode(errors="replace")
                    yield Process(int(folder.name), int(stat[1]), int(stat[3]), stat[0], command, environ + command)


@dataclass(frozen=True, slots=True, repr=False)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """Return what it printed with `--json`: one document and nothing else."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    def __repr__(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n--- standard output\n{self.out}\n--- standard error\n{self.err}"


class Command:
    """A command that runs. Its output is read as it comes."""

    def __init__(self, argv: list[str], env: dict[str, str], folder: Path) -> None:
        self._begun = time.monotonic()
        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._text: dict[str, list[str]] = {"out": [], "err": []}
        pipes = {"out": self.process.stdout, "err": self.process.stderr}
        self._readers = [threading.Thread(target=self._read, args=(name, pipe), daemon=True) for name, pipe in pipes.items()]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._text[name].append(line)

    def text(self, name: str = "err") -> str:
        """Return what it has written so far on standard error ("err") or output ("out")."""
        return "".join(self._text[name])

    def await_text(self, wanted: str, within_s: float) -> None:
        """Wait until it has written this on standard error; fails when it ends without."""
        waiting.until(
            lambda: wanted in self.text() or self.process.poll() is not None,
            within_s,
            lambda: f"no {wanted!r} in {self.text()}",
        )
        assert wanted in self.text(), f"ended without {wanted!r}: {self.text()}{self.text('out')}"

    def wait(self, within_s: float) -> Ended:
        """Wait for its end. Raises `AssertionError` when it takes longer; it lives on then."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {within_s:g} s: {self.text()}{self.text('out')}") from None
        seconds = time.monotonic() - self._begun
        for reader in self._readers:
            reader.join(5)  # a grandchild that keeps the pipe open must not hold us
        return Ended(code, self.text("out"), self.text(), seconds)

    def send(self, number: int) -> None:
        """Send it a signal, as a terminal does."""
        self.process.send_signal(number)


@dataclass
class Terminal:
    """One user's terminals: all commands here share a STATE. `prefix` is put before each command, such as `setpriv ...`."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    shared_state: Path | None = None
    _sessions: set[int] = field(default_factory=set)
    _commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in (self.home, self.out):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> Path:
        """Return STATE."""
        return self.shared_state or self.folder / "state"

    @property
    def out(self) -> Path:
        """Return OUT."""
        return self.folder / "runs"

    @property
    def home(self) -> Path:
        """Return HOME."""
        return self.folder / "home"

    def environ(self) -> dict[str, str]:
        """Return the environment of a command: nothing of the caller's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("STRESS_CLUSTER_", "RAY_", "XDG_"))}
        ours = {"HOME": str(self.home), "STRESS_CLUSTER_STATE_DIR": str(self.state), "STRESS_CLUSTER_OUT": str(self.out)}
        return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "STRESS_CLUSTER_LEASE_S": "2", **ours, **self.settings}

    def start(self, *arguments: str) -> Command:
        """Start a command."""
        command = Command([*self.prefix, sys.executable, "-m", "cluster.cli", *arguments], self.environ(), self.folder)
        self._sessions.add(command.pid)
        self._commands.append(command)
        return command

    def run(self, *arguments: str, within_s: float = 120.0) -> Ended:
        """Run a command to its end."""
        return self.start(*arguments).wait(within_s)

    def belonging(self, *roles: str) -> list[Process]:
        """Return the live processes that commands here began, all or those of some roles."""
        found = list(processes())
        marked = [one for one in found if str(self.state) in one.marked]
        self._sessions |= {one.session for one in marked} - {os.getsid(0)}
        ours = {one.pid: one for one in found if one.session in self._sessions} | {one.pid: one for one in marked}
        ours.pop(os.getpid(), None)
        return [one for one in ours.values() if not roles or one.role in roles]

    def one(self, role: str, within_s: float = 30.0) -> Process:
        """Return the one process of a role, waiting for it."""
        found = waiting.until(lambda: self.belonging(role), within_s, f"a process in the role {role}")
        assert len(found) == 1, found
        return found[0]

    def loads(self) -> list[int]:
        """Return the pids of the load processes."""
        return [one.pid for one in self.belonging("load")]

    def fills(self) -> list[Path]:
        """Return the files of disk fills that are there."""
        return [path for path in (self.state / "fill").rglob("*") if path.is_file()] if (self.state / "fill").is_dir() else []

    def await_load(self, loads: int, within_s: float = 60.0) -> None:
        """Wait until this many load processes live."""
        waiting.until(lambda: len(self.loads()) >= loads, within_s, lambda: f"{loads} loads; said: {self._commands[-1].text()}")

    def run_dir(self) -> Path:
        """Return the newest run directory."""
        return max(self.out.iterdir(), key=lambda path: path.name)

    def strange_labels(self) -> list[str]:
        """Return what is wrong with metrics and labels that the runs in OUT recorded: names and words that are not declared."""
        return [f"{path.name}: {words}" for path in sorted(self.out.iterdir()) if (path / "metrics").is_dir() for words in strange_in(path)]

    def close(self) -> None:
        """End whatever is left of the commands here, and remove their files. In a shared STATE only the commands themselves."""
        ours = {command.pid for command in self._commands if command.process.poll() is None}
        for one in self.belonging("command", "driver"):
            if {one.pid, one.parent} & ours or self.shared_state is None:
                with contextlib.suppress(OSError):
                    one.signal(signal.SIGCONT)
                    one.signal(signal.SIGKILL)
        if self.shared_state is None:
            self._end_all()
        elif ours:  # load of a killed command ends with its lease
            waiting.until(lambda: not self.loads(), 30, "the end of the load of a killed command")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_all(self) -> None:
        with contextlib.suppress(AssertionError):  # what the guardian did not end in its time is ended here
            waiting.until(lambda: not [one for one in self.belonging() if one.role != "guardian"], 12)
        for one in self.belonging():
            with contextlib.suppress(OSError):
                one.signal(signal.SIGKILL)


def strange_in(run_dir: Path) -> list[str]:
    """Return which metrics that a run recorded are in no catalogue, and which labels are no words of their closed sets."""
    table = read_metrics(run_dir, ["metric", "labels"], None)
    found = {(metric, tuple(labels)) for metric, labels in zip(table["metric"].to_pylist(), table["labels"].to_pylist(), strict=True)}
    unknown = sorted({metric for metric, _ in found} - CATALOGUE.keys())
    return unknown + strange((metric, dict(labels)) for metric, labels in found if metric in CATALOGUE)


@contextlib.contextmanager
def terminal(**fields: Any) -> Iterator[Terminal]:
    """Open a terminal in a new folder with a short path; look at what its runs recorded; end and remove what is left at the end."""
    with_folder = Terminal(Path(tempfile.mkdtemp(prefix="terminal-")), **fields)
    try:
        yield with_folder
        assert with_folder.strange_labels() == []
    finally:
        with_folder.close()
