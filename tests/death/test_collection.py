"""Two nodes collect from load processes of their own: whatever was recorded is collected or counted as dropped, to the sample."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pytest

from actors.clock import SystemClock
from actors.messages import Operation
from actors.metrics.histogram import ERROR
from actors.metrics.policy import Mode, RecordingPolicy
from actors.shape import Constant
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.samples import read_samples
from cluster.node_metrics import NodeMetrics

ROOT = Path(__file__).parents[2]
SAMPLES, INVALID = 1_000_000, 1_000
OPERATION = Operation("0.CpuLoad@n", "CpuLoad", "n", 0.0, 60.0, "fraction", Constant(0.1).to_spec())

LOAD = """
import sys
import numpy as np
from actors.metrics import Recorder, Segment

count, invalid, chance = int(sys.argv[2]), int(sys.argv[3]), np.random.default_rng(int(sys.argv[4]))
recorder = Recorder(Segment.open(sys.argv[1]))
slices, operations = recorder.histogram("load.slice"), recorder.counter("load.operations")
values = chance.lognormal(-6, 1, count)
values[chance.choice(count, invalid, replace=False)] = np.nan
for part in np.array_split(values, 100):
    slices.record_many(part)
    operations.record(part.size)
    recorder.tick()
slices.record_many(values[:0])
recorder.close()
"""


class Node:
    """One node's collecting side, on an aggregator that all share."""

    def __init__(self, name: str, folder: Path, aggregator: Aggregator) -> None:
        self.name, self.aggregator = name, aggregator
        control = SimpleNamespace(lease=lambda _: (0, 0))
        stats = SimpleNamespace(read=lambda _: SimpleNamespace(pid=0, state=0))
        guardian = SimpleNamespace(control=control, stats=stats, hello={"guardian_id": name})
        self.metrics = NodeMetrics(name, 7, folder / name, guardian, SystemClock(), 64 << 20)
        self.operation = replace(OPERATION, id=f"0.CpuLoad@{name}", node=name)

    def begin(self, run: str, seed: int, count: int, invalid: int) -> subprocess.Popen[bytes]:
        """Begin to collect a run, and start its load."""
        self.metrics.begin(run, RecordingPolicy(mode=Mode.DETAILED))
        path = self.metrics.open_segment(run, self.operation)
        command = [sys.executable, "-c", LOAD, path, str(count), str(invalid), str(seed)]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def turn(self, run: str) -> None:
        """Close a window and deliver."""
        self.metrics.close_windows()
        self.metrics.deliver(run, self._push)

    def end(self, run: str) -> None:
        """Drain a last time, name the end, deliver, forget."""
        self.metrics.unwatch(run, self.operation.id)
        self.metrics.seal(run)
        self.metrics.deliver(run, self._push)
        assert self.metrics.delivered(run)
        self.metrics.forget(run)

    def _push(self, _run: str, node: str, incarnation: str, records: list[tuple[int, bytes]], _timeout_s: float) -> int:
        return self.aggregator.push(node, incarnation, records)


def sums(aggregator: Aggregator, metric: str, node: str, column: str = "sum") -> float:
    """Return what the head answers about one node."""
    return pc.sum(aggregator.query(metric, node=node)[column]).as_py() or 0.0


def test_a_million_samples_a_node_are_collected_or_counted(tmp_path: Path) -> None:
    """On two nodes at once: in windows + invalid = recorded; written + dropped = given away; nothing waits at the end."""
    run = "r"
    aggregator = Aggregator(run, tmp_path / run, SystemClock())
    nodes = [Node(name, tmp_path / "state", aggregator) for name in ("n1", "n2")]
    loads = [node.begin(run, seed, SAMPLES, INVALID) for seed, node in enumerate(nodes)]
    while any(load.poll() is None for load in loads):
        for node in nodes:
            node.turn(run)
    assert [load.returncode for load in loads] == [0, 0]
    for node in nodes:
        node.end(run)
    summary = aggregator.finish({"status": "passed"}, {"status": "passed"})
    written = read_samples(tmp_path / run)
    for seed, name in enumerate(("n1", "n2")):
        collected, invalid = sums(aggregator, "load.slice", name, "count"), sums(aggregator, "metrics.dropped", name)
        assert (collected + invalid, invalid) == (SAMPLES, INVALID)
        assert sums(aggregator, "load.operations", name) == SAMPLES
        mine = written.filter(pc.equal(written["node"], name)).num_rows
        assert mine + sums(aggregator, "samples.dropped", name) == sums(aggregator, "samples.produced", name) == SAMPLES - INVALID + 100
        values = np.random.default_rng(seed).lognormal(-6, 1, SAMPLES)
        for stat, quantile in (("p50", 0.5), ("p99", 0.99)):
            found = aggregator.evaluate("load.slice", stat, node=name)
            assert found == pytest.approx(np.quantile(values, quantile), rel=1.05 * ERROR), "the thousand that are left out move it less"
    assert (summary["losses"]["unflushed_recorders"], summary["losses"]["open_streams"]) == (0, 0)
    assert summary["losses"]["dropped_samples"] == {"invalid": 2.0 * INVALID}
    aggregator.close()
    _again(tmp_path, nodes)


def _again(folder: Path, nodes: list[Node]) -> None:
    """Collecting begins anew after its end: another run on the same two nodes."""
    aggregator = Aggregator("again", folder / "again", SystemClock())
    for seed, node in enumerate(nodes):
        node.aggregator = aggregator
        assert node.begin("again", seed, 5_000, 0).wait(60) == 0
        node.end("again")
    aggregator.finish({"status": "passed"}, {"status": "passed"})
    assert [sums(aggregator, "load.slice", name, "count") for name in ("n1", "n2")] == [5_000, 5_000]
    aggregator.close()
