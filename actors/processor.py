"""What the operating system says of this processor: instruction sets and caches. Reads /proc and /sys only; standard library only."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .limits import PROC, read_integer, read_text

CPU: Final = Path("/sys/devices/system/cpu/cpu0")
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Cache:
    """One level that holds data. `sharers` is how many CPUs have it together."""

    level: int
    size_bytes: int
    line_bytes: int
    sharers: int


@dataclass(frozen=True, slots=True)
class Processor:
    """What kernels judge by: the machine's name as in `uname -m`, the flags of /proc/cpuinfo, and data caches from small to large."""

    machine: str
    flags: frozenset[str]
    caches: tuple[Cache, ...]

    def cache(self, level: int) -> Cache | None:
        """Return the data cache of a level; None where the operating system reports none."""
        return next((cache for cache in self.caches if cache.level == level), None)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the first processor's features from /proc/cpuinfo: "flags" on x86, "Features" on ARM."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def size_bytes(text: str) -> int:
    """Return the bytes of a size as /sys writes it ("48K"); 0 for anything else."""
    number, unit = text[:-1], text[-1:]
    return int(number) * _UNITS[unit] if unit in _UNITS and number.isdigit() else 0


def count_cpus(listed: str) -> int:
    """Return how many CPUs a list such as "0-3,8" names."""
    ends = [part.split("-") for part in listed.strip().split(",") if part]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def read_caches(cpu: Path = CPU) -> tuple[Cache, ...]:
    """Return the caches that hold data, from small to large; () where the operating system reports none."""
    found = []
    for folder in (cpu / "cache").glob("index*"):
        size = size_bytes((read_text(folder / "size") or "").strip())
        level = read_integer(folder / "level")
        if size and level and (read_text(folder / "type") or "").strip() in ("Data", "Unified"):
            line = read_integer(folder / "coherency_line_size") or 64
            found.append(Cache(level, size, line, max(1, count_cpus(read_text(folder / "shared_cpu_list") or ""))))
    return tuple(sorted(found, key=lambda cache: cache.level))


def read_processor(proc: Path = PROC, cpu: Path = CPU) -> Processor:
    """Return what this machine's processor is."""
    return Processor(platform.machine(), cpu_flags(read_text(proc / "cpuinfo") or ""), read_caches(cpu))


@functools.cache
def this_processor() -> Processor:
    """Return `read_processor()`, read once: it does not change while a process lives."""
    return read_processor()
