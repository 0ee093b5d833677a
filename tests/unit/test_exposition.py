"""The page is the Prometheus client's own, byte for byte, and its parsers read back what went in."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import exposition as client
from prometheus_client.core import Metric as ClientFamily
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar as ClientExemplar
from prometheus_client.utils import floatToGoString

from actors.metrics.registry import PREFIX, RESERVED_LABELS, Kind, Metric
from cluster.exporters.exposition import Form
from cluster.exporters.numbers import texts
from cluster.exporters.page import Page
from cluster.metrics.buckets import Buckets
from cluster.metrics.live import Exemplar, Sample, SeriesKey

SCENARIO = 'a "b"'
POWERS = [sign * at for exponent in range(-325, 309) for at in (10.0**exponent,) for sign in (1.0, -1.0)]
EDGES = np.array([*POWERS, *np.nextafter(POWERS, 0.0), *np.nextafter(POWERS, np.inf), 0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, 1.8e308])


def written(values: np.ndarray) -> list[str]:
    digits, zeros = texts(values)
    return [a + b for a, b in zip(digits.to_pylist(), zeros.to_pylist(), strict=True)]


@pytest.mark.parametrize("values", [pytest.param(EDGES, id="edges"), pytest.param(np.empty(0), id="none")])
def test_numbers_at_every_power_of_ten_are_the_clients(values):
    """Each power of ten and its neighbours, zeros, infinities and NaN are written as the client writes them."""
    assert written(values) == [floatToGoString(value) for value in values.tolist()]


@given(
    st.lists(
        st.floats() | st.integers(-(2**63), 2**63).map(float) | st.integers(0, 2**64 - 1).map(lambda n: float(np.uint64(n).view(float)))
    )
)
def test_numbers_are_the_clients(values):
    """Any column of floats, any bit pattern, is written as the client writes it, and reads back."""
    array = np.array(values, np.float64)
    found = written(array)
    assert found == [floatToGoString(value) for value in values]
    assert np.array_equal(np.array([float(text) for text in found]), array, equal_nan=True)


WORD = st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda word: word not in RESERVED_LABELS)
LABELS = st.lists(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(lambda n: n not in RESERVED_LABELS), max_size=3, unique=True
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(['"', "\\", "\n", '\\n"', "\r", "\u2028", "é", ""])
TOTAL = st.floats(0, allow_infinity=True, allow_nan=False)
TIME = st.none() | st.floats(0, 4e9)


@st.composite
def metrics(draw):
    kind = draw(st.sampled_from(Kind))
    bounds = draw(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5, unique=True)) if kind is Kind.HISTOGRAM else []
    name = ".".join(draw(st.lists(WORD, min_size=2, max_size=3)))
    unit = draw(st.sampled_from(["", "seconds", "bytes", "ratio"]))
    return Metric(name, kind, unit, draw(TEXT), tuple(draw(LABELS)), buckets=tuple(sorted(one + 0.0 for one in bounds)))


@st.composite
def exemplars(draw):
    return Exemplar(draw(st.floats(allow_nan=False)), draw(TIME), tuple((name, draw(TEXT)) for name in draw(LABELS)))


@st.composite
def worlds(draw):
    """Return (catalogue, samples) with each series once and totals that may be."""
    catalogue = {metric.name: metric for metric in draw(st.lists(metrics(), max_size=4, unique_by=lambda one: one.family()))}
    samples = {}
    for metric in catalogue.values():
        for labels in draw(st.lists(st.tuples(*[TEXT] * (3 + len(metric.labels))), max_size=3)):
            key = SeriesKey(metric.name, metric.unit, *labels[:3], tuple(zip(metric.labels, labels[3:], strict=True)))
            counts = sorted(draw(st.lists(st.integers(0, 2**53), min_size=len(metric.buckets) + 1, max_size=len(metric.buckets) + 1)))
            value = draw(st.floats()) if metric.kind is Kind.GAUGE else draw(TOTAL)
            shown = draw(st.none() | exemplars())
            samples[key] = Sample(key, metric.kind, value, counts[-1], draw(TOTAL), tuple(counts[:-1]), 0, draw(TIME), shown)
    return catalogue, list(samples.values())


def client_families(catalogue, samples, run, form):
    """Return what the client would collect, made by its own types; series in their order, families sorted by name."""
    found = []
    for metric in sorted(catalogue.values(), key=lambda one: (one.name, one.unit)):
        mine = [one for one in samples if one.key.metric == metric.name]
        if not mine:
            continue
        name = metric.family().removesuffix("_total") if metric.kind is Kind.COUNTER else metric.family()
        family = ClientFamily(name, metric.help, metric.kind.value, metric.unit)
        for one in mine:
            where = {"node": one.key.node, "worker": one.key.worker, "phase": one.key.phase}
            labels = {"run": run, "scenario": SCENARIO, **where, **dict(one.key.labels)}
            add_client_samples(family, metric, labels, one, run, form)
        found.append(family)
    return found


def add_client_samples(family, metric, labels, one, run, form):
    shown = one.exemplar and ClientExemplar({"run": run, **dict(one.exemplar.labels)}, one.exemplar.value, one.exemplar.time_s)
    if shown and sum(len(name) + len(value) for name, value in shown.labels.items()) > 128:
        shown = None
    if metric.kind is Kind.GAUGE:
        family.add_sample(family.name, labels, one.value)
        return
    if metric.kind is Kind.COUNTER:
        family.add_sample(f"{family.name}_total", labels, one.value, exemplar=shown)
    else:
        edges = [*metric.buckets, math.inf]
        place = next(at for at, edge in enumerate(edges) if one.exemplar is None or one.exemplar.value <= edge)
        for at, (edge, count) in enumerate(zip(edges, [*one.buckets, one.count], strict=True)):
            family.add_sample(
                f"{family.name}_bucket", labels | {"le": floatToGoString(edge)}, count, exemplar=shown if at == place else None
            )
        if metric.buckets[0] >= 0:
            family.add_sample(f"{family.name}_count", labels, one.count)
            family.add_sample(f"{family.name}_sum", labels, one.sum)
    if form is Form.OPENMETRICS and one.created_s is not None:
        family.add_sample(f"{family.name}_created", labels, one.created_s)


class Registry:
    def __init__(self, families):
        self.families = families

    def collect(self):
        return iter(self.families)


def page(catalogue, samples, form):
    return Page("run-1", form, Buckets(catalogue=catalogue), catalogue, scenario=SCENARIO).render(samples)


@given(worlds())
@settings(max_examples=150)
def test_text_is_the_clients_and_reads_back(world):
    """Form 0.0.4: the bytes of generate_latest, and the client's parser finds each sample with its labels and value."""
    catalogue, samples = world
    families = client_families(catalogue, samples, "run-1", Form.TEXT)
    found = page(catalogue, samples, Form.TEXT)
    assert found.body == client.generate_latest(Registry(families))
    sent = [(one.name, one.labels, one.value) for family in families for one in family.samples]
    assert found.lines == len(sent)
    if all(text.isprintable() for text in all_texts(catalogue, samples)):  # its parser strips and splits what Prometheus does not
        read = [(one.name, one.labels, one.value) for family in parse_text(found.body.decode()) for one in family.samples]
        assert same(read, sent)


@given(worlds())
@settings(max_examples=150)
def test_openmetrics_is_the_clients_and_reads_back(world):
    """OpenMetrics 1.0: the bytes of the client's, with units, creation times and exemplars, and its parser agrees."""
    catalogue, samples = world
    families = client_families(catalogue, samples, "run-1", Form.OPENMETRICS)
    found = page(catalogue, samples, Form.OPENMETRICS)
    assert found.body == openmetrics_latest(Registry(families))
    assert found.malformed == 0
    texts_ = all_texts(catalogue, samples)
    if all(text.isprintable() for text in texts_) and not clashing(catalogue):
        read = [one for family in parse_openmetrics(found.body.decode()) for one in family.samples]
        sent = [one for family in families for one in family.samples]
        assert same([(one.name, one.labels, one.value) for one in read], [(one.name, one.labels, one.value) for one in sent])
        assert [one.exemplar and one.exemplar.labels for one in read] == [one.exemplar and one.exemplar.labels for one in sent]


def all_texts(catalogue, samples):
    told = [metric.help for metric in catalogue.values()]
    return [*told, *(text for one in samples for text in (*one.key[2:5], *(value for _, value in one.key.labels)))] + [
        value for one in samples if one.exemplar for _, value in one.exemplar.labels
    ]


def clashing(catalogue):
    """Tell whether a family is named as a part of another, which the parser refuses: the catalogue's own names do not."""
    names = [metric.family() for metric in catalogue.values()]
    ends = ("total", "created", "sum", "count", "bucket", "info", "gsum", "gcount")
    return any(name.rpartition("_")[2] in ends for name in (n.removesuffix("_total") for n in names))


def same(read, sent):
    flat = [
        [(name, sorted(labels.items()), "nan" if math.isnan(value) else value) for name, labels, value in side] for side in (read, sent)
    ]
    return flat[0] == flat[1]


G = Metric("a.state", Kind.GAUGE, "", "State.")
C = Metric("a.events", Kind.COUNTER, "", "Events.", ("probe",))
H = Metric("a.time", Kind.HISTOGRAM, "seconds", "Time.", buckets=(0.5, 1.0))
SMALL = {metric.name: metric for metric in (G, C, H)}


def of(metric, node, **more):
    key = SeriesKey(metric.name, metric.unit, node, "w", "p", tuple((label, "x") for label in metric.labels))
    return dataclasses.replace(Sample(key, metric.kind, 1.0, 3, 2.0, (1, 2) if metric is H else ()), **more)


@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(st.sampled_from([G, C, H]), st.sampled_from("abc"), TOTAL), unique_by=lambda one: one[:2]), max_size=5))
@example([[(G, "a", 1.0)], [(G, "b", 1.0)], [(G, "b", 2.0), (H, "b", 1.0)], []])
def test_a_kept_layout_changes_nothing(scrapes):
    """Scrapes one after the other, with series that come, change and go, give what a fresh page gives."""
    kept = {form: Page("run-1", form, Buckets(catalogue=SMALL), SMALL, scenario=SCENARIO) for form in Form}
    for scrape in scrapes:
        samples = [of(metric, node, value=value, sum=value, created_s=value if value < 5 else None) for metric, node, value in scrape]
        for form in Form:
            assert kept[form].render(samples) == page(SMALL, samples, form)


def test_what_openmetrics_forbids_is_left_out_and_counted():
    """A total that is negative or NaN would cost the whole scrape: it goes, a histogram keeps its buckets, and the rest stands."""
    bad = [of(C, "a", value=-1.0, created_s=5.0), of(C, "b", value=math.nan), of(H, "a", sum=-0.5, created_s=5.0), of(H, "b", sum=math.nan)]
    good = [of(C, "c", value=0.0), of(H, "c"), of(G, "a", value=-1.0)]
    found = page(SMALL, [*bad, *good], Form.OPENMETRICS)
    assert found.malformed == 4
    read = [one for family in parse_openmetrics(found.body.decode()) for one in family.samples]
    by_node = {node: sorted({one.name.removeprefix(f"{PREFIX}_a_") for one in read if one.labels["node"] == node}) for node in "abc"}
    assert by_node == {
        "a": ["state", "time_seconds_bucket", "time_seconds_created"],
        "b": ["time_seconds_bucket"],
        "c": ["events_total", "time_seconds_bucket", "time_seconds_count", "time_seconds_sum"],
    }
    assert page(SMALL, [*bad, *good], Form.TEXT).malformed == 0


def test_labels_around_le_are_in_their_order():
    """A label before, just after and past `le` stand where the client puts them."""
    metric = Metric("a.time", Kind.HISTOGRAM, "", "Time.", ("ld", "le_x", "lf"), buckets=(0.5,))
    key = SeriesKey("a.time", "", "n", "w", "p", (("ld", "1"), ("le_x", "2"), ("lf", "3")))
    body = page({metric.name: metric}, [Sample(key, Kind.HISTOGRAM, 0.0, 2, 1.0, (1,))], Form.TEXT).body.decode()
    assert 'bucket{ld="1",le="0.5",le_x="2",lf="3",node="n",phase="p",run="run-1",scenario="a \\"b\\"",worker="w"} 1.0' in body


def test_an_exemplar_stands_in_the_bucket_of_its_value():
    """On the bound it is within, past the last bound it is in +Inf, and a counter has it too; labels that are too long cost only it."""
    found = page(
        SMALL, [of(H, "a", exemplar=Exemplar(0.5, 7.0)), of(H, "b", exemplar=Exemplar(9.0, 7.5, (("trace_id", "t"),)))], Form.OPENMETRICS
    )
    lines = [line for line in found.body.decode().splitlines() if " # {" in line]
    assert [line.partition('le="')[2].partition(",")[0] for line in lines] == ['0.5"', '+Inf"']
    assert lines[0].endswith(' 1.0 # {run="run-1"} 0.5 7.0')
    assert lines[1].endswith(' 3.0 # {run="run-1",trace_id="t"} 9.0 7.5')
    long = page(SMALL, [of(C, "a", exemplar=Exemplar(1.0, None, (("trace_id", "t" * 112),)))], Form.OPENMETRICS)
    assert f'trace_id="{"t" * 112}"' in long.body.decode()  # 3 + 5 + 8 + 112 = 128
    longer = page(SMALL, [of(C, "a", exemplar=Exemplar(1.0, None, (("trace_id", "t" * 113),)))], Form.OPENMETRICS)
    assert (b"trace_id" in longer.body, longer.lines) == (False, 1)


def test_a_name_that_is_no_unicode_does_not_cost_the_page():
    """A lone surrogate, which a file name may hold, is written as its escape, and the parser reads that."""
    (family,) = parse_text(page(SMALL, [of(G, "n\udc80")], Form.TEXT).body.decode())
    assert family.samples[0].labels["node"] == "n\\udc80"


def test_no_samples_is_an_empty_page():
    """Nothing to show is valid in both forms, and a metric that the catalogue does not know is not shown."""
    assert page(SMALL, [], Form.TEXT) == (b"", 0, 0)
    assert page(SMALL, [], Form.OPENMETRICS) == (b"# EOF\n", 0, 0)
    assert page({}, [of(G, "a")], Form.TEXT) == (b"", 0, 0)
