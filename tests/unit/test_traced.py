"""Tracing: the path of a record through the pipeline, and of a chosen row from the node that recorded it to every file."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from actors.breaker import BreakerPolicy
from actors.clock import SystemClock, VirtualClock
from actors.errors import InputError
from cluster import cli
from cluster.export_traces import FILE, PATHS_MAX, TraceLog, read_traces, settle
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.rows import pieces
from cluster.exporters.rules import parse
from cluster.exporters.trace import HOPS_MAX, Origin, Tracer
from cluster.exporters.trace import Path as TracedPath
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal
from cluster.outbox import Outbox
from cluster.outbox import parse as parse_frame
from cluster.run_exports import RunExports, bring_up_to_date
from cluster.traced import Point, lines_of, series_digest, trace
from scenarios.exporters import Destination, Exporters, Route, Rule, When
from tests.support.exporting import RUN, write_manifest
from tests.support.sinks import GateSink, ListSink, numbered
from tests.support.waiting import until
from tests.support.windows import record

CLOCK = SystemClock()
ORIGIN = Origin("n1", "life", 7, 0, 1.0, 150, 0)
ALL = pc.field("record") >= 0


def followed(limits: Limits, plan: list[Exception | None], exports: list[int], rules: dict[str, Any] | None = None) -> list[TracedPath]:
    """Return the paths of records of so many rows to one sink, on a virtual clock."""

    async def scene() -> list[TracedPath]:
        clock = VirtualClock()

        async def advance(event: asyncio.Event, timeout_s: float | None) -> None:
            if timeout_s is None:
                await event.wait()
            else:
                clock.advance(timeout_s)
                await asyncio.sleep(0)

        pipeline = ExportPipeline(clock=clock, wait=advance, seed=1)
        pipeline.add("a", ListSink(plan), limits)
        await pipeline.set_rules(parse(rules or {}))
        for rows in exports:
            await pipeline.export(numbered(0, rows), origin=ORIGIN)
        await pipeline.shutdown()
        return pipeline.tracer.collect()

    return asyncio.run(scene())


@pytest.mark.parametrize(
    ("limits", "plan", "rules", "want"),
    [
        pytest.param(
            Limits(batch_rows=200, batch_age_s=2.0),
            [OSError("once")],
            {},
            [("routed", 150, 0), ("queued", 150, 0), ("sent", 150, 1), ("failed", 150, 1), ("sent", 150, 2), ("delivered", 150, 2)],
            id="a-failure-on-the-way",
        ),
        pytest.param(
            Limits(),
            [],
            {"chains": {"a": [{"when": {"metric": "host.*"}, "keep": False}]}},
            [("routed", 150, 0), ("through the rules", 0, 0)],
            id="left-out-by-a-rule",
        ),
        pytest.param(Limits(), [], {"routes": [{"to": ["a"], "when": {"metric": "probe.*"}}]}, [], id="sent-elsewhere"),
        pytest.param(
            Limits(queue_rows=100, batch_rows=75, batch_age_s=0.1),
            [],
            {},
            [("routed", 150, 0), ("queued", 75, 0), ("dropped: newest", 75, 0), ("sent", 75, 1), ("delivered", 75, 1)],
            id="half-of-it-found-no-room",
        ),
        pytest.param(
            Limits(Overflow.SAMPLE, queue_rows=150, batch_rows=75, sample_one_in=5, batch_age_s=0.1),
            [],
            {},
            [
                ("routed", 150, 0),
                ("queued", 75, 0),
                ("dropped: sampled", 60, 0),
                ("queued", 15, 0),
                ("sent", 75, 1),
                ("delivered", 75, 1),
                ("sent", 15, 2),
                ("delivered", 15, 2),
            ],
            id="thinned",
        ),
    ],
)
def test_a_record_is_followed_to_its_sink(limits: Limits, plan: list[Exception | None], rules: dict[str, Any], want: list[Any]) -> None:
    """Each stage with its rows and batch, in the order of time, through failures and losses; what has its outcome is whole."""
    paths = followed(limits, plan, [150], rules)
    assert [(hop.stage, hop.rows, hop.batch) for path in paths for hop in path.hops] == want
    for path in paths:
        assert (path.origin, path.exporter, path.open_rows) == (ORIGIN, "a", 0)
        assert [hop.at_ns for hop in path.hops] == sorted(hop.at_ns for hop in path.hops)


def test_records_that_share_a_batch_are_told_apart() -> None:
    """Each path has the rows of its own record, in one batch or in several."""
    lane = Lane(Limits(batch_rows=100), BreakerPolicy())
    paths = []
    for rows in (30, 40, 50, 120):
        path = TracedPath(ORIGIN, "a", open_rows=rows)
        for part in pieces(numbered(0, rows), lane.limits):
            lane.offer(part, 0, path)
        paths.append(path)
    while lane.take(0, at_once=True) is not None:
        lane.succeeded(0)
    ends = [[(hop.rows, hop.batch) for hop in path.hops if hop.stage == "delivered"] for path in paths]
    assert ends == [[(30, 1)], [(40, 1)], [(50, 2)], [(60, 3), (60, 4)]]
    assert [path.open_rows for path in paths] == [0, 0, 0, 0]
    assert not lane._marks, "nothing is kept of what has ended"
    path = TracedPath(ORIGIN, "a", open_rows=60)
    lane.offer(numbered(0, 60), 0, path)
    lane.change(Limits(batch_rows=25), BreakerPolicy())
    while lane.take(0, at_once=True) is not None:
        lane.succeeded(0)
    assert [(hop.rows, hop.batch) for hop in path.hops if hop.stage == "delivered"] == [(25, 5), (17, 6), (18, 7)]
    assert path.open_rows == 0


def test_paths_are_bounded() -> None:
    """So many at once, so many hops each; what is beyond is counted, and outcomes are always kept."""
    tracer = Tracer(kept=2)
    paths = [tracer.begin(ORIGIN, "a") for _ in range(3)]
    assert paths[2] is None
    assert tracer.untraced == 1
    path = paths[0]
    assert path is not None
    path.open_rows = 5
    for at in range(HOPS_MAX + 10):
        path.hop("failed", at, 5, at)
    path.end("delivered", 99, 5)
    assert (len(path.hops), path.unlisted, path.hops[-1].stage) == (HOPS_MAX + 1, 10, "delivered")
    paths[1].open_rows = 1  # type: ignore[union-attr]
    assert tracer.collect() == [path]
    assert tracer.collect(whole=False) == [paths[1]]
    assert tracer.begin(ORIGIN, "a") is not None


def made_paths(number: int) -> list[TracedPath]:
    found = [TracedPath(Origin("n1", "life", at, at * 1_000_000, 1.0, 3, at), "a") for at in range(number)]
    for path in found:
        path.end("delivered", 5, 3, 1)
    return found


def test_paths_on_disk_are_there_once_whenever_one_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the log while it is written, torn or whole; in Parquet later; in both when a death came between; added to by another life."""
    first = TraceLog(tmp_path, VirtualClock())
    first.add(made_paths(5))
    assert len(read_traces(tmp_path, ALL)) == 5
    first.close()
    (log,) = (tmp_path / "log").glob("traces-*.arrows")
    shutil.copy(log, tmp_path / "kept")
    settle(tmp_path)
    assert not log.exists()
    shutil.copy(tmp_path / "kept", log)  # its deletion came too late
    assert len(read_traces(tmp_path, ALL)) == 5
    second = TraceLog(tmp_path, VirtualClock())
    second.add(made_paths(2))
    second.add(made_paths(1))
    torn = max((tmp_path / "log").glob("traces-*.arrows"))
    torn.write_bytes(torn.read_bytes()[:-5])
    assert len(read_traces(tmp_path, ALL)) == 7
    settle(tmp_path)
    assert len(read_traces(tmp_path, ALL)) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "log", FILE]
    assert not list((tmp_path / "log").iterdir())
    second.close()
    monkeypatch.setattr("cluster.export_traces.PATHS_MAX", 3)
    third = TraceLog(tmp_path, VirtualClock())
    third.add(made_paths(9))
    assert (third.written, third.unwritten, PATHS_MAX) == (3, 6, 1_000_000)
    third.close()
    refused = TraceLog(tmp_path / "none", VirtualClock())
    refused.add(made_paths(2))
    assert refused.unwritten == 2


# a whole run


class Node:
    """A node's own side of the metric path: windows of a second, and an outbox on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.life = name, f"{name}-life"
        self.clock = VirtualClock(wall_offset_ns=CLOCK.wall_ns() // 10**9 * 10**9 - 1_100 * 10**9)
        self.box = Outbox(folder / "outbox" / f"{name}.box", node=name, incarnation=self.life, run=RUN)
        self.stream = MetricStream(name, self.life, RUN, self.box, self.clock)

    def second(self, core: Aggregator, *, ends: bool = False) -> None:
        """Record for a second and hand the window to the aggregator."""
        self.stream.observe("probe.response", 0.01, "w", "p", {"probe": "x"})
        self.stream.observe("host.cpu.busy", 0.5)
        self.clock.advance(1.0)
        assert self.stream.close_window(self.clock.wall_ns())
        if ends:
            self.stream.finish()
        core.push(self.name, self.life, self.box.unacked())


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Aggregator]:
    made = Aggregator(RUN, tmp_path / "state" / "runs" / RUN, CLOCK)
    yield made
    made.close()


WANTED = Exporters(
    destinations=(
        Destination("csv", "all.csv", name="all"),
        Destination("jsonl", "probes.jsonl", name="probes", rules=(Rule(When(metric="host.*"), keep=False),)),
        Destination("jsonl", "slow.jsonl", name="slow", rules=(Rule(When(metric="probe.*"), every_s=10.0),)),
        Destination("json", "rest.json", name="rest"),
    ),
    routes=(Route(("all", "probes", "slow"), When(node="n*")),),
    default=("rest",),
    drain_s=60.0,
)


def outcomes(found: dict[str, Any]) -> dict[str, str]:
    return {one["exporter"]: one["outcome"] for one in found["exports"]}


def test_one_trace_id_links_the_row_of_a_node_with_every_file(
    core: Aggregator, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a chosen row of each of two nodes: recorded, collected, aggregated, exported, in one id that the outbox has too."""
    write_manifest(core, WANTED)
    exports = RunExports(core, WANTED, CLOCK)
    nodes = [Node(tmp_path, name) for name in ("n1", "n2")]
    sealed: dict[tuple[str, int], Any] = {}
    for _ in range(5):
        for node in nodes:
            before = node.box.last
            node.second(core)
            for number, frame in node.box.unacked():
                if number > before:
                    sealed[node.name, number] = unseal(parse_frame(frame).payload)[0]
    exports.finish()
    core.finish()
    write_manifest(core, WANTED, "passed")
    rows = list(csv.DictReader((core.directory / "exports" / "all.csv").read_text().splitlines()))
    for node in nodes:
        found = trace(core.directory, RUN, WANTED, Point("probe.response", node=node.name))
        run, name, life, number, series = found["trace"].split(":")
        own = sealed[name, int(number)].to_pylist()
        assert (run, name, life) == (RUN, node.name, node.life)
        (same,) = [row for row in own if row["metric"] == "probe.response"]
        assert (same["time"], series_digest(same)) == (found["point"]["time"], series), "the node's own record has the row and its id"
        assert found["records"] == [{"node": name, "incarnation": life, "record": 5, "rows": len(own)}]
        assert outcomes(found) == {"all": "delivered", "probes": "delivered", "slow": "merged", "rest": "not routed"}
        hops = found["exports"][0]["hops"]
        assert [hop["stage"] for hop in hops] == ["routed", "queued", "sent", "delivered"]
        assert [found["aggregated"]["at"], *(hop["at"] for hop in hops)] == sorted(
            [found["aggregated"]["at"], *(hop["at"] for hop in hops)]
        )
        assert hops[2]["batch"] == hops[3]["batch"] > 0
        stamp = found["point"]["time"].strftime("%Y-%m-%dT%H:%M:%S")
        assert [row for row in rows if row["node"] == name and row["metric"] == "probe.response" and row["time"].startswith(stamp)]
        assert trace(core.directory, RUN, WANTED, Point.of_id(found["trace"], RUN)) == found
    at_s = found["point"]["time"].timestamp() - 2
    earlier = trace(core.directory, RUN, WANTED, Point("probe.*", node="n2", worker="w", labels=(("probe", "x"),), at_s=at_s))
    assert earlier["records"][0]["record"] == 3
    busy = trace(core.directory, RUN, WANTED, Point("host.cpu.busy", node="n1"))
    assert outcomes(busy) == {"all": "delivered", "probes": "filtered", "slow": "delivered", "rest": "not routed"}
    own = trace(core.directory, RUN, WANTED, Point("export.queue"))
    assert outcomes(own)["rest"] == "delivered", "the rows that exporters make of themselves have a path too"
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    assert cli.main(["trace", str(core.directory), "probe.response", "--node", "n2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trace"] == found["trace"]
    assert cli.main(["trace", str(core.directory), found["trace"]]) == 0
    told = capsys.readouterr().out
    assert told.splitlines() == lines_of(found)
    for word in (
        found["trace"],
        "recorded      probe.response probe=x on n2",
        "record 5 of n2",
        "-> slow: merged; its rule 1",
        "-> all: delivered",
    ):
        assert word in told


def test_a_living_run_is_traced_as_far_as_it_goes(core: Aggregator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivered where it was, waiting where a destination hangs, and dropped with the reason where there was no room."""
    monkeypatch.setattr("cluster.run_exports.TICK_S", 0.02)
    wanted = Exporters(
        destinations=tuple(Destination("jsonl", f"{name}.jsonl", name=name, batch_age_s=0.01) for name in ("well", "hung")), drain_s=0.1
    )
    write_manifest(core, wanted)
    hung = GateSink()
    exports = RunExports(core, wanted, CLOCK, tells=False, make=lambda one, _: hung if one.name == "hung" else ListSink())
    node = Node(tmp_path, "n1")
    node.second(core)
    asked = Point("probe.response")
    until(lambda: outcomes(trace(core.directory, RUN, wanted, asked))["well"] == "delivered", 20)
    found = trace(core.directory, RUN, wanted, asked)
    assert (found["records"][0]["record"], found["trace"].split(":")[1]) == (1, "n1")
    assert outcomes(found)["hung"] == "unknown", "paths without an end are written at the end"
    exports.finish()
    found = trace(core.directory, RUN, wanted, asked)
    assert outcomes(found) == {"well": "delivered", "hung": "dropped: shutdown"}
    hung.gate.set()


def test_rows_that_shared_a_record_but_no_fate_are_said_to(core: Aggregator) -> None:
    """Of a record of which a part was dropped, the numbers are told, and not which row it was."""
    wanted = Exporters(destinations=(Destination("jsonl", "a.jsonl", name="a", queue_rows=2, batch_rows=2),), drain_s=0.1)
    write_manifest(core, wanted)
    hung = GateSink()
    exports = RunExports(core, wanted, CLOCK, tells=False, make=lambda *_: hung)
    until(lambda: "a" in exports._feed._live, 20)  # else it is brought what comes, as it has room
    core.push("n1", "a", [record("n1", 1)])
    exports.finish()
    (export,) = trace(core.directory, RUN, wanted, Point("host.cpu.busy"))["exports"]
    assert (export["outcome"], "of 3 rows" in export["detail"]) == ("shared", True), export
    hung.gate.set()


def test_what_was_read_again_from_a_file_has_the_files_path(core: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that got a record from a Parquet part has the path of that part."""
    core.push("n1", "a", [record("n1", number) for number in (1, 2)])
    core.finish()
    wanted = Exporters(destinations=(Destination("csv", "a.csv", name="a"),))
    write_manifest(core, wanted)
    RunExports(core, wanted, CLOCK, tells=False).finish()
    found = trace(core.directory, RUN, wanted, Point("probe.requests"))
    assert (found["trace"], outcomes(found)) == (None, {"a": "delivered"})
    assert "this row was rolled up, or its record is not known" in lines_of(found)[0]
    core.push("n1", "a", [record("n1", 3)])
    assert bring_up_to_date(core, CLOCK, 10.0) is not None
    found = trace(core.directory, RUN, wanted, Point("probe.requests"))
    assert (found["trace"].split(":")[3], outcomes(found)) == ("3", {"a": "delivered"})


def test_a_run_without_exporters_is_traced_to_its_aggregator(core: Aggregator) -> None:
    """What is in the log names its record; nobody else got it."""
    core.push("n1", "a", [record("n1", 1)])
    found = trace(core.directory, RUN, Exporters(), Point("probe.requests"))
    assert (found["records"], found["exports"]) == ([{"node": "n1", "incarnation": "a", "record": 1, "rows": 3}], [])
    assert lines_of(found)[-1] == "this run has no exporters"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        pytest.param(lambda: Point("probe.respons"), "unknown metric", id="metric"),
        pytest.param(lambda: Point("probe.response", node="n9"), "no row", id="node"),
        pytest.param(lambda: Point("probe.response", at_s=1.0), "no row", id="moment"),
        pytest.param(lambda: Point.of_id("a:b", RUN), "no trace id", id="no-id"),
        pytest.param(lambda: Point.of_id("other:n1:a:1:00000000", RUN), "another run", id="other-run"),
        pytest.param(lambda: Point.of_id(f"{RUN}:n1:a:99:00000000", RUN), "no path of record 99", id="record"),
    ],
)
def test_a_row_that_is_not_there_is_said(core: Aggregator, point: Any, message: str) -> None:
    """A wrong metric, node, moment or id is an error of the caller."""
    core.push("n1", "a", [record("n1", 1)])
    with pytest.raises(InputError, match=message):
        trace(core.directory, RUN, Exporters(), point())
