"""Single samples of detailed mode, from a load's ring to samples/*.parquet: each is written once, or counted where it was lost."""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.clock import VirtualClock
from actors.errors import HarnessError
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Filter, Mode, RecordingPolicy, Sampling
from actors.metrics.ring import Consumer, Ring
from actors.metrics.sampling import Adaptive, Always, FirstN, Probability, RateLimit
from cluster.analysis.load import load
from cluster.files import read_json
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.raw_samples import SampleReader
from cluster.metrics.samples import read_samples
from cluster.metrics.store import LogFile, read_run
from cluster.metrics.stream import MetricStream
from cluster.outbox import Kind, Outbox, Record, frame

DETAILED = RecordingPolicy(mode=Mode.DETAILED)
LOADS = ("load.slice", "load.operations")


class Way:
    """One load, its agent's stream and an aggregator."""

    def __init__(self, folder: Path, policy: RecordingPolicy = DETAILED, *, ring: int = 1 << 12, max_bytes: int = 1 << 22) -> None:
        self.clock = VirtualClock()
        self.segment, made = Segment.create(), Ring.create(ring, 3)
        self.segment.publish(policy.to_json(), made.path)
        box = Outbox(folder / "outbox" / "r" / "n1-a.box", node="n1", incarnation="a", run="r", max_bytes=max_bytes)
        self.stream = MetricStream("n1", "a", "r", box, self.clock, policy)
        self.stream.attach(self.segment, "op", "ramp", SampleReader(self.segment, Consumer(made), "op", "ramp"))
        self.recorder = Recorder(Segment.open(self.segment.path), self.clock)
        self.aggregator = Aggregator("r", folder / "run", self.clock)
        self.directory = folder / "run"

    def record(self, slices: list[float], operations: list[float]) -> None:
        self.recorder.histogram("load.slice").record_many(np.array(slices, np.float64))
        self.recorder.counter("load.operations").record_many(np.array(operations, np.float64))
        self.clock.advance(0.1)
        self.recorder.tick()

    def window(self, *, deliver: bool = True) -> None:
        self.clock.advance(0.5)
        self.stream.close_window(self.clock.wall_ns())
        if deliver:
            self.deliver()

    def deliver(self) -> None:
        while records := self.stream.unacked():
            self.stream.ack(self.aggregator.push("n1", "a", records))

    def end(self, *, killed: bool = False) -> dict:
        if not killed:
            self.recorder.close()
        self.stream.detach(self.segment)
        self.deliver()
        self.stream.finish()
        self.deliver()
        return self.aggregator.finish({"status": "passed"}, {"status": "passed"})

    def figures(self, metric: str) -> tuple[int, float]:
        rows = [row for row in read_run(self.directory).metrics.to_pylist() if row["metric"] == metric]
        return sum(row["count"] for row in rows), sum(row["sum"] for row in rows)


def test_samples_go_from_a_load_to_the_files(tmp_path: Path) -> None:
    """Names, values, weights and times of every sample; the windows' count, sum and extremes follow from them exactly."""
    way = Way(tmp_path)
    begun_us = way.clock.wall_ns() // 1000
    for turn in range(3):
        way.record([0.5 + turn, 0.25], [float(turn), 3.0])
        way.window()
    summary = way.end()
    found = load(way.directory).samples()
    assert [file.name for file in (way.directory / "samples").iterdir()] == ["part-0000.parquet"]
    assert not (way.directory / "log").exists()
    assert pq.read_table(way.directory / "samples").num_rows == found.num_rows == 12
    first = found.to_pylist()[0]
    assert {key: first[key] for key in ("metric", "unit", "node", "worker", "phase", "labels", "value", "weight")} == {
        "metric": "load.slice",
        "unit": "seconds",
        "node": "n1",
        "worker": "op",
        "phase": "ramp",
        "labels": [],
        "value": 0.5,
        "weight": 1,
    }
    times = found["time"].cast("int64").to_pylist()
    assert times == sorted(times)
    assert times[0] - begun_us == 100_000
    for metric in LOADS:
        values = [row["value"] for row in found.to_pylist() if row["metric"] == metric]
        assert way.figures(metric) == (len(values), sum(values))
    rows = [row for row in read_run(way.directory).metrics.to_pylist() if row["metric"] == "load.slice"]
    assert [(row["min"], row["max"]) for row in rows] == [(0.25, 0.5 + turn) for turn in range(3)]
    assert summary["samples"] == {"produced": 12, "written": 12}
    assert summary["losses"]["single_samples"] == {}


def test_a_run_in_summary_mode_has_no_samples(tmp_path: Path) -> None:
    """No file, no folder, zero and not unknown."""
    way = Way(tmp_path, RecordingPolicy())
    way.record([0.5], [1.0])
    way.window()
    assert way.end()["samples"] == {"produced": 0, "written": 0}
    assert not (way.directory / "samples").exists()
    assert load(way.directory).samples().num_rows == 0


turns = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120), st.booleans(), st.booleans()), min_size=1, max_size=8)
policies = st.builds(
    lambda filters, sampling: RecordingPolicy(mode=Mode.DETAILED, filters=tuple(filters), sampling=tuple(sampling)),
    st.lists(st.builds(Filter, st.booleans(), st.sampled_from(["load.*", "load.slice", "*.operations"])), max_size=2),
    st.lists(
        st.builds(
            Sampling,
            st.sampled_from(["*", "load.slice", "load.operations"]),
            st.sampled_from([Always(), Probability(0.1), RateLimit(20.0), FirstN(5), Adaptive(100.0)]),
        ),
        max_size=2,
    ),
)


@given(turns, policies, st.sampled_from([16, 64, 1 << 12]), st.sampled_from([24_000, 1 << 22]))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_uncounted(turns: list[tuple[int, int, bool, bool]], policy: RecordingPolicy, ring: int, max_bytes: int) -> None:
    """Recorded = in windows + left out; given away = written + dropped by ring or outbox; weights of whole series = windows' counts."""
    with tempfile.TemporaryDirectory() as folder:
        way = Way(Path(folder), policy, ring=ring, max_bytes=max_bytes)
        recorded = Counter(dict.fromkeys(LOADS, 0))
        for slices, operations, closes, delivers in turns:
            way.record([0.5] * slices, [2.0] * operations)
            recorded.update({"load.slice": slices, "load.operations": operations})
            if closes:
                way.window(deliver=delivers)
        way.deliver()
        summary = way.end()
        in_windows = {metric: way.figures(metric)[0] for metric in LOADS}
        assert sum(in_windows.values()) + way.figures("metrics.filtered")[1] == sum(recorded.values())
        dropped = summary["losses"]["single_samples"]
        assert set(dropped) <= {"ring_full", "outbox_full"}
        told, samples = summary["samples"], read_samples(way.directory)
        assert told["produced"] == told["written"] + sum(dropped.values())
        assert told["written"] == samples.num_rows
        weights = Counter(dict.fromkeys(LOADS, 0))
        for metric, weight in zip(samples["metric"].to_pylist(), samples["weight"].to_pylist(), strict=True):
            weights[metric] += weight
        assert all(weights[metric] <= in_windows[metric] for metric in LOADS)
        if not dropped:
            assert dict(weights) == in_windows
        way.aggregator.close()


def test_what_finds_no_room_is_counted_by_where(tmp_path: Path) -> None:
    """A ring of 16 and an outbox of 10 kB: both lose, each by its name, and windows still find room."""
    way = Way(tmp_path, ring=16, max_bytes=10_000)
    way.record([0.5] * 20, [])
    for _ in range(12):
        way.record([0.5] * 16, [])
        way.window(deliver=False)
    summary = way.end()
    lost = summary["losses"]["single_samples"]
    assert lost["ring_full"] > 0
    assert lost["outbox_full"] > 0
    assert summary["samples"]["produced"] == summary["samples"]["written"] + sum(lost.values()) == 20 + 12 * 16
    assert way.figures("load.slice")[0] == 20 + 12 * 16


def test_a_window_takes_a_bounded_part_and_the_end_takes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an agent is never kept by one load's ring; the rest waits in it."""
    monkeypatch.setattr("cluster.metrics.stream._SAMPLES", 4)
    monkeypatch.setattr("cluster.metrics.stream._SAMPLE_RECORDS", 2)
    way = Way(tmp_path)
    way.record([0.5] * 100, [])
    way.window()
    assert read_samples(way.directory).num_rows == 8
    assert way.end()["samples"] == {"produced": 100, "written": 100}


def test_samples_of_a_record_that_nobody_can_read_are_missing(tmp_path: Path) -> None:
    """They are counted, though no reason was told: given away less written."""
    way = Way(tmp_path)
    way.record([0.5] * 7, [])
    way.stream.close_window(way.clock.wall_ns())
    (number, _), *rest = way.stream.unacked()
    records = [(number, frame(Record(number, Kind.SAMPLES, b"nonsense"))), *rest]
    assert way.aggregator.push("n1", "a", records) == 2
    way.stream.ack(2)
    summary = way.end()
    assert (summary["samples"], summary["losses"]["single_samples"]) == ({"produced": 7, "written": 0}, {"missing": 7})
    assert summary["losses"]["undecodable_records"] == 1


def test_samples_of_a_record_that_was_refused_once_it_was_written_stay_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses the last sync: a reader finds the record, and in the files its samples too; sent again they are no more."""
    way = Way(tmp_path)
    way.record([0.5] * 7, [])
    way.stream.close_window(way.clock.wall_ns())
    records = way.stream.unacked()
    real = LogFile.sync

    def sync(file: LogFile) -> int:
        if "/metrics-" in str(file._file.name):
            raise OSError(28, "No space left on device")
        return real(file)

    with monkeypatch.context() as full:
        full.setattr(LogFile, "sync", sync)
        with pytest.raises(HarnessError, match="No space left"):
            way.aggregator.push("n1", "a", records)
    way.aggregator.finish({"status": "passed"})
    assert read_run(way.directory).coverage.has(("n1", "a"), 1)
    assert read_samples(way.directory).num_rows == 7
    way.deliver()
    assert way.end()["samples"] == {"produced": 7, "written": 7}
    assert read_samples(way.directory).num_rows == 7


def test_late_samples_come_as_a_further_part(tmp_path: Path) -> None:
    """The next aggregator goes on: what is written stays, what was in the log is written, and no sample is there twice."""
    way = Way(tmp_path)
    for turn in range(3):
        way.record([float(turn)], [])
        way.window()
        if turn == 0:
            way.aggregator.finish({"status": "passed"}, {"status": "passed"})
        way.aggregator.close()
        way.aggregator = Aggregator("r", way.directory, way.clock)
        assert read_samples(way.directory)["value"].to_pylist() == [float(at) for at in range(turn + 1)]
    way.end()
    assert len(list((way.directory / "samples").iterdir())) == 2
    assert load(way.directory).samples()["value"].to_pylist() == [0.0, 1.0, 2.0]
    assert (read_json(way.directory / "summary.json") or {})["samples"] == {"produced": 3, "written": 3}


def rings() -> int:
    return sum("stress-cluster-ring" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("killed", [False, True])
def test_a_ring_goes_with_its_load(tmp_path: Path, killed: bool) -> None:
    """Once the load has ended and was read for the last time, nothing of the shared memory is mapped any more."""
    gc.collect()
    before = rings()
    way = Way(tmp_path)
    way.record([0.5], [])
    assert rings() > before
    summary = way.end(killed=killed)
    assert summary["samples"] == {"produced": 1, "written": 1}
    del way
    gc.collect()
    assert rings() == before
