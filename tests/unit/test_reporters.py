"""One contract for all reporters, and what each adds: batches with exact counts; simulators know none of them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import cpu
from actors.clock import SystemClock, VirtualClock
from actors.cpu import CpuLoad
from actors.errors import InputError
from actors.heat import Reading
from actors.messages import Capacity, Operation
from actors.meters import LoadMeters, open_meters
from actors.metrics import Recorder, Segment
from actors.metrics.reporter import Batch, BatchingReporter, MemoryReporter, NullReporter, Reporter
from actors.shape import Constant

ROOT = Path(__file__).parents[2]


@dataclass
class Case:
    """A reporter and how to see what came out of it: (weighted count, weighted sum) of a series; None where nothing is kept."""

    reporter: Reporter
    total: Callable[[str], tuple[int, float]] | None


def collecting() -> Case:
    segment = Segment.create()

    def total(name: str) -> tuple[int, float]:
        found = {series: segment.read(row) for row, _, series, _ in segment.series()}
        return (found[name].count, found[name].sum) if name in found else (0, 0.0)

    return Case(Recorder(Segment.open(segment.path), VirtualClock()), total)


def in_memory() -> Case:
    reporter = MemoryReporter()
    return Case(reporter, lambda name: summed(reporter.samples(name)))


def summed(samples: list[tuple[float, int]]) -> tuple[int, float]:
    return sum(weight for _, weight in samples), sum(value * weight for value, weight in samples)


def batching() -> Case:
    batches: list[Batch] = []

    def deliver(batch: Batch) -> bool:
        batches.append(batch)
        return True

    def total(name: str) -> tuple[int, float]:
        return summed([(value, weight) for batch in batches for series, value, weight in batch.entries if series.name == name])

    return Case(BatchingReporter(deliver, VirtualClock(), size=7), total)


CASES = {
    "recorder": collecting,
    "null": lambda: Case(NullReporter(), None),
    "memory": in_memory,
    "batching": batching,
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


def test_all_reporters_take_the_same_calls(case: Case) -> None:
    """Single samples, batches and weighted ones of all kinds, by calls that are kept; after `close` all of it has come out."""
    reporter = case.reporter
    record = reporter.counter("load.operations").record
    for _ in range(10):
        record(1.0)
    reporter.counter("load.operations").record_many(np.ones(20))
    reporter.histogram("load.slice").record_weighted(1.0, 5)
    reporter.histogram("load.slice").record_many(np.ones(5))
    reporter.gauge("host.cpu.busy").record(0.5)
    reporter.tick()
    reporter.close()
    if case.total is not None:
        assert case.total("load.operations") == (30, 30.0)
        assert case.total("load.slice") == (10, 10.0)
        assert case.total("host.cpu.busy") == (1, 0.5)


def test_all_reporters_copy_what_they_take(case: Case) -> None:
    """The caller's array is the caller's again after the call."""
    values = np.ones(20)
    case.reporter.counter("load.operations").record_many(values)
    values[:] = 1000.0
    case.reporter.close()
    if case.total is not None:
        assert case.total("load.operations") == (20, 20.0)


def test_all_reporters_know_the_catalogue(case: Case) -> None:
    """An unknown name, an undeclared label and another kind are refused by each, so that a test with one finds what a run would."""
    with pytest.raises(InputError, match=r"did you mean 'load\.slice'"):
        case.reporter.histogram("load.slise")
    with pytest.raises(InputError, match="no label 'x'"):
        case.reporter.histogram("load.slice", x="1")
    with pytest.raises(InputError, match="is a histogram"):
        case.reporter.counter("load.slice")


def test_no_simulator_knows_a_collector() -> None:
    """Simulators get their meters handed in: none imports what collects, and `actors.meters` is the one place that opens it."""
    concrete = {"handle", "segment", "ring", "raw", "Recorder", "Segment"}
    opens = []
    for path in sorted(path for path in (ROOT / "actors").rglob("*.py") if path.parent.name != "metrics"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "metrics" in (node.module or "").split("."):
                parts = {(node.module or "").rpartition(".")[2], *(alias.name for alias in node.names)}
                opens += [path.relative_to(ROOT / "actors").as_posix()] * bool(parts & concrete)
    assert opens == ["meters.py"]


class Watch:
    """A lease that lasts."""

    def __init__(self) -> None:
        self.clock, self.noted = SystemClock(), []

    def may_go_on(self) -> bool:
        return True

    def ceiling(self) -> float:
        return 1.0

    def note(self, what: int) -> None:
        self.noted.append(what)

    def report(self, **figures: float) -> None:
        pass

    def first_slice(self) -> None:
        pass


def test_a_load_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel breaks in the 20th slice: the error comes out, and the 19 slices before it are in the segment, which is closed."""
    left = iter(range(19))

    def kernel(rounds: int) -> None:
        if next(left, None) is None:
            raise OSError("broken")

    monkeypatch.setattr(cpu, "make_kernels", lambda *_: [lambda rounds: None])
    segment, watch = Segment.create(), Watch()
    operation = Operation("0.CpuLoad@n", "CpuLoad", "n", 0.0, 5.0, "fraction", Constant(1.0).to_spec(), {"cores": 1})
    load = CpuLoad(operation, Capacity(1.0, 1 << 30, 1 << 30), watch, segment.path, sensors=lambda: Reading({"core": 50.0}))
    load.warm_up()
    load._kernels = [kernel]
    with pytest.raises(OSError, match="broken"):
        load.run(watch.clock.boot_ns())
    found = {name: segment.read(row).count for row, _, name, _ in segment.series()}
    assert found == {"load.slice": 19, "load.operations": 19}
    assert (segment.closed, watch.noted) == (True, [])


def test_without_an_agent_a_load_records_nowhere() -> None:
    """No segment, or one that is gone: the meters take what they are told, keep nothing, and say so."""
    for path in ("", "/proc/self/fd/none"):
        meters = open_meters(path, 1)
        meters.record_slice(0.001, 5)
        meters.tick()
        meters.close()
        assert not meters.is_kept


def test_a_load_records_through_any_reporter() -> None:
    """Meters know the protocol only: a test sees with a reporter in memory what a run would record."""
    reporter = MemoryReporter()
    meters = LoadMeters(reporter)
    meters.record_slice(0.25, 5)
    meters.close()
    assert (reporter.samples("load.slice"), reporter.samples("load.operations")) == ([(0.25, 1)], [(5, 1)])
    assert reporter.closed


# batches


def refusing(answers: list[object], got: list[Batch]) -> Callable[[Batch], bool]:
    """A sink that takes, refuses or raises, as told, and takes once it was told nothing more."""

    def deliver(batch: Batch) -> bool:
        answer = answers.pop(0) if answers else True
        if isinstance(answer, Exception):
            raise answer
        if answer:
            got.append(batch)
        return bool(answer)

    return deliver


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=40),
    st.lists(st.sampled_from([True, False, OSError("down")]), max_size=30),
    st.integers(1, 10),
    st.integers(0, 30),
)
def test_delivered_dropped_and_waiting_are_what_was_offered(steps: list, answers: list, size: int, more: int) -> None:
    """Whatever the sink does: nothing is lost, doubled or out of order but what is counted as dropped."""
    got: list[Batch] = []
    reporter = BatchingReporter(refusing(list(answers), got), VirtualClock(), size=size, limit=size + more)
    series, offered = reporter.counter("load.operations"), 0
    for count, tick in steps:
        series.record_many(np.arange(offered, offered + count, dtype=np.float64))
        offered += count
        if tick:
            reporter.tick()
        assert reporter.offered == offered == reporter.delivered + reporter.dropped + reporter.waiting
        assert reporter.waiting <= size + more
    reporter.close()
    values = [value for batch in got for _, value, _ in batch.entries]
    assert values == sorted(set(values))
    assert (reporter.delivered, reporter.waiting) == (len(values), 0)
    assert reporter.delivered + reporter.dropped == offered
    assert all(len(batch.entries) <= size for batch in got)


def test_ten_thousand_records_are_few_calls() -> None:
    """10^4 samples in batches of 1,000 cost at most ceil(samples / batch) + 1 calls, and none is lost."""
    got: list[Batch] = []
    reporter = BatchingReporter(refusing([], got), VirtualClock(), size=1000)
    record = reporter.counter("load.operations").record
    for _ in range(10_001):
        record(1.0)
    reporter.close()
    assert (reporter.calls, sum(len(batch.entries) for batch in got)) == (11, 10_001)


def test_a_batch_leaves_by_age() -> None:
    """A sample waits no longer than the age, counted from the first that waits, once a tick comes."""
    got: list[Batch] = []
    clock = VirtualClock()
    reporter = BatchingReporter(refusing([], got), clock, size=100, age_s=1.0)
    series = reporter.counter("load.operations")
    for advance_s, want in ((0.0, 0), (0.6, 0), (0.4, 3), (0.5, 3), (1.0, 5)):
        clock.advance(advance_s)
        series.record(1.0)
        reporter.tick()
        assert reporter.delivered == want


def test_a_batch_larger_than_its_limit_is_refused() -> None:
    """A size of nothing, or past what may wait, is an error of the caller's."""
    for size in (0, 11):
        with pytest.raises(InputError):
            BatchingReporter(lambda _: True, VirtualClock(), size=size, limit=10)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("per_batch", [1, 2, 9])
def test_a_sink_may_record_into_its_own_reporter(size: int, per_batch: int) -> None:
    """What a sink records while it takes a batch is delivered later or counted as dropped, once, and the calls end."""
    got: list[float] = []
    made = iter(range(1000, 100_000))

    def deliver(batch: Batch) -> bool:
        got.extend(value for _, value, _ in batch.entries)
        for _ in range(per_batch):
            reporter.counter("load.operations").record(float(next(made)))
        reporter.tick()
        return True

    reporter = BatchingReporter(deliver, VirtualClock(), size=size, age_s=0.0, limit=100)
    for number in range(50):
        reporter.counter("load.operations").record(float(number))
        assert reporter.offered == reporter.delivered + reporter.dropped + reporter.waiting
    reporter.close()
    assert len(got) == len(set(got)) == reporter.delivered
    assert (reporter.offered, reporter.waiting) == (reporter.delivered + reporter.dropped, 0)
    assert reporter.offered == 50 + per_batch * reporter.calls


@pytest.mark.parametrize("takes", [True, False])
def test_a_sink_may_close_its_own_reporter(takes: bool) -> None:
    """The batch that the sink has now is its own to take or refuse; what waits behind it is dropped, and all is counted."""

    def deliver(batch: Batch) -> bool:
        reporter.close()
        return takes

    reporter = BatchingReporter(deliver, VirtualClock(), size=2, limit=10, age_s=100)
    reporter.counter("load.operations").record_many(np.ones(7))
    reporter.close()
    assert (reporter.offered, reporter.waiting) == (7, 0)
    assert reporter.delivered + reporter.dropped == 7
    assert (reporter.delivered > 0) == takes
