"""What a load really does, seen from outside its process: the achieved dose. Reads /proc, control groups and blocks only.

The figures of the load itself never count: a meter is held by the agent, and reads what the kernel says of the load.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from .host import BusyMeter, usage_seconds
from .limits import PROC
from .messages import Operation
from .simulator import record_of

BLOCK_BYTES: Final = 512  # the unit of st_blocks: man 7 inode

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

    def _tasks(self) -> list[str] | None:
        """Return the thread numbers, or None when the process is gone."""
        if self._fd is None:
            return None
        try:
            folder = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
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
        tasks = self._tasks()
        if tasks is None:
            return None
        for task in tasks:
            text = self._read(f"task/{task}/schedstat")
            if text:
                self._task_ns[task] = int(text.split()[0])
        return sum(self._task_ns.values())

    def anonymous_bytes(self) -> int | None:
        """Return the anonymous resident bytes (RssAnon), or None when the process is gone."""
        for line in (self._read("status") or "").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return None

    def close(self) -> None:
        """Close the folder."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class OutsideMeter:
    """The dose of one operation. `read` returns CPU seconds so far, or bytes held now; None when what is measured is gone.

    `cgroup` is the operation's own version 2 group where it has one, `path` the file of a disk fill. Memory counts from
    `set_baseline`, called once the load is ready and before it starts. Close it when done.
    """

    def __init__(
        self,
        operation: Operation,
        pids: Sequence[int] = (),
        *,
        cgroup: Path | None = None,
        path: Path | None = None,
        proc: Path = PROC,
    ) -> None:
        self.operation = operation
        self.resource = record_of(operation.kind).resource
        self._processes = [ProcessFiles(pid, proc) for pid in pids]
        self._cpu_stat = cgroup / "cpu.stat" if cgroup is not None else None
        self._path, self._was_there = path, False
        self.baseline_bytes = 0

    def set_baseline(self) -> int:
        """Take the bytes held now as zero, and return them."""
        self.baseline_bytes = self._anonymous_bytes() or 0
        return self.baseline_bytes

    def read(self) -> float | None:
        """Return CPU seconds so far (`cpu_cores`) or bytes held now; None when the processes or the file are gone."""
        if self.resource == "cpu_cores":
            return self._cpu_seconds()
        if self.resource == "disk_bytes":
            return self._disk_bytes()
        held = self._anonymous_bytes()
        return None if held is None else float(max(0, held - self.baseline_bytes))

    def _cpu_seconds(self) -> float | None:
        times = [found for process in self._processes if (found := process.cpu_ns()) is not None]
        if not times:
            return None
        if self._cpu_stat is not None:
            with suppress(OSError, ValueError):  # the group went, or counts nothing: the threads still do
                return usage_seconds(self._cpu_stat.read_text())
        return sum(times) / 1e9

    def _anonymous_bytes(self) -> int | None:
        sizes = [found for process in self._processes if (found := process.anonymous_bytes()) is not None]
        return sum(sizes) if sizes else None

    def _disk_bytes(self) -> float | None:
        if self._path is None:
            return None
        try:
            held = float(self._path.stat().st_blocks * BLOCK_BYTES)
        except FileNotFoundError:
            return None if self._was_there else 0.0  # a fill that never found room holds nothing
        except OSError:
            return None
        self._was_there = True
        return held

    def close(self) -> None:
        """Close what it holds of the processes."""
        for process in self._processes:
            process.close()
