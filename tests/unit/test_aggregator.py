from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from actors.clock import SECOND_NS, VirtualClock
from actors.errors import HarnessError, InputError
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.files import read_json
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.parts import part_files
from cluster.metrics.store import log_files, read_run
from cluster.metrics.windows import Row
from cluster.outbox import Kind as RecordKind
from cluster.outbox import Record, frame
from tests.support.windows import START_S, end, record


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def aggregator(tmp_path: Path, clock: VirtualClock) -> Aggregator:
    return Aggregator("run-1", tmp_path / "run-1", clock)


def reopened(aggregator: Aggregator, clock: VirtualClock) -> Aggregator:
    """Return the aggregator of another life."""
    aggregator.close()
    return Aggregator(aggregator.run_id, aggregator.directory, clock)


def counted(directory: Path, node: str = "n1") -> list[int]:
    rows = read_run(directory).metrics.to_pylist()
    return [int(row["sum"]) for row in rows if row["metric"] == "probe.requests" and row["node"] == node]


def test_what_is_acknowledged_is_on_disk_once(aggregator: Aggregator) -> None:
    """A push may be repeated, overlap and come out of order within a call: each record is held once."""
    assert aggregator.push("n1", "a", [record("n1", 2), record("n1", 1)]) == 2
    assert aggregator.push("n1", "a", [record("n1", at) for at in (1, 2, 3)]) == 3
    assert aggregator.push("n1", "a", [record("n1", 3)]) == 3
    assert aggregator.push("n1", "a", []) == 3
    assert counted(aggregator.directory) == [1, 2, 3]
    assert read_run(aggregator.directory).events["message"].to_pylist() == ["n1/1.0", "n1/2.0", "n1/3.0"]


def test_gaps_are_refused(aggregator: Aggregator) -> None:
    """After a gap nothing is taken; the answer says from where to send again."""
    assert aggregator.push("n1", "a", [record("n1", 2)]) == 0
    assert aggregator.push("n1", "a", [record("n1", 1), record("n1", 3)]) == 1
    assert counted(aggregator.directory) == [1]


def test_a_gap_of_what_was_acknowledged_is_lost_and_no_other(aggregator: Aggregator) -> None:
    """A stream goes on behind records that its sender was told to be safe and keeps no more; a gap beyond them is refused as ever."""
    assert aggregator.push("n1", "a", [record("n1", 5), record("n1", 7)], 4) == 5
    assert aggregator.push("n1", "a", [record("n1", 7)], 5) == 5
    assert aggregator.losses()["lost_records"] == 4
    assert aggregator.push("n1", "a", [record("n1", 3), record("n1", 3), record("n1", 6)]) == 6
    assert aggregator.losses()["lost_records"] == 3
    assert counted(aggregator.directory) == [5, 3, 6]


def test_streams_are_apart(aggregator: Aggregator) -> None:
    """Another node, or another life of the same agent, has sequence numbers of its own."""
    for node, incarnation in (("n1", "a"), ("n1", "b"), ("n2", "a")):
        assert aggregator.push(node, incarnation, [record(node, 1)]) == 1
    assert counted(aggregator.directory) == [1, 1]
    assert counted(aggregator.directory, "n2") == [1]


def test_a_torn_frame_is_not_acknowledged(aggregator: Aggregator) -> None:
    """A frame that was damaged on its way, or that bears another number, is asked for again."""
    sequence, data = record("n1", 1)
    assert aggregator.push("n1", "a", [(sequence, data[:-1] + bytes([data[-1] ^ 1]))]) == 0
    assert aggregator.push("n1", "a", [(1, record("n1", 2)[1])]) == 0
    assert aggregator.push("n1", "a", [(sequence, data)]) == 1


def test_a_record_that_nobody_can_read_is_a_counted_loss(aggregator: Aggregator) -> None:
    """A whole frame with a payload that is no window does not block its stream: it is counted and told."""
    broken = (1, frame(Record(1, RecordKind.WINDOW, b"\x05\0\0\0nonsense")))
    assert aggregator.push("n1", "a", [broken, record("n1", 2)]) == 2
    assert aggregator.losses()["undecodable_records"] == 1
    assert read_run(aggregator.directory).events["kind"].to_pylist() == ["metrics.undecodable", "k"]


def test_a_restart_goes_on_where_the_old_one_stopped(aggregator: Aggregator, clock: VirtualClock) -> None:
    """A new aggregator on the same directory knows what is held and what every series stands at."""
    aggregator.expect("n2", "b")
    aggregator.push("n1", "a", [record("n1", 1), record("n1", 2)])
    before = {sample.key: (sample.value, sample.count, sample.buckets) for sample in aggregator.latest()}
    aggregator.close()
    again = Aggregator("run-1", aggregator.directory, clock)
    assert {sample.key: (sample.value, sample.count, sample.buckets) for sample in again.latest()} == before
    assert again.push("n1", "a", [record("n1", 2), record("n1", 3)]) == 3
    assert [entry["node"] for entry in again.outstanding()] == ["n1", "n2"]
    assert counted(again.directory) == [1, 2, 3]


def test_a_second_aggregator_is_refused(aggregator: Aggregator, clock: VirtualClock) -> None:
    """Two writers on one directory cannot be."""
    with pytest.raises(HarnessError, match="another process"):
        Aggregator("run-1", aggregator.directory, clock)


def test_outstanding_names_what_has_not_come(aggregator: Aggregator) -> None:
    """A stream is outstanding until its end has come; a stated end counts, and an unclean one is told as such."""
    aggregator.expect("n1", "a")
    aggregator.expect("n2", "b")
    aggregator.push("n2", "b", [record("n2", 1), end(2)])
    aggregator.push("n3", "c", [record("n3", 1), end(2, clean=False)])
    assert aggregator.outstanding() == [{"node": "n1", "incarnation": "a", "from": 1}]
    aggregator.push("n1", "a", [record("n1", 1)])
    aggregator.end("n1", "a", 2)
    assert aggregator.outstanding() == [{"node": "n1", "incarnation": "a", "from": 2}]
    assert aggregator.losses()["open_streams"] == "unknown"
    aggregator.push("n1", "a", [end(2)])
    assert aggregator.outstanding() == []
    assert (aggregator.losses()["open_streams"], aggregator.losses()["unclean_streams"]) == (0, 1)
    assert aggregator.streams()[1] == {"node": "n2", "incarnation": "b", "received": 2, "expected_end": 2, "clean": True}


def test_what_a_node_took_with_it_is_given_up_and_counted(aggregator: Aggregator, clock: VirtualClock) -> None:
    """Its open streams are outstanding no more, now and for each successor; what is missing is unknown, never zero; others wait on."""
    for node in ("n1", "n2", "n3"):
        aggregator.expect(node, "a")
    aggregator.push("n1", "a", [record("n1", 1), record("n1", 2)])
    aggregator.push("n1", "b", [record("n1", 1), end(2)])
    aggregator.push("n3", "a", [end(1)])
    aggregator.finish({"status": "error"}, {"run": "run-1", "status": "error"})
    lost = [{"node": "n1", "incarnation": "a", "from": 3}]
    assert (aggregator.forget("n1"), aggregator.forget("n1"), aggregator.forget("n3")) == (lost, [], [])
    waiting = [{"node": "n2", "incarnation": "a", "from": 1}]
    one = aggregator
    for _ in range(2):
        one = reopened(one, clock)
        assert (one.outstanding(), one.forgotten()) == (waiting, lost)
        one.finish()
        summary = read_json(one.directory / "summary.json") or {}
        assert (summary["status"], summary["outstanding"], summary["forgotten"]) == ("error", waiting, lost)
        assert (summary["losses"]["forgotten_streams"], summary["losses"]["open_streams"]) == (1, "unknown")
    one.forget("n2")
    assert (one.outstanding(), one.losses()["open_streams"]) == ([], "unknown")
    one.close()


def test_what_a_forgotten_node_delivers_all_the_same_is_taken(aggregator: Aggregator, clock: VirtualClock) -> None:
    """Nothing that is acknowledged is lost: its records go on where they stood, are awaited again, and are whole with their end."""
    aggregator.push("n1", "a", [record("n1", 1), record("n1", 2)])
    aggregator.finish({"status": "error"}, {"run": "run-1", "status": "error"})
    aggregator.forget("n1")
    after = reopened(aggregator, clock)
    assert after.push("n1", "a", [record("n1", 2), record("n1", 3)]) == 3
    assert (after.outstanding(), after.forgotten()) == ([{"node": "n1", "incarnation": "a", "from": 4}], [])
    assert after.push("n1", "a", [end(4)]) == 4
    assert (after.outstanding(), after.forgotten(), after.losses()["open_streams"]) == ([], [], 0)
    after.finish()
    assert counted(after.directory) == [1, 2, 3]
    after.close()


def test_finish_writes_whole_files(aggregator: Aggregator) -> None:
    """Parquet, summary and manifest appear, the log goes; losses, outstanding, peaks and streams are filled in."""
    aggregator.push("n1", "a", [record("n1", 1), record("n1", 50), end(2)][:1])
    aggregator.push("n1", "a", [record("n1", 2), end(3)])
    aggregator.finish({"status": "passed", "exit_code": 0}, {"run_id": "run-1", "status": "passed"})
    summary = read_json(aggregator.directory / "summary.json")
    assert summary is not None
    assert (summary["status"], summary["revision"], summary["outstanding"]) == ("passed", 1, [])
    assert summary["peaks"] == {"n1": {"host.cpu.busy": 0.02}}
    manifest = read_json(aggregator.directory / "manifest.json")
    assert manifest is not None
    assert manifest["streams"] == [{"node": "n1", "incarnation": "a", "received": 3, "expected_end": 3, "clean": True}]
    assert {file["name"] for file in aggregator.files()} == {"events.parquet", "manifest.json", "metrics/part-0000.parquet", "summary.json"}
    assert counted(aggregator.directory) == [1, 2]


def test_late_data_is_a_new_part_and_a_new_revision(aggregator: Aggregator, clock: VirtualClock) -> None:
    """What arrives after the end is taken by the same or a new aggregator, and the documents are brought up to date."""
    aggregator.expect("n2", "b")
    aggregator.push("n1", "a", [record("n1", 1), end(2)])
    aggregator.finish({"status": "error"}, {"status": "error"})
    first = part_files(aggregator.directory)[0].read_bytes()
    aggregator.close()
    again = Aggregator("run-1", aggregator.directory, clock)
    assert again.outstanding() == [{"node": "n2", "incarnation": "b", "from": 1}]
    assert again.push("n1", "a", [record("n1", 1)]) == 2
    again.push("n2", "b", [record("n2", 1), end(2)])
    again.finish()
    summary, manifest = read_json(again.directory / "summary.json"), read_json(again.directory / "manifest.json")
    assert summary is not None
    assert manifest is not None
    assert (summary["revision"], summary["status"], summary["outstanding"]) == (2, "error", [])
    assert [entry["received"] for entry in manifest["streams"]] == [2, 2]
    assert part_files(again.directory)[0].read_bytes() == first
    assert (counted(again.directory), counted(again.directory, "n2")) == ([1], [1])
    assert read_run(again.directory).events["message"].to_pylist() == ["n1/1.0", "n2/1.0"]


def test_a_long_log_is_settled_while_the_run_goes_on(tmp_path: Path, clock: VirtualClock) -> None:
    """Past a size the log goes into Parquet by itself; answers and counts stay the same."""
    aggregator = Aggregator("r", tmp_path / "r", clock, settle_bytes=20_000)
    for at in range(1, 41):
        assert aggregator.push("n1", "a", [record("n1", at)]) == at
    assert len(part_files(aggregator.directory)) > 2
    assert counted(aggregator.directory) == list(range(1, 41))
    assert aggregator.evaluate("probe.requests", "sum") == sum(range(1, 41))
    aggregator.close()
    again = Aggregator("r", tmp_path / "r", clock)
    assert again.push("n1", "a", []) == 40


def test_a_full_disk_is_not_acknowledged(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the log cannot be synced the push fails as a whole, and works again when there is room."""
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HarnessError, match="No space"):
            aggregator.push("n1", "a", [record("n1", 1)])
    assert aggregator.push("n1", "a", []) == 0
    assert aggregator.push("n1", "a", [record("n1", 1), record("n1", 2)]) == 2
    assert counted(aggregator.directory) == [1, 2]
    assert [sample.value for sample in aggregator.latest() if sample.key.metric == "probe.requests"] == [3.0]


def test_a_failed_early_settling_is_no_failed_push(tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Parquet cannot be written in mid-run the log stands and the push is acknowledged."""
    aggregator = Aggregator("r", tmp_path / "r", clock, settle_bytes=1)
    with monkeypatch.context() as patched:
        patched.setattr("cluster.metrics.store.write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert aggregator.push("n1", "a", [record("n1", 1)]) == 1
    assert len(log_files(aggregator.directory, "metrics")) == 1
    assert aggregator.push("n1", "a", [record("n1", 2)]) == 2
    assert counted(aggregator.directory) == [1, 2]


def test_pushes_from_many_threads(aggregator: Aggregator) -> None:
    """Streams pushed at the same time, each twice over, are all held once."""

    def push(node: str) -> None:
        for at in range(1, 11):
            assert aggregator.push(node, "a", [record(node, at)]) >= at

    threads = [threading.Thread(target=push, args=(f"n{at % 3}",)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at in range(3):
        assert counted(aggregator.directory, f"n{at}") == list(range(1, 11))


# questions


@pytest.fixture
def asked(aggregator: Aggregator) -> Aggregator:
    aggregator.push("n1", "a", [record("n1", at) for at in range(1, 11)])
    aggregator.push("n2", "b", [record("n2", at) for at in range(1, 4)])
    return aggregator


@pytest.mark.parametrize(
    ("metric", "stat", "where", "want"),
    [
        pytest.param("probe.requests", "sum", {}, 61.0, id="sum-of-increases"),
        pytest.param("probe.requests", "count", {"node": "n2"}, 3.0, id="count-on-one-node"),
        pytest.param("probe.requests", "rate", {"node": "n1"}, 5.5, id="rate-over-the-span"),
        pytest.param("probe.requests", "rate", {"node": "n1", "between": (START_S + 1.0, START_S + 3.0)}, 1.5, id="rate-between"),
        pytest.param("probe.requests", "p99", {}, None, id="a-counter-has-no-quantile"),
        pytest.param("probe.response", "max", {}, 0.010, id="max"),
        pytest.param("probe.response", "min", {"between": (START_S + 5.0, START_S + 8.0)}, 0.005, id="min-between"),
        pytest.param("probe.response", "mean", {"node": "n1"}, 0.0055, id="mean"),
        pytest.param("probe.response", "p50", {"node": "n1"}, 0.005, id="quantile-of-merged-digests"),
        pytest.param("probe.response", "p50", {"labels": {"probe": "x"}, "node": "n1"}, 0.005, id="with-its-label"),
        pytest.param("probe.response", "p50", {"labels": {"probe": "y"}}, None, id="with-another-label"),
        pytest.param("host.cpu.busy", "last", {"node": "n2"}, 0.03, id="last"),
        pytest.param("host.cpu.busy", "max", {"worker": ""}, 0.10, id="host-level"),
        pytest.param("host.cpu.busy", "p90", {"node": "n1"}, 0.09, id="quantile-of-a-gauge"),
        pytest.param("host.cpu.busy", "max", {"node": "n7"}, None, id="no-such-node"),
        pytest.param("halt.latency", "max", {}, None, id="no-rows"),
    ],
)
def test_figures(asked: Aggregator, metric: str, stat: str, where: dict, want: float | None) -> None:
    """One figure over windows, series and nodes, the same from the log and from Parquet; no rows is no answer."""
    for _ in range(2):
        got = asked.evaluate(metric, stat, **where)
        assert got == (want if want is None else pytest.approx(want, rel=0.004))
        asked.finish()


def test_infinite_samples_make_mean_and_tail_infinite(aggregator: Aggregator) -> None:
    """A probe that never answered is not averaged away."""
    made = Histogram.of([0.1, float("inf")])
    rows = [Row("probe.response", Kind.HISTOGRAM, "seconds", "w", "", (), 2, made.sum, made.min, made.max, digest=made.encode())]
    aggregator.push("n1", "a", [record("n1", 1, rows=rows)])
    assert aggregator.evaluate("probe.response", "mean") == float("inf")
    assert aggregator.evaluate("probe.response", "p999") == pytest.approx(0.1)  # rank floor(0.999 * 1)
    assert aggregator.evaluate("probe.response", "max") == float("inf")


def test_unknown_questions_are_refused(asked: Aggregator) -> None:
    """An unknown metric or statistic is an error with what is known, also where there are no rows."""
    with pytest.raises(InputError, match="unknown metric"):
        asked.evaluate("host.cpu.bussy", "max")
    with pytest.raises(InputError, match="known: count"):
        asked.evaluate("halt.latency", "p98")


def test_dose_windows_pair_asked_and_achieved(aggregator: Aggregator, clock: VirtualClock) -> None:
    """One window has both sides, a missing one is NaN, and a restart, also after settling, gives the same."""

    def dose(metric: str, value: float, unit: str = "ratio", worker: str = "op1") -> Row:
        return Row(metric, Kind.GAUGE, unit, worker, "", (), 2, 2 * value, value, value, value)

    windows = [
        [dose("dose.requested", 0.5), dose("dose.achieved", 0.49), dose("dose.requested", 100.0, "bytes", "op2")],
        [dose("dose.requested", 0.6), dose("dose.achieved", 0.58), dose("dose.achieved", 99.0, "bytes", "op2")],
    ]
    for at, rows in enumerate(windows, 1):
        aggregator.push("n1", "a", [record("n1", at, rows=rows)])
    found = aggregator.dose_windows()
    assert found["op1"] == [(START_S + 1, 0.5, 0.49, "ratio"), (START_S + 2, 0.6, 0.58, "ratio")]
    assert np.isnan(found["op2"][0].achieved)
    assert np.isnan(found["op2"][1].requested)
    for finish in (False, True):
        if finish:
            aggregator.finish()
        aggregator.close()
        aggregator = Aggregator("run-1", aggregator.directory, clock)
        assert str(aggregator.dose_windows()) == str(found)


def test_stale_gauges_are_not_shown(asked: Aggregator, clock: VirtualClock) -> None:
    """A gauge that nobody reports any more leaves the live view, and how many did is told; totals stay."""
    assert asked.stale() == 0
    before = len(asked.latest())
    clock.advance(31)
    assert 0 < asked.stale() == before - len(asked.latest())
    asked.push("n2", "b", [record("n2", 4)])
    shown = {(sample.key.metric, sample.key.node) for sample in asked.latest()}
    assert ("host.cpu.busy", "n1") not in shown
    assert {("host.cpu.busy", "n2"), ("probe.requests", "n1")} <= shown


def test_files_can_be_mirrored(asked: Aggregator) -> None:
    """Names, sizes and bytes of every file; nothing outside the directory."""
    asked.finish({"status": "passed"})
    for file in asked.files():
        parts = [asked.read(file["name"], at, 1000) for at in range(0, file["size"], 1000)]
        assert b"".join(parts) == (asked.directory / file["name"]).read_bytes()
    for name in ("../x", "/etc/passwd", "nothing", "metrics"):
        with pytest.raises(InputError, match="has no file"):
            asked.read(name)


def test_losses_count_what_agents_dropped(aggregator: Aggregator) -> None:
    """Dropped samples are summed by reason, recorders that died are counted."""
    rows = [
        Row("metrics.dropped", Kind.COUNTER, "", "w1", "", (("reason", "invalid"),), 1, 2.0, last=2.0),
        Row("metrics.dropped", Kind.COUNTER, "", "w2", "", (("reason", "invalid"),), 1, 3.0, last=3.0),
        Row("metrics.unflushed", Kind.COUNTER, "", "w1", "", (), 1, 1.0, last=1.0),
    ]
    aggregator.push("n1", "a", [record("n1", 1, rows=rows), end(2)])
    losses = aggregator.losses()
    assert (losses["dropped_samples"], losses["unflushed_recorders"]) == ({"invalid": 5.0}, 1.0)


def test_time_is_the_windows_start_in_utc(asked: Aggregator) -> None:
    """The `time` column is a UTC timestamp of the window's start."""
    table = asked.query("host.cpu.busy", node="n1")
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert table["time"][0].value == (START_S + 1) * SECOND_NS // 1000


def test_errors_are_in_the_summary_by_code(aggregator: Aggregator) -> None:
    """All nodes' together; none is an empty mapping and not nothing."""
    assert aggregator.finish()["errors"] == {}
    for node, code, count in (("n1", "os", 2.0), ("n2", "os", 3.0), ("n2", "internal", 1.0)):
        row = Row("errors.seen", Kind.COUNTER, "", "op", "", (("category", "x"), ("code", code)), 1, count, last=count)
        number = 2 if (node, code) == ("n2", "internal") else 1
        aggregator.push(node, "a", [record(node, number, rows=[row])])
    assert aggregator.finish()["errors"] == {"os": 5.0, "internal": 1.0}
