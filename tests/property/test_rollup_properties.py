"""Windows of several lengths against a computation over all rows at once, in whatever order and pieces the rows come."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import InputError
from actors.metrics import histogram
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.rollup import Rollup, Windows, means, table_of

LENGTHS_S = (2.0, 10.0, 60.0)
START_US = 1_700_000_000 * 10**6

values = st.floats(-1e12, 1e12, allow_nan=False) | st.sampled_from([0.0, 0.1, 1e308])


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(list(Kind)))
    row: dict[str, Any] = {
        "time": START_US + draw(st.integers(0, 150_000) | st.integers(0, 15).map(lambda tenth: tenth * 10_000)) * 1000,
        "window_s": 1.0,
        "metric": f"some.{kind}",
        "kind": kind.value,
        "unit": "",
        "node": draw(st.sampled_from(["n1", "n2"])),
        "worker": draw(st.sampled_from(["a", "b"])),
        "phase": "",
        "labels": [("l", draw(st.sampled_from("xy")))],
    }
    seen = draw(st.lists(values, min_size=1, max_size=4))
    if kind is Kind.HISTOGRAM:
        made = Histogram.of(seen)
        return row | {"count": made.count, "sum": made.sum, "min": made.min, "max": made.max, "digest": made.encode()}
    total = sum(seen)
    row |= {"count": len(seen), "sum": total, "last": seen[-1]}
    return row | ({"min": min(seen), "max": max(seen)} if kind is Kind.GAUGE else {})


def expected(found: list[dict[str, Any]], length_s: float) -> dict[Any, dict[str, Any]]:
    """Return the windows by plain words: group, then combine."""
    groups = defaultdict(list)
    length_us = round(length_s * 1e6)
    for row in found:
        start = row["time"] - row["time"] % length_us
        groups[start, row["metric"], row["node"], row["worker"], tuple(row["labels"])].append(row)
    answers = {}
    for key, members in groups.items():
        try:
            total = math.fsum(row["sum"] for row in members)
        except OverflowError:
            total = sum(sorted(row["sum"] for row in members))
        lows, highs = [row["min"] for row in members if "min" in row], [row["max"] for row in members if "max" in row]
        newest = max(members, key=lambda row: (row["time"], row.get("last", 0.0)))
        answer = {"count": sum(row["count"] for row in members), "sum": total, "last": newest.get("last")}
        answers[key] = answer | {"min": min(lows, default=None), "max": max(highs, default=None)}
    return answers


def by_key(table: pa.Table) -> dict[Any, dict[str, Any]]:
    times = table["time"].cast(pa.int64()).to_pylist()
    found = {}
    for time_us, row in zip(times, table.drop_columns(["time"]).to_pylist(), strict=True):
        key = (time_us, row["metric"], row["node"], row["worker"], tuple(row["labels"]))
        assert key not in found, "a series has two rows in one window"
        found[key] = row
    return found


def pieces(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    edges = sorted({0, table.num_rows, *(min(cut, table.num_rows) for cut in cuts)})
    return [table.slice(first, last - first) for first, last in itertools.pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(found=st.lists(rows(), min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=5), chance=st.randoms())
def test_any_order_and_split_gives_the_windows_of_all_rows_at_once(found: list[dict[str, Any]], cuts: list[int], chance: Any) -> None:
    """With enough lateness, what closed along the way and what is drained equals the computation over all rows, to the bit."""
    shuffled = list(found)
    chance.shuffle(shuffled)
    rollup = Rollup(LENGTHS_S, lateness_s=200.0)
    given_out: dict[float, list[pa.Table]] = {length_s: [] for length_s in LENGTHS_S}
    for piece in pieces(table_of(shuffled), cuts):
        for length_s, closed in rollup.take(piece).items():
            given_out[length_s].append(closed)
    for length_s, closed in rollup.drain().items():
        given_out[length_s].append(closed)
    for length_s in LENGTHS_S:
        got, want = by_key(pa.concat_tables(given_out[length_s])), expected(found, length_s)
        assert got.keys() == want.keys()
        for key, row in got.items():
            assert {name: row[name] for name in want[key]} == want[key]
            assert row["window_s"] == length_s
    assert rollup.late == dict.fromkeys(LENGTHS_S, 0)
    assert rollup.held == dict.fromkeys(LENGTHS_S, 0)


@settings(max_examples=150, deadline=None)
@given(
    found=st.lists(rows(), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    lateness_s=st.sampled_from([0.0, 1.0, 15.0]),
)
def test_each_row_is_in_one_window_of_each_length_or_counted_late(found: list[dict[str, Any]], cuts: list[int], lateness_s: float) -> None:
    """Rows in closed windows, in open ones and late ones add up to what was given, at each step and length; no window closes twice."""
    rollup = Rollup(LENGTHS_S, lateness_s=lateness_s)
    offered = 0
    closed_counts = dict.fromkeys(LENGTHS_S, 0)
    seen: dict[float, set[Any]] = {length_s: set() for length_s in LENGTHS_S}
    marked = [
        row | {"count": 1, "digest": Histogram.of([1.0]).encode()} if row["kind"] == "histogram" else row | {"count": 1} for row in found
    ]
    for piece in pieces(table_of(marked), cuts):
        offered += piece.num_rows
        for length_s, closed in rollup.take(piece).items():
            closed_counts[length_s] += sum(closed["count"].to_pylist())
            keys = by_key(closed).keys()
            assert not keys & seen[length_s], "a window closed twice"
            seen[length_s] |= keys
        for length_s in LENGTHS_S:
            assert closed_counts[length_s] + rollup.held[length_s] + rollup.late[length_s] == offered
    for length_s, closed in rollup.drain().items():
        assert not by_key(closed).keys() & seen[length_s], "a window closed twice"
        assert closed_counts[length_s] + sum(closed["count"].to_pylist()) + rollup.late[length_s] == len(found)


@settings(max_examples=100, deadline=None)
@given(found=st.lists(rows(), min_size=1, max_size=40))
def test_rolling_up_in_two_steps_is_rolling_up_at_once(found: list[dict[str, Any]]) -> None:
    """From 1 s over 10 s to 60 s gives the windows of 60 s: all but the sum to the bit, quantiles and means included."""
    tenths, twice, once = Windows(10.0), Windows(60.0), Windows(60.0)
    table = table_of(found)
    tenths.add(table)
    twice.add(tenths.pop())
    once.add(table)
    stepped, direct = by_key(twice.pop()), by_key(once.pop())
    assert stepped.keys() == direct.keys()
    for key, row in direct.items():
        other = stepped[key]
        assert {name: other[name] for name in ("count", "min", "max", "last", "p50", "p90", "p99", "p999")} == {
            name: row[name] for name in ("count", "min", "max", "last", "p50", "p90", "p99", "p999")
        }
        if row["kind"] == "histogram":
            one, two = histogram.decode(row["digest"]), histogram.decode(other["digest"])
            assert (one.keys.tolist(), one.counts.tolist()) == (two.keys.tolist(), two.counts.tolist())
        else:
            assert row["digest"] == other["digest"]


def test_the_means_of_a_gauge_keep_their_weights() -> None:
    """A rolled up gauge knows each source row's mean and count; what is none is refused."""
    usual = {"window_s": 1.0, "metric": "g", "kind": "gauge", "unit": "", "node": "n", "worker": "", "phase": "", "labels": []}
    windows = Windows(10.0)
    windows.add(table_of([usual | {"time": START_US + at, "count": at + 1, "sum": 3.0 - at} for at in range(2)]))
    digest = windows.pop()["digest"][0].as_py()
    assert [part.tolist() for part in means(digest)] == [[1.0, 3.0], [2, 1]]
    for broken in (b"", digest[:-1], Histogram.of([1.0]).encode()):
        with pytest.raises(ValueError, match="not the means"):
            means(broken)


def test_a_clock_that_is_ahead_makes_no_other_node_late() -> None:
    """Each node's windows close by its own rows."""
    usual = {"window_s": 1.0, "metric": "c", "kind": "counter", "unit": "", "worker": "", "phase": "", "labels": [], "count": 1, "sum": 1.0}
    rollup = Rollup([10.0])
    rollup.take(table_of([usual | {"node": "ahead", "time": START_US + 3600 * 10**6}]))
    closed = rollup.take(table_of([usual | {"node": "n", "time": START_US + at * 10**6} for at in (0, 5, 12)]))[10.0]
    assert (closed["node"].to_pylist(), closed["count"].to_pylist()) == (["n"], [2])
    assert rollup.late == {10.0: 0}


@pytest.mark.parametrize(("lengths_s", "lateness_s"), [([], 0.0), ([0.0], 0.0), ([1.0, 1.0], 0.0), ([1.0], -1.0)])
def test_lengths_that_are_none_are_refused(lengths_s: list[float], lateness_s: float) -> None:
    """Lengths are above zero and each is there once; the lateness is not negative."""
    with pytest.raises(InputError, match="windows of"):
        Rollup(lengths_s, lateness_s=lateness_s)


def test_a_window_closes_when_the_watermark_reaches_its_end() -> None:
    """On the edge: the row that brings the watermark to a window's end closes it, and one that comes for it after that is late."""
    usual = {"window_s": 1.0, "metric": "c", "kind": "counter", "unit": "", "worker": "", "phase": "", "labels": [], "count": 1, "sum": 1.0}

    def taken(at_s: float) -> list[int]:
        return rollup.take(table_of([usual | {"node": "n", "time": START_US + round(at_s * 1e6)}]))[10.0]["count"].to_pylist()

    rollup = Rollup([10.0], lateness_s=2.0)
    assert [taken(at_s) for at_s in (3.0, 11.999999, 9.0, 12.0, 9.0, 10.0)] == [[], [], [], [2], [], []]
    assert (rollup.late, rollup.held) == ({10.0: 1}, {10.0: 3})
