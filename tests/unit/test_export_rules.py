"""The rule engine against plain Python oracles: routes, filters, samples, labels, names, and merging over time and series."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from actors.errors import InputError
from actors.metrics.histogram import Histogram, decode
from actors.metrics.registry import Kind
from cluster.exporters.rules import Chain, parse
from cluster.metrics.windows import METRICS, QUANTILES, Row, metrics_batch

LABELS = st.dictionaries(st.sampled_from(["probe", "reason"]), st.sampled_from(["x", "xy", "z"]), max_size=2)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "metric": st.sampled_from(["probe.requests", "probe.failures", "host.cpu.busy"]),
            "node": st.sampled_from(["n1", "n2"]),
            "labels": LABELS,
            "second": st.integers(0, 40),
            "value": st.integers(-5, 5).map(float),
        }
    ),
    max_size=40,
)
GLOBS = st.sampled_from(["*", "probe.*", "host.*", "n1", "x*", "?", "none"])
WHEN = st.fixed_dictionaries(
    {}, optional={"metric": GLOBS, "node": GLOBS, "labels": st.dictionaries(st.sampled_from(["probe", "reason"]), GLOBS, max_size=2)}
)


def batch_of(rows: list[dict[str, Any]], kind: Kind = Kind.GAUGE) -> pa.RecordBatch:
    """Return rows in the contract's columns, one of each; `last` is the row's position."""
    made = [
        metrics_batch(
            [
                Row(
                    row["metric"],
                    kind,
                    "",
                    "w",
                    "p",
                    tuple(sorted(row["labels"].items())),
                    1,
                    row["value"],
                    None if kind is Kind.COUNTER else row["value"],
                    None if kind is Kind.COUNTER else row["value"],
                    float(at),
                )
            ],
            node=row["node"],
            start_ns=row["second"] * 10**9,
            window_s=1.0,
        )
        for at, row in enumerate(rows)
    ]
    return pa.concat_batches(made) if made else pa.RecordBatch.from_pylist([], schema=METRICS)


def fits(row: dict[str, Any], when: dict[str, Any]) -> bool:
    """Say in plain words what a `when` means."""
    plain = all(fnmatch.fnmatchcase(row[name], glob) for name, glob in when.items() if name != "labels")
    return plain and all(
        name in row["labels"] and fnmatch.fnmatchcase(row["labels"][name], glob) for name, glob in when.get("labels", {}).items()
    )


def places(batch: pa.RecordBatch) -> list[int]:
    return [int(place) for place in batch.column("last").to_pylist()]


def adds_up(chain: Chain) -> None:
    counts = chain.counts
    assert counts.taken == counts.filtered + counts.late + chain.held + counts.folded + counts.passed


@settings(max_examples=150)
@given(
    ROWS,
    st.lists(st.tuples(WHEN, st.lists(st.sampled_from("abc"), max_size=3)), max_size=4),
    st.none() | st.lists(st.sampled_from("abc")),
    st.sets(st.sampled_from("abc")),
)
def test_routes_equal_the_oracle(
    rows: list[dict[str, Any]], routes: list[tuple[dict[str, Any], list[str]]], default: list[str] | None, there: set[str]
) -> None:
    """Each row reaches every exporter that is there and a matching route names, once; unmatched rows take the default; a row that
    reaches nobody is counted.
    """
    rules = parse({"routes": [{"when": when, "to": to} for when, to in routes], "default": default})
    found, lost = rules.split(batch_of(rows), sorted(there))
    want: dict[str, list[int]] = defaultdict(list)
    unrouted = 0
    for at, row in enumerate(rows):
        hits = [to for when, to in routes if fits(row, when)]
        to = {name for names in hits for name in names} if hits else set(default or ([] if routes or default == [] else "abc"))
        to &= there
        unrouted += not to
        for name in to:
            want[name].append(at)
    assert {name: places(batch) for name, batch in found.items() if batch.num_rows} == want
    assert lost == unrouted


@settings(max_examples=150)
@given(ROWS, WHEN, st.booleans())
def test_filters_equal_the_oracle(rows: list[dict[str, Any]], when: dict[str, Any], keep: bool) -> None:
    """keep: true leaves what matches, keep: false what does not; the rest is counted as filtered."""
    chain = Chain(parse({"chains": {"a": [{"when": when, "keep": keep}]}}).chains["a"])
    found = chain.apply(batch_of(rows))
    assert places(found) == [at for at, row in enumerate(rows) if fits(row, when) is keep]
    assert chain.counts.filtered == len(rows) - found.num_rows
    adds_up(chain)


@settings(max_examples=100)
@given(ROWS, WHEN)
def test_labels_and_names_change_only_where_they_match(rows: list[dict[str, Any]], when: dict[str, Any]) -> None:
    """Dropped labels and new names, row by row; all else stays, in place."""
    document = {"chains": {"a": [{"when": when, "drop_labels": ["probe"]}, {"when": {"node": "n1"}, "rename": "other"}]}}
    batch = batch_of(rows)
    found = Chain(parse(document).chains["a"]).apply(batch)
    for row, was, now in zip(rows, batch.to_pylist(), found.to_pylist(), strict=True):
        labels = [(name, value) for name, value in was["labels"] if not (fits(row, when) and name == "probe")]
        assert now == was | {"labels": labels, "metric": "other" if row["node"] == "n1" else row["metric"]}
    assert found.schema.equals(METRICS)


def test_one_in_keeps_whole_series() -> None:
    """About one series in n stays, all of it, and the same ones in another batch and another chain."""
    rows = [{"metric": "probe.requests", "node": f"n{at % 500}", "labels": {}, "second": 0, "value": 1.0} for at in range(1000)]
    rules = parse({"chains": {"a": [{"one_in": 10}]}}).chains["a"]
    found = Chain(rules).apply(batch_of(rows))
    nodes = found.column("node").to_pylist()
    assert 20 < len(set(nodes)) < 90
    assert sorted(nodes) == sorted([*set(nodes)] * 2)
    assert Chain(rules).apply(batch_of(rows[:500])).column("node").to_pylist() == nodes[: len(nodes) // 2]


@settings(max_examples=120)
@given(
    ROWS,
    st.sampled_from([1, 7, 10]),
    st.sampled_from([(), ("node",), ("labels.probe",), ("node", "labels")]),
    st.sampled_from([0, 5]),
    st.integers(1, 9),
)
def test_merged_gauges_equal_the_oracle(rows: list[dict[str, Any]], every: int, by: tuple[str, ...], late: int, cut: int) -> None:
    """Windows by the chosen names: count, sum, extremes, the newest value (of several the highest); what came too late is counted."""
    chain = Chain(parse({"chains": {"a": [{"every_s": every, "by": list(by), "late_s": late}]}}).chains["a"])
    out = []
    groups: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    newest, lost = -math.inf, 0
    for first in range(0, len(rows), cut):
        part = rows[first : first + cut]
        closed = newest - late
        for at, row in enumerate(part):
            start = row["second"] // every * every
            newest = max(newest, row["second"])
            if start + every <= closed:
                lost += 1
                continue
            labels = (
                row["labels"]
                if "labels" in by
                else {name: row["labels"][name] for name in ("probe",) if f"labels.{name}" in by and name in row["labels"]}
            )
            key = (start, row["metric"], row["node"] if "node" in by else "", tuple(sorted(labels.items())))
            groups[key].append((at, row))
        out.append(chain.apply(batch_of(part)))
        adds_up(chain)
    out += chain.drain()
    adds_up(chain)
    assert (chain.held, chain.counts.late, chain.counts.folded) == (0, lost, len(rows) - lost)
    found = {}
    for row in pa.Table.from_batches(out, METRICS).to_pylist():
        key = (int(row["time"].timestamp()), row["metric"], row["node"], tuple(sorted(row["labels"])))
        assert key not in found
        found[key] = row
    assert set(found) == set(groups)
    for key, group in groups.items():
        values = [row["value"] for _, row in group]
        newest_at = max((row["second"], at) for at, row in group)[1]
        row = found[key]
        assert (row["count"], row["sum"], row["min"], row["max"], row["last"]) == (
            len(group),
            sum(values),
            min(values),
            max(values),
            newest_at,
        )
        assert (row["window_s"], row["worker"]) == (every, "")


def test_merged_counters_add_totals_of_their_sources() -> None:
    """A counter's `last` over two nodes is the sum of both newest totals; the increases add up."""
    rows = [
        {"metric": "probe.requests", "node": node, "labels": {}, "second": second, "value": value}
        for node, second, value in (("n1", 0, 2.0), ("n2", 1, 3.0), ("n1", 2, 4.0))
    ]  # totals (`last`) are 0, 1, 2
    chain = Chain(parse({"chains": {"a": [{"every_s": 10, "by": []}]}}).chains["a"])
    assert chain.apply(batch_of(rows, Kind.COUNTER)).num_rows == 0
    (batch,) = chain.drain()
    row = batch.to_pylist()[0]
    assert (row["count"], row["sum"], row["last"], row["min"], row["node"]) == (3, 9.0, 3.0, None, "")


def test_merged_histograms_hold_all_samples() -> None:
    """Digests merge exactly and quantiles are read from the whole; a source without a digest leaves both empty."""
    chance = np.random.default_rng(5)
    parts = [chance.lognormal(0, 1, 500) for _ in range(70)]
    made = [Histogram.of(part) for part in parts]
    rows = [
        Row(
            "probe.response",
            Kind.HISTOGRAM,
            "seconds",
            "w",
            "p",
            (("probe", "x"),),
            one.count,
            one.sum,
            one.min,
            one.max,
            digest=one.encode(),
        )
        for one in made
    ]
    chain = Chain(parse({"chains": {"a": [{"every_s": 60, "by": ["labels"]}]}}).chains["a"])
    for row in rows:
        chain.apply(metrics_batch([row], node="n1", start_ns=0, window_s=1.0))
    (batch,) = chain.drain()
    found, whole = batch.to_pylist()[0], Histogram.of(np.concatenate(parts))
    assert (decode(found["digest"]).counts.tolist(), found["count"]) == (whole.counts.tolist(), 35_000)
    assert [found[name] for name in QUANTILES] == whole.quantiles(tuple(QUANTILES.values()))
    rows[0].digest = None
    for row in rows[:2]:
        chain.apply(metrics_batch([row], node="n1", start_ns=0, window_s=1.0))
    (batch,) = chain.drain()
    assert (batch.to_pylist()[0]["digest"], batch.to_pylist()[0]["p50"], batch.to_pylist()[0]["count"]) == (None, None, 1000)


def test_nan_gives_way_and_absence_stays() -> None:
    """NaN does not hide an extreme, and a value that no source has stays null."""
    rows = [Row("g", Kind.GAUGE, "", "", "", (), 1, 1.0, value, value, 1.0) for value in (math.nan, 2.0, math.nan, -math.inf)]
    rows += [Row("h", Kind.GAUGE, "", "", "", (), 1, 1.0, math.nan, None, None)]
    chain = Chain(parse({"chains": {"a": [{"every_s": 60}]}}).chains["a"])
    chain.apply(metrics_batch(rows, node="n1", start_ns=0, window_s=1.0))
    found = chain.drain()[0].to_pylist()
    assert (found[0]["min"], found[0]["max"]) == (-math.inf, 2.0)
    assert math.isnan(found[1]["min"])
    assert (found[1]["max"], found[1]["last"]) == (None, None)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param({"route": []}, "unknown key 'route'; did you mean 'routes'", id="unknown-key"),
        pytest.param({"routes": [{"when": {"metrc": "x"}, "to": ["a"]}]}, "did you mean 'metric'", id="unknown-column"),
        pytest.param({"routes": [{"when": {}}]}, r"routes\[0\] has no `to`", id="no-destination"),
        pytest.param({"routes": [{"to": "a"}]}, "expected a list of names", id="destination-is-text"),
        pytest.param({"routes": ["a"]}, "expected keys and values", id="route-is-text"),
        pytest.param({"chains": {"a": [{"keep": True, "one_in": 2}]}}, "keep and one_in; give exactly one", id="two-actions"),
        pytest.param({"chains": {"a": [{}]}}, "no action", id="no-action"),
        pytest.param({"chains": {"a": [{"keep": 1}]}}, "expected true or false", id="keep-a-number"),
        pytest.param({"chains": {"a": [{"one_in": 0}]}}, "whole number from 1", id="one-in-nothing"),
        pytest.param({"chains": {"a": [{"one_in": True}]}}, "whole number from 1", id="one-in-true"),
        pytest.param({"chains": {"a": [{"every_s": 0}]}}, "more than 0", id="no-time"),
        pytest.param({"chains": {"a": [{"every_s": float("nan")}]}}, "more than 0", id="nan-time"),
        pytest.param({"chains": {"a": [{"every_s": 1, "by": ["host"]}]}}, "known: node", id="unknown-name"),
        pytest.param({"chains": {"a": [{"every_s": 1, "late_s": -1}]}}, "0 or more", id="negative-lateness"),
        pytest.param({"chains": {"a": [{"keep": True, "by": ["node"]}]}}, "belong to `every_s`", id="by-without-every"),
        pytest.param({"chains": {"a": [{"rename": ""}]}}, "expected a name", id="no-name"),
        pytest.param({"chains": {"a": [{"when": {"node": 5}, "keep": True}]}}, "expected text", id="glob-is-a-number"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_place(document: dict[str, Any], message: str) -> None:
    """Nothing acts before all rules are right; the message names the place and what was expected."""
    with pytest.raises(InputError, match=message):
        parse(document)
