"""How exactly does CpuLoad hold what it is asked, beside stress-ng in the same run?

Run: python benchmarks/bench_cpu_dose.py on an idle machine. Three questions, seen from outside (schedstat of processes, /proc/stat):

- own share, 10 to 90 % of all cores: mean absolute error over the levels, and the deviation of one-second windows at the worst level;
- host total of 60 % beside a competitor that takes 40 % of the host for 5 s and nothing for 5 s: root mean square error of one-second
  windows outside the second after each edge. stress-ng has no such mode and adds up;
- how soon a load is within 2 points, after its start and after the competitor's edges.

`--seconds` sets how long each level is held; a short run with `--dry` prints and stores nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
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

from load_bench import Bench
from machine import Seen, at_most, store
from support.observe import cpu_fine_s

from actors.messages import Capacity, Operation

CORES = len(os.sched_getaffinity(0))
LEVELS = (0.10, 0.25, 0.50, 0.75, 0.90)
HOST, HALF_S, COMPETITOR = 0.6, 5.0, 0.4
STEP_S, WITHIN = 0.25, 2.0
TICKS = os.sysconf("SC_CLK_TCK")
SQUARE = """
import sys, time
share, half_s, begun_s = map(float, sys.argv[1:])
while True:
    into_s = (time.monotonic() - begun_s) % (2 * half_s)
    if into_s < half_s:
        time.sleep(min(0.02, half_s - into_s))
        continue
    used_s, now_s = time.thread_time(), time.monotonic()
    while time.thread_time() - used_s < share * 0.01:
        pass
    time.sleep(max(0.0, 0.01 - (time.monotonic() - now_s)))
"""

Cpu = Callable[[], float]


def host_busy_s() -> float:
    """Return the CPU seconds that the whole machine has been busy, less a constant (man 5 proc_stat)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    idle = (int(fields[4]) + int(fields[5]) + (int(fields[8]) if len(fields) > 8 else 0)) / TICKS
    return time.clock_gettime(time.CLOCK_BOOTTIME) * CORES - idle


def windows(cpu: Cpu, count: int, span_s: float = 1.0) -> list[tuple[float, float]]:
    """Return (end in monotonic time, points of all cores) of windows one after another."""
    found: list[tuple[float, float]] = []
    then_s, before_s = time.monotonic(), cpu()
    for _ in range(count):
        time.sleep(max(0.0, then_s + span_s - time.monotonic()))
        now_s, after_s = time.monotonic(), cpu()
        found.append((now_s, 100 * (after_s - before_s) / (now_s - then_s) / CORES))
        then_s, before_s = now_s, after_s
    return found


@contextmanager
def ours(level: float, mode: str) -> Iterator[Cpu]:
    """Run CpuLoad in its load process; give its CPU seconds."""
    shape, options = {"kind": "constant", "level": level}, {"mode": mode, "heat_limit_c": 0}
    operation = Operation("cpu", "CpuLoad", "n1", 0.0, 3600.0, "fraction", shape, options)
    with tempfile.TemporaryDirectory() as folder:
        one = Bench(Path(folder), operation, Capacity(float(CORES), 1 << 30, 1 << 30))
        try:
            one.ready()
            one.go(lease_s=3600.0)
            (pid,) = one.load.pids
            yield lambda: cpu_fine_s(pid)
        finally:
            one.close()


@contextmanager
def stress_ng(level: float, _mode: str) -> Iterator[Cpu]:
    """Run stress-ng's CPU stressor at a load; give the CPU seconds of its processes."""
    command = ["stress-ng", "--cpu", str(CORES), "--cpu-load", f"{100 * level:.0f}", "--timeout", "3600"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while len(pids := children.read_text().split()) < CORES:
                time.sleep(0.01)
            yield lambda: sum(cpu_fine_s(int(pid)) for pid in pids)
        finally:
            process.terminate()
            process.wait(10)


def own_share(load: Any, seconds: int) -> dict[str, Any]:
    """Return errors and deviations of each level, in points of all cores, and how soon the first one was reached."""
    errors, deviations, reached = {}, {}, []
    for level in LEVELS:
        with load(level, "own") as cpu:
            begun_s = time.monotonic()
            reached.append(soon(windows(cpu, 8, STEP_S), begun_s, 100 * level))
            found = [points for _, points in windows(cpu, seconds)]
        errors[f"{level:.0%}"] = round(statistics.fmean(found) - 100 * level, 3)
        deviations[f"{level:.0%}"] = round(statistics.pstdev(found), 3)
    return {
        "error_points": errors,
        "deviation_points": deviations,
        "mean_absolute_error_points": round(statistics.fmean(abs(error) for error in errors.values()), 3),
        "worst_deviation_points": max(deviations.values()),
        "reached_s": [round(one, 2) for one in reached],
    }


def soon(found: list[tuple[float, float]], begun_s: float, want: float) -> float:
    """Return the seconds until the end of the first window within `WITHIN` points; infinite when there was none."""
    return next((end_s - begun_s for end_s, points in found if abs(points - want) <= WITHIN), math.inf)


@contextmanager
def competitor(begun_s: float) -> Iterator[None]:
    """Take `COMPETITOR` of the host in every second half of a period, from `begun_s` on."""
    command = [sys.executable, "-S", "-c", SQUARE, str(COMPETITOR), str(HALF_S), str(begun_s)]
    processes = [subprocess.Popen(command) for _ in range(CORES)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def host_total(load: Any, periods: int) -> dict[str, Any]:
    """Return how far the host is from `HOST` beside the square wave, and how soon it is back after its edges."""
    begun_s = time.monotonic()
    with competitor(begun_s), load(HOST, "host_total"):
        time.sleep(2.0)
        found = windows(host_busy_s, round(periods * 2 * HALF_S / STEP_S), STEP_S)
    seconds = [found[at : at + 4] for at in range(0, len(found) - 3, 4)]
    errors, late = [], []
    for parts in seconds:
        since_edge_s = (parts[0][0] - STEP_S - begun_s) % HALF_S
        if since_edge_s >= 1.0 and since_edge_s + 1.0 <= HALF_S + 0.05:
            errors.append(statistics.fmean(points for _, points in parts) - 100 * HOST)
    edges = range(math.ceil((found[0][0] - begun_s) / HALF_S), math.floor((found[-1][0] - begun_s) / HALF_S))
    for edge in edges:
        edge_s = begun_s + edge * HALF_S
        after = [(end_s, points) for end_s, points in found if edge_s < end_s - STEP_S]
        late.append(soon([(two[0], (one[1] + two[1]) / 2) for one, two in itertools.pairwise(after)], edge_s, 100 * HOST))
    return {
        "rms_points": round(math.sqrt(statistics.fmean(error**2 for error in errors)), 3),
        "windows": len(errors),
        "back_after_edges_s": [round(one, 2) for one in late],
    }


def main() -> int:
    """Measure both, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="how long each level is held")
    parser.add_argument("--periods", type=int, default=6, help="periods of the competitor, 10 s each")
    parser.add_argument("--dry", action="store_true", help="print, store nothing")
    told = parser.parse_args()
    idle = [points for _, points in windows(host_busy_s, 5)]
    figures: dict[str, Any] = {"seconds": told.seconds, "host_busy_before_points": round(statistics.fmean(idle), 2)}
    peers = {"cpu_load": ours} | ({"stress_ng": stress_ng} if shutil.which("stress-ng") else {})
    for name, load in peers.items():
        figures[name] = {"own_share": own_share(load, told.seconds), "host_total": host_total(load, told.periods)}
        print(name, json.dumps(figures[name]), flush=True)
    if "stress_ng" not in peers:
        figures["stress_ng"] = "missing: stress-ng is not installed"
    share, total = figures["cpu_load"]["own_share"], figures["cpu_load"]["host_total"]
    seen: dict[str, Seen] = {
        "own share, mean absolute error, points": at_most(0.5, share["mean_absolute_error_points"]),
        "own share, deviation of 1 s windows, points": at_most(1.0, share["worst_deviation_points"]),
        "host total beside a square wave, RMS, points": at_most(2.0, total["rms_points"]),
        "within 2 points after the start, s": at_most(1.0, max(share["reached_s"])),
        "within 2 points after an edge, median, s": at_most(1.0, statistics.median(total["back_after_edges_s"])),
    }
    goals = {name: (goal, reached) for name, (goal, _, reached) in seen.items()}
    if told.dry:
        print(
            json.dumps(
                {name: {"goal": goal, "found": found, "reached": reached} for name, (goal, found, reached) in seen.items()}, indent=2
            )
        )
        return 0
    return store("cpu_dose", figures, goals, ("numba", "llvmlite"))


if __name__ == "__main__":
    raise SystemExit(main())
