"""Recorded on two nodes, asked at the head: from a load's handle and an agent's own counts, by outbox, to the answer over HTTP."""

from __future__ import annotations

import errno
import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest

from actors.clock import SECOND_NS, VirtualClock
from actors.metrics import Recorder, Segment
from cluster.exporters.prometheus import MetricsServer
from cluster.files import write_json_atomic
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.stream import MetricStream
from cluster.outbox import Outbox

RUN = "20261101-120000-two-0001"
SECONDS = 24
ERRORS_S = 20
SCALE = {"n1": 1, "n2": 3}


class Node:
    """A node without its processes: the stream of its agent, and a load with its recorder."""

    def __init__(self, name: str, folder: Path, clock: VirtualClock) -> None:
        box = Outbox(folder / RUN / f"{name}.box", node=name, incarnation="a", run=RUN)
        self.name, self.clock, self.stream, self.segment = name, clock, MetricStream(name, "a", RUN, box, clock), Segment.create()
        self.stream.attach(self.segment, f"0.CpuLoad@{name}", "main")
        self.recorder = Recorder(Segment.open(self.segment.path), clock)

    def second(self, number: int) -> None:
        """Record what happens in a second; sums are exact in binary."""
        scale = SCALE[self.name]
        for probe, more in (("front", 1), ("back", 100)):
            self.recorder.counter("probe.requests", probe=probe).record(scale * more * number)
            self.recorder.histogram("probe.response", probe=probe).record(scale * more * number / 64)
        self.recorder.tick()
        for _ in range(5 if number <= ERRORS_S and self.name == "n1" else 0):
            self.stream.error(OSError(errno.EIO, "planted"))
        for _ in range(2 if number <= ERRORS_S else 0):
            self.stream.error(TimeoutError("planted"))

    def deliver(self, to: Aggregator) -> None:
        """Close the window and send it."""
        assert self.stream.close_window(self.clock.wall_ns())
        self.stream.ack(to.push(self.name, "a", self.stream.unacked()))


@pytest.fixture
def ask(tmp_path: Path) -> Iterator:
    """Record the seconds on both nodes, and give what asks the endpoint."""
    clock = VirtualClock()
    core = Aggregator(RUN, tmp_path / RUN, clock)
    start = datetime.fromtimestamp(clock.wall_ns() / SECOND_NS, UTC).isoformat()
    write_json_atomic(core.directory / "manifest.json", {"run": RUN, "scenario": {"name": "two"}, "status": "running", "start": start})
    nodes = [Node(name, tmp_path, clock) for name in SCALE]
    for number in range(1, SECONDS + 1):
        for node in nodes:
            node.second(number)
        clock.advance(1.0)
        for node in nodes:
            node.deliver(core)
    server = MetricsServer(core, clock=clock, ask=core.answers.ask)

    def asking(**words):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", f"/api/v1/query?{urlencode(words, doseq=True)}")
        return json.loads(connection.getresponse().read())

    yield asking
    server.close()
    core.close()


def test_every_collected_sample_is_in_the_answer_by_name_tag_and_window(ask) -> None:
    """A name pattern, a tag, a span of time: count and sum are those of what was recorded on both nodes; other tags are not in them."""
    told = ask(metric="probe.re*", label="probe=front", stat=["count", "sum"], since="4s", until="14s")
    truth = sum(scale * number for scale in SCALE.values() for number in range(5, 15))
    assert {row["metric"]: (row["figures"]["count"]["value"], row["figures"]["sum"]["value"]) for row in told["rows"]} == {
        "probe.requests": (20, truth),
        "probe.response": (20, truth / 64),
    }
    by_node = ask(metric="probe.requests", label="probe=back", stat="sum", by="node")
    assert {row["by"]["node"]: row["figures"]["sum"]["value"] for row in by_node["rows"]} == {
        node: 100.0 * scale * SECONDS * (SECONDS + 1) / 2 for node, scale in SCALE.items()
    }
    assert (told["run"], told["scenario"]) == (RUN, "two")


def test_planted_errors_are_a_rate_by_code_and_node_that_falls_to_0(ask) -> None:
    """Five errors a second for 20 s on one node, two of another code on both: 5 +/- 0.5 and 2, and 0 in the window after the last."""
    told = ask(metric="errors.rate", stat="last", by=["node", "code"], every="1s")
    found: dict[tuple[str, str], list[float]] = {}
    for row in told["rows"]:
        found.setdefault((row["by"]["node"], row["by"]["code"]), []).append(row["figures"]["last"]["value"])
    assert found.keys() == {("n1", "os"), ("n1", "timeout"), ("n2", "timeout")}
    for (_, code), rates in found.items():
        planted = 5.0 if code == "os" else 2.0
        assert len(rates) == ERRORS_S + 1
        assert all(abs(rate - planted) <= 0.1 * planted for rate in rates[:-1])
        assert rates[-1] == 0.0
