"""Processes as the kernel shows them: /proc, identities, pidfds, cgroups. Reads and signals; decides nothing.

A pid alone names nothing: it comes back within seconds. `Identity` is boot id, pid namespace, pid and start time, and a
signal goes through a pidfd that was checked against it after it was opened. Standard library only: the guardian uses it.
"""

# pathlib is left out of the hot calls: a scan of /proc opens hundreds of files
# ruff: noqa: PTH102, PTH106, PTH112, PTH116, PTH120, PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from .procfs import split_stat

SYS_PROCESS_MRELEASE: Final = 448  # the same number on every architecture since Linux 5.15
PR_SET_PDEATHSIG: Final = 1
FALLOC_DEFAULT: Final = 0
CGROUP2_MAGIC_TYPE: Final = "cgroup2"
KILL_NICE: Final = -10  # a dying process frees its memory at its own priority


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ProcStat:
    """The fields of /proc/PID/stat that are used; times in clock ticks."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    starttime: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process is meant, beyond its pid. `starttime` is in clock ticks since boot."""

    boot_id: str
    pid_ns: int
    pid: int
    starttime: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Identity:
        """Rebuild from `to_json`; raises KeyError, TypeError or ValueError on anything else."""
        return cls(str(fields["boot_id"]), int(fields["pid_ns"]), int(fields["pid"]), int(fields["starttime"]))


@cache
def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def pid_namespace() -> int:
    """Return the inode of this process's pid namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def time_offset_ns() -> int:
    """Return the boottime offset of this time namespace; two processes share a clock only if these are equal."""
    try:
        lines = Path("/proc/self/timens_offsets").read_text().splitlines()
    except OSError:
        return 0  # the kernel has no time namespaces
    for line in lines:
        name, seconds, nanoseconds = line.split()
        if name == "boottime":
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0


def parse_stat(text: str) -> ProcStat:
    """Parse a line of /proc/PID/stat; the command may hold blanks and parentheses. Raises ValueError or IndexError."""
    pid, _, fields = split_stat(text)
    return ProcStat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def read_stat(pid: int) -> ProcStat | None:
    """Return a process's stat, None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return parse_stat(file.read())
    except (OSError, ValueError, IndexError):
        return None


def scan() -> Iterator[ProcStat]:
    """Yield every process of this pid namespace that can be read."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            yield stat


def session_members(sid: int) -> list[ProcStat]:
    """Return the living (not zombie) processes of a session."""
    return [stat for stat in scan() if stat.session == sid and stat.state not in "ZX"]


def marked(text: bytes, parent: int) -> list[int]:
    """Return the children of a process that began with a setting, such as b"NAME=value", in their environment; without zombies."""
    found = []
    for stat in scan():
        if stat.ppid == parent and stat.state not in "ZX":
            with contextlib.suppress(OSError), open(f"/proc/{stat.pid}/environ", "rb") as file:  # it ended, or is another user's
                if text in file.read().split(b"\0"):
                    found.append(stat.pid)
    return found


def identify(pid: int) -> Identity | None:
    """Return the identity of a process that lives now, None when there is none or it is only a zombie."""
    stat = read_stat(pid)
    if stat is None or stat.state in "ZX":
        return None
    return Identity(boot_id(), pid_namespace(), pid, stat.starttime)


def state_of(identity: Identity) -> str:
    """Return the state letter of exactly this process, "" when it is gone or the pid means another one."""
    stat = read_stat(identity.pid) if is_here(identity) else None
    return stat.state if stat is not None and stat.starttime == identity.starttime else ""


def is_here(identity: Identity) -> bool:
    """Tell whether an identity belongs to this boot and pid namespace, so that it may be looked up at all."""
    return identity.boot_id == boot_id() and identity.pid_ns == pid_namespace()


def lives(identity: Identity) -> bool:
    """Tell whether exactly this process lives here, zombies excluded."""
    return is_here(identity) and identify(identity.pid) == identity


def open_pidfd(identity: Identity) -> int | None:
    """Return a pidfd of exactly this process, None when it is gone or the pid means another one.

    Opened first and checked afterwards: what the descriptor holds cannot change any more.
    """
    if not is_here(identity):
        return None
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    stat = read_stat(identity.pid)
    if stat is None or stat.starttime != identity.starttime:
        os.close(fd)
        return None
    return fd


def has_exited(pidfd: int) -> bool:
    """Tell whether all threads of the process have ended (it may still be a zombie)."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def kill_pidfd(pidfd: int) -> None:
    """Send SIGKILL through a pidfd; a process already gone is fine. Raises OSError otherwise."""
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile: that is what is wanted
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def release_memory(pidfd: int) -> bool:
    """Free a killed process's memory from here (process_mrelease); False where the kernel does not or need not.

    Blocks for as long as the freeing takes: about 65 ms for a GiB.
    """
    return bool(_libc().syscall(SYS_PROCESS_MRELEASE, pidfd, 0) == 0)


def raise_priority(pid: int) -> None:
    """Let a killed process end sooner: raise the nice value of all of its threads where allowed."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return  # gone already
    for thread in threads:
        for nice in (KILL_NICE, 0):
            try:
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)
                break
            except OSError:
                continue  # not allowed, or the thread ended: the next best value


def die_with_parent(parent_pid: int) -> None:
    """Make the kernel SIGKILL this process when the thread that created it ends.

    Raises ProcessLookupError when that parent is already gone, OSError when the kernel refuses.
    """
    if _libc().prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent_pid:
        raise ProcessLookupError(errno.ESRCH, f"parent {parent_pid} ended before this process was ready")


def allocate(fd: int, offset: int, length: int) -> None:
    """Give a file real blocks (fallocate); raises OSError, EOPNOTSUPP where the file system cannot.

    The library's posix_fallocate would emulate it block by block, which takes seconds.
    """
    call = _libc().fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, FALLOC_DEFAULT, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def cgroup_root() -> str:
    """Return the folder of this process's own v2 cgroup when groups can be made there, else ""."""
    mount = _cgroup2_mount()
    if not mount:
        return ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            folder = os.path.normpath(mount + line[3:])
            return folder if os.access(folder, os.W_OK) and os.access(f"{folder}/cgroup.procs", os.W_OK) else ""
    return ""


def _cgroup2_mount() -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] == CGROUP2_MAGIC_TYPE:
            return left.split()[4]
    return ""


def make_cgroup(path: str) -> None:
    """Make a group and the folder above it; raises OSError."""
    with contextlib.suppress(FileExistsError):  # an earlier operation made the shared folder
        os.mkdir(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):  # left by an earlier life with the same name: it is ours
        os.mkdir(path)


def enter_cgroup(path: str, pid: int = 0) -> None:
    """Move a process (0: this one) and its future children into a group; raises OSError."""
    Path(path, "cgroup.procs").write_text(str(pid))


def cgroup_of(pid: int) -> str:
    """Return the v2 group of a process as in /proc/PID/cgroup, "" when unknown."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def cgroup_path(pid: int) -> str:
    """Return the folder of a process's v2 group, "" when unknown."""
    mount, group = _cgroup2_mount(), cgroup_of(pid)
    return os.path.normpath(mount + group) if mount and group else ""


def cgroup_pids(path: str) -> list[int]:
    """Return the pids in a group and its children; empty when there is no such group."""
    found: list[int] = []
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):  # the group went away while walking
            found += [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]
    return found


def kill_cgroup(path: str) -> None:
    """Thaw and SIGKILL everything in a group; pidfds where it has no cgroup.kill (older kernels, version 1). Raises OSError."""
    with contextlib.suppress(OSError):  # freezing is optional in old kernels
        Path(path, "cgroup.freeze").write_text("0")
    try:
        Path(path, "cgroup.kill").write_text("1")
    except (FileNotFoundError, PermissionError):  # a group lets no file be made in it
        for pid in cgroup_pids(path):
            identity = identify(pid)
            fd = open_pidfd(identity) if identity else None
            if fd is not None:
                kill_pidfd(fd)
                os.close(fd)


def is_populated(path: str) -> bool:
    """Tell whether any process lives in a group or below it, of version 1 or 2; a group that is gone is empty."""
    try:
        return "populated 1" in Path(path, "cgroup.events").read_text()
    except FileNotFoundError:
        return bool(cgroup_pids(path))


def remove_cgroup(path: str) -> None:
    """Remove an empty group with its children and, when empty, the folder above; raises OSError while it is in use."""
    if os.path.isdir(path):
        for folder, _, _ in sorted(os.walk(path), reverse=True):
            os.rmdir(folder)
    with contextlib.suppress(OSError):  # other operations still use the shared folder
        os.rmdir(os.path.dirname(path))
