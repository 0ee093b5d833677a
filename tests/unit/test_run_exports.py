"""The exporters of a run, with real files: what each row of the run became, at the end, after a death, and with late data."""

from __future__ import annotations

import asyncio
import csv
import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.breaker import BreakerPolicy
from actors.clock import SystemClock
from cluster.export_feed import Feed
from cluster.exporters import destinations as kinds
from cluster.exporters import wal
from cluster.exporters.files import rotated
from cluster.exporters.limits import Limits
from cluster.exporters.wal import Sync
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import Coverage, read_run
from cluster.run_exports import RunExports, bring_up_to_date
from scenarios.exporters import Breaker, Destination, Exporters, Format, Route, Rule, When
from tests.support.exporting import RUN, write_manifest
from tests.support.sinks import FlakySink, GateSink
from tests.support.waiting import until
from tests.support.windows import end, record

FORMS = ("json", "jsonl", "csv", "parquet", "arrow")
CLOCK = SystemClock()


def read(path: Path) -> list[tuple[str, str, float]]:
    """Return (metric, node, count) of each row of a file of any kind; each says its run."""
    match path.suffix:
        case ".json":
            rows = json.loads(path.read_text())
        case ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        case ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
        case ".parquet":
            rows = pq.read_table(path).to_pylist()
        case _:
            rows = pa.ipc.open_file(path).read_all().to_pylist()
    assert {row["run"] for row in rows} <= {RUN}, path
    return [(row["metric"], row["node"], float(row["sum"] or 0)) for row in rows]


def of_run(directory: Path) -> list[tuple[str, str, float]]:
    return [(row["metric"], row["node"], float(row["sum"] or 0)) for row in read_run(directory).metrics.to_pylist()]


@pytest.fixture
def core(tmp_path):
    made = Aggregator(RUN, tmp_path / "state" / "runs" / RUN, CLOCK)
    yield made
    made.close()


def files(**more) -> Exporters:
    more = {"drain_s": 60.0, **more}  # on a busy machine the default is short for five files
    return Exporters(destinations=tuple(Destination(form, f"m.{form}") for form in FORMS), **more)


def balanced(report: dict, rows: int) -> dict:
    """Assert that every row of the run is accounted for at a destination without rules."""
    lane = report["produced_rows"] + report["recovered_rows"]
    gone = report["delivered_rows"] + sum(report["dropped_rows"].values()) + report["queued_rows"] + report["spilled_rows"]
    assert lane == gone, report
    found = report["earlier_rows"] + report["produced_rows"]
    assert found < rows if report["is_behind"] else found == rows, report
    return report


def test_every_kind_of_file_holds_every_row_of_the_run(core):
    """Without rules a file is the run's metrics, quantiles and the exporters' own figures included, and says that it is complete."""
    exports = RunExports(core, files(), CLOCK)
    for node in ("n1", "n2"):
        for number in range(1, 31):
            core.push(node, "a", [record(node, number)])
    reports = exports.finish()
    core.finish()
    rows = of_run(core.directory)
    own = {metric for metric, node, _ in rows if node == "aggregator"}
    assert own >= {"export.queue", "export.delivered", "export.delivered.size", "export.breaker", "export.unrouted"}
    assert [report["name"] for report in reports] == list(FORMS)
    for report in reports:
        assert balanced(report, len(rows))["delivered_rows"] == len(rows)
        assert (report["complete"], report["ok"], report["is_behind"]) == (True, True, False)
        assert sorted(read(core.directory / report["path"])) == sorted(rows)
    assert core.outstanding() == [{"node": node, "incarnation": "a", "from": 31} for node in ("n1", "n2")]
    exported = pq.read_table(core.directory / "exports" / "m.parquet")
    assert {*exported.filter(pa.compute.equal(exported["metric"], "probe.response"))["p99"].is_valid().to_pylist()} == {True}


def test_a_failing_exporter_is_named_and_every_row_of_it_is_counted(core):
    """One that fails always has everything dropped and counted, its breaker opens, an event says so; the other has it all."""
    wanted = Exporters(
        destinations=(
            Destination("jsonl", "bad.jsonl", name="bad", queue_rows=20, batch_rows=5, breaker=Breaker(threshold=2)),
            Destination("jsonl", "good.jsonl", name="good"),
        ),
        drain_s=0.5,
    )
    failed = threading.Event()

    def refuse():
        failed.set()
        return OSError("the disk is gone")

    exports = RunExports(core, wanted, CLOCK, make=lambda one, path: FlakySink(refuse) if one.name == "bad" else kinds.make(one, path))
    for number in range(1, 41):
        core.push("n1", "a", [record("n1", number)])
    assert failed.wait(10)
    bad, good = exports.finish()
    core.finish()
    rows = of_run(core.directory)
    assert balanced(bad, len(rows))["delivered_rows"] == 0
    assert set(bad["dropped_rows"]) <= {"newest", "shutdown"}
    assert (bad["complete"], "disk is gone" in bad["detail"]) == (False, True)
    assert bad["failures"]["OSError"] == bad["attempts"] > 0
    assert balanced(good, len(rows))["complete"] is True


def test_rules_say_which_rows_go_where(core):
    """Routes, the default and each destination's own rules act as they do in the rule engine."""
    wanted = Exporters(
        destinations=(
            Destination("csv", "probes.csv", name="probes", rules=(Rule(When(metric="probe.response"), keep=False),)),
            Destination("jsonl", "rest.jsonl", name="rest", rules=(Rule(When(metric="host.cpu.*"), rename="cpu"),)),
        ),
        routes=(Route(("probes",), When(metric="probe.*")),),
        default=("rest",),
    )
    exports = RunExports(core, wanted, CLOCK, tells=False)
    core.push("n1", "a", [record("n1", number) for number in range(1, 11)])
    probes, rest = exports.finish()
    assert {metric for metric, _, _ in read(core.directory / "exports" / "probes.csv")} == {"probe.requests"}
    assert {metric for metric, _, _ in read(core.directory / "exports" / "rest.jsonl")} == {"cpu"}
    assert (probes["delivered_rows"], probes["filtered_rows"], rest["delivered_rows"]) == (10, 10, 10)
    assert probes["complete"]


def test_pushing_waits_for_no_destination(core):
    """While a destination hangs for ever in its first write, pushes are acknowledged, the rest is counted, and the end is bounded."""
    gate = GateSink()
    wanted = Exporters(destinations=(Destination("jsonl", "x.jsonl", queue_rows=10, batch_rows=5),), drain_s=0.2)
    exports = RunExports(core, wanted, CLOCK, make=lambda *_: gate)
    core.push("n1", "a", [record("n1", number) for number in range(1, 6)])
    assert gate.entered.wait(10)
    assert core.push("n1", "a", [record("n1", number) for number in range(6, 101)]) == 100
    (report,) = exports.finish()
    core.finish()
    balanced(report, len(of_run(core.directory)))
    assert report["delivered_rows"] == 0
    assert not report["complete"]
    gate.gate.set()


def test_what_an_inbox_has_no_room_for_is_read_from_the_run(core, monkeypatch):
    """Nothing is lost to a destination that could not be told in time: it is brought up to date at the end."""
    monkeypatch.setattr("cluster.export_feed.INBOX_BYTES", 1)
    exports = RunExports(core, files(), CLOCK)
    core.push("n1", "a", [record("n1", number) for number in range(1, 301)])
    reports = exports.finish()
    core.finish()
    rows = of_run(core.directory)
    for report in reports:
        assert sorted(read(core.directory / report["path"])) == sorted(rows), report
        assert balanced(report, len(rows))["complete"]


class GatedPipeline:
    """Takes rows when its gate is open."""

    def __init__(self) -> None:
        self.gate, self.calls = asyncio.Event(), 0
        self.called = [asyncio.Event() for _ in range(3)]

    async def export(self, batch, *, to, origin):
        for event in self.called[self.calls : self.calls + 1]:
            event.set()
        self.calls += 1
        await self.gate.wait()
        await asyncio.sleep(0)

    def positions(self):
        return {"a": (self.calls, self.calls)}

    async def room(self, name, batch):
        pass


def test_a_record_in_the_inbox_and_in_the_log_is_given_by_one_of_both(core):
    """While it is on its way to a destination, who reads the log does not give it again, and waits until it is there."""

    async def scene():
        pipeline = GatedPipeline()
        feed = Feed(core, pipeline, {"a": Limits()}, {"a": Coverage()}, CLOCK)
        await feed.catch_up("a")
        core.watch(feed.take)
        feeding = asyncio.create_task(feed.run())
        await asyncio.to_thread(core.push, "n1", "a", [record("n1", 1), record("n1", 2)])
        await pipeline.called[0].wait()
        catching = asyncio.create_task(feed.catch_up("a"))
        await pipeline.called[1].wait()  # for the second record, from the log
        pipeline.gate.set()
        await catching
        assert feed.given["a"].holds(core.held())
        feeding.cancel()
        return pipeline.calls

    assert asyncio.run(scene()) == 2


def test_an_inbox_that_is_not_empty_in_time_holds_up_no_end(core):
    """What was not given by then is given to nobody, and counts as lacking."""

    async def scene():
        pipeline = GatedPipeline()
        feed = Feed(core, pipeline, {"a": Limits()}, {"a": Coverage()}, CLOCK)
        await feed.catch_up("a")
        core.watch(feed.take)
        await asyncio.to_thread(core.push, "n1", "a", [record("n1", number) for number in range(1, 51)])
        feeding = asyncio.create_task(feed.run())
        await pipeline.called[0].wait()
        asyncio.get_running_loop().call_soon(pipeline.gate.set)
        await feed.emptied(0.0)
        await feeding
        assert not feed.given["a"].holds(core.held())
        return pipeline.calls

    assert 1 <= asyncio.run(scene()) < 50


@pytest.mark.parametrize("settled", [False, True], ids=["log", "parquet"])
def test_late_data_is_in_every_file_once(core, settled):
    """What comes after the end is added to files that are appended to, and files that appear whole are written anew."""
    write_manifest(core, files())
    exports = RunExports(core, files(), CLOCK)
    core.push("n1", "a", [record("n1", number) for number in range(1, 11)])
    exports.finish()
    core.finish({}, None)
    assert bring_up_to_date(core, CLOCK, 10.0) is None
    core.push("n1", "a", [record("n1", number) for number in range(11, 16)] + [end(16)])
    if settled:
        core.finish()
    reports = bring_up_to_date(core, CLOCK, 10.0)
    core.finish()
    rows = of_run(core.directory)
    assert reports is not None
    for report in reports:
        assert sorted(read(core.directory / report["path"])) == sorted(rows), report
        assert balanced(report, len(rows))["complete"]
    assert bring_up_to_date(core, CLOCK, 10.0) is None
    assert core.outstanding() == []


def test_a_disk_behind_a_destination_keeps_what_it_did_not_take(core):
    """With a spill nothing is dropped at the end; it lies where the report says, and goes out when the run is brought up to date."""
    wanted = Exporters(destinations=(Destination("jsonl", "m.jsonl", overflow="spill", spill=True),), drain_s=0.2)
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK, make=lambda *_: FlakySink(lambda: OSError("down")))
    core.push("n1", "a", [record("n1", number) for number in range(1, 11)])
    (report,) = exports.finish()
    core.finish()
    rows = of_run(core.directory)
    assert balanced(report, len(rows))["spilled_rows"] == len(rows)
    assert Path(report["spill"]).is_relative_to(core.directory.parent.parent / "exports")
    core.push("n1", "a", [record("n1", 11)])
    (report,) = bring_up_to_date(core, CLOCK, 10.0) or [{}]
    core.finish()
    rows = of_run(core.directory)
    assert balanced(report, len(rows))["delivered_rows"] == len(rows)
    assert sorted(read(core.directory / "exports" / "m.jsonl")) == sorted(rows)
    assert not Path(core.directory.parent.parent / "exports" / RUN / "jsonl").exists()


@pytest.mark.parametrize(("place", "field"), [("head", "spill_lost_bytes"), ("payload", "dropped_rows")])
def test_a_bit_that_flips_on_a_destinations_disk_is_counted(core, place, field):
    """Damage of a record is found by its checksums: its rows are dropped as corrupt, or its bytes told as lost; the rest is delivered."""
    one = Destination("jsonl", "m.jsonl", overflow="spill", spill=True, write_ahead=True)
    wanted = Exporters(destinations=(one,), drain_s=0.2)
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK, make=lambda *_: FlakySink(lambda: OSError("down")), tells=False)
    for number in range(1, 11):
        core.push("n1", "a", [record("n1", number)])
    (report,) = exports.finish()
    core.finish({}, None)
    assert (report["spilled_rows"], report["spill_lost_bytes"]) == (30, 0)
    (segment,) = Path(report["spill"]).glob("*.wal")
    data = bytearray(segment.read_bytes())
    data[wal._HEAD_SIZE + (5 if place == "head" else wal._HEAD_SIZE + 100)] ^= 8
    segment.write_bytes(data)
    core.push("n1", "a", [record("n1", 11), end(12)])
    (report,) = bring_up_to_date(core, CLOCK, 10.0) or [{}]
    lost = 30 + 3 - report["delivered_rows"]
    assert 0 < lost < 30
    assert report["dropped_rows"] == ({"corrupt": lost} if field == "dropped_rows" else {})
    assert (report["spill_lost_bytes"] > 0) == (field == "spill_lost_bytes")
    assert not report["complete"]
    assert len(read(core.directory / "exports" / "m.jsonl")) == report["delivered_rows"]


def test_a_file_of_a_run_is_as_its_scenario_says(core):
    """Format, rotation and sync of a destination are those of its file; what a dead writer left at its end is cut, and told."""
    (core.directory / "exports").mkdir()
    whole = "time;window_s;metric;kind;unit;node;worker;phase;count;sum;min;max;last;p50;p90;p99;p999;labels\n"
    (core.directory / "exports" / "m.csv").write_text(f"{whole}2026-01-01T00")
    like = Format(separator=";", labels="json", decimals=1)
    one = Destination("csv", "m.csv", batch_rows=30, spill=True, sync="always", rotate_bytes=6_000, format=like)
    exports = RunExports(core, Exporters(destinations=(one,)), CLOCK, tells=False)
    assert exports._made["csv"].file._sync is exports._spills["csv"].log._sync is Sync.ALWAYS
    for number in range(1, 101):
        core.push("n1", "a", [record("n1", number)])
    (report,) = exports.finish()
    files = [*rotated(core.directory / "exports" / "m.csv"), core.directory / "exports" / "m.csv"]
    rows = [row for path in files for row in csv.DictReader(path.read_text().splitlines(), delimiter=";")]
    assert len(files) > 3
    assert max(path.stat().st_size for path in files) <= 6_000
    assert len(rows) == report["delivered_rows"] == 300
    assert report["cut_bytes"] == len("2026-01-01T00")
    assert json.loads(rows[0]["labels"]) == {"probe": "x"}
    assert {row["last"] for row in rows if row["metric"] == "host.cpu.busy"} == {f"{number / 10:.1f}" for number in range(11)}


def test_short_memory_shrinks_what_waits_and_is_told(core):
    """The pipeline hears of the memory, and what it does about it is an event of the run."""
    wanted = Exporters(destinations=(Destination("jsonl", "m.jsonl"),))
    exports = RunExports(core, wanted, CLOCK, memory=lambda: 0.01)
    exports.finish()
    core.finish()
    events = read_run(core.directory).events.to_pylist()
    assert [row["message"] for row in events if row["kind"] == "exporters_memory"] == [
        "exporters: memory: 0.010 available, bounds at 0.062"
    ]


def test_a_run_that_is_not_admitted_leaves_nothing(core, tmp_path):
    """Abandoned exporters have written no file and keep no folder."""
    (tmp_path / "disk").mkdir()
    wanted = Exporters(destinations=(Destination("csv", str(tmp_path / "m.csv"), spill=str(tmp_path / "disk")),))
    exports = RunExports(core, wanted, CLOCK)
    exports.abandon()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "state"]
    assert not list((tmp_path / "disk").iterdir())
    assert not (core.directory.parent.parent / "exports" / RUN).exists()


def test_checks_say_which_exporter_is_not_well(core):
    """/readyz names each destination with its breaker, what waits and its last success."""
    told = threading.Event()

    def fail():
        told.set()
        return OSError("no route")

    wanted = Exporters(destinations=(Destination("jsonl", "m.jsonl", name="bad", breaker=Breaker(threshold=1), batch_age_s=0.01),))
    exports = RunExports(core, wanted, CLOCK, make=lambda *_: FlakySink(fail))
    (check,) = exports.checks()
    assert check().ok
    core.push("n1", "a", [record("n1", 1)])
    assert told.wait(10)
    until(lambda: exports._loop.call_soon_threadsafe(exports._look) and not check().ok, 10, "a check that is not ok")
    found = check()
    assert "no route" in found.reason
    assert found.detail["breaker"] == "open"
    assert found.detail["last_success_s_ago"] is None
    exports.finish(0.1)


def test_the_words_of_a_scenario_are_those_of_the_pipeline():
    """Every type has its row, and defaults are the pipeline's own."""
    from cluster.exporters.limits import Overflow
    from scenarios.exporters import OVERFLOWS, TYPES

    assert tuple(kinds.KINDS) == TYPES
    assert set(OVERFLOWS) == {*Overflow} - {Overflow.BLOCK}
    plain = Destination("csv", "m.csv")
    assert kinds.limits_of(plain) == Limits()
    assert kinds.policy_of(plain) == BreakerPolicy()
