"""What promtool lets pass is looked for by a checker of our own, which finds each fault that is planted, and none in our pages."""

from __future__ import annotations

import dataclasses

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from actors.clock import VirtualClock
from actors.metrics.registry import CATALOGUE, Kind
from cluster.exporters.exposition import Form
from cluster.exporters.prometheus import OWN, Options, _Shown
from cluster.metrics.buckets import Buckets
from cluster.metrics.live import Exemplar, Sample, SeriesKey
from tests.support.exposition import faults

GOOD = """# HELP a_total Events.
# TYPE a_total counter
a_total{node="n\\"1\\\\\\n"} 3.0
a_total{node="n2"} 0.0
# HELP b_seconds Time.
# TYPE b_seconds histogram
b_seconds_bucket{le="0.5",node="n1"} 1.0
b_seconds_bucket{le="+Inf",node="n1"} 2.0
b_seconds_count{node="n1"} 2.0
b_seconds_sum{node="n1"} 7.5
# HELP c State.
# TYPE c gauge
c NaN
"""
LAST = 'b_seconds_bucket{le="+Inf",node="n1"} 2.0\n'


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        pytest.param("c NaN\n", "c NaN", "the last line has no end", id="no-final-newline"),
        pytest.param("# TYPE c gauge\n", "", "c has no TYPE", id="no-type"),
        pytest.param("# HELP c State.\n", "", "c has no HELP", id="no-help"),
        pytest.param("# TYPE c gauge\n", "# TYPE c gauge\n# TYPE c gauge\n", "c has two TYPE lines", id="two-types"),
        pytest.param("# HELP c State.\n", "# HELP c State.\n# HELP c State.\n", "c has two HELP lines", id="two-helps"),
        pytest.param("c gauge", "c gouge", "c has no type that is known", id="unknown-type"),
        pytest.param("c NaN\n", "c NaN\nc 1.0\n", "c {} is there twice", id="a-series-twice"),
        pytest.param("c NaN\n", '# HELP a_total E.\na_total{node="n3"} 1.0\n', "a_total is in two pieces", id="a-family-split"),
        pytest.param("c NaN\n", 'a_total{node="n3"} 1.0\n', "a_total stands outside of its family", id="a-sample-elsewhere"),
        pytest.param("c NaN\n", "c NaN\n# TYPE c gauge\n", "TYPE of c comes after its samples", id="type-after-samples"),
        pytest.param('node="n2"', 'node="n2",node="n2"', "label node is there twice", id="a-label-twice"),
        pytest.param('node="n2"', '__node="n2"', "label __node is reserved", id="a-reserved-label"),
        pytest.param('node="n2"', 'node="n\\2"', "labels cannot be read", id="an-unknown-escape"),
        pytest.param("c NaN", "c nothing", "cannot be read", id="no-number"),
        pytest.param("c NaN", "c  1.0", "cannot be read", id="two-spaces"),
        pytest.param(LAST, "", "the last bucket is not +Inf", id="no-inf-bucket"),
        pytest.param('"+Inf",node="n1"} 2.0', '"+Inf",node="n1"} 0.0', "buckets fall", id="not-cumulative"),
        pytest.param('count{node="n1"} 2.0', 'count{node="n1"} 3.0', "_count is not the +Inf bucket", id="count-beside-inf"),
        pytest.param('b_seconds_sum{node="n1"} 7.5\n', "", "no _sum or no _count", id="no-sum"),
        pytest.param('le="0.5"', 'le="+Inf"', "bounds do not ascend", id="a-bound-twice"),
        pytest.param('count{node="n1"}', 'count{node="n2"}', "has no buckets", id="labels-not-kept"),
        pytest.param("3.0", "-3.0", "a_total is -3.0, and no total", id="a-negative-total"),
        pytest.param("a_total", "a", "a is a counter without _total", id="a-counter-without-total"),
        pytest.param("c NaN", 'c{le="1"} NaN', "c has a label le", id="le-on-a-gauge"),
        pytest.param(
            "# TYPE c gauge\nc NaN", "# TYPE c gauge\nc NaN\n# HELP b_seconds_sum S.\n# TYPE b_seconds_sum gauge", "of a part", id="clash"
        ),
    ],
)
def test_a_planted_fault_is_found(old: str, new: str, told: str) -> None:
    """Each row changes one thing of a good page, and the checker names it."""
    assert faults(GOOD) == []
    broken = GOOD.replace(old, new)
    assert broken != GOOD
    assert any(told in one for one in faults(broken)), faults(broken)


def everything() -> list[Sample]:
    """Return two series of each metric and unit, with exemplars, times of creation and labels that need care."""
    made = []
    for metric in CATALOGUE.values():
        for unit in (metric.unit, *metric.other_units):
            for node in ("n1", 'n"2\\\n,} é'):
                key = SeriesKey(metric.name, unit, node, "op", "ramp", tuple((label, "x") for label in metric.labels))
                width = len(Buckets().bounds(metric.name, unit)) if metric.kind is Kind.HISTOGRAM else 0
                sample = Sample(key, metric.kind, 1.5, width + 2, 3.25, tuple(range(width)), seen_ns=2**62, created_s=1.7e9)
                made.append(dataclasses.replace(sample, exemplar=Exemplar(0.5, 1.7e9)) if metric.kind is Kind.HISTOGRAM else sample)
    return made


class Everything:
    run_id = "run-1"

    def latest(self) -> list[Sample]:
        return everything()

    def stale(self) -> int:
        return 0

    def ready(self) -> bool:
        return True

    def refused(self) -> int:
        return 3


def served(form: Form) -> str:
    return _Shown(Everything(), Options(), VirtualClock(), lambda: {"200": 3, "closed": 1}).body(form).decode()


def test_the_whole_page_has_no_fault() -> None:
    """The catalogue and what the endpoint tells of itself: nothing to find, and every metric is on it."""
    page = served(Form.TEXT)
    assert faults(page) == []
    families = {metric.family(unit) for metric in (*CATALOGUE.values(), *OWN.values()) for unit in (metric.unit, *metric.other_units)}
    assert {line.split(" ")[2] for line in page.splitlines() if line.startswith("# TYPE")} == families


def test_the_whole_openmetrics_page_is_read_by_the_strict_parser() -> None:
    """The client's OpenMetrics parser refuses clashing names, wrong units, totals and exemplars: it reads as many lines as there are."""
    page = served(Form.OPENMETRICS)
    read = [one for family in parse_openmetrics(page) for one in family.samples]
    assert len(read) == sum(not line.startswith("#") for line in page.splitlines())
    assert sum(one.exemplar is not None for one in read) == sum(one.exemplar is not None for one in everything())
