"""Caps on series, and the end of idle ones, against a model that remembers everything."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.clock import SECOND_NS, VirtualClock
from cluster.metrics.cardinality import Caps, Cardinality, Key, overflow_of
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, Outbox, parse


def key(value: int, metric: str = "probe.requests") -> Key:
    return (metric, "", "w", "p", (("probe", f"v{value}"),))


@settings(max_examples=200, deadline=None)
@given(
    offers=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 9), st.integers(0, 4)), max_size=80),
    caps=st.builds(Caps, st.integers(1, 8), st.integers(1, 6), st.integers(1, 5), st.just(6.0)),
)
def test_no_cap_is_passed_and_no_value_is_lost(offers: list[tuple[str, int, int, int]], caps: Caps) -> None:
    """At each moment all caps hold; kept and overflow values add up to what was offered; a series fed within the time to live stays."""
    cardinality = Cardinality(caps)
    now_ns, kept, over = 0, 0, 0
    fed: dict[Key, int] = {}
    gone: list[Key] = []
    for metric, one, two, step_s in offers:
        now_ns += step_s * SECOND_NS
        pruned = cardinality.prune(now_ns)
        assert all(now_ns - fed.pop(name) > 6 * SECOND_NS for name in pruned)
        gone += pruned
        assert all(now_ns - seen_ns <= 6 * SECOND_NS for seen_ns in fed.values()), "an idle series is still there"
        offered: Key = (metric, "", "", "", (("x", str(one)), ("y", str(two))))
        entered = cardinality.admit(offered, now_ns)
        assert entered in (offered, overflow_of(offered))
        assert offered not in fed or entered == offered, "a series that was known lost its place"
        if entered == offered:
            fed[offered], kept = now_ns, kept + 1
        else:
            over += 1
        labels = defaultdict(set)
        for name in fed:
            for label, value in name[-1]:
                labels[name[0], label].add(value)
        assert len(cardinality) == len(fed) <= caps.series
        assert all(sum(name[0] == metric for name in fed) <= caps.by_metric for metric in "ab")
        assert all(len(values) <= caps.by_label for values in labels.values())
    assert (kept + over, cardinality.rejected, cardinality.pruned) == (len(offers), over, len(gone))


def test_a_pruned_series_makes_room() -> None:
    """After the time to live a refused series finds a place, in all, of its metric and of its label."""
    cardinality = Cardinality(Caps(1, 1, 1, idle_s=10.0))
    assert cardinality.admit(key(1), 0) == key(1)
    assert cardinality.admit(key(2), 10 * SECOND_NS) == overflow_of(key(2))
    assert cardinality.prune(10 * SECOND_NS) == []
    assert cardinality.prune(10 * SECOND_NS + 1) == [key(1)]
    assert cardinality.admit(key(2), 11 * SECOND_NS) == key(2)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def stream_of(tmp_path: Path, clock: VirtualClock, caps: Caps) -> MetricStream:
    box = Outbox(tmp_path / "r" / "n1-a.box", node="n1", incarnation="a", run="r")
    return MetricStream("n1", "a", "r", box, clock, caps=caps)


def closed(stream: MetricStream, clock: VirtualClock) -> dict[tuple[str, str], tuple[float, float]]:
    """Close a window and return sum and last of each series, by metric and first label."""
    clock.advance(1.0)
    assert stream.close_window(clock.wall_ns())
    record = [parse(data) for _, data in stream.unacked(1 << 30)][-1]
    assert record.kind is Kind.WINDOW
    rows = unseal(record.payload)[0].to_pylist()
    return {(row["metric"], next(iter(dict(row["labels"]).values()), "")): (row["sum"], row["last"]) for row in rows}


def test_a_stream_merges_what_passes_the_cap(tmp_path: Path, clock: VirtualClock) -> None:
    """Old series count on, the others share one, nothing is lost, and how many values that were is in the files; in each window."""
    stream = stream_of(tmp_path, clock, Caps(series=3))
    for window in (1, 2):
        for value in range(10):
            stream.observe("probe.requests", value, labels={"probe": f"v{value}"})
            stream.observe("probe.response", value, labels={"probe": f"v{value}"})
        found = closed(stream, clock)
        own = {label: found["probe.requests", label][0] for metric, label in found if metric == "probe.requests"}
        assert own == {"v0": 0.0, "v1": 1.0, "__overflow__": float(sum(range(2, 10)))}
        times = {label: found["probe.response", label][0] for metric, label in found if metric == "probe.response"}
        assert times == {"v0": 0.0, "__overflow__": float(sum(range(1, 10)))}
        rejected = {label: found["metrics.series.rejected", label][0] for label in ("probe.requests", "probe.response")}
        assert rejected == {"probe.requests": 8.0, "probe.response": 9.0}
        assert found["probe.requests", "v1"][1] == float(window)


def test_an_idle_series_begins_anew(tmp_path: Path, clock: VirtualClock) -> None:
    """One that is fed within the time to live keeps its total, one that is not begins at 0 again; the pruned are counted exactly."""
    stream = stream_of(tmp_path, clock, Caps(idle_s=60.0))
    for probe in ("steady", "idle"):
        stream.observe("probe.requests", 5, labels={"probe": probe})
    closed(stream, clock)
    pruned = 0.0
    for _ in range(4):
        clock.advance(29.0)
        stream.observe("probe.requests", 1, labels={"probe": "steady"})
        pruned += closed(stream, clock).get(("metrics.series.pruned", ""), (0.0, 0.0))[0]
    assert all(dict(key[4]).get("probe") != "idle" for key in stream._left_out), "what was decided about a series goes with it"
    stream.observe("probe.requests", 2, labels={"probe": "idle"})
    found = closed(stream, clock)
    assert (found["probe.requests", "idle"], pruned) == ((2.0, 2.0), 1.0)
    stream.observe("probe.requests", 1, labels={"probe": "steady"})
    assert closed(stream, clock)["probe.requests", "steady"] == (1.0, 10.0)


def test_values_offered_are_values_kept_in_the_files(tmp_path: Path, clock: VirtualClock) -> None:
    """Whatever is refused a series, counts and sums of the sealed windows are those that were observed."""
    stream = stream_of(tmp_path, clock, Caps(series=50, by_metric=30, by_label=20))
    for value in range(500):
        stream.observe("probe.requests", 1, labels={"probe": f"v{value % 97}"})
        if value % 100 == 99:
            clock.advance(1.0)
            stream.close_window(clock.wall_ns())
    tables = [unseal(parse(data).payload)[0] for _, data in stream.unacked(1 << 30)]
    sums = [pc.sum(table.filter(pc.equal(table["metric"], "probe.requests"))["sum"]).as_py() for table in tables]
    assert sum(sums) == 500.0
