"""What is recorded: levels that nest, filters and modes that change under way, batches, weights, and exact counts of the rest."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import VirtualClock
from actors.errors import InputError
from actors.metrics import CATALOGUE, Histogram, Kind, Recorder, Segment, handle
from actors.metrics.labels import CLOSED
from actors.metrics.policy import RULES_MAX, Filter, Mode, RecordingPolicy, Sampling
from actors.metrics.raw import columns
from actors.metrics.registry import MINIMAL, Verbosity
from actors.metrics.ring import Consumer, Producer, Ring
from actors.metrics.sampling import Adaptive, Always, FirstN, Probability, RateLimit
from actors.metrics.segment import (
    H_BACKLOG,
    H_BAD_TEXTS,
    H_LEFT_FILTER,
    H_LEFT_LEVEL,
    H_RAW,
    H_TEXT_SEQUENCE,
    RAW_NONE,
    RAW_ON,
    RAW_UNAVAILABLE,
    difference,
)
from actors.simulator import REGISTRY
from tests.support.held import own_descriptors

NOT_LOADS = Filter(include=False, name="load.*")
globs = st.sampled_from(["*", "load.*", "host.*", "*.response", "load.slice", "probe.[rs]*"])
sampling = st.one_of(st.just(Always()), st.builds(Probability, st.floats(0.01, 1)), st.builds(FirstN, st.integers(0, 9)))
policies = st.builds(
    RecordingPolicy,
    st.sampled_from(Verbosity),
    st.sampled_from(Mode),
    st.lists(st.builds(Filter, st.booleans(), globs, st.none() | st.sampled_from(Kind)), max_size=5).map(tuple),
    st.lists(st.builds(Sampling, globs, sampling), max_size=5).map(tuple),
)


@pytest.fixture
def segment() -> Segment:
    return Segment.create()


def recorder_of(segment: Segment) -> Recorder:
    return Recorder(Segment.open(segment.path), VirtualClock())


def test_levels_nest() -> None:
    """Minimal is within normal, normal within verbose, which is all; each is a real step, and what is vital is in each."""
    names = {level: {name for name, metric in CATALOGUE.items() if level.records(metric)} for level in Verbosity}
    assert names[Verbosity.MINIMAL] < names[Verbosity.NORMAL] < names[Verbosity.VERBOSE] == set(CATALOGUE)
    vital = {name for name, metric in CATALOGUE.items() if metric.vital}
    assert vital == {
        "dose.requested",
        "dose.achieved",
        "dose.own",
        "operation.started",
        "operation.completed",
        "operation.failed",
        "samples.produced",
        "samples.dropped",
        "probe.failures",
        "safety.verdict",
        "safety.ceiling",
        "load.refused",
        "mesh.messages",
        "mesh.restarts",
        "concurrency.deadlock.detected",
        "concurrency.deadlock.timeouts",
        "concurrency.livelock.detected",
        "concurrency.inversion.detected",
        "metrics.dropped",
        "metrics.filtered",
        "metrics.unflushed",
        "metrics.series.rejected",
        "metrics.series.pruned",
        "anomaly.failures",
        "errors.seen",
        "errors.rate",
        "export.failures",
        "export.dropped",
        "halt.latency",
    }
    assert vital | MINIMAL == names[Verbosity.MINIMAL]
    assert set(CATALOGUE) >= MINIMAL


@pytest.mark.parametrize("kind", REGISTRY)
def test_at_the_minimal_level_a_simulator_has_at_most_ten_series(kind: str) -> None:
    """What its node and it record of an operation, its labels' words multiplied: begin, one end, doses, and all that its record documents.

    A refusal counts once: failures are recorded at every level, and a reason has a series only where the kernel gave it.
    """
    record = REGISTRY[kind]
    own = {"dose.own"} if any(option.name == "mode" and "host_total" in option.choices for option in record.options) else set()
    of_node = {"dose.requested", "dose.achieved", "operation.started", "operation.completed", *own}
    names = {name for name in {*of_node, *record.metrics} if Verbosity.MINIMAL.records(CATALOGUE[name])}
    series = {name: math.prod(words_of(name, label) for label in CATALOGUE[name].labels) for name in names}
    assert of_node <= names
    assert sum(series.values()) <= 10, series


def words_of(name: str, label: str) -> int:
    """Return how many words a label has within one operation; fails for one that is not closed."""
    return 1 if label in {"simulator", "shape", "errno"} else len(CLOSED[name][label])


@given(policies)
def test_a_policy_survives_its_text(policy: RecordingPolicy) -> None:
    """What is written to a segment's header is read as the same policy."""
    assert RecordingPolicy.from_json(policy.to_json()) == policy


@given(policies)
def test_no_policy_leaves_out_what_is_vital(policy: RecordingPolicy) -> None:
    """Failures and safety are recorded, and whole, under every policy."""
    for metric in CATALOGUE.values():
        if metric.vital:
            assert policy.leaves_out(metric, ()) == ""
            assert policy.sampling_of(metric) == Always()


@pytest.mark.parametrize(
    ("filters", "name", "labels", "want"),
    [
        ((), "load.slice", (), ""),
        ((NOT_LOADS,), "load.slice", (), "filter"),
        ((NOT_LOADS,), "host.cpu.busy", (), ""),
        ((Filter(include=True, name="load.slice"), NOT_LOADS), "load.slice", (), ""),
        ((NOT_LOADS, Filter(include=True, name="load.slice")), "load.slice", (), "filter"),
        ((Filter(include=False, kind=Kind.GAUGE),), "host.cpu.busy", (), "filter"),
        ((Filter(include=False, kind=Kind.GAUGE),), "load.operations", (), ""),
        ((Filter(include=False, labels=(("probe", "ech*"),)),), "probe.response", (("probe", "echo"),), "filter"),
        ((Filter(include=False, labels=(("probe", "ech*"),)),), "probe.response", (("probe", "other"),), ""),
        ((Filter(include=False, labels=(("probe", "*"),)),), "load.slice", (), ""),
        ((Filter(include=False),), "probe.failures", (("probe", "echo"),), ""),
    ],
)
def test_the_first_filter_that_matches_decides(filters: tuple[Filter, ...], name: str, labels: tuple, want: str) -> None:
    """By name, kind and label; without a match a series is recorded."""
    assert RecordingPolicy(filters=filters).leaves_out(CATALOGUE[name], labels) == want


@pytest.mark.parametrize(
    "make",
    [
        lambda: Filter(include=False, name="probe.failures"),
        lambda: Filter(include=False, name="load.slise"),
        lambda: Sampling("safety.verdict", Probability(0.5)),
        lambda: RecordingPolicy(filters=(NOT_LOADS,) * (RULES_MAX + 1)),
        lambda: RecordingPolicy.from_json("{"),
        lambda: RecordingPolicy.from_json('{"level":"loud","mode":"summary","filters":[],"sampling":[]}'),
        lambda: RecordingPolicy.from_json('{"level":"normal","mode":"summary","filters":[],"sampling":[["*","often",1]]}'),
        lambda: Segment.create().publish("x" * 4000),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object]) -> None:
    """Naming a vital metric in a filter or sampling, an unknown name, too many rules, damaged text: errors of the caller's."""
    with pytest.raises(InputError):
        make()


def test_a_filter_changes_while_a_process_records(segment: Segment) -> None:
    """A rule is in force from the next drain on, for a bound `record` that was kept; what it leaves out is counted, to the sample."""
    recorder = recorder_of(segment)
    record, series = recorder.histogram("load.slice").record, recorder.histogram("load.slice")
    record(1.0)
    recorder.tick()
    segment.publish(RecordingPolicy(filters=(NOT_LOADS,)).to_json())
    record(2.0)
    series.record_many(np.ones(10))
    series.record_weighted(3.0, 5)
    recorder.counter("load.operations").record(7.0)
    recorder.counter("probe.failures", probe="x", reason="y").record(1.0)
    recorder.tick()
    assert (segment.read(0).count, segment.read(1).count, segment.read(2).count) == (1, 0, 1)
    assert int(segment.header[H_LEFT_FILTER]) == 1 + 10 + 5 + 1
    segment.publish(RecordingPolicy().to_json())
    record(4.0)
    recorder.tick()
    assert (segment.read(0).count, segment.read(0).sum, int(segment.header[H_LEFT_FILTER])) == (2, 5.0, 17)


def test_a_level_changes_while_a_process_records(segment: Segment) -> None:
    """At `minimal` a histogram of slices is left out and counted, the work units and failures go on; `normal` brings it back."""
    segment.publish(RecordingPolicy(level=Verbosity.MINIMAL).to_json())
    recorder = recorder_of(segment)
    slices, operations = recorder.histogram("load.slice"), recorder.counter("load.operations")
    disk = recorder.gauge("host.disk.size")
    for level, want in ((Verbosity.MINIMAL, (0, 1, 0)), (Verbosity.NORMAL, (1, 2, 0)), (Verbosity.VERBOSE, (2, 3, 1))):
        segment.publish(RecordingPolicy(level=level).to_json())
        slices.record(1.0)
        operations.record(1.0)
        disk.record(1.0)
        recorder.tick()
        assert tuple(segment.read(row).count for row in range(3)) == want
    assert int(segment.header[H_LEFT_LEVEL]) == 1 + 2


def test_a_policy_that_is_being_written_is_not_read(segment: Segment) -> None:
    """A text between its two sequence numbers is left alone, and read once it is whole."""
    recorder = recorder_of(segment)
    segment.publish(RecordingPolicy(filters=(NOT_LOADS,)).to_json())
    segment.header[H_TEXT_SEQUENCE] -= np.uint64(1)
    recorder.tick()
    assert recorder.policy == RecordingPolicy()
    segment.header[H_TEXT_SEQUENCE] += np.uint64(1)
    recorder.tick()
    assert recorder.policy.filters == (NOT_LOADS,)


# batches and weights


@given(st.lists(st.tuples(st.floats(allow_nan=True, width=32), st.integers(1, 50)), max_size=60))
def test_a_weight_is_so_many_samples(pairs: list[tuple[float, int]]) -> None:
    """A weighted sample leaves the cells that so many equal samples leave: count, invalid, extremes, buckets; the sum to rounding."""
    one, other = Segment.create(1), Segment.create(1)
    weighted, repeated = recorder_of(one), recorder_of(other)
    for value, weight in pairs:
        weighted.histogram("load.slice").record_weighted(value, weight)
        for _ in range(weight):
            repeated.histogram("load.slice").record(value)
    weighted.tick()
    repeated.tick()
    if not pairs:
        return
    left, right = one.read(0), other.read(0)
    assert (left.count, left.invalid, left.min, left.max, left.special) == (right.count, right.invalid, right.min, right.max, right.special)
    assert [part.tolist() for part in difference(left, None)] == [part.tolist() for part in difference(right, None)]
    scale = sum(abs(value) * weight for value, weight in pairs if np.isfinite(value))
    assert abs(left.sum - right.sum) <= 1e-12 * scale


@pytest.mark.parametrize("weight", [0, -1, (1 << 31) + 1])
def test_impossible_weights_are_refused(segment: Segment, weight: int) -> None:
    """A sample stands for at least itself, and for no more than a bucket can count."""
    with pytest.raises(InputError):
        recorder_of(segment).histogram("load.slice").record_weighted(1.0, weight)


@pytest.mark.parametrize("sizes", [[1], [8192], [8192, 1], [5000, 5000, 3], [100_000], [0, 0], [4096, 4096, 4096], [9000, 9000, 1, 9000]])
def test_batches_of_all_sizes_arrive(segment: Segment, sizes: list[int]) -> None:
    """Around the size of the preallocated buffer, below and above it, every sample of a batch arrives, and the caller keeps its array."""
    recorder, chance = recorder_of(segment), np.random.default_rng(1)
    series, sent = recorder.histogram("load.slice"), []
    for _ in range(3):
        for size in sizes:
            values = chance.lognormal(size=size)
            sent.append(values.copy())
            series.record_many(values)
            values[:] = -1.0
        recorder.tick()
    want = Histogram.of(np.concatenate(sent))
    got = segment.read(0)
    assert (got.count, got.sum) == (want.count, pytest.approx(want.sum))
    if want.count:
        assert [part.tolist() for part in difference(got, None)] == [want.keys.tolist(), want.counts.tolist()]


def test_batches_need_no_free_buffer(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer buffers than series the rest is copied into memory of its own; a drain gives every buffer back."""
    monkeypatch.setattr(handle, "_BUFFERS", 2)
    recorder = recorder_of(segment)
    many = [recorder.counter("probe.requests", probe=str(number)) for number in range(5)]
    for _ in range(3):
        for series in many:
            series.record_many(np.ones(10))
        assert recorder._slab.in_use == 2
        recorder.tick()
        assert recorder._slab.in_use == 0
    assert [segment.read(row).count for row in range(5)] == [30] * 5


def test_a_backlog_is_bounded_and_counted(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches past the bound are dropped and counted as backlog; after a drain there is room again."""
    monkeypatch.setattr(handle, "_BACKLOG", 100)
    recorder = recorder_of(segment)
    series = recorder.counter("load.operations")
    for _ in range(3):
        series.record_many(np.ones(40))
    recorder.tick()
    assert (segment.read(0).count, int(segment.header[H_BACKLOG])) == (80, 40)
    series.record_many(np.ones(100))
    recorder.tick()
    assert (segment.read(0).count, int(segment.header[H_BACKLOG])) == (180, 40)


def test_a_gauge_keeps_the_order_of_singles_and_batches(segment: Segment) -> None:
    """The last value of a gauge is the one that was recorded last, by whichever call."""
    recorder = recorder_of(segment)
    gauge = recorder.gauge("host.cpu.busy")
    gauge.record_many(np.array([0.1, 0.2]))
    gauge.record(0.3)
    recorder.tick()
    assert segment.read(0).last == 0.3


def test_label_sets_are_bounded(segment: Segment) -> None:
    """Label sets past the bound share one overflow series, so that totals stay right; those before it go on as they are."""
    recorder = Recorder(Segment.open(segment.path), VirtualClock(), label_sets_max=3)
    for number in range(10):
        recorder.counter("probe.failures", probe=f"p{number}", reason="r").record(1.0)
    recorder.counter("probe.failures", probe="p1", reason="r").record(1.0)
    recorder.counter("load.operations").record(1.0)
    recorder.tick()
    found = {dict(labels).get("probe", name): segment.read(row).sum for row, _, name, labels in segment.series()}
    assert found == {"p0": 1.0, "p1": 2.0, "p2": 1.0, handle.OVERFLOW_LABEL: 7.0, "load.operations": 1.0}


# modes


def detailed(segment: Segment, *rules: Sampling) -> tuple[Ring, Consumer]:
    ring = Ring.create(1 << 14, 3)
    segment.publish(RecordingPolicy(mode=Mode.DETAILED, sampling=rules).to_json(), ring.path)
    return ring, Consumer(ring)


def test_summary_equals_what_the_details_add_up_to(segment: Segment) -> None:
    """In detailed mode each sample leaves, with series and time; count, sum, min and max of the summary are those of the details."""
    ring, consumer = detailed(segment)
    recorder, chance = recorder_of(segment), np.random.default_rng(7)
    slices, operations = recorder.histogram("load.slice"), recorder.counter("load.operations")
    for _ in range(10):
        slices.record_many(chance.lognormal(size=900))
        for _ in range(100):
            slices.record(float(chance.lognormal()))
        operations.record(2.0)
        recorder.tick()
    values, rows, weights, times = columns(consumer.drain())
    assert (int(segment.header[H_RAW]), ring.state().dropped, set(weights.tolist())) == (RAW_ON, 0, {1})
    assert set(times.tolist()) == {VirtualClock().boot_ns()}
    for row, count in ((0, 10_000), (1, 10)):
        mine, cells = values[rows == row], segment.read(row)
        assert (mine.size, cells.count) == (count, count)
        assert (cells.min, cells.max, cells.sum) == (mine.min(), mine.max(), pytest.approx(mine.sum()))
    points_of_a_summary = len(list(segment.series()))
    assert points_of_a_summary <= 0.01 * values.size


def test_the_mode_changes_during_a_run(segment: Segment) -> None:
    """Summary, detailed on one ring, summary, detailed on the same ring again: only the samples of detailed times leave."""
    recorder = recorder_of(segment)
    slices = recorder.histogram("load.slice")
    ring = Ring.create(64, 3)
    consumer = Consumer(ring)
    on, off = RecordingPolicy(mode=Mode.DETAILED).to_json(), RecordingPolicy().to_json()
    for number, (policy, path) in enumerate([(off, ""), (on, ring.path), (off, ""), (on, ring.path), (on, "")]):
        segment.publish(policy, path)
        slices.record(float(number))
        recorder.tick()
        assert int(segment.header[H_RAW]) == (RAW_ON if path else RAW_NONE)
        assert consumer.has_producer() == bool(path)
    recorder.close()
    assert columns(consumer.drain())[0].tolist() == [1.0, 3.0]
    assert segment.read(0).count == 5


def test_without_a_ring_the_summary_goes_on_and_says_so(segment: Segment) -> None:
    """A ring that is gone or taken leaves the aggregates as they are, and the header tells that single samples are unavailable."""
    ring = Ring.create(64, 3)
    Producer(ring)
    for path in ("/proc/1/fd/none", ring.path):
        segment.publish(RecordingPolicy(mode=Mode.DETAILED).to_json(), path)
        recorder = recorder_of(segment)
        recorder.histogram("load.slice").record(1.0)
        recorder.tick()
        assert int(segment.header[H_RAW]) == RAW_UNAVAILABLE
    assert segment.read(0).count == 2


@pytest.fixture(params=["gone", "taken", "one-column", "a-pipe", "no-lock"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of what no raw sample can be pushed to, kept alive."""
    ring = Ring.create(64, 1 if request.param == "one-column" else 3)
    producer = Producer(ring) if request.param == "taken" else None
    path = ring.path
    if request.param == "gone":
        path = str(tmp_path / "none")
    elif request.param == "a-pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
    elif request.param == "no-lock":

        def take(*_: object) -> bool:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr("actors.metrics.ring.take", take)
    yield path
    del producer
    ring.close()


def test_a_ring_that_cannot_be_used_costs_nothing_but_the_details(segment: Segment, unusable: str) -> None:
    """Gone, taken, of another shape, no ring at all, no locks: no drain fails, aggregates go on, and no descriptor stays open."""
    recorder = recorder_of(segment)
    open_before = own_descriptors()
    for _ in range(5):
        segment.publish(RecordingPolicy(mode=Mode.DETAILED).to_json(), unusable)
        recorder.histogram("load.slice").record(1.0)
        recorder.tick()
        assert int(segment.header[H_RAW]) == RAW_UNAVAILABLE
    assert own_descriptors() == open_before
    assert segment.read(0).count == 5


BAD_TEXTS = [
    "{",
    "[]",
    "[" * 2000,
    '{"level":"loud","mode":"summary","filters":[],"sampling":[]}',
    '{"level":"normal","mode":"summary","filters":[[true,5,null,[]]],"sampling":[]}',
    '{"level":"normal","mode":"summary","filters":[],"sampling":[["*","first",Infinity]]}',
]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_bad_policy_ends_no_load(segment: Segment, text: str) -> None:
    """What is no policy leaves the old one in force and is counted; the next good one is taken over."""
    segment.publish(RecordingPolicy(filters=(NOT_LOADS,)).to_json())
    recorder = recorder_of(segment)
    segment.publish(text)
    for _ in range(3):
        recorder.histogram("load.slice").record(1.0)
        recorder.tick()
    assert (recorder.policy.filters, int(segment.header[H_BAD_TEXTS])) == ((NOT_LOADS,), 1)
    assert int(segment.header[H_LEFT_FILTER]) == 3
    segment.publish(RecordingPolicy().to_json())
    recorder.tick()
    assert recorder.policy == RecordingPolicy()


@pytest.mark.parametrize("at", [1024, 1030, 3840, 3850])
def test_texts_that_are_torn_are_not_taken_over(segment: Segment, at: int) -> None:
    """A byte of another text under the right sequence number, as a processor that reorders may show it, is found by the checksum."""
    recorder = recorder_of(segment)
    segment.publish(RecordingPolicy(filters=(NOT_LOADS,)).to_json(), "/proc/1/fd/none")
    (right,) = segment._map[at : at + 1]
    segment._map[at : at + 1] = b"\xff"
    recorder.tick()
    assert (recorder.policy, int(segment.header[H_BAD_TEXTS])) == (RecordingPolicy(), 1)
    segment._map[at : at + 1] = bytes([right])
    recorder.tick()
    assert (recorder.policy.filters, int(segment.header[H_BAD_TEXTS])) == ((NOT_LOADS,), 1)


def test_the_sequence_is_part_of_the_checksum(segment: Segment) -> None:
    """Old texts that are seen under a new number are not taken for the new ones."""
    segment.publish(RecordingPolicy(filters=(NOT_LOADS,)).to_json())
    segment.header[H_TEXT_SEQUENCE] += np.uint64(2)
    assert recorder_of(segment).policy == RecordingPolicy()


def test_too_long_a_path_is_told_apart_from_a_policy(segment: Segment) -> None:
    """The message names what was too long and its bound; what was published before stays."""
    segment.publish(RecordingPolicy().to_json(), "/old")
    with pytest.raises(InputError, match="the path of a ring of 300 bytes; at most 256"):
        segment.publish(RecordingPolicy().to_json(), "x" * 300)
    assert segment.texts(0)[2] == "/old"


def test_invalid_samples_do_not_leave(segment: Segment) -> None:
    """NaN, and increments that are negative or infinite, are counted as invalid and are no details; the others keep their weights."""
    ring, consumer = detailed(segment)
    recorder = recorder_of(segment)
    slices, operations = recorder.histogram("load.slice"), recorder.counter("load.operations")
    slices.record_many(np.array([1.0, np.nan, 2.0]))
    slices.record(float("nan"))
    for value, weight in ((float("nan"), 7), (3.0, 5)):
        slices.record_weighted(value, weight)
    operations.record_many(np.array([-1.0, 4.0, np.inf, np.nan]))
    recorder.tick()
    values, rows, weights, _ = columns(consumer.drain())
    found = sorted(zip(rows.tolist(), values.tolist(), weights.tolist(), strict=True))
    assert found == [(0, 1.0, 1), (0, 2.0, 1), (0, 3.0, 5), (1, 4.0, 1)]
    assert [(segment.read(row).count, segment.read(row).invalid) for row in range(2)] == [(7, 9), (1, 3)]
    assert ring.state().dropped == 0


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    [
        (Probability(0.05), 5000, 5000),
        (RateLimit(100), 900, 1001),
        (RateLimit(1000), 9000, 10_001),
        (FirstN(10), 110, 110),
        (Adaptive(1000), 9000, 10_001),
        (Adaptive(19), 171, 191),
    ],
)
def test_details_are_thinned_and_their_weights_tell_of_all(segment: Segment, policy: object, least: int, most: int) -> None:
    """10 s at 10,000/s: as many leave as allowed, their weights add up to the summary's count, the ring drops none; failures are whole."""
    ring, consumer = detailed(segment, Sampling("*", policy))
    clock = VirtualClock()
    recorder = Recorder(Segment.open(segment.path), clock, seed=5)
    slices, failures = recorder.histogram("load.slice"), recorder.counter("probe.failures", probe="x", reason="y")
    blocks = []
    for tick in range(100):
        slices.record_many(np.full(1000, tick, np.float64))
        failures.record_many(np.ones(3))
        recorder.tick()
        clock.advance(0.1)
        if tick % 10 == 9:
            segment.next_window()
        blocks.append(consumer.drain())
    recorder.close()
    values, rows, weights, _ = columns(np.concatenate([*blocks, consumer.drain()], axis=1))
    assert consumer.closed
    assert ring.state().dropped == 0
    assert weights[rows == 0].sum() == segment.read(0).count == 100_000
    assert least <= (rows == 0).sum() <= most  # with the last group of the run
    assert (rows == 1).sum() == 300
    assert set(weights[rows == 1].tolist()) == {1}
    assert (values[rows == 0] * weights[rows == 0]).sum() == pytest.approx(segment.read(0).sum, rel=0.05)


def test_a_limit_holds_after_silence(segment: Segment) -> None:
    """Batches after minutes without samples came since the last drain, not over the minutes: the limit is by the second."""
    _, consumer = detailed(segment, Sampling("*", RateLimit(100)))
    clock = VirtualClock()
    recorder = Recorder(Segment.open(segment.path), clock)
    slices = recorder.histogram("load.slice")
    weights = 0
    for tick in range(3600):
        if tick % 3599 == 0:
            for _ in range(3):
                slices.record_many(np.ones(9000))
            slices.record(1.0)
        recorder.tick()
        clock.advance(0.1)
        found = columns(consumer.drain())[2]
        weights += int(found.sum())
        assert found.size <= 11
    recorder.close()
    assert weights + columns(consumer.drain())[2].sum() == segment.read(0).count == 54_002


def test_a_closed_recorder_pushes_nothing_more(segment: Segment) -> None:
    """A tick after the end stores what is left and raises nothing; the ring that was said to have ended gets no sample."""
    _, consumer = detailed(segment)
    recorder = recorder_of(segment)
    recorder.histogram("load.slice").record(1.0)
    recorder.close()
    recorder.histogram("load.slice").record(2.0)
    recorder.tick()
    recorder.close()
    assert consumer.closed
    assert (columns(consumer.drain())[0].tolist(), segment.read(0).count) == ([1.0], 2)


def test_a_burst_is_thinned_before_the_ring(segment: Segment) -> None:
    """100,000 samples/s on a ring that holds 2,000: with an adaptive budget it drops none, without one it drops and counts."""
    for rules, drops in (((Sampling("load.slice", Adaptive(5000)),), False), ((), True)):
        ring = Ring.create(2048, 3)
        consumer, clock = Consumer(ring), VirtualClock()
        segment.publish(RecordingPolicy(mode=Mode.DETAILED, sampling=rules).to_json(), ring.path)
        recorder = Recorder(Segment.open(segment.path), clock)
        chance, sent, weights = Random(1), 0, 0
        for _ in range(20):
            count = chance.randint(5_000, 10_000)
            sent += count
            recorder.histogram("load.slice").record_many(np.ones(count))
            recorder.tick()
            weights += int(columns(consumer.drain())[2].sum())
            clock.advance(0.1)
        recorder.close()
        weights += int(columns(consumer.drain())[2].sum())
        assert (ring.state().dropped > 0) == drops
        assert weights + ring.state().dropped == sent
