"""Questions against an oracle that knows every sample: parts are what their samples say, and together they are the whole."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.answer import answer
from cluster.metrics.question import parse
from cluster.metrics.windows import METRICS, Row, metrics_batch

START_S = 1_700_000_000
STATS = ("count", "sum", "rate", "min", "max", "mean", "p50", "p90", "p99", "p999")
SAMPLES = st.lists(st.integers(1, 1 << 20).map(lambda value: value / 1024), min_size=1, max_size=5)  # whose sums are exact
WINDOW = st.tuples(
    st.sampled_from(["n1", "n2", "n3"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["p1", "p2"]),
    st.sampled_from(["x", "y", ""]),
    st.integers(0, 30),
    SAMPLES,
)
WINDOWS = st.lists(WINDOW, min_size=1, max_size=25, unique_by=lambda window: window[:5])
BY = st.lists(st.sampled_from(["node", "worker", "phase", "probe", "time"]), max_size=3, unique=True)


def tabled(windows, kind=Kind.HISTOGRAM):
    """Return the windows as rows, with a row of another metric beside each, which no answer may touch."""
    batches = []
    for node, worker, phase, probe, second, samples in windows:
        labels = (("probe", probe),) if probe else ()
        made = Histogram.of(samples)
        name, unit = ("probe.response", "seconds") if kind is Kind.HISTOGRAM else ("probe.requests", "")
        row = Row(name, kind, unit, worker, phase, labels, made.count, made.sum, made.min, made.max, digest=made.encode())
        if kind is Kind.COUNTER:
            row.min = row.max = row.digest = None
        other = Row(
            "probe.service", Kind.HISTOGRAM, "seconds", worker, phase, labels, 1, 1e9, 1e9, 1e9, digest=Histogram.of([1e9]).encode()
        )
        batches.append(metrics_batch([row, other], node=node, start_ns=(START_S + second) * 10**9, window_s=1.0))
    return pa.Table.from_batches(batches, schema=METRICS)


def parts(windows, by, every):
    """Return the samples and seconds of each part, by the texts that an answer has."""
    found = defaultdict(list)
    for node, worker, phase, probe, second, samples in windows:
        step = second // every * every if every else second
        named = {"node": node, "worker": worker, "phase": phase, "probe": probe, "time": START_S + step}
        found[tuple(named[name] for name in by)].append((second, samples))
    return found


@given(WINDOWS, BY, st.sampled_from([0, 1, 5, 7]))
def test_each_part_is_what_its_samples_say(windows, by, every):
    """Whatever is split by whatever: counts, sums, extremes, means and quantiles are those of the part's own samples, exactly."""
    by = list(dict.fromkeys([*by, "time"])) if every else by
    words = {"metric": ["probe.response"], "stat": STATS, "by": by} | ({"every": [f"{every}s"]} if every else {})
    found = answer(tabled(windows), parse(words, START_S))
    want = parts(windows, by, every)
    assert len(found.rows) == len(want)
    for row in found.rows:
        key = tuple(row.at_us // 10**6 if name == "time" else value for name, value in row.by)
        inside = want[key]
        samples = list(itertools.chain.from_iterable(one for _, one in inside))
        made = Histogram.of(samples)
        figures = {name: figure.value for name, figure in row.figures.items()}
        assert row.windows == len(inside)
        assert (figures["count"], figures["sum"], figures["min"], figures["max"]) == (made.count, made.sum, made.min, made.max)
        assert figures["mean"] == made.sum / made.count
        assert [figures[name] for name in ("p50", "p90", "p99", "p999")] == made.quantiles((0.5, 0.9, 0.99, 0.999))


@given(WINDOWS, BY, st.sampled_from([0, 3, 10]), st.sampled_from(list(Kind)[:1] + list(Kind)[2:]), st.integers(0, 12), st.integers(13, 40))
def test_parts_together_are_the_whole(windows, by, every, kind, since, until):
    """Counts, sums and windows of the parts add up to the whole's; so do rates, but over steps, where they do when weighted by time."""
    by = list(dict.fromkeys([*by, "time"])) if every else by
    metric = "probe.requests" if kind is Kind.COUNTER else "probe.response"
    limits = {"metric": [metric], "stat": ["count", "sum", "rate"], "since": [f"{since}s"], "until": [f"{until}s"]}
    table = tabled(windows, kind)
    whole = answer(table, parse(limits, START_S)).rows
    split = answer(table, parse(limits | {"by": by} | ({"every": [f"{every}s"]} if every else {}), START_S)).rows
    assert sum(row.windows for row in split) == sum(since <= window[4] < until for window in windows)
    if not whole:
        assert not split
        return
    assert sum(row.windows for row in split) == whole[0].windows
    for stat in ("count", "sum"):
        assert sum(row.figures[stat].value for row in split) == whole[0].figures[stat].value
    if "time" not in by:
        assert sum(row.figures["rate"].value for row in split) == pytest.approx(whole[0].figures["rate"].value)


@given(WINDOWS)
def test_one_step_over_the_span_is_the_whole(windows):
    """A step that is as long as the run gives every figure of the whole, the rate included."""
    words = {"metric": ["probe.response"], "stat": STATS}
    (whole,) = answer(tabled(windows), parse(words, START_S)).rows
    (step,) = answer(tabled(windows), parse(words | {"every": ["40s"]}, START_S)).rows
    assert step.figures == whole.figures
    assert math.isfinite(whole.figures["rate"].value)


@given(WINDOWS, st.randoms(use_true_random=False))
def test_order_and_batches_change_nothing(windows, chance):
    """The same windows in another order, or cut into other batches, give the same answer."""
    query = parse({"metric": ["probe.*"], "by": ["node", "probe"], "stat": STATS}, START_S)
    shuffled = windows[:]
    chance.shuffle(shuffled)
    assert answer(tabled(shuffled).combine_chunks(), query).rows == answer(tabled(windows), query).rows
