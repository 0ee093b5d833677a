"""The processes of one session, as /proc shows them: what they use together, and how to reach each of them. Decides nothing.

A load process leads a session of its own, so its session is its whole tree, also after an orphan was given another parent; only what
calls setsid leaves it. Standard library only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import proc
from .limits import PROC
from .proc import Identity
from .procfs import USER_HZ, split_stat


@dataclass(frozen=True, slots=True)
class Member:
    """One process. `cpu_s` is its CPU time and that of its ended children, in steps of a clock tick (10 ms)."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    cpu_s: float
    threads: int
    starttime: int

    @property
    def lives(self) -> bool:
        """Whether it is more than an entry that waits for its parent."""
        return self.state not in "ZX"


def parse(text: str) -> Member:
    """Parse a line of /proc/PID/stat (man 5 proc_pid_stat); raises ValueError or IndexError."""
    pid, name, fields = split_stat(text)
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return Member(pid, name, fields[0], int(fields[1]), int(fields[3]), ticks / USER_HZ, int(fields[17]), int(fields[19]))


def members(sid: int, root: Path = PROC) -> list[Member]:
    """Return all processes of a session, its leader and its zombies included."""
    return by_session([sid], root)[sid]


def by_session(sids: Iterable[int], root: Path = PROC) -> dict[int, list[Member]]:
    """Return all processes of some sessions, by one scan."""
    found: dict[int, list[Member]] = {sid: [] for sid in sids}
    for name in os.listdir(root):  # noqa: PTH208  # a scan of /proc opens hundreds of files
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                with open(f"{root}/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # as above
                    member = parse(file.read())
                if member.session in found:
                    found[member.session].append(member)
    return found


def cpu_seconds(found: Iterable[Member]) -> float:
    """Return the CPU seconds of a session so far: those of a child move to the parent that waits for it, so none is counted twice."""
    return sum(member.cpu_s for member in found)


def instances(found: Iterable[Member], leader: int, name: str) -> int:
    """Return how many of the leader's children of a name work: they live, have a living child, and neither is stopped."""
    awake = [member for member in found if member.lives and member.state not in "Tt"]
    working = {member.parent for member in awake}
    return sum(member.parent == leader and member.name == name and member.pid in working for member in awake)


def below(found: Iterable[Member], pid: int) -> list[Member]:
    """Return a process and its descendants, parents first."""
    everyone = list(found)
    reached = [member for member in everyone if member.pid == pid]
    for parent in reached:  # grows while it is walked
        reached += [member for member in everyone if member.parent == parent.pid and member not in reached]
    return reached


def send(member: Member, number: signal.Signals) -> None:
    """Signal exactly this process; one that is gone is fine. Raises OSError where it is not allowed."""
    fd = proc.open_pidfd(Identity(proc.boot_id(), proc.pid_namespace(), member.pid, member.starttime))
    if fd is None:
        return
    try:
        with suppress(ProcessLookupError):  # it ended meanwhile
            signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
