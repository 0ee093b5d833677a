"""A small load of every simulator, and how an outsider sees that it is there. A new simulator needs a line here: a test says so.

What is seen is counted of single processes by /proc, a second apart where it is a rate. Uses none of the product's code but the setting
that marks Ray's workers.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import held
from .observe import TICKS_PER_S, anonymous_bytes, cpu_fine_s

MIB: Final = 1 << 20
BOARD: Final = "/memfd:stress-cluster-served"  # what a served call is counted on, as the flooding process holds it
BOARD_BYTES: Final = 512 * 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A load as a scenario asks it, and the least that one of its processes shows. `is_rate`: what it grows by in a second."""

    options: Mapping[str, Any]
    count: Callable[[int], float]
    least: float
    is_rate: bool = False


def busy(cores: float) -> tuple[Callable[[int], float], float, bool]:
    """Return how a process is seen to use so many cores."""
    return cpu_fine_s, cores, True


def bytes_held(size: float) -> tuple[Callable[[int], float], float, bool]:
    """Return how a process is seen to hold so many anonymous bytes."""
    return anonymous_bytes, size, False


def holds(kind: str, count: int) -> Sample:
    """Return a load that uses something up, seen as the observer of its kind does."""
    return Sample({"count": count}, held.OBSERVERS[kind], count)


def major_faults(pid: int) -> float:
    """Return the major page faults so far (man 5 proc_pid_stat, majflt); 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[9]) if fields else 0


def read_and_written(pid: int) -> float:
    """Return bytes read from storage and written to it so far; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return held.io_bytes(pid)
    return 0


def workers_of(pid: int) -> float:
    """Return the CPU seconds of the processes of stress-ng that a load process leads, ended ones included."""
    total = 0
    for entry in os.listdir("/proc"):  # noqa: PTH208  # many files
        if entry.isdigit() and (fields := _stat(int(entry))) and int(fields[3]) == pid != int(entry) and _is_stress(int(entry)):
            total += sum(map(int, fields[11:15]))
    return total / TICKS_PER_S


def served(pid: int) -> float:
    """Return how many calls are counted on the board that a process holds; 0 where it holds none."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208  # many files
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(f"{folder}/{name}").startswith(BOARD):  # noqa: PTH115  # a descriptor
                    words = array("Q")
                    words.frombytes(Path(f"{folder}/{name}").read_bytes()[:BOARD_BYTES])
                    return sum(words)
    return 0


def waited(pid: int) -> float:
    """Return the seconds for which somebody of a process's version 2 group has waited for memory (psi.rst, `some`); 0 when it is gone."""
    with contextlib.suppress(OSError):
        path = next((line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")), "")
        for row in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = row.partition(" - ")
            file = Path(before.split()[4] + path) / "memory.pressure"
            if path and after.startswith("cgroup2 ") and file.exists():
                return int(file.read_text().splitlines()[0].rpartition("total=")[2]) / 1e6
    return 0.0


def nothing(_: int) -> float:
    """Return 0: a fill has no process, its blocks are looked at."""
    return 0.0


SAMPLES: Final[Mapping[str, Sample]] = {
    "CpuLoad": Sample({"fraction": "6%", "mode": "own"}, *busy(0.06)),
    "CpuPressure": Sample({"fraction": "10%"}, *busy(0.002)),  # it rests where others make wait already
    "MemoryPressure": Sample({"bytes": "48MiB"}, *bytes_held(48 * MIB)),
    "MemoryFragment": Sample({"bytes": "48MiB"}, *bytes_held(48 * MIB)),
    "MemoryAccess": Sample({"fraction": "6%", "working_set": "32MiB"}, *busy(0.06)),
    "VmPressure": Sample({"per_second": 100, "file": "1MiB"}, major_faults, 30, is_rate=True),
    "MemoryStall": Sample({"fraction": "10%"}, waited, 0.03, is_rate=True),
    "DiskFill": Sample({"bytes": "16MiB"}, nothing, 0),
    "Descriptors": holds("Descriptors", 200),
    "Mappings": holds("Mappings", 400),
    "Sockets": holds("Sockets", 50),
    "Connections": holds("Connections", 30),
    "Ports": holds("Ports", 50),
    "Threads": holds("Threads", 40),
    "Processes": holds("Processes", 6),
    "Inodes": holds("Inodes", 50),
    "SharedMemory": holds("SharedMemory", 40),
    "Semaphores": holds("Semaphores", 40),
    "DiskIO": Sample({"per_second": MIB, "file": "8MiB"}, read_and_written, MIB / 3, is_rate=True),
    "LockContention": Sample({"count": 3, "contenders": "processes"}, held.living, 3),
    "LockConvoy": Sample({"count": 5}, held.threads, 5),
    "Deadlock": Sample({"count": 3}, held.threads, 6),
    "Livelock": Sample({"count": 3, "backoff": "10ms"}, held.threads, 6),
    "PriorityInversion": Sample({"count": 2, "hold": "5ms", "burst": "20ms"}, held.threads, 6),
    "StressNg": Sample({"fraction": "5%", "stressor": "cpu"}, workers_of, 0.04, is_rate=True),
    "MailboxFlood": Sample({"per_second": 20, "actors": 1}, served, 8, is_rate=True),
    "TaskExplosion": Sample({"per_second": 20, "workers": 1}, served, 8, is_rate=True),
    "Cascade": Sample({"per_second": 20, "services": 4, "levels": 2, "fail_after": "1s"}, served, 8, is_rate=True),
    "ActorMesh": Sample({"per_second": 20, "actors": 1}, served, 8, is_rate=True),
    "ObjectStorePressure": Sample({"bytes": "16MiB"}, served, 16 * MIB),
    "ClusterLock": Sample({"per_second": 10, "contenders": 2}, served, 4, is_rate=True),
}


def counts(kinds: Iterable[str], pids: Iterable[int]) -> dict[str, dict[int, float]]:
    """Return what each of some processes shows of each kind."""
    some = list(pids)
    return {kind: {pid: SAMPLES[kind].count(pid) for pid in some} for kind in kinds}


def shown(kind: str, before: Mapping[int, float], after: Mapping[int, float], seconds: float) -> float:
    """Return the most that one process shows of a kind, by counts so many seconds apart."""
    rates = {pid: (count - before.get(pid, count)) / seconds for pid, count in after.items()}
    return max((rates if SAMPLES[kind].is_rate else after).values(), default=0.0)


def _stat(pid: int) -> list[str]:
    """Return the fields of its stat from its state on; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def _is_stress(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("stress-ng")
    return False
