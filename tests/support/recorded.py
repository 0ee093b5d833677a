"""The whole metric path in one process: recorder, segment, agent's stream, outbox, aggregator. As a command, under a flood.

python -m tests.support.recorded samples FOLDER           10^7 samples of two series, a page with each window
python -m tests.support.recorded series OFFERED AT_ONCE   so many label sets come and go, a page with each change
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from actors.clock import SECOND_NS, SystemClock
from actors.metrics import Recorder, Segment
from actors.metrics.registry import Kind
from cluster.exporters.exposition import Form
from cluster.exporters.page import Page
from cluster.exporters.prometheus import render
from cluster.metrics import live as live_module
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.live import Live
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import Row, histograms, metrics_batch
from cluster.outbox import Outbox

WINDOWS, BATCHES, BATCH = 100, 10, 10_000  # 10^7 samples


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


def say(*words: object) -> None:
    """Print a line and wait for one, so that this process can be looked at."""
    print(*words, flush=True)
    sys.stdin.readline()


def flood_of_samples(folder: Path) -> None:
    """Take samples of a histogram and a counter; say what the page has after a tenth of them, and at the end."""
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
            say(int(read["stress_cluster_probe_response_seconds_count"]), int(read["stress_cluster_probe_requests_total"]))
    path.close()


def flood_of_series(offered: int, at_once: int) -> None:
    """Let label sets come, a tenth of the limit each 20 s, and stay away after that; say what is shown when it is full, and at the end."""
    live_module.MAX_SERIES = at_once
    live, page, step = Live(), Page("r", Form.TEXT), at_once // 10
    for first in range(0, offered, step):
        rows = [
            Row("export.queue", Kind.GAUGE, "", "w", "p", (("exporter", f"e{at}"),), 1, 1.0, 1.0, 1.0, 1.0)
            for at in range(first, first + step)
        ]
        batch = metrics_batch(rows, node="n1", start_ns=first, window_s=1.0)
        live.absorb(batch, histograms(batch), first // step * 20 * SECOND_NS)
        lines = page.render(live.samples()).lines
        if first // step == 20 or first + step >= offered:
            say(lines, live.refused)


if __name__ == "__main__":
    if sys.argv[1] == "samples":
        flood_of_samples(Path(sys.argv[2]))
    else:
        flood_of_series(int(sys.argv[2]), int(sys.argv[3]))
