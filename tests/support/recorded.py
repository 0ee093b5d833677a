"""The whole metric path in one process: recorder, segment, agent's stream, outbox, aggregator. As a command, under a flood of samples."""

from __future__ import annotations

import sys
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


class MetricPath:
    """From a handle of `recorder` to an aggregator of run `r`, on node `n1`, worker `w`, phase `p`."""

    def __init__(self, folder: Path) -> None:
        self._clock = SystemClock()
        self._segment = Segment.create()
        self._stream = MetricStream("n1", "a", "r", Outbox(folder / "n1-a.box", node="n1", incarnation="a", run="r"), self._clock)
        self._stream.attach(self._segment, "w", "p")
        self.recorder = Recorder(Segment.open(self._segment.path), self._clock)
        self.aggregator = Aggregator("r", folder / "run", self._clock)

    def close_window(self) -> None:
        """Let the aggregator have what was recorded."""
        self.recorder.tick()
        self._stream.close_window(self._clock.wall_ns())
        self._stream.ack(self.aggregator.push("n1", "a", self._stream.unacked(1 << 30)))

    def close(self) -> None:
        """Give up files and memory."""
        self.aggregator.close()
        self._segment.close()


def main(folder: Path) -> None:
    """Take 10^7 samples of a histogram and a counter, a page with each window; wait for a line after a tenth of them, and at the end."""
    path = MetricPath(folder)
    response, requests = path.recorder.histogram("probe.response", probe="x"), path.recorder.counter("probe.requests", probe="x")
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
