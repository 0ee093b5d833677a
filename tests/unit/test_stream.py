from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.clock import SECOND_NS, VirtualClock
from actors.errors import InputError
from actors.messages import Event
from actors.metrics import Histogram, Recorder, Segment
from actors.metrics.histogram import decode
from actors.metrics.policy import Filter, RecordingPolicy
from actors.metrics.registry import Verbosity
from actors.metrics.segment import H_BACKLOG
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, Outbox, OutboxFullError, parse

DAY_S = 86_400.0


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def make(tmp_path: Path, clock: VirtualClock) -> Callable[..., MetricStream]:
    def made(**more: int) -> MetricStream:
        box = Outbox(tmp_path / "r" / "n1-a.box", node="n1", incarnation="a", run="r", **more)
        return MetricStream("n1", "a", "r", box, clock)

    return made


@pytest.fixture
def stream(make: Callable[..., MetricStream]) -> MetricStream:
    return make()


def windows(stream: MetricStream) -> list[tuple[pa.RecordBatch, pa.RecordBatch]]:
    records = [parse(data) for _, data in stream.unacked(1 << 30)]
    return [unseal(record.payload) for record in records if record.kind is Kind.WINDOW]


def close(stream: MetricStream, clock: VirtualClock, seconds: float = 1.0) -> dict[tuple[str, str], dict]:
    clock.advance(seconds)
    assert stream.close_window(clock.wall_ns())
    rows = windows(stream)[-1][0].to_pylist()
    found = {(row["metric"], row["worker"]): row for row in rows}
    assert len(found) == len(rows), "one row per series and window"
    return found


def test_a_gauge_has_its_extremes_and_its_last_value(stream: MetricStream, clock: VirtualClock) -> None:
    """A gauge's row tells count, sum, min, max and last of its window, and has no quantiles."""
    for value in (0.2, 0.8, 0.5):
        stream.observe("host.cpu.busy", value)
    row = close(stream, clock)["host.cpu.busy", ""]
    assert (row["count"], row["sum"], row["min"], row["max"], row["last"], row["p50"]) == (3, 1.5, 0.2, 0.8, 0.5, None)
    assert (row["node"], row["kind"], row["unit"], row["window_s"]) == ("n1", "gauge", "ratio", 1.0)


def test_a_counter_tells_increase_and_total(stream: MetricStream, clock: VirtualClock) -> None:
    """`sum` is the window's increase, `last` the total since the stream began; a silent series has no row."""
    stream.observe("probe.requests", 3, labels={"probe": "echo"})
    row = close(stream, clock)["probe.requests", ""]
    assert (row["sum"], row["last"], row["labels"]) == (3.0, 3.0, [("probe", "echo")])
    assert close(stream, clock) == {}
    stream.observe("probe.requests", 4, labels={"probe": "echo"})
    row = close(stream, clock)["probe.requests", ""]
    assert (row["sum"], row["last"]) == (4.0, 7.0)


def test_a_histogram_carries_its_digest(stream: MetricStream, clock: VirtualClock) -> None:
    """The digest is the histogram of the window's samples."""
    values = [0.01, 0.02, 0.5]
    for value in values:
        stream.observe("agent.tick.lag", value)
    row = close(stream, clock)["agent.tick.lag", ""]
    assert decode(row["digest"]) == Histogram.of(values)
    assert (row["count"], row["min"], row["max"], row["last"]) == (3, 0.01, 0.5, None)


def test_a_segment_gives_its_differences(stream: MetricStream, clock: VirtualClock) -> None:
    """Each window has what a load recorded in it, with its worker and phase; counts are exact and extremes are the window's own."""
    segment = Segment.create()
    recorder = Recorder(Segment.open(segment.path), clock)
    stream.attach(segment, "op1", "ramp")
    chance = np.random.default_rng(5)
    for _ in range(3):
        values = chance.lognormal(-6, 2, 500)
        recorder.histogram("load.slice").record_many(values)
        recorder.counter("load.operations").record(500)
        recorder.tick()
        rows = close(stream, clock)
        found = decode(rows["load.slice", "op1"]["digest"])
        assert found.counts.tolist() == Histogram.of(values).counts.tolist()
        assert (found.min, found.max) == (values.min(), values.max())
        assert rows["load.operations", "op1"]["sum"] == 500.0
        assert rows["load.operations", "op1"]["phase"] == "ramp"


def test_extremes_of_a_straddling_drain_lie_in_their_bucket(stream: MetricStream, clock: VirtualClock) -> None:
    """When a drain's stamp is of another window, min and max are the edges of their buckets: 0.8 % off at most."""
    segment = Segment.create()
    recorder = Recorder(Segment.open(segment.path), clock)
    stream.attach(segment, "op1", "")
    recorder.histogram("load.slice").record_many(np.array([0.1, 0.3]))
    recorder.tick()
    segment.next_window()
    row = close(stream, clock)["load.slice", "op1"]
    assert row["min"] == pytest.approx(0.1, rel=2**-7)
    assert row["max"] == pytest.approx(0.3, rel=2**-7)
    assert row["min"] <= 0.1
    assert row["max"] >= 0.3


def test_detaching_keeps_the_rest_and_marks_a_killed_recorder(stream: MetricStream, clock: VirtualClock) -> None:
    """What was drained before the end is in the next window; a recorder that did not close is counted as unflushed."""
    for worker, ends_well in (("op1", True), ("op2", False)):
        segment = Segment.create()
        recorder = Recorder(Segment.open(segment.path), clock)
        stream.attach(segment, worker, "")
        recorder.counter("load.operations").record(5)
        recorder.tick()
        if ends_well:
            recorder.close()
        stream.detach(segment)
        segment.close()
    rows = close(stream, clock)
    assert (rows["load.operations", "op1"]["sum"], rows["load.operations", "op2"]["sum"]) == (5.0, 5.0)
    assert [worker for metric, worker in rows if metric == "metrics.unflushed"] == ["op2"]


def test_a_replaced_load_is_one_series(stream: MetricStream, clock: VirtualClock) -> None:
    """Two segments of one worker in one window make one row, and the counter's total goes on."""
    for at in range(3):
        segment = Segment.create()
        recorder = Recorder(Segment.open(segment.path), clock)
        stream.attach(segment, "op1", "")
        recorder.counter("load.operations").record(10)
        recorder.histogram("load.slice").record(0.1 * (at + 1))
        recorder.gauge("host.cpu.busy").record(0.1 * (at + 1))
        recorder.close()
        stream.detach(segment)
    rows = close(stream, clock)
    assert (rows["load.operations", "op1"]["sum"], rows["load.operations", "op1"]["last"]) == (30.0, 30.0)
    assert decode(rows["load.slice", "op1"]["digest"]).count == 3
    busy = rows["host.cpu.busy", "op1"]
    assert (busy["min"], busy["max"], busy["last"]) == pytest.approx((0.1, 0.3, 0.3))


def test_what_cannot_be_sealed_goes_into_the_next_window(make: Callable[..., MetricStream], clock: VirtualClock) -> None:
    """With a full outbox nothing is lost: the window stays open and becomes a longer one."""
    stream = make(max_bytes=12_000)
    segment = Segment.create()
    recorder = Recorder(Segment.open(segment.path), clock)
    stream.attach(segment, "op1", "")
    recorded, sealed, refused = 0, 0, 0
    counted, longest = 0.0, 0.0
    for _ in range(40):
        recorder.counter("load.operations").record(1)
        recorder.tick()
        stream.observe("probe.requests", 1, labels={"probe": "p"})
        stream.event(Event("tick", "x"))
        recorded += 1
        clock.advance(1.0)
        if not stream.close_window(clock.wall_ns()):
            refused += 1
            for metrics, events in windows(stream):
                rows = {row["metric"]: row for row in metrics.to_pylist()}
                counted += rows["load.operations"]["sum"]
                assert rows["load.operations"]["sum"] == rows["probe.requests"]["sum"] == events.num_rows
                longest = max(longest, rows["load.operations"]["window_s"])
            sealed = stream.outbox.last
            stream.ack(sealed)
    stream.close_window(clock.wall_ns())
    counted += sum(row["sum"] for metrics, _ in windows(stream) for row in metrics.to_pylist() if row["metric"] == "load.operations")
    assert counted == recorded
    assert refused > 0
    assert longest == 2.0


def test_wall_clock_steps_change_no_count_and_no_order(stream: MetricStream, clock: VirtualClock) -> None:
    """Steps of a day forth and back lose and double nothing: lengths are boot time, order is by sequence, labels follow the wall."""
    steps = [0.0, DAY_S, 0.0, -2 * DAY_S, 0.0]
    for step in steps:
        clock.wall_offset_ns += round(step * SECOND_NS)
        stream.observe("probe.requests", 1, labels={"probe": "p"})
        close(stream, clock)
    rows = [metrics.to_pylist()[0] for metrics, _ in windows(stream)]
    assert [row["last"] for row in rows] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [row["window_s"] for row in rows] == [1.0] * 5
    days = [round((row["time"] - rows[0]["time"]).total_seconds() / DAY_S) for row in rows]
    assert days == [0, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("opened_at_s", "elapsed_s", "due"),
    [
        pytest.param(0.05, 0.6, False, id="mid-second"),
        pytest.param(0.05, 0.94, False, id="just-before-the-full-second"),
        pytest.param(0.05, 0.96, True, id="just-after-the-full-second"),
        pytest.param(0.7, 0.35, False, id="a-full-second-too-soon-after-opening"),
        pytest.param(0.7, 1.31, True, id="the-next-full-second"),
        pytest.param(0.0, 1.0, True, id="a-whole-second"),
        pytest.param(0.5, 1.5, True, id="long-enough-whatever-the-wall-says"),
    ],
)
def test_windows_end_with_full_seconds(tmp_path: Path, opened_at_s: float, elapsed_s: float, due: bool) -> None:
    """A window is due at the full second of the wall clock, but neither at once after its opening nor ever later than 1.5 s."""
    clock = VirtualClock()
    clock.advance(opened_at_s)
    box = Outbox(tmp_path / "r" / "n.box", node="n1", incarnation="a", run="r")
    stream = MetricStream("n1", "a", "r", box, clock)
    clock.advance(elapsed_s)
    assert stream.due(clock.wall_ns()) is due


def test_labels_of_windows_snap_to_full_seconds(stream: MetricStream, clock: VirtualClock) -> None:
    """A window that opened within 0.2 s of a full second is labelled with it; another with its true start."""
    clock.advance(0.08)
    stream.close_window(clock.wall_ns())
    for length in (1.02, 0.5, 1.0):
        stream.observe("host.cpu.busy", 0.5)
        close(stream, clock, length)
    times = [metrics["time"][0].value / 1e6 % 10 for metrics, _ in windows(stream)[1:]]
    assert times == pytest.approx([0.0, 1.0, 1.6])


def test_events_travel_with_the_window(stream: MetricStream, clock: VirtualClock) -> None:
    """Events have numbers of their own stream, JSON data, and are not lost by an empty window."""
    stream.event(Event("a", "first", data={"x": 1}))
    stream.event(Event("b", "second", severity="warning", node="n9", wall_ns=5 * SECOND_NS))
    close(stream, clock)
    close(stream, clock)
    first, second = windows(stream)[0][1].to_pylist()
    assert (first["sequence"], first["node"], json.loads(first["data"])) == (1, "n1", {"x": 1})
    assert (second["sequence"], second["node"], second["severity"], second["time"].second) == (2, "n9", "warning", 5)
    assert windows(stream)[1][1].num_rows == 0


def test_what_is_dropped_is_counted(stream: MetricStream, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invalid values and what passes a bound are counted by reason, never silently gone."""
    monkeypatch.setattr("cluster.metrics.stream._MAX_EVENTS", 1)
    stream.observe("host.cpu.busy", float("nan"))
    stream.observe("probe.requests", -1, labels={"probe": "p"})
    stream.event(Event("a", "kept"))
    stream.event(Event("b", "dropped"))
    clock.advance(1)
    stream.close_window(clock.wall_ns())
    dropped = {dict(row["labels"])["reason"]: row["sum"] for row in windows(stream)[0][0].to_pylist() if row["metric"] == "metrics.dropped"}
    assert dropped == {"invalid": 2.0, "event_limit": 1.0}


def test_refusals_of_a_segment_are_counted(stream: MetricStream, clock: VirtualClock) -> None:
    """Samples that a full segment refused, and invalid ones, appear as dropped once."""
    segment = Segment.create(1)
    recorder = Recorder(Segment.open(segment.path), clock)
    stream.attach(segment, "op1", "")
    recorder.histogram("load.slice").record_many(np.array([0.1, np.nan]))
    recorder.counter("load.operations").record(1)
    recorder.tick()
    clock.advance(1)
    stream.close_window(clock.wall_ns())
    stream.close_window(clock.wall_ns())
    dropped = [
        (dict(row["labels"])["reason"], row["sum"], row["last"])
        for metrics, _ in windows(stream)
        for row in metrics.to_pylist()
        if row["metric"] == "metrics.dropped"
    ]
    assert sorted(dropped) == [("invalid", 1.0, 1.0), ("series_limit", 1.0, 1.0)]


def test_the_end_is_named_once(stream: MetricStream, clock: VirtualClock) -> None:
    """finish() seals what is open and names the end; again, it changes nothing."""
    stream.observe("host.cpu.busy", 0.5)
    assert (stream.finish(), stream.finish()) == (2, 2)
    end = parse(stream.unacked()[-1][1])
    assert (end.kind, json.loads(end.payload)) == (Kind.END, {"clean": True})


def test_finish_on_a_full_disk_can_be_repeated(make: Callable[..., MetricStream], clock: VirtualClock) -> None:
    """When the last window does not fit, finish() says so and nothing is lost."""
    stream = make(max_bytes=6_000)
    stream.observe("probe.requests", 1, labels={"probe": "p"})
    assert stream.close_window(clock.wall_ns())
    stream.observe("probe.requests", 2, labels={"probe": "p"})
    with pytest.raises(OutboxFullError):
        stream.finish()
    stream.ack(1)
    assert stream.finish() == 3
    assert windows(stream)[-1][0]["sum"].to_pylist() == [2.0]


def test_units_of_the_dose(stream: MetricStream, clock: VirtualClock) -> None:
    """A dose is a ratio or bytes, each a unit of its own row; nothing else is taken."""
    stream.observe("dose.requested", 0.5, worker="cpu")
    stream.observe("dose.requested", 2**30, worker="memory", unit="bytes")
    rows = close(stream, clock)
    assert (rows["dose.requested", "cpu"]["unit"], rows["dose.requested", "memory"]["unit"]) == ("ratio", "bytes")
    with pytest.raises(InputError, match="no unit 'parsecs'"):
        stream.observe("dose.requested", 1, unit="parsecs")


def test_what_a_recorder_left_out_is_in_the_window(stream: MetricStream, clock: VirtualClock) -> None:
    """Samples that a filter or a level left out are told apart from those that were lost, each by its reason, exactly and once."""
    segment = Segment.create()
    stream.attach(segment, "op", "p")
    rules = (Filter(include=False, name="load.operations"),)
    segment.publish(RecordingPolicy(level=Verbosity.MINIMAL, filters=rules).to_json())
    recorder = Recorder(Segment.open(segment.path), clock)
    recorder.counter("load.operations").record_many(np.ones(5))
    recorder.histogram("load.slice").record_many(np.ones(3))
    segment.header[H_BACKLOG] += np.uint64(2)
    recorder.tick()
    clock.advance(1.0)
    assert stream.close_window(clock.wall_ns())
    rows = windows(stream)[-1][0].to_pylist()
    found = {(row["metric"], dict(row["labels"])["reason"], row["worker"]): row["sum"] for row in rows}
    want = {("metrics.filtered", "filter", "op"): 5.0, ("metrics.filtered", "level", "op"): 3.0, ("metrics.dropped", "backlog", "op"): 2.0}
    assert found == want
    assert close(stream, clock) == {}
