"""What carries a load for a simulator's shell: a child process (`LoadProcess`) or a holder in a thread (`disk.DiskFill`).

A carrier starts, tells when it has ended, and ends when told to. It decides nothing: see `lifecycle`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from . import memory_group, oom
from .control import STOP_DRAIN
from .disk import Guardian
from .errors import HarnessError
from .lease import LeaseWatch
from .lifecycle import Event, classify_exit
from .load import LoadSpec
from .messages import Capacity, Operation, SlotTicket
from .simulator import record_of
from .state import ENV_STATE_DIR
from .undo import TREE_TOKEN_FILE

REASON_BYTES: Final = 16_384
REPLACED: Final = "the guardian that held its lease is gone, another one has taken its place"
_DROPPED: Final = ("LD_PRELOAD", "PYTHONSTARTUP", "PYTHONHOME")
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Carrier(Protocol):
    """What the shell holds. Every call comes from one thread."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes that load."""
        ...

    @property
    def records(self) -> tuple[str, ...]:
        """Undo records at the guardian."""
        ...

    @property
    def exit_code(self) -> int | None:
        """The load's exit code, None while it lives or where there is no process."""
        ...

    def start(self) -> None:
        """Start; raises `StressError` with nothing left running."""
        ...

    def poll(self) -> tuple[Event, str] | None:
        """Return how it ended and why, None while it lives."""
        ...

    def drain(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it by force."""
        ...

    def close(self) -> None:
        """Give back what is held here; it has ended."""
        ...


def load_environment(environ: Mapping[str, str], state_dir: Path) -> dict[str, str]:
    """Return a load's environment: this code first on the path, STATE named and kernels cached in it, no thread pools, no preloads."""
    code = str(Path(__file__).resolve().parent.parent)
    kept = {name: value for name, value in environ.items() if name not in _DROPPED}
    path = os.pathsep.join([code, *(part for part in kept.get("PYTHONPATH", "").split(os.pathsep) if part and part != code)])
    ours = {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(state_dir / "kernels"), ENV_STATE_DIR: str(state_dir)}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1"), **ours}


def last_line(text: str) -> str:
    """Return the last line that says something: a traceback's message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _page_life(status: Mapping[str, Any]) -> str:
    """Return which pages a guardian serves: a standby that takes over keeps them, and adds to their name."""
    return str(status.get("life", "")).partition(".")[0]


class LoadProcess:
    """One load process. `start` must be called by a thread that lives as long as the load may: its end is the load's end."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        ticket: SlotTicket,
        *,
        watch: LeaseWatch,
        guardian: Guardian,
        page_fds: tuple[int, int],
        state_dir: Path,
    ) -> None:
        self._operation = operation
        self._capacity = capacity
        self._ticket = ticket
        self._watch = watch
        self._guardian = guardian
        self._page_fds = page_fds
        self._state_dir = state_dir
        self._child: subprocess.Popen[bytes] | None = None
        self._errors_fd = -1
        self._stopping = False
        self._kills: dict[str, int] = {}  # of the kernel for lack of memory, before it began
        self._life = ""  # of the guardian's pages, on which the lease is

    records: tuple[str, ...] = ()  # undo of its scratch folder

    @property
    def pids(self) -> tuple[int, ...]:
        """The load's process, also after its end."""
        return (self._child.pid,) if self._child else ()

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return self._child.returncode if self._child else None

    def start(self) -> None:
        """Spawn the load and register it; it waits at its gate meanwhile. Raises `StressError` once it is gone again."""
        self._kills = oom.read_kills()
        spec = LoadSpec(self._operation, self._capacity, self._ticket, os.getpid(), *self._page_fds, cgroups=self._cgroups())
        try:
            self._spawn(spec, self._scratch())
        except OSError as error:
            self.close()
            raise HarnessError("os", f"{self._operation.id}: cannot start a load process: {error}") from error
        try:
            self._guardian.call("register", slot=self._ticket.slot, generation=self._ticket.generation, pid=self.pids[0])
        except BaseException:
            self.kill()
            self._reap()
            self.close()
            raise

    def _scratch(self) -> str:
        """Return the load's working folder: one of its own, whose removal is armed before it is made, where its record asks for one."""
        if not record_of(self._operation.kind).scratch:
            return "/"
        token = f"{hashlib.sha256(self._operation.id.encode()).hexdigest()[:12]}-{self._ticket.slot}-{self._ticket.generation}"
        path = Path(os.path.abspath(self._state_dir)) / "scratch" / token  # noqa: PTH100  # links stay
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fields = {"path": str(path), "token": token}
        answer = self._guardian.call("arm", slot=self._ticket.slot, generation=self._ticket.generation, kind="tree", fields=fields)
        self.records = (str(answer.get("record", "")),)
        path.mkdir(mode=0o700)
        (path / TREE_TOKEN_FILE).write_text(token)
        return str(path)

    def _spawn(self, spec: LoadSpec, folder: str) -> None:
        (self._state_dir / "kernels").mkdir(mode=0o700, exist_ok=True)
        self._errors_fd, child_errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # bounded, and never waits for a reader
        spec_fd = os.memfd_create("stress-cluster-load", os.MFD_CLOEXEC)
        try:
            os.write(spec_fd, spec.to_bytes())
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "actors.load", str(spec_fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=child_errors,
                pass_fds=(spec_fd, *self._page_fds),
                start_new_session=True,
                cwd=folder,
                env=load_environment(os.environ, self._state_dir),
            )
        finally:
            os.close(spec_fd)
            os.close(child_errors)

    def _cgroups(self) -> tuple[str, ...]:
        """Return the control groups that the guardian made for the operation. Raises `StressError`."""
        key = (self._ticket.slot, self._ticket.generation)
        status = self._guardian.call("status")
        self._life = _page_life(status)
        mine: Mapping[str, Any] = next((slot for slot in status.get("slots", ()) if (slot["slot"], slot["generation"]) == key), {})
        return tuple(memory_group.of({"path": mine.get("container", ""), "memory_group": mine.get("memory_group", "")}))

    def poll(self) -> tuple[Event, str] | None:
        """Return how the load ended and why, None while it lives."""
        if self._child is None or self._child.poll() is None:
            return None
        return self._judge(self._child.returncode)

    def _judge(self, exit_code: int) -> tuple[Event, str]:
        ticket, control = self._ticket, self._watch.control
        drained = control.stop(ticket.slot) == (ticket.generation, STOP_DRAIN)
        alive = control.live(ticket.slot, ticket.generation, self._watch.clock.boot_ns())
        cause = "" if alive and exit_code != -signal.SIGKILL else self._cause()
        event = classify_exit(exit_code, slot_live=alive and cause != REPLACED, stopping=self._stopping or drained)
        if event is Event.FINISHED:
            return event, ""
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with code {exit_code}"
        why = cause if event is not Event.BROKE else self._killer(exit_code) or last_line(self._errors())
        return event, f"the load {how}{': ' + why if why else ''}"

    def _cause(self) -> str:
        """Return why the guardian ended the slot, as far as it still says.

        `REPLACED` where both the one that granted the lease and its standby are gone: their page then shows a lease that nobody holds, and
        who came after them ended what they left.
        """
        key = (self._ticket.slot, self._ticket.generation)
        try:
            status = self._guardian.call("status", timeout_s=2.0)
        except HarnessError:
            return ""
        if _page_life(status) != self._life:
            return REPLACED
        return next((str(slot["cause"]) for slot in status.get("slots", ()) if (slot["slot"], slot["generation"]) == key), "")

    def _killer(self, exit_code: int) -> str:
        """Return who else than we killed the load, as far as the kernel says."""
        return oom.told(self._kills, oom.read_kills()) if exit_code == -signal.SIGKILL else ""

    def _errors(self) -> str:
        with suppress(OSError):  # nothing was said
            return os.read(self._errors_fd, REASON_BYTES).decode("utf-8", "replace")
        return ""

    def drain(self) -> None:
        """Ask the load to end: a word in its slot, or SIGTERM where the guardian cannot be reached."""
        self._stopping = True
        try:
            self._guardian.call("stop", slot=self._ticket.slot, generation=self._ticket.generation, mode="drain", timeout_s=2.0)
        except HarnessError:
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()

    def kill(self) -> None:
        """SIGKILL the load; it is our own child and not reaped yet, so its number is still its own."""
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.kill()

    def _reap(self) -> None:
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel: the guardian reports it as stuck
                self._child.wait(timeout=5.0)

    def close(self) -> None:
        """Close the pipe of its errors."""
        if self._errors_fd >= 0:
            os.close(self._errors_fd)
            self._errors_fd = -1
