"""Questions in words: what they mean, and what is wrong with those that are none."""

from __future__ import annotations

import pytest

from actors.errors import InputError
from actors.metrics.registry import CATALOGUE
from cluster.metrics.question import Query, parse

BEGIN_S = 1_700_000_000.25
BEGIN_US = 1_700_000_000_250_000


@pytest.mark.parametrize(
    ("words", "want"),
    [
        pytest.param({}, {}, id="a-metric-alone"),
        pytest.param({"stat": ["p99", "count", "p99"]}, {"stats": ("p99", "count")}, id="stats-once-each"),
        pytest.param({"node": ["n1", "n2"], "phase": ["ramp*"]}, {"nodes": ("n1", "n2"), "phases": ("ramp*",)}, id="where"),
        pytest.param({"label": ["probe=a=b"]}, {"labels": (("probe", "a=b"),)}, id="a-label-with-equals"),
        pytest.param(
            {"since": ["1m30s"], "until": ["2023-11-14T23:00:00"]},
            {"since_us": BEGIN_US + 90_000_000, "until_us": 1_700_002_800_000_000, "origin_us": 1_700_000_090_000_000},
            id="an-offset-and-a-time",
        ),
        pytest.param(
            {"since": ["2023-11-14T23:00:00+01:00"]}, {"since_us": 1_699_999_200_000_000, "origin_us": 1_699_999_200_000_000}, id="a-zone"
        ),
        pytest.param({"every": ["5s"]}, {"by": ("time",), "every_us": 5_000_000}, id="every-means-by-time"),
        pytest.param(
            {"by": ["time", "node", "time"], "every": ["500ms"]}, {"by": ("time", "node"), "every_us": 500_000}, id="by-in-its-order"
        ),
        pytest.param({"by": ["probe"]}, {"by": ("probe",)}, id="by-a-label"),
        pytest.param({"accumulator": ["top"], "of": ["probe"]}, {"accumulator": "top", "of": "probe"}, id="an-accumulator"),
        pytest.param(
            {"with": ["host.cpu.busy"], "lag": ["10s"], "by": ["node"]},
            {"other": "host.cpu.busy", "lag_us": 10_000_000, "every_us": 1_000_000, "by": ("node", "time")},
            id="a-correlation",
        ),
    ],
)
def test_words_make_a_question(words: dict, want: dict) -> None:
    """Each word has its meaning; times count from the run's begin, steps from a full second."""
    expected = Query(("probe.response",), **{"origin_us": 1_700_000_000_000_000, **want})
    assert parse({"metric": ["probe.response"], **words}, BEGIN_S) == expected


def test_a_glob_names_metrics() -> None:
    """A glob stands for all metrics that it fits, in the catalogue's order."""
    assert parse({"metric": ["probe.*"]}).metrics == ("probe.response", "probe.service", "probe.requests", "probe.failures")
    assert parse({"metric": ["*"]}).metrics == tuple(CATALOGUE)


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        pytest.param({"metric": ["probe.respons"]}, "unknown_name", "unknown metric", "did you mean 'probe.response'?", id="metric"),
        pytest.param({"metric": ["prob.resp*"]}, "unknown_name", "no metric fits", "did you mean", id="glob"),
        pytest.param({"metric": []}, "invalid_value", "needs a metric", "list metrics", id="no-metric"),
        pytest.param({"stat": ["p9"]}, "unknown_name", "unknown statistic 'p9'", "did you mean 'p9", id="stat"),
        pytest.param({"label": ["prob=x"]}, "unknown_key", "no label 'prob' of probe.response", "did you mean 'probe'?", id="label"),
        pytest.param({"label": ["node=n1"]}, "unknown_key", "node is no label", "--node", id="a-column-as-label"),
        pytest.param({"label": ["probe"]}, "invalid_value", "NAME=VALUE", "", id="label-without-value"),
        pytest.param(
            {"metric": ["host.cpu.busy"], "label": ["probe=x"]}, "unknown_key", "no label 'probe'", "has no labels", id="no-labels"
        ),
        pytest.param({"by": ["nodes"]}, "unknown_key", "split by 'nodes'", "did you mean 'node'?", id="by"),
        pytest.param({"every": ["5"]}, "invalid_value", "every: expected a duration", "", id="every-without-unit"),
        pytest.param({"every": ["0s"]}, "invalid_value", "longer than nothing", "", id="every-of-nothing"),
        pytest.param({"since": ["soon"]}, "invalid_value", "since: 'soon' is no time", "offset from the run's start", id="since"),
        pytest.param({"since": ["5x"]}, "invalid_value", "since: expected a duration", "", id="since-unit"),
        pytest.param({"since": ["5s"], "until": ["5s"]}, "invalid_value", "ends before it begins", "", id="no-time-between"),
        pytest.param({"stats": ["p99"]}, "unknown_key", "no 'stats'", "did you mean 'stat'?", id="word"),
        pytest.param({"since": ["5s", "6s"]}, "invalid_value", "said once", "", id="twice"),
        pytest.param({"stat": ["p99"], "accumulator": ["count"]}, "invalid_value", "not for both", "", id="stat-and-accumulator"),
        pytest.param({"of": ["probe"]}, "invalid_value", "no accumulator", "", id="of-nothing"),
        pytest.param({"lag": ["5s"]}, "invalid_value", "between two metrics", "--with", id="lag-alone"),
        pytest.param({"with": ["probe.response"]}, "invalid_value", "with itself", "", id="with-itself"),
        pytest.param({"with": ["host.cpu.bus"]}, "unknown_name", "unknown metric", "did you mean 'host.cpu.busy'?", id="with-unknown"),
        pytest.param(
            {"with": ["host.cpu.busy"], "lag": ["1500ms"]}, "invalid_value", "no whole number of steps", "one step is 1 s", id="lag-step"
        ),
        pytest.param({"with": ["host.cpu.busy"], "by": ["phase"]}, "invalid_value", "by node at most", "", id="with-by-phase"),
        pytest.param({"metric": ["probe.*"], "with": ["host.cpu.busy"]}, "invalid_value", "got 4 for the first", "", id="with-glob"),
    ],
)
def test_a_wrong_question_says_what_is_wrong(words: dict, code: str, message: str, hint: str) -> None:
    """Code, what was wrong, and the nearest right name or form."""
    with pytest.raises(InputError) as caught:
        parse({"metric": ["probe.response"], **words})
    assert caught.value.code == code
    assert message in caught.value.message
    assert hint in caught.value.hint
