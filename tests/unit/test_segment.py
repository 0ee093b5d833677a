from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import VirtualClock
from actors.errors import HarnessError, InputError
from actors.metrics import Histogram, Kind, Recorder, Segment
from actors.metrics import handle as handle_module
from actors.metrics.segment import H_REFUSED_SAMPLES, H_REFUSED_SERIES, SEQUENCE, difference


@pytest.fixture
def segment() -> Segment:
    return Segment.create(8)


@pytest.fixture
def recorder(segment: Segment) -> Recorder:
    return Recorder(Segment.open(segment.path), VirtualClock())


def test_the_reader_sees_series_and_samples(segment: Segment, recorder: Recorder) -> None:
    """What was recorded and drained through one mapping is read through another, with names, labels and kinds."""
    recorder.histogram("probe.response", probe="echo").record_many(np.array([0.001, 0.002, 0.0]))
    recorder.counter("load.operations").record(5)
    recorder.counter("load.operations").record(7)
    recorder.gauge("host.cpu.busy").record(0.25)
    recorder.tick()
    assert list(segment.series()) == [
        (0, Kind.HISTOGRAM, "probe.response", (("probe", "echo"),)),
        (1, Kind.COUNTER, "load.operations", ()),
        (2, Kind.GAUGE, "host.cpu.busy", ()),
    ]
    assert list(segment.series(2)) == [(2, Kind.GAUGE, "host.cpu.busy", ())]
    assert (segment.read(0).count, segment.read(0).sum, segment.read(1).sum, segment.read(2).last) == (3, 0.003, 12.0, 0.25)


@pytest.mark.parametrize("size", [100, 10_000])
def test_the_difference_is_the_histogram_of_what_came_between(segment: Segment, recorder: Recorder, size: int) -> None:
    """Cumulative cells less their base are exactly the samples in between, of all signs and sizes."""
    chance = np.random.default_rng(3)
    record = recorder.histogram("load.slice").record_many
    base = None
    for _ in range(4):
        values = chance.normal(size=size) * 10.0 ** chance.integers(-12, 14, size)
        record(values)
        recorder.tick()
        now = segment.read(0)
        keys, counts = difference(now, base)
        want = Histogram.of(values)
        assert (keys.tolist(), counts.tolist()) == (want.keys.tolist(), want.counts.tolist())
        base = now


edges = st.sampled_from([2.0**-30, float(np.nextafter(2.0**-30, 0)), 2.0**34, float(np.nextafter(2.0**34, 0)), 0.0, 1.0, float("inf")])
durations = st.floats(1e-9, 1e9)
anything = st.floats(allow_nan=True) | edges | edges.map(lambda value: -value)


@given(st.lists(st.lists(durations | edges | anything, max_size=40) | st.lists(durations, max_size=40), min_size=1, max_size=3))
def test_every_drain_has_the_buckets_of_its_samples(drains: list[list[float]]) -> None:
    """Whatever the values are, within the range or beyond, far apart or together: buckets, count and extremes are exact."""
    segment = Segment.create(1)
    recorder = Recorder(Segment.open(segment.path), VirtualClock())
    series = recorder.histogram("load.slice")
    for values in drains:
        series.record_many(np.array(values, np.float64))
        recorder.tick()
    want = Histogram.of(np.concatenate([np.array(values, np.float64) for values in drains]))
    cells = segment.read(0)
    assert [part.tolist() for part in difference(cells, None)] == [want.keys.tolist(), want.counts.tolist()]
    assert (cells.count, cells.invalid) == (want.count, want.nan)
    if want.count:
        assert (cells.min, cells.max) == (want.min, want.max)
        finite = [abs(value) for values in drains for value in values if np.isfinite(value)]
        assert cells.sum == pytest.approx(want.sum, abs=1e-12 * sum(finite)) or not np.isfinite(want.sum)


def test_bucket_counts_may_wrap(segment: Segment, recorder: Recorder) -> None:
    """A bucket that passes 2^32 over its life still gives exact differences."""
    handle = recorder.histogram("load.slice")
    handle.record(1.0)
    recorder.tick()
    buckets = segment.buckets[0]
    buckets[buckets == 1] = 2**32 - 1
    base = segment.read(0)
    for _ in range(3):
        handle.record(1.0)
    recorder.tick()
    assert difference(segment.read(0), base)[1].tolist() == [3]


def test_untouched_memory_is_not_allocated() -> None:
    """A segment of 1,024 series takes memory for what was touched only, also after the reader looked."""
    segment = Segment.create(1024)
    recorder = Recorder(Segment.open(segment.path))
    recorder.histogram("load.slice").record(0.001)
    recorder.tick()
    written = segment.resident_bytes
    for row, *_ in segment.series():
        segment.read(row)
    assert segment.resident_bytes == written
    assert written < 64 << 10  # of 64 MiB


def test_a_full_segment_counts_what_it_refuses() -> None:
    """Series past the capacity are refused, and their samples counted rather than lost in silence."""
    segment = Segment.create(1)
    recorder = Recorder(Segment.open(segment.path))
    recorder.counter("load.operations").record(1)
    recorder.histogram("load.slice").record_many(np.ones(5))
    recorder.tick()
    assert [name for _, _, name, _ in segment.series()] == ["load.operations"]
    assert (int(segment.header[H_REFUSED_SERIES]), int(segment.header[H_REFUSED_SAMPLES])) == (1, 5)


def test_invalid_samples_are_counted(segment: Segment, recorder: Recorder) -> None:
    """NaN anywhere, and increments that are negative or infinite, are no samples but are counted."""
    for value in (1.0, -1.0, float("nan"), float("inf")):
        recorder.counter("load.operations").record(value)
        recorder.histogram("load.slice").record(value)
    recorder.tick()
    assert (segment.read(0).count, segment.read(0).sum, segment.read(0).invalid) == (1, 1.0, 3)
    assert (segment.read(1).count, segment.read(1).sum, segment.read(1).invalid) == (3, 0.0, 1)


def test_extremes_belong_to_their_window(segment: Segment, recorder: Recorder) -> None:
    """min and max start anew with each window."""
    handle = recorder.gauge("host.cpu.busy")
    handle.record(0.9)
    recorder.tick()
    first = segment.next_window()
    assert (segment.read(0).stamp, segment.read(0).max) == (first, 0.9)
    handle.record(0.1)
    recorder.tick()
    assert (segment.read(0).stamp, segment.read(0).max) == (first + 1, 0.1)


def test_a_recorder_that_died_in_mid_drain_does_not_hang_the_reader(segment: Segment, recorder: Recorder) -> None:
    """An odd sequence is waited for a bounded number of times; then the cells are taken as they are."""
    recorder.counter("load.operations").record(1)
    recorder.tick()
    segment.words[0, SEQUENCE] += np.uint64(1)
    assert segment.read(0).count == 1


def test_threads_lose_nothing(segment: Segment, recorder: Recorder) -> None:
    """Samples recorded by several threads while another drains all arrive."""
    handle = recorder.counter("load.operations")
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            recorder.tick()

    drainer = threading.Thread(target=drain)
    drainer.start()
    writers = [threading.Thread(target=lambda: [handle.record(1) for _ in range(20_000)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    drainer.join()
    recorder.close()
    assert (segment.read(0).count, segment.closed) == (60_000, True)


def test_what_is_recorded_during_a_drain_waits_for_the_next(segment: Segment, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that arrives while a drain stores the ones before it is neither lost nor stored twice."""
    handle = recorder.counter("load.operations")
    real = handle_module._store

    def store(*args: object) -> object:
        if int(segment.read(0).count) == 0:
            handle.record(10)
        return real(*args)

    monkeypatch.setattr(handle_module, "_store", store)
    handle.record(1)
    recorder.tick()
    assert (segment.read(0).count, segment.read(0).sum) == (1, 1.0)
    recorder.tick()
    assert (segment.read(0).count, segment.read(0).sum) == (2, 11.0)


def test_timer_records_seconds(segment: Segment) -> None:
    """A timer records what its clock saw, also when the block raises."""
    clock = VirtualClock()
    recorder = Recorder(Segment.open(segment.path), clock)

    def block() -> None:
        with recorder.timer("load.slice"):
            clock.advance(0.25)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    recorder.tick()
    assert segment.read(0).sum == pytest.approx(0.25)


def test_only_the_catalogue_can_be_recorded(recorder: Recorder) -> None:
    """Unknown names, undeclared labels and other kinds are refused with the nearest name."""
    with pytest.raises(InputError, match=r"did you mean 'load\.slice'"):
        recorder.histogram("load.slise")
    with pytest.raises(InputError, match="no label 'x'"):
        recorder.histogram("load.slice", x="1")
    with pytest.raises(InputError, match="is a histogram"):
        recorder.counter("load.slice")


def test_a_name_is_checked_however_often_it_was_called(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle is found as it was called before; what equals that call and is another one is not it, and a bound ends the remembering."""
    first = recorder.counter("probe.failures", probe="1", reason="failed")
    assert recorder.counter("probe.failures", probe="1", reason="failed") is first
    assert recorder.counter("probe.failures", reason="failed", probe="1") is first
    whole, true = (recorder.counter("probe.failures", probe=value, reason="failed") for value in (1, True))
    assert (whole, true.labels[0]) == (first, ("probe", "True"))
    assert recorder.counter("probe.failures", probe=1, reason="failed") is first
    with pytest.raises(InputError, match="is a counter"):
        recorder.gauge("probe.failures", probe="1", reason="failed")
    monkeypatch.setattr(handle_module, "_CALLS_MAX", len(recorder._called))
    many = [recorder.counter("probe.requests", probe=str(number)) for number in range(100)]
    assert many[-1] is recorder.counter("probe.requests", probe="99")
    assert len(recorder._called) == handle_module._CALLS_MAX


def test_what_is_no_segment_is_refused(tmp_path) -> None:
    """A missing or foreign file is an error with its path, never mapped."""
    foreign = tmp_path / "x"
    foreign.write_bytes(b"x" * 10_000)
    for path in (foreign, tmp_path / "none"):
        with pytest.raises(HarnessError, match=str(path)):
            Segment.open(str(path))
