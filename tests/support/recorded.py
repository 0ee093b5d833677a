"""The whole metric path in one process: recorder, segment, agent's stream, outbox, aggregator. As a command, under a flood of samples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from actors.clock import SystemClock
from actors.metrics import Recorder, Segment
from cluster.exporters.exposition import Form
from cluster.exporters.prometheus import render
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.stream import MetricStream
from cluster.outbox import Outbox

WINDOWS, BATCHES, BATCH = 100, 10, 10_000  # of `main`: 10^7 samples


class Node:
    """One node's part: a load's recorder, its segment, the agent's stream."""

    def __init__(self, name: str, folder: Path) -> None:
        clock = SystemClock()
        self.segment = Segment.create()
        self.stream = MetricStream(name, "a", "r", Outbox(folder / f"{name}-a.box", node=name, incarnation="a", run="r"), clock)
        self.stream.attach(self.segment, "w", "p")
        self.recorder = Recorder(Segment.open(self.segment.path), clock)


class MetricPath:
    """From handles of recorders to the aggregator of run `r`; worker `w`, phase `p`."""

    def __init__(self, folder: Path, names: Sequence[str] = ("n1",)) -> None:
        self.nodes = {name: Node(name, folder) for name in names}
        self.aggregator = Aggregator("r", folder / "run", SystemClock())

    def close_window(self) -> None:
        """Let the aggregator have what was recorded on every node."""
        for name, node in self.nodes.items():
            node.recorder.tick()
            node.stream.close_window(SystemClock().wall_ns())
            node.stream.ack(self.aggregator.push(name, "a", node.stream.unacked(1 << 30)))

    def close(self) -> None:
        """Give up files and memory."""
        self.aggregator.close()
        for node in self.nodes.values():
            node.segment.close()


def main(folder: Path) -> None:
    """Take 10^7 samples of a histogram and a counter, a page with each window; wait for a line after a tenth of them, and at the end."""
    path = MetricPath(folder)
    recorder = path.nodes["n1"].recorder
    response, requests = recorder.histogram("probe.response", probe="x"), recorder.counter("probe.requests", probe="x")
    chance = np.random.default_rng(1)
    for window in range(1, WINDOWS + 1):
        for _ in range(BATCHES):
            response.record_many(chance.lognormal(-6, 2, BATCH))
            requests.record_many(np.ones(BATCH))
        path.close_window()
        pages = [render("r", path.aggregator.latest(), form) for form in Form]
        if window in (WINDOWS // 10, WINDOWS):
            read = {one.name: one.value for family in text_string_to_metric_families(pages[0].decode()) for one in family.samples}
            print(int(read["stress_cluster_probe_response_seconds_count"]), int(read["stress_cluster_probe_requests_total"]), flush=True)
            sys.stdin.readline()
    path.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
