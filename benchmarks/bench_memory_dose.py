"""How exactly does MemoryPressure hold what it is asked, how fast is it, beside numpy and stress-ng in the same run?

Run: python benchmarks/bench_memory_dose.py on an idle machine. Seen from outside (RssAnon of /proc/PID/status, schedstat):

- holding: resident bytes every 50 ms for `--seconds`: largest and mean distance from the target, deviation, share of the time below it, and
  cores used. stress-ng's --vm is read alike with each recipe that its manual has: as it is, with --vm-keep, with --vm-hang 0; the few MiB
  that its processes themselves hold are within its figures;
- ramp: bytes a second from the start until all is there, over those of `numpy.ndarray.fill` on fresh memory; rounds alternate, the median
  counts. The same of CPU time is told beside it, which hangs less on who else is at work. Before each of both the machine has used as much
  and freed it: a virtual machine that reports free pages to its host waits for the host at the first touch, up to twenty times as long;
- release: from the instant at which nothing is asked any more, and from a drain, until the kernel counts it as gone.

`--mib` is the target, `--seconds` how long it is held; `--dry` prints and stores nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("", "tests", "tests/load"))

import numpy as np
from load_bench import Bench
from machine import Seen, at_least, at_most, store
from support.observe import cpu_fine_s

from actors.clock import SECOND_NS, SystemClock
from actors.messages import Capacity, Operation
from actors.proc import session_members

MIB = 1 << 20
EVERY_S, FINE_S, ROUNDS = 0.05, 0.001, 7
SETTLE_S = 3.0  # the ramp is over by then, on a busy machine too
RECIPES = {"default": [], "keep": ["--vm-keep"], "hang_0": ["--vm-hang", "0"]}

Read = Callable[[], float]


def resident(pid: int) -> int:
    """Return what a process holds of memory that is no file's, 0 when it is gone (man 5 proc_pid_status)."""
    try:
        rows = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(row[1]) * 1024 for row in rows if row[0] in {"RssAnon:", "RssShmem:"})


@contextmanager
def ours(shape: dict[str, Any], size: int, first: Callable[[], object] = bool) -> Iterator[tuple[Bench, Read, int, Read]]:
    """Run MemoryPressure in its load process, ready before `first` is done; give it, what it holds above its baseline, when it began, and
    its CPU seconds since."""
    operation = Operation("memory", "MemoryPressure", "n1", 0.0, 3600.0, "bytes", shape)
    with tempfile.TemporaryDirectory() as folder:
        one = Bench(Path(folder), operation, Capacity(1.0, 2 * size, 1 << 30))
        try:
            one.ready()
            (pid,) = one.load.pids
            first()
            before, before_s = resident(pid), cpu_fine_s(pid)
            start_ns = one.go(lease_s=3600.0)
            yield one, lambda: max(0, resident(pid) - before), start_ns, lambda: cpu_fine_s(pid) - before_s
        finally:
            one.close()


def total(read: Callable[[int], float], session: int) -> float:
    """Return the sum over the processes of a session."""
    return sum(read(one.pid) for one in session_members(session))


@contextmanager
def stress_ng(size: int, recipe: list[str]) -> Iterator[tuple[Read, Read]]:
    """Run one stressor of memory; give what its processes hold, and their CPU seconds."""
    command = ["stress-ng", "--vm", "1", "--vm-bytes", str(size), *recipe, "--timeout", "3600"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield lambda: total(resident, process.pid), lambda: total(cpu_fine_s, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def held(read: Read, cpu: Read, size: int, seconds: int) -> dict[str, float]:
    """Return how a target is held, in shares of it, and the cores that it takes."""
    found, then_s, before_s = [], time.monotonic(), cpu()
    while (now_s := time.monotonic()) < then_s + seconds:
        found.append(read() / size - 1.0)
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - now_s)))
    return {
        "readings": len(found),
        "largest_error": max(map(abs, found)),
        "mean_error": statistics.fmean(map(abs, found)),
        "mean_distance": statistics.fmean(found),
        "deviation": statistics.pstdev(found),
        "time_below": sum(one < 0.0 for one in found) / len(found),
        "cores": (cpu() - before_s) / (time.monotonic() - then_s),
    }


def until(read: Read, is_there: Callable[[float], bool], from_s: float, within_s: float = 30.0) -> float:
    """Return the seconds from an instant until what is read is so; infinite when it does not come."""
    while (now_s := time.clock_gettime(time.CLOCK_BOOTTIME)) < from_s + within_s:
        if is_there(read()):
            return now_s - from_s
        time.sleep(FINE_S)
    return float("inf")


def ramp_s(size: int) -> tuple[float, float, float]:
    """Return how long our load takes for the target, the CPU seconds of that, and how long it takes after a drain until all is gone."""
    with ours({"kind": "constant", "level": size}, size, lambda: numpy_s(2 * size)) as (one, read, start_ns, cpu):
        took_s = until(read, lambda now: now >= size, start_ns / SECOND_NS)
        cpu_s = cpu()
        drained_s = SystemClock().boot_ns() / SECOND_NS
        one.load.drain()
        return took_s, cpu_s, until(read, lambda now: now < 0.01 * size, drained_s)


def numpy_s(size: int) -> tuple[float, float]:
    """Return how long filling fresh anonymous memory takes, and the CPU seconds of that."""
    begun_s, before_s = time.monotonic(), time.thread_time()
    made = np.empty(size, np.uint8)
    made.fill(1)
    took_s, cpu_s = time.monotonic() - begun_s, time.thread_time() - before_s
    del made
    return took_s, cpu_s


def fill_s(size: int) -> tuple[float, float]:
    """Return the same once the machine has used as much and freed it."""
    numpy_s(2 * size)
    return numpy_s(size)


def own_holding(size: int, seconds: int) -> tuple[dict[str, float], float]:
    """Return how our load holds the target, and how soon the memory is gone once nothing is asked."""
    each_s = SETTLE_S + seconds + 1.0
    with ours({"kind": "steps", "levels": [size, 0], "each_s": each_s}, size) as (_, read, start_ns, cpu):
        until(read, lambda now: now >= size, start_ns / SECOND_NS, SETTLE_S)
        figures = held(read, cpu, size, seconds)
        return figures, until(read, lambda now: now < 0.01 * size, start_ns / SECOND_NS + each_s, each_s)


def peer_holding(size: int, recipe: list[str], seconds: int) -> dict[str, float]:
    """Return how stress-ng holds the target with a recipe, once it has had as long for its ramp as ours."""
    with stress_ng(size, recipe) as (read, cpu):
        time.sleep(SETTLE_S)
        return held(read, cpu, size, seconds)


def main() -> int:
    """Measure all, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="the target")
    parser.add_argument("--seconds", type=int, default=60, help="how long it is held")
    parser.add_argument("--dry", action="store_true", help="print, store nothing")
    told = parser.parse_args()
    size = told.mib * MIB
    figures: dict[str, Any] = {"target_bytes": size, "seconds": told.seconds}
    figures["memory_pressure"], released_s = own_holding(size, told.seconds)
    print("memory_pressure", json.dumps(figures["memory_pressure"]), flush=True)
    figures["stress_ng"] = {} if shutil.which("stress-ng") else "missing: stress-ng is not installed"
    for name, recipe in RECIPES.items() if shutil.which("stress-ng") else ():
        figures["stress_ng"][name] = peer_holding(size, recipe, told.seconds)
        print("stress_ng", name, json.dumps(figures["stress_ng"][name]), flush=True)
    rounds = [(*ramp_s(size), *fill_s(size)) for _ in range(ROUNDS)]
    ramps, ramps_cpu, drains, fills, fills_cpu = zip(*rounds, strict=True)
    figures["ramp_bytes_per_s"] = [round(size / one) for one in ramps]
    figures["numpy_fill_bytes_per_s"] = [round(size / one) for one in fills]
    ratio = statistics.median(fill / ramp for ramp, fill in zip(ramps, fills, strict=True))
    figures["ramp_over_numpy_by_cpu_time"] = statistics.median(theirs / mine for mine, theirs in zip(ramps_cpu, fills_cpu, strict=True))
    figures["ramp_over_numpy"], figures["release_s"], figures["release_after_a_drain_s"] = ratio, released_s, list(drains)
    own = figures["memory_pressure"]
    seen: dict[str, Seen] = {
        "largest distance from the target, share of it": at_most(0.005, own["largest_error"]),
        "time below the target, share": at_most(0.0, own["time_below"]),
        "cores used while it holds": at_most(0.01, own["cores"]),
        "ramp over numpy's fill, median": at_least(0.8, ratio),
        "release seen by the kernel, s": at_most(1.0, max(released_s, *drains)),
    }
    if told.dry:
        print(json.dumps({**figures, "goals": seen}, indent=2))
        return 0
    return store("memory_dose", figures, {name: (goal, reached) for name, (goal, _, reached) in seen.items()}, ("numpy",))


if __name__ == "__main__":
    raise SystemExit(main())
