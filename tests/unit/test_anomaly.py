"""Anomaly detectors against planted steps and against noise, and hooks that misbehave."""

from __future__ import annotations

import threading
from importlib.metadata import EntryPoint

import numpy as np
import pyarrow as pa
import pytest

from actors.clock import VirtualClock
from actors.errors import InputError
from actors.messages import Event
from cluster.metrics import anomaly_watch
from cluster.metrics.anomaly import LEAST, Detector, Ewma, PerSeries, Reading, RobustZ, hooks_of, readings
from cluster.metrics.anomaly_watch import AnomalyWatch
from cluster.metrics.rollup import table_of
from cluster.metrics.store import Entry
from cluster.metrics.windows import EVENTS

WITHIN = 10  # windows in which a step of 6 sigma must be found
DETECTORS = pytest.mark.parametrize("make", [RobustZ, Ewma])
START_US = 1_700_000_000 * 10**6


@DETECTORS
def test_a_step_of_six_sigma_is_found(make: type[Detector]) -> None:
    """Planted after 200 stationary windows, it is found within ten in at least 99 of 100 seeds, and named by its direction."""
    hits = 0
    for seed in range(100):
        chance = np.random.default_rng(seed)
        detector, sign = make(), 1 if seed % 2 else -1
        before = [detector(value) for value in chance.normal(50.0, 2.0, 200).tolist()]
        after = [detector(value) for value in chance.normal(50.0 + sign * 12.0, 2.0, WITHIN).tolist()]
        found = [words for words in after if words]
        hits += bool(found) and not any(before) and ("above" if sign > 0 else "below") in found[0]
    assert hits >= 99


@DETECTORS
def test_noise_is_no_anomaly(make: type[Detector]) -> None:
    """Of 10^5 stationary samples at most one is called odd."""
    detector = make()
    values = np.random.default_rng(1).normal(100.0, 5.0, 100_000).tolist()
    assert sum(detector(value) is not None for value in values) <= 1


@DETECTORS
def test_what_hardly_moves_is_not_judged_by_its_last_digit(make: type[Detector]) -> None:
    """A constant may move by some per cent; a series of zeros is never judged; nothing is judged before there are enough windows."""
    detector = make()
    assert [detector(value) for value in [100.0] * 120 + [104.0]] == [None] * 121
    assert detector(120.0) is not None
    zeros = make()
    assert [zeros(value) for value in [0.0] * 120 + [1.0]] == [None] * 121
    early = make()
    assert [early(value) for value in [1.0] * (LEAST - 1) + [100.0]] == [None] * LEAST


@DETECTORS
def test_a_step_is_found_once(make: type[Detector]) -> None:
    """After a finding a detector learns the new level: no event in each window that follows."""
    detector = make()
    chance = np.random.default_rng(3)
    for value in chance.normal(50.0, 2.0, 200).tolist():
        detector(value)
    assert sum(detector(value) is not None for value in chance.normal(100.0, 2.0, 300).tolist()) == 1


def reading(value: float, worker: str = "w") -> Reading:
    return Reading("host.cpu.busy", "ratio", "n1", worker, "", (), 0.0, 1.0, value)


def test_series_do_not_mix() -> None:
    """Each series is judged by its own past."""
    hook = PerSeries(RobustZ)
    for _ in range(LEAST):
        assert hook(reading(1.0, "a")) is None
        assert hook(reading(50.0, "b")) is None
    assert hook(reading(50.0, "a")) is not None
    assert hook(reading(50.0, "b")) is None


def rows(second: int, value: float, count: int = 1, **more: object) -> dict[str, object]:
    usual = {"window_s": 1.0, "metric": "host.cpu.busy", "kind": "gauge", "unit": "ratio", "node": "n1", "worker": "", "phase": "p"}
    return usual | {"labels": [], "time": START_US + second * 10**6, "count": count, "sum": value * count} | more


def test_hooks_see_means_and_rates() -> None:
    """A counter is seen as its rate, all else as its mean; what the scenario asks for is not seen at all."""
    table = table_of(
        [
            rows(0, 0.5, 4),
            rows(0, 30.0, metric="probe.requests", kind="counter", window_s=10.0),
            rows(0, 1.0, metric="dose.requested"),
            rows(0, float("inf"), metric="probe.response", kind="histogram"),
        ]
    )
    assert [(one.metric, one.value) for one in readings(table)] == [("host.cpu.busy", 0.5), ("probe.requests", 3.0)]


def told(second: float, value: float) -> list[Entry]:
    """Return the record of a second as an aggregator tells of it."""
    events = pa.RecordBatch.from_pylist([], schema=EVENTS)
    return [Entry(("n1", "a"), int(second) + 1, table_of([rows(second, value)]).to_batches()[0], events)]


def events_of(watch: AnomalyWatch) -> list[Event]:
    """End it, and return its events."""
    watch.end(30.0)
    return watch.news()[1]


def watched(hooks: dict, values: list[float], clock: VirtualClock | None = None) -> AnomalyWatch:
    watch = AnomalyWatch(hooks, 1.0, clock or VirtualClock())
    for second, value in enumerate(values):
        watch.take(told(second, value))
    return watch


def test_a_planted_step_becomes_an_event() -> None:
    """Through rollup and threads an anomaly is an event with place, time and words."""
    watch = watched(hooks_of("robust_z"), [0.5] * 120 + [0.9] * 5)
    (event,) = events_of(watch)
    assert (event.kind, event.severity, event.node, event.phase) == ("anomaly", "warning", "n1", "p")
    assert event.wall_ns == (START_US + 120 * 10**6) * 1000
    assert "host.cpu.busy: 0.9 is" in event.message
    assert (dict(watch.found), dict(watch.failures)) == ({"robust_z": 1}, {})


def test_what_is_found_is_told_once() -> None:
    """Each look at the news has what came since the last: counters that add up to the whole, and every event once."""
    seen = threading.Semaphore(0)
    watch = watched({"always": lambda _: (seen.release(), "odd")[1]}, [0.5] * 10)
    for _ in range(3):
        assert seen.acquire(timeout=30)
    rows, events = watch.news()
    watch.end(30.0)
    more_rows, more = watch.news()
    assert len(events) + len(more) == 10
    assert sum(row.sum for row in (*rows, *more_rows)) == more_rows[0].last == 10.0
    assert {(row.metric, row.labels) for row in more_rows} == {("anomaly.found", (("hook", "always"),))}
    assert watch.news() == ([], [])


def test_a_hook_that_raises_is_counted_and_the_others_go_on() -> None:
    """Each window at which it raised is counted; another hook sees all."""

    def broken(_: Reading) -> str | None:
        raise RuntimeError("no")

    seen: list[float] = []
    watch = watched({"broken": broken, "fine": lambda one: seen.append(one.value)}, [float(at) for at in range(50)])
    assert events_of(watch) == []
    assert dict(watch.failures) == {("broken", "raised"): 50}
    assert seen == [float(at) for at in range(50)]


def test_a_hook_that_hangs_is_given_up_and_costs_nothing_else() -> None:
    """It is counted once, called no more, and neither other hooks nor whoever offers windows wait for it."""
    clock, entered, release = VirtualClock(), threading.Event(), threading.Event()

    def hanging(_: Reading) -> str | None:
        entered.set()
        release.wait(60)
        return "too late to count"

    seen: list[float] = []
    watch = watched({"hanging": hanging, "fine": lambda one: seen.append(one.value)}, [0.5] * 20, clock)
    assert entered.wait(30)
    clock.advance(anomaly_watch.TIMEOUT_S + 1.0)
    for second in range(20, 30):
        watch.take(told(second, 0.5))
    try:
        assert events_of(watch) == []
        assert dict(watch.failures) == {("hanging", "timed_out"): 1}
        assert len(seen) == 30
    finally:
        release.set()


def test_what_does_not_fit_is_counted_and_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings past a minute's share are counted without an event; windows past the queue are counted by their rows."""
    clock = VirtualClock()
    watch = watched({"always": lambda _: "odd"}, [0.5] * 100, clock)
    assert len(events_of(watch)) == anomaly_watch.EVENTS_A_MINUTE
    assert watch.found["always"] == 100
    monkeypatch.setattr(anomaly_watch, "QUEUED_MAX", 1)
    held, entered = threading.Event(), threading.Event()

    def slow(_: Reading) -> str | None:
        entered.set()
        held.wait(60)
        return None

    full = AnomalyWatch({"slow": slow}, 1.0, clock)
    full._rollup.take = lambda _: held.wait(60) and {1.0: table_of([])}  # type: ignore[method-assign]
    for second in range(5):
        full.take(told(second, 0.5))
    held.set()
    full.end(30.0)
    assert full.failures["", "queue_full"] in (3, 4)


@pytest.mark.parametrize(
    ("text", "points", "words"),
    [
        pytest.param("robust_zz", [], "offered by none", id="unknown"),
        pytest.param("x", [("x", "a:b"), ("x", "c:d")], "offered by a:b and c:d", id="offered-twice"),
        pytest.param("x", [("x", "no_such_module:b")], "cannot be made", id="does-not-import"),
        pytest.param("x", [("x", "builtins:int")], "no callable", id="makes-no-hook"),
    ],
)
def test_a_hook_that_cannot_be_had_is_refused(text: str, points: list[tuple[str, str]], words: str) -> None:
    """A name that nothing or more than one thing offers, or that cannot be made, is a bad setting, with the reason."""
    with pytest.raises(InputError, match=words):
        hooks_of(text, [EntryPoint(name, value, "stress_cluster.anomaly_hooks") for name, value in points])


def test_a_packages_hook_is_found_by_its_entry_point() -> None:
    """What a package offers under the group is made and called; the product's own need no package."""
    point = EntryPoint("odd", f"{__name__}:odd_hook", "stress_cluster.anomaly_hooks")
    hooks = hooks_of("odd, ewma", [point])
    assert list(hooks) == ["odd", "ewma"]
    assert hooks["odd"](reading(1.0)) == "odd"
    assert hooks_of("") == {}


def odd_hook() -> object:
    return lambda _: "odd"
