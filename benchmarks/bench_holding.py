"""What holding costs beside the plain calls.

Run: python benchmarks/bench_holding.py.

`overhead`: CPU time of a holder that takes descriptors (batches, looks at its lease, figures in shared memory) over that of a loop
of the same calls, less one; rounds alternate, the median counts.
`records_per_1000`: records that it made for 1,000 things taken; each is a store in shared memory, and none a call of another process.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

from actors.clock import SystemClock
from actors.exhaustion.descriptors import FLAGS, OpenFiles
from actors.exhaustion.holder import Holding
from actors.messages import Capacity, Operation
from actors.metrics import Segment

COUNT, ROUNDS = 19_000, 15
CAPACITY = Capacity(1.0, 1 << 30, 1 << 30, descriptors=20_000)


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
    return store("holding", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
