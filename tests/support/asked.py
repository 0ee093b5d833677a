"""A small finished run to ask: two nodes, half a minute, response times that follow the CPU by three seconds."""

from __future__ import annotations

import math
from pathlib import Path

from actors.clock import VirtualClock
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.windows import Row

from .windows import START_S, end, record

RUN = "20231114-221320-burst-0001"
SECONDS = 30
LAG = 3
MANIFEST = {"status": "passed", "run": RUN, "start": "2023-11-14T22:13:20.400000+00:00", "scenario": {"name": "burst"}}


def busy(second: int) -> float:
    """Return the CPU share of a second: irregular, and the same in each run."""
    return round(0.5 + 0.4 * math.sin(second * second), 3)


def rows(node: str, second: int) -> list[Row]:
    """Return a window's rows."""
    share = busy(second) if node == "n1" else 0.25
    made = []
    for probe, scale in (("front", 1.0), ("back", 4.0)):
        found = Histogram.of([scale * (0.01 + 0.02 * busy(second - LAG)), scale * 0.05])
        labels = (("probe", probe),)
        made.append(
            Row(
                "probe.response",
                Kind.HISTOGRAM,
                "seconds",
                "prober",
                "main",
                labels,
                2,
                found.sum,
                found.min,
                found.max,
                digest=found.encode(),
            )
        )
        made.append(Row("probe.requests", Kind.COUNTER, "", "prober", "main", labels, 2, 2.0 * scale, last=0.0))
    gauges = [("host.cpu.busy", "ratio", "", share), ("dose.achieved", "ratio", f"0.0.CpuLoad@{node}", share - 0.05)]
    if node == "n1":
        gauges.append(("dose.achieved", "bytes", "0.1.MemoryPressure@n1", float(256 << 20)))
    made += [Row(name, Kind.GAUGE, unit, worker, "main", (), 1, value, value, value, value) for name, unit, worker, value in gauges]
    return made


def make_run(directory: Path, *, finish: bool = True) -> Aggregator:
    """Write the run; return its aggregator, closed when the run is finished."""
    aggregator = Aggregator(RUN, directory, VirtualClock())
    for node in ("n1", "n2"):
        aggregator.push(node, "a", [record(node, at, rows=rows(node, at)) for at in range(1, SECONDS + 1)])
    if finish:
        for node in ("n1", "n2"):
            aggregator.push(node, "a", [end(SECONDS + 1)])
        aggregator.finish({"status": "passed"}, MANIFEST)
        aggregator.close()
    return aggregator


assert START_S == 1_700_000_000, "the manifest's start is this in words"
