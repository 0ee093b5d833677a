"""How evenly DiskIO keeps its rate beside fio at the same rate, mode by mode, and what a fill of 10 GB takes of the process that writes it.

Run: python benchmarks/bench_disk_io.py.

`modes`: reads and writes, in order and at random, direct, and synchronous: bytes a second by /proc/PID/io of the process that moves
them, in windows of a second, at one rate, of DiskIO and of fio (`--rate`, the same blocks, a file of the same size) in turn. `mean_error`
is the mean's distance from the rate, `deviation` the standard deviation over windows, both as shares of the rate. Without fio its part
is left out and said so. What others do with this disk and these cores shows in both.
`fill`: 10 GB reserved, and written: seconds, allocated blocks over the size, growth of the guardian's peak of resident bytes (VmHWM), and
after how long a stop returned (the goal is a second, six at most) and after how long the last block was free: the disk's own time.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "load"))

from load_agent import Agent
from load_bench import Bench
from machine import at_commit, at_most, store
from peers import MISSING
from support import held

from actors.capacity import read_capacity
from actors.messages import Operation

MIB = 1 << 20
BLOCK, FILE, SECONDS, ROUNDS = 64 << 10, 64 * MIB, 6, 3
SIZE = 10 * 10**9 // MIB * MIB
MEMORY_BYTES = 16 * MIB
STOP_S = 1.0
Windows = list[float]
# mode -> rate, options of DiskIO, arguments of fio. A disk that waits for each write may not do 16 MiB/s of small ones.
MODES: dict[str, tuple[int, dict[str, Any], list[str]]] = {
    "write": (16 * MIB, {"direction": "write"}, ["--rw=write"]),
    "write-sync": (4 * MIB, {"direction": "write", "sync": True}, ["--rw=write", "--sync=dsync"]),
    "write-random": (16 * MIB, {"direction": "write", "order": "random"}, ["--rw=randwrite"]),
    "read": (16 * MIB, {"direction": "read"}, ["--rw=read"]),
    "read-random": (16 * MIB, {"direction": "read", "order": "random"}, ["--rw=randread"]),
}


def windows(pid: int) -> Windows:
    """Return the bytes a second in each of SECONDS windows, by the kernel's account of a process."""
    pause, found = threading.Event(), []
    before, then = held.io_bytes(pid), time.monotonic()
    for _ in range(SECONDS):
        pause.wait(1.0)
        after, now = held.io_bytes(pid), time.monotonic()
        found.append((after - before) / (now - then))
        before, then = after, now
    return found


def ours(folder: Path, rate: int, options: dict[str, Any]) -> Windows:
    """Return the windows of DiskIO."""
    every = {"block_bytes": BLOCK, "file_bytes": FILE, "dir": str(folder), **options}
    shape = {"kind": "constant", "level": rate}
    one = Bench(folder, Operation("0", "DiskIO", "n", 0.0, 600.0, "per_second", shape, every), read_capacity(folder))
    try:
        one.ready()
        one.go(60.0)
        threading.Event().wait(1.0)
        return windows(one.load.pids[0])
    finally:
        one.close()


def fio(folder: Path, rate: int, arguments: list[str]) -> Windows:
    """Return the windows of fio, of the process that moves the bytes."""
    command = ["fio", "--name=w", "--direct=1", "--ioengine=psync", "--thread=0", f"--directory={folder}", *arguments]
    command += [f"--bs={BLOCK}", f"--size={FILE}", f"--rate={rate}", "--time_based", f"--runtime={SECONDS + 60}", "--unlink=1"]
    made = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        mover = _mover(made, rate)
        threading.Event().wait(1.0)
        return windows(mover)
    finally:
        made.terminate()
        made.wait(30)


def _mover(made: subprocess.Popen[bytes], rate: int) -> int:
    """Return the child of fio that moves bytes, once it is past laying out its file: its bytes grow no faster than twice the rate."""
    pause = threading.Event()
    for _ in range(60):
        pause.wait(0.5)
        for child in held.children(made.pid):
            before = held.io_bytes(child)
            pause.wait(0.5)
            if 0 < held.io_bytes(child) - before < rate:
                return child
    raise TimeoutError("fio did not begin within 30 s")


def version() -> str:
    """Return fio's version, or that it is missing."""
    if not shutil.which("fio"):
        return MISSING
    return subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def judged(found: Windows, rate: int) -> dict[str, Any]:
    """Return the mean's distance from the rate and the deviation over windows, in shares of the rate, with the windows themselves."""
    mean = statistics.mean(found)
    return {"mean_error": abs(mean - rate) / rate, "deviation": statistics.pstdev(found) / rate, "windows": [round(one) for one in found]}


def compared(folder: Path, mode: str, peer: bool) -> dict[str, Any]:
    """Return the rounds of one mode, and their medians."""
    rate, options, arguments = MODES[mode]
    rounds: dict[str, list[dict[str, Any]]] = {"disk_io": [], "fio": []}
    for _ in range(ROUNDS):
        rounds["disk_io"].append(judged(ours(folder, rate, options), rate))
        rounds["fio"] += [judged(fio(folder, rate, arguments), rate)] if peer else []
    found: dict[str, Any] = {}
    for who, each in rounds.items():
        found[who] = {name: statistics.median(one[name] for one in each) for name in ("mean_error", "deviation")} if each else MISSING
        print(mode, who, found[who], flush=True)
    return {"rate": rate, **found, "rounds": rounds}


def filled(folder: Path, *, write: bool) -> dict[str, Any]:
    """Fill 10 GB and stop; return what it took, seen from outside of the guardian."""
    state = folder / ("written" if write else "reserved")
    state.mkdir(mode=0o700)
    agent = Agent(state)
    try:
        shape = {"kind": "constant", "level": SIZE}
        one = Operation("0.DiskFill@n", "DiskFill", "n", 0.0, 600.0, "bytes", shape, {"write": write, "files": 10})
        writer, pause = agent.client.hello["pid"], threading.Event()
        before = _peak(writer)
        shell, paths, begun = agent.run(one), agent.files(one), time.monotonic()
        while (blocks := sum(path.stat().st_blocks * 512 for path in paths if path.exists())) < SIZE:
            pause.wait(0.02)
        took, grown = time.monotonic() - begun, _peak(writer) - before
        whole = all(path.stat().st_blocks * 512 >= path.stat().st_size for path in paths)
        stopped = time.monotonic()
        shell.stop(1.0)
        answered = time.monotonic() - stopped
        while any(path.exists() for path in paths):
            pause.wait(0.02)
        found = {"seconds": took, "blocks_over_size": blocks / SIZE, "each_file_whole": whole, "peak_growth_bytes": grown}
        return {**found, "stop_seconds": answered, "free_seconds": time.monotonic() - stopped}
    finally:
        agent.close()


def _peak(pid: int) -> int:
    return int(held.status(pid)["VmHWM"].split()[0]) * 1024


def main() -> int:
    """Measure, print and store."""
    peer, begun_load = version(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        fills = {how: filled(folder, write=how == "written") for how in ("reserved", "written")}
        print(fills, flush=True)
        modes = {mode: compared(folder, mode, peer != MISSING) for mode in MODES}
    figures = {"commit": at_commit(), "load_average_1m": [begun_load, os.getloadavg()[0]], "fio": peer, "fill": fills, "modes": modes}
    worst = max(found["disk_io"]["mean_error"] for found in modes.values())
    goals: dict[str, Any] = {"rate": (0.05, worst <= 0.05)}
    for how, fill in fills.items():
        goals[f"{how}_memory_bytes"] = (MEMORY_BYTES, fill["peak_growth_bytes"] <= MEMORY_BYTES)
        goals[f"{how}_blocks"] = (1.0, fill["each_file_whole"] and fill["blocks_over_size"] >= 1.0)
    reported = {f"{how}_stop_seconds": at_most(STOP_S, fill["stop_seconds"]) for how, fill in fills.items()}
    reported |= {
        f"{mode}_{name}_over_fio": at_most(1.0, found["disk_io"][name] / max(found["fio"][name], 1e-9))
        for mode, found in modes.items()
        if found["fio"] != MISSING
        for name in ("mean_error", "deviation")
    }
    return store("disk_io", figures, goals, reported=reported)


if __name__ == "__main__":
    sys.exit(main())
