"""The processes of one load's stress-ng: starts instances, holds them still, ends them, and says what they use together.

Where the operation has a control group, they live in a group of their own below it: that is frozen and killed as one, whatever they
fork. Without one they are the load process's session, stopped by SIGSTOP. Each instance dies with the load process, its workers with it
or by the guardian.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from .. import namespaces, proc, session
from ..clock import SECOND_NS, SystemClock
from ..errors import RefusedError
from ..host import usage_seconds
from ..limits import read_text
from ..session import Member

PROGRAM: Final = "stress-ng"
GROUP: Final = "stress"  # the group below the operation's
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  # hidden by an own file system there
BLOCK_BYTES: Final = 512
ENTRIES_MAX: Final = 20_000  # files that one look at the disk counts
KILL_S: Final = 2.0
_MS_REC: Final = 0x4000  # linux/mount.h
_MS_PRIVATE: Final = 0x40000


def find() -> str:
    """Return the path of stress-ng, "" where it is not installed."""
    return shutil.which(PROGRAM) or ""


def required() -> str:
    """Return the path of stress-ng; raise `RefusedError` (`capability`) where it is not installed."""
    path = find()
    if not path:
        raise RefusedError("capability", "stress-ng is not installed on this node", "install the package stress-ng there, on PATH")
    return path


@functools.cache
def stressors(path: str) -> tuple[str, ...]:
    """Return the stressors of this stress-ng; raises `RefusedError` (`capability`) when it cannot be asked."""
    try:
        found = subprocess.run([path, "--stressors"], capture_output=True, text=True, check=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise RefusedError("capability", f"{path} does not name its stressors: {error}") from error
    return tuple(found.stdout.split())


@functools.cache
def version(path: str) -> str:
    """Return the version of this stress-ng, "" when it cannot be asked."""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.partition("version ")[2].split(" ", 1)[0].strip() or "unknown"


def make_namespaces() -> bool:
    """Give this process, and all it starts, objects and mounts of their own, which end with the last of them; False where not allowed."""
    try:
        namespaces.leave(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC, "namespaces of mounts and IPC")
    except OSError:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    return not os.path.isdir(SHARED_MEMORY) or libc.mount(b"tmpfs", SHARED_MEMORY.encode(), b"tmpfs", 0, b"mode=1777") == 0  # noqa: PTH112


def own_group(slot: int, generation: int) -> str:
    """Return the control group that the guardian made for this slot, "" when this process is in none."""
    folder = proc.cgroup_root()
    path = Path(folder)
    return folder if path.name == f"{slot}-{generation}" and path.parent.name.startswith("stress-cluster-") else ""


class Tree:
    """All instances and what they forked. Used by one thread. `folder` is theirs, `group` the operation's control group or ""."""

    def __init__(self, folder: Path, group: str) -> None:
        self._folder = folder
        self._group = Path(group) if group else None
        self._inside: Path | None = None
        self._freezes = False
        self.held = False
        if self._group is not None:
            with suppress(OSError):  # no room for another group: the session has to do
                (self._group / GROUP).mkdir(exist_ok=True)
                self._inside = self._group / GROUP
                self._freezes = (self._inside / "cgroup.freeze").exists()

    @property
    def has_group(self) -> bool:
        """Whether its processes cannot leave it."""
        return self._inside is not None

    @property
    def is_quick(self) -> bool:
        """Whether holding and letting go cost next to nothing."""
        return self._freezes

    def start(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        """Start one instance, whose output goes to a descriptor. Raises OSError or SubprocessError."""
        parent = os.getpid()
        procs = str(self._inside / "cgroup.procs") if self._inside else ""

        def enter() -> None:
            if procs:
                Path(procs).write_text("0")
            proc.die_with_parent(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a Ray worker's threads block signals, which stress-ng ends its workers by
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self._folder,
            preexec_fn=enter,  # noqa: PLW1509  # this process has one thread
        )

    def members(self) -> list[Member]:
        """Return the processes of the session, this one included."""
        return session.members(os.getsid(0))

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all of them so far, and of this process."""
        told = read_text(self._group / "cpu.stat") if self._inside and self._group else None
        return usage_seconds(told) if told else session.cpu_seconds(self.members())

    def hold(self) -> None:
        """Let none of them run until `let_go`; those that are forked meanwhile are caught too."""
        self.held = True
        if self._freezes and self._inside is not None:
            (self._inside / "cgroup.freeze").write_text("1")
            return
        for _ in range(5):  # what was forked between the look and the signal is seen by the next look
            awake = [one for one in self._others(self.members()) if one.state not in "Tt"]
            if not awake:
                return
            _send_all(awake, signal.SIGSTOP)

    def let_go(self) -> None:
        """Let all of them run."""
        self.held = False
        if self._freezes and self._inside is not None:
            (self._inside / "cgroup.freeze").write_text("0")
            return
        _send_all(self._others(self.members()), signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Return the memory that they hold: a shared page counts once in all."""
        return sum(_own_pages(member.pid) for member in self._everyone())

    def tasks(self) -> int:
        """Return how many processes and threads there are."""
        return sum(member.threads for member in self._everyone())

    def disk_bytes(self) -> int:
        """Return the blocks of their files, those included that are open and have no name any more."""
        device = self._folder.stat().st_dev
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(self._folder) for name in names]  # noqa: PTH118  # thousands of files
        for member in self._everyone():
            with suppress(OSError):  # it ended meanwhile
                paths += [f"/proc/{member.pid}/fd/{fd}" for fd in os.listdir(f"/proc/{member.pid}/fd")]  # noqa: PTH208  # as above
        blocks: dict[int, int] = {}
        for path in paths[:ENTRIES_MAX]:
            with suppress(OSError):  # as above
                found = os.stat(path)  # noqa: PTH116  # as above
                if found.st_dev == device and stat.S_ISREG(found.st_mode):
                    blocks[found.st_ino] = found.st_blocks
        return sum(blocks.values()) * BLOCK_BYTES

    def kill(self) -> None:
        """End all of them at once, and return when they are gone or `KILL_S` later: then the guardian goes on."""
        clock = SystemClock()
        give_up_ns = clock.boot_ns() + round(KILL_S * SECOND_NS)
        while clock.boot_ns() < give_up_ns:
            if self._inside is not None:
                proc.kill_cgroup(str(self._inside))
            others = self._others(self.members())
            _send_all(others, signal.SIGKILL)
            if not others and (self._inside is None or not proc.is_populated(str(self._inside))):
                return
            clock.sleep(0.005)

    def kill_below(self, pid: int) -> None:
        """End one instance and what descends from it."""
        _send_all(session.below(self.members(), pid), signal.SIGKILL)

    def _everyone(self) -> list[Member]:
        """Return the members and those that left the session but not the group."""
        members = self._others(self.members())
        known = {member.pid for member in members}
        for pid in proc.cgroup_pids(str(self._inside)) if self._inside else ():
            text = read_text(Path(f"/proc/{pid}/stat")) if pid not in known else None
            if text:
                members.append(session.parse(text))
        return members

    @staticmethod
    def _others(found: Iterable[Member]) -> list[Member]:
        return [member for member in found if member.lives and member.pid != os.getpid()]


def _send_all(found: Iterable[Member], number: signal.Signals) -> None:
    for member in found:
        with suppress(PermissionError):  # it changed its user: its group, or the guardian, ends it
            session.send(member, number)


def _own_pages(pid: int) -> int:
    """Return a process's share of the pages it holds (Pss of anonymous and shared memory), 0 when it is gone."""
    told = read_text(Path(f"/proc/{pid}/smaps_rollup")) or ""
    rows = (line.split() for line in told.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return sum(int(row[1]) * 1024 for row in rows)
