"""What holding costs beside the plain calls.

Run: python benchmarks/bench_holding.py.

`overhead`: CPU time of a holder that takes descriptors (batches, looks at its lease, figures in shared memory) over that of a loop
of the same calls, less one; rounds alternate, the median counts.
`calls_per_1000`: system calls through which another process can be reached, of a load process that takes as many, for 1,000 of them:
counted by strace from the load's start until it holds all (`system_calls` are all that it made). Without strace left out and said so.
`records_per_1000`: samples that it recorded for 1,000 things taken; each is a store in shared memory.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "load"))

from machine import at_commit, store
from peers import MISSING
from support import held
from support.waiting import until

from actors.clock import SystemClock
from actors.exhaustion.descriptors import FLAGS, OpenFiles
from actors.exhaustion.holder import Holding
from actors.messages import Capacity, Operation
from actors.metrics import Segment

COUNT, ROUNDS = 18_000, 15
CAPACITY = Capacity(1.0, 1 << 30, 1 << 30, descriptors=20_000)
OPERATION = Operation("0", "Descriptors", "n", 0.0, 60.0, "count", {"kind": "constant", "level": COUNT})
REACHING = re.compile(r"(send|recv|p?write|p?read|connect|accept|e?poll|p?select|splice|tee|t?kill|pidfd|ioctl|msg|sem|mq_|process_vm)")


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
    stock, segment = OpenFiles(os.devnull, copies=False), Segment.create()
    watch = Watch(stock)
    load = Holding(stock, OPERATION, CAPACITY, watch, segment.path)
    load.warm_up()
    load.run(Watch.clock.boot_ns())
    records = sum(segment.read(row).count for row, *_ in segment.series())
    segment.close()
    return watch.spent, records * 1000 / COUNT


def system_calls() -> dict[str, int]:
    """Return how often a load process made each system call from its start until it held COUNT descriptors."""
    from load_bench import Bench

    with tempfile.TemporaryDirectory() as name:
        segment, counted = Segment.create(), Path(name) / "counted"
        one = Bench(Path(name), OPERATION, CAPACITY, segment.path)
        try:
            one.ready()
            (pid,) = one.load.pids
            before = held.descriptors(pid)
            with subprocess.Popen(["strace", "-f", "-c", "-o", counted, "-p", str(pid)], stderr=subprocess.DEVNULL) as tracer:
                try:
                    until(lambda: held.status(pid)["TracerPid"] == str(tracer.pid), 10, "strace is attached")
                    one.go()
                    until(lambda: held.descriptors(pid) >= before + COUNT, 60, "all is held")
                finally:
                    tracer.send_signal(signal.SIGINT)  # it lets go of the load and writes its table
        finally:
            one.close()
            segment.close()
        return calls_of(counted.read_text())


def calls_of(table: str) -> dict[str, int]:
    """Return the calls of strace's table: share, seconds, microseconds each, calls, errors where there were some, name."""
    rows = [line.split() for line in table.splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}


def reaching(calls: dict[str, int]) -> int:
    """Return how many of these system calls may have reached another process."""
    return sum(count for name, count in calls.items() if REACHING.match(name))


def goals_of(figures: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """Return the goals, and whether each is reached; what could not be counted has none."""
    most = {"overhead": 0.02, "records_per_1000": 1.0, "calls_per_1000": 1.0}
    return {name: (limit, figures[name] <= limit) for name, limit in most.items() if figures[name] != MISSING}


def main() -> int:
    """Measure, print and store."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, COUNT + 200), hard))
    taken = [(holding(), plain()) for _ in range(ROUNDS)]
    ratios, records = [spent / alone for (spent, _), alone in taken], taken[-1][0][1]
    overhead = statistics.median(ratios) - 1.0
    print(f"overhead of a holder {overhead:+.2%} of the plain calls, {records:.1f} records for 1,000 things", flush=True)
    figures: dict[str, Any] = {"commit": at_commit(), "overhead": overhead, "overhead_rounds": ratios, "records_per_1000": records}
    figures["system_calls"] = found = system_calls() if shutil.which("strace") else MISSING
    figures["calls_per_1000"] = MISSING if found == MISSING else reaching(found) * 1000 / COUNT
    return store("holding", figures, goals_of(figures))


if __name__ == "__main__":
    sys.exit(main())
