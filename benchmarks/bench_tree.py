"""What does the aggregator do for N agents' windows, flat and under a tree of relays? Calls, syncs, bytes and CPU, in the same run.

Run: python benchmarks/bench_tree.py. Each agent seals one window a round, 18 rows of the usual metrics (`tests.support.windows` with
more gauges); all of them reach the real aggregator with its log on this disk: by a call each (flat), and through the relays of a tree
of fan-in 100, whose level under the aggregator hands in bundles. `gathered` is the flat form with one sync for whatever waits, as if
all agents called at once: what of the gain comes from syncs, and what from the callers being few. Turns alternate, the best counts.
Relays are measured apart: what one of them costs for a record.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

from actors.clock import SystemClock
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.intake import contiguous
from cluster.metrics.store import Stream
from cluster.metrics.tree import ROOT, Layout, Pace, Part, Relay, layout
from cluster.metrics.windows import Row
from tests.support.windows import record

NODES = (300, 1000)
FAN_IN = 100
ROUNDS = 4
GAUGES = 15
SYNC_RATIO, CPU_RATIO = 20.0, 1.0


def windows(nodes: list[str], number: int) -> dict[Stream, tuple[tuple[int, bytes], ...]]:
    """Return one window of each node."""
    rows = [Row("host.cpu.busy", Kind.GAUGE, "ratio", "", f"p{at}", (), 1, 0.5, 0.5, 0.5, 0.5) for at in range(GAUGES)]
    return {(node, "1"): (record(node, number, rows=[*rows, *usual(number)], events=0),) for node in nodes}


def usual(number: int) -> list[Row]:
    """Return rows of a counter, a gauge and a histogram."""
    made = Histogram.of([at * 1e-3 for at in range(1, 200)])
    labels = (("probe", "x"),)
    return [
        Row("probe.requests", Kind.COUNTER, "", "w", "p", labels, 1, float(number), last=float(number)),
        Row("probe.response", Kind.HISTOGRAM, "seconds", "w", "p", labels, 199, made.sum, made.min, made.max, digest=made.encode()),
        Row("host.memory.used", Kind.GAUGE, "bytes", "", "p", (), 1, 1e9, 1e9, 1e9, 1e9),
    ]


class Root:
    """An aggregator on this disk, and what it was made to do."""

    def __init__(self, folder: Path) -> None:
        self.core = Aggregator("r", folder, SystemClock())
        self.work: Counter[str] = Counter()

    def take(self, parts: dict[Stream, tuple[tuple[int, bytes], ...]]) -> dict[Stream, int]:
        real = os.fsync

        def fsync(fd: int) -> None:
            self.work["syncs"] += 1
            real(fd)

        with mock.patch("os.fsync", fsync):
            began, began_cpu = time.perf_counter(), time.thread_time()
            held = self.core.push_many(parts)
            self.work["wall_ns"] += round((time.perf_counter() - began) * 1e9)
            self.work["cpu_ns"] += round((time.thread_time() - began_cpu) * 1e9)
        self.work["calls"] += 1
        self.work["records"] += sum(len(records) for records in parts.values())
        self.work["bytes"] += sum(len(data) for records in parts.values() for _, data in records)
        return held

    def figures(self) -> dict[str, float]:
        records = self.work["records"]
        return {
            "calls": self.work["calls"],
            "syncs": self.work["syncs"],
            "bytes_a_record": round(self.work["bytes"] / records, 1),
            "cpu_us_a_record": round(self.work["cpu_ns"] / records / 1e3, 1),
            "records_per_s": round(records / self.work["wall_ns"] * 1e9),
        }


def through_relays(tree: Layout, parts: dict[Stream, tuple[tuple[int, bytes], ...]], root: Root, spent: Counter[str]) -> None:
    """Hand one window of each node up level by level."""
    calls: dict[str, list[tuple[str, tuple[Part, ...]]]] = {}
    for (node, life), records in parts.items():
        calls.setdefault(tree.ways[node][0], []).append((node, (((node, life), records),)))
    for level in tree.levels:
        above: dict[str, list[tuple[str, tuple[Part, ...]]]] = {}
        for name in level:
            for bundle in relayed(calls[name], spent):
                above.setdefault(tree.ways[name][0], []).append((name, bundle))
        calls = above
    for _, bundle in calls[ROOT]:
        held = root.take(dict(bundle))
        assert all(held[stream] == records[-1][0] for stream, records in bundle)


def relayed(calls: list[tuple[str, tuple[Part, ...]]], spent: Counter[str]) -> Iterator[tuple[Part, ...]]:
    """Yield the bundles that a relay makes of these calls; its own time goes into `spent`."""
    relay = Relay(Pace())
    began = time.thread_time_ns()
    for number, (sender, parts) in enumerate(calls):
        assert not relay.offer(number, sender, parts, 0), "a relay has room for a window of each child"
    made = []
    while relay.due_ns() is not None:
        bundle = relay.take()
        relay.answered(bundle.number, {stream: records[-1][0] for stream, records in bundle.parts})
        made.append(bundle.parts)
    spent["ns"] += time.thread_time_ns() - began
    spent["records"] += sum(len(records) for parts in made for _, records in parts)
    yield from made


def measure(count: int, folder: Path) -> dict[str, object]:
    """Return each form's figures of the best round, after one that warms up."""
    nodes = [f"node-{at:05d}" for at in range(count)]
    tree, spent = layout(nodes, FAN_IN), Counter[str]()
    roots = {form: Root(folder / f"{form}-{count}") for form in ("flat", "gathered", "tree")}
    best: dict[str, dict[str, float]] = {}
    for number in range(1, ROUNDS + 2):
        parts = windows(nodes, number)
        for form, root in roots.items():
            root.work.clear()
            if form == "flat":
                for stream, records in parts.items():
                    root.take({stream: records})
            elif form == "gathered":
                root.take(dict(parts))
            else:
                through_relays(tree, parts, root, spent)
            found = root.figures()
            if number > 1 and (form not in best or found["records_per_s"] > best[form]["records_per_s"]):
                best[form] = found
    for root in roots.values():
        assert sum(contiguous(root.core.coverage, (node, "1")) for node in nodes) == count * (ROUNDS + 1), "a window is missing"
        root.core.close()
    levels = [len(level) for level in tree.levels]
    return {"relays_by_level": levels, "relay_us_a_record": round(spent["ns"] / spent["records"] / 1e3, 2), **best}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-tree-") as folder:
        figures = {f"{count}_nodes": measure(count, Path(folder)) for count in NODES}
    largest = figures[f"{NODES[-1]}_nodes"]
    flat, tree = largest["flat"], largest["tree"]
    assert isinstance(flat, dict)
    assert isinstance(tree, dict)
    syncs, cpu = flat["syncs"] / tree["syncs"], flat["cpu_us_a_record"] / tree["cpu_us_a_record"]
    shown = {
        "fan_in": FAN_IN,
        "rows_a_window": GAUGES + 3,
        **figures,
        "times_fewer_syncs": round(syncs, 1),
        "times_less_cpu": round(cpu, 2),
    }
    goals = {
        "1,000 nodes: times fewer syncs at the aggregator, at least": (SYNC_RATIO, syncs >= SYNC_RATIO),
        "1,000 nodes: times less CPU a record at the aggregator, at least": (CPU_RATIO, cpu >= CPU_RATIO),
    }
    return store("tree", shown, goals, ("numpy", "pyarrow"))


if __name__ == "__main__":
    sys.exit(main())
