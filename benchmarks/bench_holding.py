"""What holding costs beside the plain calls, and how well DiskIO keeps its rate beside fio's at the same rate.

Run: python benchmarks/bench_holding.py.

`overhead`: CPU time of a holder that takes descriptors (batches, looks at its lease, figures in shared memory) over that of a loop
of the same calls, less one; rounds alternate, the median counts.
`records_per_1000`: records that it made for 1,000 things taken; each is a store in shared memory, and none a call of another process.
`pacing`: bytes a second by /proc/PID/io in windows of a second at one rate: the mean's distance from the asked rate and the standard
deviation over windows, of DiskIO and of fio (`--rate`, direct, the same blocks, a file of the same size), in turn. Without fio that part
is left out and said so. A disk that is busy with others' work shows in both.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "load"))

from load_bench import Bench
from machine import store
from support import held

from actors.capacity import read_capacity
from actors.clock import SystemClock
from actors.exhaustion.descriptors import FLAGS, OpenFiles
from actors.exhaustion.holder import Holding
from actors.messages import Capacity, Operation
from actors.metrics import Segment

COUNT, ROUNDS = 19_000, 15
CAPACITY = Capacity(1.0, 1 << 30, 1 << 30, descriptors=20_000)
MIB = 1 << 20
RATE, BLOCK, FILE, SECONDS = 16 * MIB, 64 << 10, 32 * MIB, 10


class Watch:
    """A lease that lives until all is held, with the words of a stats slot as plain stores."""

    clock = SystemClock()

    def __init__(self, stock: OpenFiles) -> None:
        self.stock, self.words, self.begun, self.spent = stock, [0.0] * 16, 0.0, 0.0

    def note(self, bit: int) -> None:
        """Nothing is to be noted."""

    def first_slice(self) -> None:
        """The load begins: its CPU time counts from here until all is held."""
        self.begun = time.process_time()

    def may_go_on(self) -> bool:
        """Look at the time, as a lease does, and at what is held."""
        if self.clock.boot_ns() > 0 and self.stock.held < COUNT:
            return True
        self.spent = time.process_time() - self.begun
        return False

    def ceiling(self) -> float:
        """Return no throttle."""
        return 1.0

    def report(self, **figures: float) -> None:
        """Store the figures."""
        for at, value in enumerate(figures.values()):
            self.words[at] = value


def plain(device: str = os.devnull) -> float:
    """Return the CPU time of opening COUNT descriptors in a loop."""
    kept: list[int] = []
    keep, take, flags, begun = kept.append, os.open, FLAGS, time.process_time()
    for _ in range(COUNT):
        keep(take(device, flags))
    spent = time.process_time() - begun
    for fd in kept:
        os.close(fd)
    return spent


def holding() -> tuple[float, float]:
    """Return the CPU time of a holder until it holds as many, and how many records it made for 1,000 of them."""
    operation = Operation("0", "Descriptors", "n", 0.0, 60.0, "count", {"kind": "constant", "level": COUNT})
    stock, segment = OpenFiles(os.devnull, copies=False), Segment.create()
    watch = Watch(stock)
    load = Holding(stock, operation, CAPACITY, watch, segment.path)
    load.warm_up()
    load.run(Watch.clock.boot_ns())
    records = sum(segment.read(row).count for row, *_ in segment.series())
    segment.close()
    return watch.spent, records * 1000 / COUNT


def windows(pid: Callable[[], int]) -> list[float]:
    """Return the bytes of each of SECONDS windows of a second, by the kernel's account."""
    pause, found = threading.Event(), []
    before, then = held.io_bytes(pid()), time.monotonic()
    for _ in range(SECONDS):
        pause.wait(1.0)
        after, now = held.io_bytes(pid()), time.monotonic()
        found.append((after - before) / (now - then))
        before, then = after, now
    return found


def ours(folder: Path) -> list[float]:
    """Return the windows of DiskIO."""
    options = {"block_bytes": BLOCK, "file_bytes": FILE, "dir": str(folder)}
    shape = {"kind": "constant", "level": RATE}
    one = Bench(folder, Operation("0", "DiskIO", "n", 0.0, 600.0, "per_second", shape, options), read_capacity(folder))
    one.ready()
    one.go(60.0)
    threading.Event().wait(1.0)
    try:
        return windows(lambda: one.load.pids[0])
    finally:
        one.close()


def fio(folder: Path) -> list[float]:
    """Return the windows of fio, of the process that writes."""
    command = ["fio", "--name=w", "--rw=write", "--direct=1", "--ioengine=psync", "--thread=0", f"--directory={folder}"]
    command += [f"--bs={BLOCK}", f"--size={FILE}", f"--rate={RATE}", "--time_based", f"--runtime={SECONDS + 20}", "--unlink=1"]
    made = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        threading.Event().wait(3.0)
        (writer, *_) = held.children(made.pid)
        return windows(lambda: writer)
    finally:
        made.terminate()
        made.wait(30)


def judged(found: list[float]) -> dict[str, float]:
    """Return the mean's distance from the rate and the deviation over windows, in shares of the rate."""
    return {"mean_error": abs(statistics.mean(found) - RATE) / RATE, "deviation": statistics.pstdev(found) / RATE}


def main() -> int:
    """Measure, print and store."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, COUNT + 200), hard))
    taken = [(holding(), plain()) for _ in range(ROUNDS)]
    ratios, records = [spent / alone for (spent, _), alone in taken], taken[-1][0][1]
    overhead = statistics.median(ratios) - 1.0
    print(f"overhead of a holder {overhead:+.2%} of the plain calls (goal < 2 %), {records:.1f} records for 1,000 things")
    figures: dict[str, Any] = {"overhead": overhead, "overhead_rounds": ratios, "records_per_1000": records}
    goals = {"overhead": (0.02, overhead < 0.02)}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        rounds = [(judged(ours(folder)), judged(fio(folder)) if shutil.which("fio") else None) for _ in range(2)]
    for mine, theirs in rounds:
        print(f"DiskIO {mine}  fio {theirs or 'is not installed'}")
    figures["pacing"] = {"disk_io": [mine for mine, _ in rounds], "fio": [theirs for _, theirs in rounds if theirs]}
    worst = max(mine["mean_error"] for mine, _ in rounds)
    goals["rate"] = (0.05, worst <= 0.05)
    return store("holding", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
