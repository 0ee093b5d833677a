"""The host as a node sees it: CPU busy, memory and disk left, descriptors. Cheap enough for 10 Hz; never judges, never writes.

Files of /proc are opened once and read again in place. CPU time is busy seconds = elapsed * CPUs - idle - I/O wait - stolen:
the kernel counts idle time exactly where it only samples user and system time at each tick.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

import psutil

from .clock import SECOND_NS, Clock, SystemClock
from .heat import Reading
from .limits import PROC, Container, MemoryLevel, find_container, read_integer
from .messages import HostSnapshot
from .procfs import USER_HZ, size_bytes

_CHUNK_BYTES: Final = 1 << 16


class _File:
    """A file of /proc or of a control group, read from its start each time."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def text(self, most_bytes: int = _CHUNK_BYTES) -> str:
        return os.pread(self._fd, most_bytes, 0).decode("ascii", "replace")

    def close(self) -> None:
        os.close(self._fd)


def idle_seconds(stat: str, cpus: frozenset[int] | None) -> float:
    """Return the seconds that CPUs did not work for us: idle, I/O wait and stolen, of all CPUs or of those named.

    Fields: man 5 proc_stat. The sum over all CPUs is rounded to a clock tick once, so it is preferred.
    """
    names = {"cpu"} if cpus is None else {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    for line in stat.splitlines():
        fields = line.split()
        if not fields or not fields[0].startswith("cpu"):
            break
        if fields[0] in names:
            ticks += int(fields[4]) + int(fields[5]) + (int(fields[8]) if len(fields) > 8 else 0)
    return ticks / USER_HZ


def usage_seconds(text: str) -> float:
    """Return the CPU seconds that a control group used: version 2's cpu.stat or version 1's cpuacct.usage (ns)."""
    for line in text.splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    return int(text) / 1e9


class BusyMeter:
    """Busy CPU seconds of what limits this node: of the container under a CPU quota, else of the CPUs it may use."""

    def __init__(self, container: Container | None = None, clock: Clock | None = None, proc: Path = PROC) -> None:
        limits = container or find_container(proc)
        self._clock = clock or SystemClock()
        self._by_group = limits.cpu_usage is not None
        self._file = _File(limits.cpu_usage or proc / "stat")
        everything = len(limits.cpus) == os.cpu_count()
        self._cpus = None if everything else limits.cpus
        self._count = len(limits.cpus)

    def read(self) -> tuple[int, float]:
        """Return (boot time in ns, busy seconds so far); only differences of the seconds mean something."""
        text = self._file.text(_CHUNK_BYTES if self._cpus or self._by_group else 512)
        now_ns = self._clock.boot_ns()
        if self._by_group:
            return now_ns, usage_seconds(text)
        return now_ns, now_ns / SECOND_NS * self._count - idle_seconds(text, self._cpus)

    def close(self) -> None:
        """Close its file."""
        self._file.close()


def meminfo_bytes(text: str, key: str) -> int:
    """Return one line of /proc/meminfo in bytes; 0 where the kernel does not have it."""
    return size_bytes(text, key) or 0


def inactive_file_bytes(stat: str) -> int:
    """Return the page cache that a control group gives back first: `total_inactive_file` (v1), `inactive_file` (v2)."""
    rows = dict(line.split()[:2] for line in stat.splitlines() if line.count(" ") == 1)
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))


def level_available_bytes(level: MemoryLevel) -> int:
    """Return what may still be used under one group's limit; its reclaimable page cache counts as free."""
    used = read_integer(level.usage)
    if used is None:
        return level.limit_bytes
    cache = inactive_file_bytes(level.stat.read_text()) if level.stat.exists() else 0
    return max(0, level.limit_bytes - max(0, used - cache))


def memory_available_share(limits: Container, proc: Path = PROC) -> float:
    """Return the share (0..1) of memory that may still be used: the machine's, or that of the tightest control group.

    Raises `OSError` when /proc is gone.
    """
    text = (proc / "meminfo").read_text(encoding="ascii")
    machine = meminfo_bytes(text, "MemAvailable") / max(1, meminfo_bytes(text, "MemTotal"))
    return min([machine, *(level_available_bytes(level) / max(1, level.limit_bytes) for level in limits.memory_levels)])


def memory_available_bytes(limits: Container, proc: Path = PROC) -> int:
    """Return what may still be used without swapping: of the machine, or under the tightest control group. Raises `OSError`."""
    machine = meminfo_bytes((proc / "meminfo").read_text(encoding="ascii"), "MemAvailable")
    return min([machine, *(level_available_bytes(level) for level in limits.memory_levels)])


class HostSampler:
    """Takes snapshots of one host. Busy CPU is over the last `window_s`, so that single ticks do not count.

    Not thread safe: one sampler, one thread.
    """

    def __init__(
        self,
        node: str,
        disk_path: Path,
        *,
        clock: Clock | None = None,
        container: Container | None = None,
        window_s: float = 1.0,
        proc: Path = PROC,
    ) -> None:
        self._node = node
        self._disk_path = disk_path
        self._clock = clock or SystemClock()
        self._limits = container or find_container(proc)
        self._busy = BusyMeter(self._limits, self._clock, proc)
        self._meminfo = _File(proc / "meminfo")
        self._descriptors = _File(proc / "sys/fs/file-nr")
        self._load = _File(proc / "loadavg")
        self._window_ns = round(window_s * SECOND_NS)
        self._samples: deque[tuple[int, float]] = deque([self._busy.read()], maxlen=4096)

    def _busy_fraction(self) -> float:
        """Return busy time over the window, 0..1; before the first interval has passed it is 0."""
        self._samples.append(self._busy.read())
        now_ns, busy_s = self._samples[-1]
        while len(self._samples) > 2 and self._samples[1][0] <= now_ns - self._window_ns:
            self._samples.popleft()
        then_ns, then_s = self._samples[0]
        elapsed_s = (now_ns - then_ns) / SECOND_NS
        return min(1.0, max(0.0, (busy_s - then_s) / elapsed_s / self._limits.cpu_cores)) if elapsed_s > 0 else 0.0

    def _available_bytes(self) -> int:
        machine = meminfo_bytes(self._meminfo.text(512), "MemAvailable")
        return min([machine, *(level_available_bytes(level) for level in self._limits.memory_levels)])

    def snapshot(self) -> HostSnapshot:
        """Return the host as it is now; `boot_ns` is when the CPU was read. Raises `OSError` when /proc is gone."""
        busy = self._busy_fraction()
        disk = os.statvfs(self._disk_path)
        used, _, most = self._descriptors.text(128).split()
        return HostSnapshot(
            node=self._node,
            boot_ns=self._samples[-1][0],
            cpu_cores=self._limits.cpu_cores,
            cpu_busy_fraction=busy,
            memory_limit_bytes=self._limits.memory_limit_bytes,
            memory_available_bytes=self._available_bytes(),
            disk_total_bytes=disk.f_blocks * disk.f_frsize,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            descriptors_used=int(used),
            descriptors_limit=int(most),
            load_average_1m=float(self._load.text(64).split()[0]),
        )

    def close(self) -> None:
        """Close its files."""
        for file in (self._busy, self._meminfo, self._descriptors, self._load):
            file.close()


def machine_facts() -> dict[str, int | float | None]:
    """Return what `doctor` and results tell of the machine's hardware; None where the platform does not say."""
    frequency = psutil.cpu_freq()
    return {
        "cpu_logical": psutil.cpu_count(),
        "cpu_physical": psutil.cpu_count(logical=False),
        "cpu_mhz": round(frequency.current) if frequency else None,
        "memory_total_bytes": psutil.virtual_memory().total,
        "boot_time": psutil.boot_time(),
    }


SENSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "x86_pkg_temp")
_THROTTLES: Final = "cpu*/thermal_throttle/*_throttle_count"


def read_heat(cpus: Path = Path("/sys/devices/system/cpu")) -> Reading:
    """Return the processor's temperatures and how often it throttled itself; empty where the platform does not say."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    celsius = {f"{chip}/{one.label or index}": one.current for chip in SENSORS for index, one in enumerate(sensors.get(chip, ()))}
    counts = [count for path in cpus.glob(_THROTTLES) if (count := read_integer(path)) is not None]
    return Reading(celsius, sum(counts) if counts else None)
