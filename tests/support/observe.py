"""Measuring from outside: CPU, memory and blocks of other processes by /proc, and a witness of the machine's own stalls.

Uses none of the product's code, so that a flaw there cannot hide itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self

P = ParamSpec("P")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BLOCK_BYTES = 512  # unit of st_blocks, see stat(2)
STALL_MS = 100.0


def boot_s() -> float:
    """Return seconds of CLOCK_BOOTTIME: the clock in which leases count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def cpu_s(pid: int) -> float:
    """Return CPU seconds of a process, with its threads that ended; 0 when it is gone. Resolution 10 ms (proc(5), utime + stime)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cpu_fine_s(pid: int) -> float:
    """Return CPU seconds of the threads that a process has now, to the nanosecond (schedstat); 0 when it is gone."""
    total_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            total_ns += int(path.read_text().split()[0])
    return total_ns / 1e9


def anonymous_bytes(pid: int) -> int:
    """Return RssAnon of a process in bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon:")), 0)


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file, or all files under a folder, occupy on disk (st_blocks); 0 when it is gone."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    total = 0
    for one in paths:
        with contextlib.suppress(OSError):
            total += one.lstat().st_blocks * BLOCK_BYTES
    return total


def machine_memory_bytes(name: str) -> int:
    """Return a figure of /proc/meminfo in bytes: MemAvailable, AnonPages."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """What one interval showed: its end in boot time, mean cores used, and anonymous bytes at its end."""

    at_s: float
    cores: float
    memory_bytes: int
    pids: tuple[int, ...]


@dataclass(slots=True)
class Meter:
    """Reads CPU and memory of changing processes in a thread of its own: `with Meter(lambda: host.pids("load")) as meter`."""

    pids: Callable[[], Iterable[int]]
    interval_s: float = 1.0
    readings: list[Reading] = field(default_factory=list)
    _seen: dict[int, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._seen = {pid: cpu_fine_s(pid) for pid in self.pids()}
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def cores(self) -> list[float]:
        """Return the mean cores used in each interval so far."""
        return [reading.cores for reading in self.readings]

    def _loop(self) -> None:
        last_s = boot_s()
        while not self._stop.wait(self.interval_s):
            now = {pid: cpu_fine_s(pid) for pid in self.pids()}
            now_s = boot_s()
            # A process first seen now has spent all of its time in this interval.
            used_s = sum(max(0.0, spent - self._seen.get(pid, 0.0)) for pid, spent in now.items())
            memory = sum(anonymous_bytes(pid) for pid in now)
            self.readings.append(Reading(now_s, used_s / (now_s - last_s), memory, tuple(now)))
            self._seen, last_s = now, now_s


@dataclass(frozen=True, slots=True)
class Stall:
    """A core on which a waiting process was woken late."""

    core: int
    at_s: float
    late_ms: float


# One process per core sleeps 10 ms at a time and reports when it was woken much too late.
_WITNESS = """
import json, os, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
core, limit_ms = int(sys.argv[1]), float(sys.argv[2])
os.sched_setaffinity(0, {core})
parent, step_s = os.getppid(), 0.01
last_s = time.clock_gettime(time.CLOCK_BOOTTIME)
print(json.dumps("ready"), flush=True)
ends = False
while not ends:
    ends = bool(stopped) or os.getppid() != parent
    wait_s = 0.0 if ends else step_s
    time.sleep(wait_s)
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    late_ms = (now_s - last_s - wait_s) * 1000
    if late_ms > limit_ms:
        print(json.dumps([core, now_s, late_ms]), flush=True)
    last_s = now_s
"""


class Witness:
    """Watches each core for scheduler stalls while a promised time is measured: `with Witness() as witness`.

    A test that misses its time on a machine that stood still says nothing about the product: see `promised`.
    """

    def __init__(self, limit_ms: float = STALL_MS) -> None:
        self.limit_ms = limit_ms
        self.stalls: tuple[Stall, ...] = ()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        for core in sorted(os.sched_getaffinity(0)):
            argv = [sys.executable, "-I", "-S", "-c", _WITNESS, str(core), str(self.limit_ms)]
            self._processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
        for process in self._processes:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == "ready"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        found = []
        for process in self._processes:
            process.terminate()  # and wait: a witness that stands still now must be heard as well
            text = process.communicate(timeout=60)[0]
            found += [Stall(*json.loads(line)) for line in text.splitlines() if line.endswith("]")]
        self._processes.clear()
        self.stalls = tuple(sorted(found, key=lambda stall: stall.at_s))


def promised(test: Callable[P, None]) -> Callable[P, None]:
    """Decorate a test of a promised time: it is repeated once if it fails while the witness saw a stall of its cores.

    The test must bring its own set-up, since it may run twice; what it was given is mended between. A miss without a stall fails at once.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        missed: AssertionError | None = None
        with Witness() as witness:
            try:
                test(*args, **kwargs)
            except AssertionError as error:
                missed = error
        if missed is None:
            return
        if not witness.stalls:
            raise missed
        worst = max(stall.late_ms for stall in witness.stalls)
        print(f"repeated once: {len(witness.stalls)} stalls of this machine, the worst {worst:.0f} ms; missed: {missed}")
        for given in (*args, *kwargs.values()):
            if mend := getattr(given, "mend", None):
                mend()
        test(*args, **kwargs)

    return run
