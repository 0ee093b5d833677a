"""What a load really does, seen from outside its process: the achieved dose. Reads /proc, control groups and blocks only.

The figures of the load itself never count: a meter is held by the agent, and reads what the kernel says of the load.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import namespaces, procfs, session
from .host import BusyMeter, usage_seconds
from .limits import PROC, cpu_stalled_s, memory_stalled_s, read_text
from .messages import Operation
from .proc import session_members
from .ray_loads import board
from .simulator import record_of

BLOCK_BYTES: Final = 512  # the unit of st_blocks: man 7 inode
SOCKET: Final = "socket:["  # what a descriptor of a socket leads to, before its inode
ESTABLISHED: Final = "01"  # state in /proc/net/tcp: include/net/tcp_states.h

__all__ = ["BusyMeter", "OutsideMeter", "ProcessFiles"]  # BusyMeter is the meter of a host's total


class ProcessFiles:
    """The /proc folder of one process, held open: once the process is gone, reads fail even when its number is used again."""

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self.pid = pid
        self._task_ns: dict[str, int] = {}
        self._fd: int | None = None
        with suppress(OSError):  # already gone: every read then says so
            self._fd = os.open(proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _read(self, name: str) -> str | None:
        if self._fd is None:
            return None
        try:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            return os.read(file, 8192).decode("ascii", "replace")
        except OSError:
            return None
        finally:
            os.close(file)

    def _list(self, name: str) -> list[str] | None:
        """Return the entries of one of its folders, or None when the process is gone."""
        if self._fd is None:
            return None
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            return os.listdir(folder)  # noqa: PTH208  # a path could name another process by now
        except OSError:
            return None
        finally:
            os.close(folder)

    def cpu_ns(self) -> int | None:
        """Return the CPU time of all threads so far, ended ones included, or None when the process is gone.

        The first field of schedstat is exact to the last tick (man 5 proc_pid_schedstat); a thread that ended keeps its last value.
        """
        tasks = self._list("task")
        if tasks is None:
            return None
        for task in tasks:
            text = self._read(f"task/{task}/schedstat")
            if text:
                self._task_ns[task] = int(text.split()[0])
        return sum(self._task_ns.values())

    def anonymous_bytes(self) -> int | None:
        """Return the anonymous resident bytes (RssAnon), or None when the process is gone."""
        return procfs.size_bytes(self._read("status") or "", "RssAnon")

    def major_faults(self) -> int | None:
        """Return the major page faults so far, or None when the process is gone."""
        with suppress(ValueError, IndexError):  # it ended while it was read
            return procfs.major_faults(self._read("stat") or "")
        return None

    def descriptors(self) -> int | None:
        """Return how many file descriptors are open, or None when the process is gone."""
        return self._entries("fd")

    def threads(self) -> int | None:
        """Return how many threads the kernel counts, or None when the process is gone."""
        return self._entries("task")

    def event_descriptors(self) -> int | None:
        """Return how many event descriptors are open, or None when the process is gone."""
        names = self._list("fd")
        return None if names is None else sum(self._is_event(name) for name in names)

    def _is_event(self, descriptor: str) -> bool:
        try:
            return os.readlink(f"fd/{descriptor}", dir_fd=self._fd) == "anon_inode:[eventfd]"
        except OSError:  # closed meanwhile
            return False

    def contenders(self) -> int | None:
        """Return how many threads, event descriptors and further processes of its session there are, or None when it is gone."""
        threads, descriptors = self.threads(), self.event_descriptors()
        if threads is None or descriptors is None:
            return None
        return threads + descriptors + sum(member.pid != self.pid for member in session_members(self.pid))

    def mappings(self) -> int | None:
        """Return how many map entries there are, or None when the process is gone."""
        if self._fd is None:
            return None
        try:
            with open(os.open("maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd), "rb") as file:  # noqa: PTH123  # below the open folder
                return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 16), b""))
        except OSError:
            return None

    def semaphore_sets(self) -> int | None:
        """Return how many System V semaphore sets its IPC namespace has, or None when it is gone or may not be entered."""
        if self._fd is None:
            return None
        try:
            fd = os.open("ns/ipc", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            return namespaces.within(fd, namespaces.CLONE_NEWIPC, lambda: (PROC / "sysvipc/sem").read_bytes().count(b"\n") - 1)
        finally:
            os.close(fd)

    def served(self) -> int | None:
        """Return how many calls are counted on the board that the process holds, or None when it holds none or is gone."""
        names = self._list("fd")
        for name in names or ():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(f"fd/{name}", dir_fd=self._fd).startswith(board.LINK):
                    return self._count_on(f"fd/{name}")
        return None

    def _count_on(self, name: str) -> int:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return board.total(file)
        finally:
            os.close(file)

    def children(self) -> int | None:
        """Return how many children its threads have, or None when the process is gone or the kernel lists none."""
        tasks = self._list("task")
        lists = [] if tasks is None else [text for task in tasks if (text := self._read_whole(f"task/{task}/children")) is not None]
        return sum(len(text.split()) for text in lists) if lists else None

    def io_bytes(self) -> int | None:
        """Return the bytes read from storage and written to it so far, or None when the process is gone. Fields: man 5 proc_pid_io."""
        rows = dict(line.split(": ") for line in (self._read("io") or "").splitlines())
        return int(rows["read_bytes"]) + int(rows["write_bytes"]) if rows else None

    def links(self, is_counted: Callable[[str], bool]) -> int | None:
        """Return how many descriptors lead to something that counts (`socket:[7]`, `/memfd:x (deleted)`), None when the process is gone."""
        found = self._targets()
        return None if found is None else sum(map(is_counted, found))

    def connections(self) -> float | None:
        """Return how many established TCP connections it has, as `count_established` counts, or None when the process is gone."""
        found = self._targets()
        if found is None:
            return None
        table = "".join(self._read_whole(name) or "" for name in ("net/tcp", "net/tcp6"))
        return count_established(table, {target[len(SOCKET) : -1] for target in found if target.startswith(SOCKET)})

    def _targets(self) -> list[str] | None:
        names = self._list("fd")
        if names is None:
            return None
        found = []
        for name in names:
            with suppress(OSError):  # closed meanwhile
                found.append(os.readlink(f"fd/{name}", dir_fd=self._fd))  # below the open folder
        return found

    def _read_whole(self, name: str) -> str | None:
        """Return all of a file that may be long, or None when the process is gone."""
        if self._fd is None:
            return None
        try:
            with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd), "rb") as file:  # noqa: PTH123  # below the open folder
                return file.read().decode("ascii", "replace")
        except OSError:
            return None

    def _entries(self, name: str) -> int | None:
        names = self._list(name)
        return None if names is None else len(names)

    def close(self) -> None:
        """Close the folder."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def count_established(table: str, inodes: AbstractSet[str]) -> float:
    """Return how many established connections of /proc/net/tcp have their ends among these inodes; one end alone counts half.

    Fields: man 5 proc_pid_net.
    """
    rows = [row for line in table.splitlines() if len(row := line.split()) > 9]
    ends = {(row[1], row[2]) for row in rows if row[3] == ESTABLISHED and row[9] in inodes}
    return len(ends) / 2


class OutsideMeter:
    """The dose of one operation. `read` returns what its meter counts now; None when what is measured is gone.

    `cgroup` is the operation's own version 2 group where it has one, `paths` the files of a disk fill. What a process holds counts from
    `set_baseline`, called once the load is ready and before it starts. Close it when done.
    """

    def __init__(
        self,
        operation: Operation,
        pids: Sequence[int] = (),
        *,
        cgroup: Path | None = None,
        paths: Sequence[Path] = (),
        proc: Path = PROC,
    ) -> None:
        record = record_of(operation.kind)
        self.operation = operation
        self.resource = record.resource
        self._meter = METERS[record.meter_of(operation.unit)]
        self._seen = Seen([ProcessFiles(pid, proc) for pid in pids], cgroup, tuple(paths))
        self._baseline = 0.0

    @property
    def cumulative(self) -> bool:
        """Whether it only ever grows, so that the dose is its growth a second."""
        return self._meter.cumulative

    def set_baseline(self) -> float:
        """Take what is held now as zero, and return it. What grows, and blocks of a file of its own, need none."""
        self._baseline = 0.0 if self._meter.absolute else self._meter.read(self._seen) or 0.0
        return self._baseline

    def read(self) -> float | None:
        """Return CPU seconds so far, or what is held now above the baseline; None when the processes or the file are gone."""
        found = self._meter.read(self._seen)
        return None if found is None else max(0.0, found - self._baseline)

    def close(self) -> None:
        """Close what it holds of the processes."""
        for process in self._seen.processes:
            process.close()


@dataclass(slots=True)
class Seen:
    """What an operation can be seen by from outside its processes."""

    processes: list[ProcessFiles]
    cgroup: Path | None
    paths: tuple[Path, ...] = ()
    were_there: bool = False

    def total(self, read: Callable[[ProcessFiles], float | None]) -> float | None:
        """Return the sum over its living processes, None when there is none."""
        found = [value for process in self.processes if (value := read(process)) is not None]
        return float(sum(found)) if found else None

    def groups_of(self, threads: int) -> float | None:
        """Return how many groups of so many threads its processes have, parts included."""
        found = self.total(ProcessFiles.threads)
        return None if found is None else found / threads


def _cpu_seconds(seen: Seen) -> float | None:
    used_ns = seen.total(ProcessFiles.cpu_ns)
    if used_ns is not None and seen.cgroup is not None:
        with suppress(OSError, ValueError):  # the group went, or counts nothing: the threads still do
            return usage_seconds((seen.cgroup / "cpu.stat").read_text())
    return None if used_ns is None else used_ns / 1e9


def _tree_cpu_seconds(seen: Seen) -> float | None:
    """Return the CPU seconds of all processes of the load's session, or of its group."""
    if seen.cgroup is not None:
        return _cpu_seconds(seen)
    found = [member for process in seen.processes for member in session.members(process.pid)]
    return session.cpu_seconds(found) if found else None


def _instances(seen: Seen) -> float | None:
    """Return how many children of the load work: none while its group is frozen."""
    if seen.total(ProcessFiles.threads) is None:
        return None
    inside = tuple(seen.cgroup.iterdir()) if seen.cgroup is not None and seen.cgroup.is_dir() else ()
    if any("frozen 1" in (read_text(group / "cgroup.events") or "") for group in inside if group.is_dir()):
        return 0.0
    return float(sum(session.instances(session.members(process.pid), process.pid, "stress-ng") for process in seen.processes))


def _cpu_pressure(seen: Seen) -> float | None:
    return None if seen.total(ProcessFiles.cpu_ns) is None else cpu_stalled_s()


def _memory_pressure(seen: Seen) -> float | None:
    """Return for how long some process of the operation's own group has waited for memory."""
    is_here = seen.cgroup is not None and seen.total(ProcessFiles.cpu_ns) is not None
    return memory_stalled_s(seen.cgroup) if is_here and seen.cgroup is not None else None


def _blocks(seen: Seen) -> float | None:
    found = []
    for path in seen.paths:
        try:
            found.append(path.stat().st_blocks * BLOCK_BYTES)
        except FileNotFoundError:
            continue
        except OSError:
            return None
    if not found:
        return None if seen.were_there or not seen.paths else 0.0  # a fill that never found room holds nothing
    seen.were_there = True
    return float(sum(found))


def _served_calls(seen: Seen) -> float | None:
    """Return what is on the operation's board, which all of its processes hold: one is asked."""
    found = (process.served() for process in seen.processes)
    return next((float(served) for served in found if served is not None), None)


def _links(is_counted: Callable[[str], bool]) -> Callable[[Seen], float | None]:
    return lambda seen: seen.total(lambda process: process.links(is_counted))


@dataclass(frozen=True, slots=True)
class Meter:
    """How a dose is read. `cumulative`: it only grows; `absolute`: it starts at nothing, so that no baseline is taken.

    `in_points`: a share is held to points of the node's capacity, else to a share of what is asked (contract, "Dose reached").
    """

    read: Callable[[Seen], float | None]
    cumulative: bool = False
    absolute: bool = False
    in_points: bool = False


METERS: Final[Mapping[str, Meter]] = {
    "cpu_seconds": Meter(_cpu_seconds, cumulative=True, absolute=True, in_points=True),
    "cpu_pressure": Meter(_cpu_pressure, cumulative=True, absolute=True, in_points=True),
    "memory_pressure": Meter(_memory_pressure, cumulative=True, in_points=True),
    "anonymous_bytes": Meter(lambda seen: seen.total(ProcessFiles.anonymous_bytes)),
    "blocks": Meter(_blocks, absolute=True),
    "major_faults": Meter(lambda seen: seen.total(ProcessFiles.major_faults), cumulative=True),
    "descriptors": Meter(lambda seen: seen.total(ProcessFiles.descriptors)),
    "mappings": Meter(lambda seen: seen.total(ProcessFiles.mappings)),
    "tree_cpu_seconds": Meter(_tree_cpu_seconds, cumulative=True, absolute=True, in_points=True),
    "instances": Meter(_instances, absolute=True),
    "served_calls": Meter(_served_calls, cumulative=True, absolute=True),
    "store_bytes": Meter(_served_calls, absolute=True),  # the raylet's count and the spill files, which a load's board carries
    "threads": Meter(lambda seen: seen.total(ProcessFiles.threads)),
    # what the simulators of actors/exhaustion take
    "children": Meter(lambda seen: seen.total(ProcessFiles.children)),
    "connections": Meter(lambda seen: seen.total(ProcessFiles.connections)),
    "io_bytes": Meter(lambda seen: seen.total(ProcessFiles.io_bytes), cumulative=True, absolute=True),
    "sockets": Meter(_links(lambda target: target.startswith(SOCKET))),
    "segments": Meter(_links(lambda target: target.startswith("/memfd:"))),
    "nameless_files": Meter(_links(lambda target: target.endswith(" (deleted)") and not target.startswith("/memfd:"))),
    "semaphore_sets": Meter(lambda seen: seen.total(ProcessFiles.semaphore_sets)),
    "thread_pairs": Meter(lambda seen: seen.groups_of(2)),
    "thread_triples": Meter(lambda seen: seen.groups_of(3)),
    "contenders": Meter(lambda seen: seen.total(ProcessFiles.contenders)),
}
