"""Answers of windows: choosing, units, empty answers, estimates, accumulators, and metrics that go together."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from actors.errors import HarnessError, InputError
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.metrics.answer import ROWS_MAX, answer
from cluster.metrics.asking import ask
from cluster.metrics.question import parse
from cluster.metrics.related import relate
from cluster.metrics.sketches.builtin import RECORDS
from cluster.metrics.windows import METRICS, Row, metrics_batch

START_S = 1_700_000_000
RECORD = {record.name: record for record in RECORDS}


def gauge(metric, value, worker="", unit="ratio"):
    return Row(metric, Kind.GAUGE, unit, worker, "p", (), 1, value, value, value, value)


def counter(metric, value, *labels):
    return Row(metric, Kind.COUNTER, "", "w", "p", labels, 1, float(value), last=float(value))


def response(*samples, probe="x"):
    made = Histogram.of(samples)
    return Row(
        "probe.response",
        Kind.HISTOGRAM,
        "seconds",
        "w",
        "p",
        (("probe", probe),),
        made.count,
        made.sum,
        made.min,
        made.max,
        digest=made.encode(),
    )


def tabled(*windows):
    """Return a table of (node, second, row) windows."""
    batches = [metrics_batch([row], node=node, start_ns=round((START_S + second) * 1e9), window_s=1.0) for node, second, row in windows]
    return pa.Table.from_batches(batches, schema=METRICS)


def asked(table, metric, span=None, **words):
    texts = {name: [text] if isinstance(text, str) else text for name, text in words.items()}
    return answer(table, parse({"metric": [metric], **texts}, START_S), span)


def values(found, stat):
    return [row.figures[stat].value for row in found.rows]


@pytest.fixture
def table():
    return tabled(
        ("n1", 0, counter("probe.requests", 1, ("probe", "x"))),
        ("n1", 1, counter("probe.requests", 2, ("probe", "y"))),
        ("n2", 9, counter("probe.requests", 4, ("probe", "x"))),
        ("n2", 9, counter("probe.failures", 8, ("probe", "x"), ("reason", "failed"))),
        ("n2", 5, counter("load.operations", 16)),
    )


@pytest.mark.parametrize(
    ("words", "want"),
    [
        pytest.param({}, 7, id="all"),
        pytest.param({"node": "n1"}, 3, id="a-node"),
        pytest.param({"node": "n*"}, 7, id="a-glob"),
        pytest.param({"node": ["n1", "n2"]}, 7, id="either"),
        pytest.param({"label": "probe=x"}, 5, id="a-label"),
        pytest.param({"label": "probe=[xz]", "node": "n2"}, 4, id="both"),
        pytest.param({"since": "1s"}, 6, id="since-is-in"),
        pytest.param({"until": "9s"}, 3, id="until-is-out"),
        pytest.param({"until": "2023-11-14T22:13:29Z"}, 3, id="a-time"),
    ],
)
def test_windows_are_chosen(table, words, want):
    """Nodes, labels and time each narrow the answer; windows count when they begin within."""
    assert values(asked(table, "probe.requests", **words), "sum") == [want]


def test_a_pattern_and_a_label_exclude_all_others(table):
    """A glob gives a row for each metric; a label that one of them lacks leaves that metric out."""
    found = asked(table, "*o*", label="probe=x", stat=["count", "sum"], node="n2")
    assert [(row.metric, row.figures["sum"].value) for row in found.rows] == [("probe.failures", 8), ("probe.requests", 4)]


def test_a_rate_goes_by_the_time_that_was_observed(table):
    """Not by the windows that happen to be there: a failure in one second of ten is a tenth a second."""
    assert values(asked(table, "probe.failures"), "rate") == [0.8]
    assert values(asked(table, "probe.failures", since="5s"), "rate") == [1.6]
    assert values(asked(table, "probe.failures", since="5s", until="100s"), "rate") == [1.6]
    assert values(asked(table, "probe.failures", span=(START_S, START_S + 100)), "rate") == [0.08]
    assert values(asked(table, "probe.requests", every="8s"), "rate") == [3 / 8, 4 / 2]


def test_units_are_never_put_together():
    """A dose in ratio and one in bytes are two rows, whatever is asked."""
    found = asked(
        tabled(("n1", 0, gauge("dose.achieved", 0.5)), ("n1", 0, gauge("dose.achieved", 4096.0, unit="bytes"))),
        "dose.achieved",
        stat="mean",
    )
    assert [(row.unit, row.figures["mean"].value) for row in found.rows] == [("bytes", 4096.0), ("ratio", 0.5)]


def test_an_empty_answer_says_what_there_is(table):
    """No row and a note: what the metric's windows have, or that there are none."""
    assert asked(table, "probe.requests", node="n7").note == (
        "no window fits; those of probe.requests have node n1, n2; worker w; phase p; 2023-11-14T22:13:20Z to 2023-11-14T22:13:30Z"
    )
    assert "probe x, y" in asked(table, "probe.requests", label="probe=z").note
    assert asked(table, "halt.latency").note == "the run has no window of halt.latency"
    assert asked(METRICS.empty_table(), "host.*", since="5s").note.endswith("in that time")


def test_figures_say_what_they_are():
    """Units, bounds of estimates, and infinity as a word that JSON has."""
    table = tabled(("n1", 0, response(0.5, 0.25, float("inf"))))
    found = asked(table, "probe.response", stat=["count", "rate", "p50", "p999", "max"])
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"][0]["figures"]
    assert told["count"] == {"value": 3.0, "unit": ""}
    assert told["rate"] == {"value": 0.75, "unit": "seconds/second"}
    assert told["p50"] == {
        "value": pytest.approx(0.5, rel=2**-8),
        "unit": "seconds",
        "approximate": True,
        "bound": {"kind": "value_relative", "size": 2**-8},
    }
    assert told["max"] == {"value": "Infinity", "unit": "seconds"}


def test_a_table_for_arrow():
    """Columns of what it was split by and of each figure; the time is a timestamp."""
    found = asked(
        tabled(("n1", 0, response(0.5)), ("n2", 7, response(0.25))), "probe.response", by="node", every="5s", stat=["max", "count"]
    ).to_arrow()
    assert found.column_names == ["metric", "unit", "node", "time", "windows", "max", "count"]
    assert found["time"].cast(pa.int64()).to_pylist() == [START_S * 10**6, (START_S + 5) * 10**6]
    assert found["max"].to_pylist() == [0.5, 0.25]


def test_too_many_rows_are_refused():
    """An answer is bounded; the hint says how to narrow it."""
    batch = metrics_batch(
        [gauge("host.cpu.busy", 0.5, worker=str(at)) for at in range(ROWS_MAX + 1)], node="n1", start_ns=START_S * 10**9, window_s=1.0
    )
    with pytest.raises(InputError, match="10001 rows, at most 10000"):
        asked(pa.Table.from_batches([batch]), "host.cpu.busy", by="worker")


def test_accumulators_answer_by_part(table):
    """An accumulator takes the samples or the label values of each part; one of labels must be told which."""
    query = parse({"metric": ["probe.requests"], "accumulator": ["top"], "of": ["probe"], "by": ["node"]})
    found = ask(query, table, None, RECORD["top"])
    assert [row.figures["top"].value for row in found.rows] == [(("y", 2, 2), ("x", 1, 1)), (("x", 4, 4),)]
    with pytest.raises(InputError, match="takes the values of a label"):
        ask(parse({"metric": ["probe.requests"], "accumulator": ["top"]}), table, None, RECORD["top"])
    counted = ask(parse({"metric": ["probe.*"], "accumulator": ["sum"]}), table, None, RECORD["sum"])
    assert [(row.metric, row.figures["sum"].value) for row in counted.rows] == [("probe.failures", 8), ("probe.requests", 7)]


def test_a_failing_accumulator_is_named(table):
    """What a stranger's accumulator raises is an error with its name, not a bug of ours."""
    broken = RECORD["sum"]
    broken = type(broken)("mine", "", "numbers", {"sum": "same"}, lambda: 1 / 0, broken.decode)
    with pytest.raises(HarnessError, match=r"'mine' failed on probe\.requests: ZeroDivisionError"):
        ask(parse({"metric": ["probe.requests"], "accumulator": ["mine"]}), table, None, broken)


# two metrics


def planted(lag, size=120, nodes=("n1",)):
    """Return windows of a CPU share and of response times that follow it by `lag` seconds, in two probes and with gaps."""
    chance = np.random.default_rng(5)
    windows = []
    for node in nodes:
        busy = chance.uniform(0.1, 0.9, size + lag)
        later = 0.9 * busy[:size] + 0.01 * chance.standard_normal(size) + 0.1
        windows += [(node, second, gauge("host.cpu.busy", busy[second + lag])) for second in range(size) if second % 17]
        windows += [(node, second, response(later[second], probe="xy"[second % 2])) for second in range(size)]
    return tabled(*windows)


def test_a_metric_that_follows_is_found():
    """Windows are laid side by side by their step; the lag is in seconds, above 0 when the other metric follows."""
    query = parse({"metric": ["host.cpu.busy"], "with": ["probe.response"], "lag": ["10s"]}, START_S)
    told = relate(planted(3), query).to_json()
    (pair,) = told["pairs"]
    assert (told["first"], told["other"]) == ({"metric": "host.cpu.busy", "stat": "mean"}, {"metric": "probe.response", "stat": "mean"})
    for method in ("pearson", "spearman"):
        assert (pair[method]["lag_s"], pair[method]["notable"], pair[method]["r"] > 0.95) == (3.0, True, True)
        assert pair[method]["pairs"] == 120 - 3 - 7
    back = parse({"metric": ["probe.response"], "with": ["host.cpu.busy"], "lag": ["10s"], "label": ["probe=x"]}, START_S)
    assert relate(planted(3), back).pairs[0].correlations[0].lag_steps == -3
    coarse = parse({"metric": ["host.cpu.busy"], "with": ["probe.response"], "every": ["2s"], "stat": ["max", "p99"]}, START_S)
    assert relate(planted(0), coarse).to_json()["other"]["stat"] == "p99"


def test_parts_that_have_too_little_say_so():
    """By node each has its own coefficient; one with too few steps says why, and when all have too few there is no answer."""
    words = {"metric": ["host.cpu.busy"], "with": ["probe.response"], "by": ["node"], "lag": ["2s"]}
    table = pa.concat_tables([planted(1, nodes=("n1", "n2")), tabled(("n3", 0, gauge("host.cpu.busy", 0.5)))])
    told = relate(table, parse(words, START_S)).to_json()["pairs"]
    assert [(one["by"]["node"], "pearson" in one, bool(one["refusal"])) for one in told] == [
        ("n1", True, False),
        ("n2", True, False),
        ("n3", False, True),
    ]
    with pytest.raises(InputError, match="9 steps have both, at least 10"):
        relate(planted(0, size=10), parse({**words, "lag": ["1s"], "until": ["10s"]}, START_S))
    with pytest.raises(InputError, match="the run has no window of probe"):
        relate(tabled(("n1", 0, gauge("host.cpu.busy", 0.5))), parse(words, START_S))


def test_a_correlation_mixes_no_units():
    """A dose in two units is no one series."""
    table = tabled(("n1", 0, gauge("dose.achieved", 0.5)), ("n1", 0, gauge("dose.achieved", 4096.0, unit="bytes")))
    with pytest.raises(InputError, match="in bytes and in ratio"):
        relate(table, parse({"metric": ["dose.achieved"], "with": ["host.cpu.busy"]}, START_S))
