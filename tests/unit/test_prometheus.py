"""From the catalogue and live series to what Prometheus reads."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from actors.clock import SECOND_NS, SystemClock, VirtualClock
from actors.errors import InputError
from actors.metrics.histogram import Histogram
from actors.metrics.registry import CATALOGUE, CONTEXT, RESERVED_LABELS, Kind, Metric
from cluster.exporters.exposition import Form
from cluster.exporters.prometheus import Options, _Shown, render
from cluster.metrics import buckets as buckets_module
from cluster.metrics import live as live_module
from cluster.metrics.buckets import Buckets
from cluster.metrics.live import Live, Sample, SeriesKey
from cluster.metrics.windows import Row, histograms, unseal
from cluster.outbox import parse
from tests.support.windows import START_S, record

PROMTOOL = shutil.which("promtool")


def whole_catalogue() -> list[Sample]:
    made = []
    for metric in CATALOGUE.values():
        for unit in (metric.unit, *metric.other_units):
            for node in ("n1", 'n"2\\\n'):
                key = SeriesKey(metric.name, unit, node, "op", "ramp", tuple((label, "x") for label in metric.labels))
                edges = Buckets().bounds(metric.name, unit)
                buckets = tuple(range(len(edges))) if metric.kind is Kind.HISTOGRAM else ()
                made.append(Sample(key, metric.kind, 1.5, len(edges) + 2, 3.25, buckets, seen_ns=2**62))
    return made


class Source:
    run_id = "run-1"

    def __init__(self) -> None:
        self.calls = 0
        self.is_ready = True
        self.broken = False

    def latest(self) -> list[Sample]:
        self.calls += 1
        if self.broken:
            raise RuntimeError("no samples")
        return whole_catalogue()

    def stale(self) -> int:
        return 0

    def ready(self) -> bool:
        return self.is_ready

    def refused(self) -> int:
        return 0


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_is_content_with_the_whole_catalogue() -> None:
    """`promtool check metrics` has nothing to say about any metric that there is."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=render("run-1", whole_catalogue()), capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_has_nothing_against_openmetrics_but_that_it_cannot_read_it() -> None:
    """promtool lints 0.0.4 only, where a counter's HELP under its name without `_total` is not found. That is all it says."""
    assert PROMTOOL is not None
    page = render("run-1", whole_catalogue(), Form.OPENMETRICS)
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True, check=False, timeout=30)
    counters = sorted(metric.family() for metric in CATALOGUE.values() if metric.kind is Kind.COUNTER)
    assert sorted((done.stdout + done.stderr).decode().splitlines()) == [f"{name} no help text" for name in counters]


def test_every_family_is_there_once_with_help_type_and_labels() -> None:
    """What promtool does not check: one TYPE per family, no series twice, families in one piece, declared labels."""
    text = render("run-1", whole_catalogue(), scenario="burst").decode()
    families = list(text_string_to_metric_families(text))
    assert sorted(text.count(f"# TYPE {name} ") for name in re.findall(r"# TYPE (\S+) ", text)) == [1] * len(families)
    assert len(families) == sum(1 + len(metric.other_units) for metric in CATALOGUE.values())
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]
    assert len(series) == len(set(series))
    for family in families:
        for sample in family.samples:
            assert set(CONTEXT) <= set(sample.labels)
            assert (sample.labels["run"], sample.labels["scenario"]) == ("run-1", "burst")
            assert sample.labels["node"] in ("n1", 'n"2\\\n')


def test_histograms_are_cumulative_and_end_with_inf() -> None:
    """Classic buckets never fall, and +Inf holds every sample."""
    live = Live()
    for at in (1, 2, 500, 4_000_000):
        metrics, _ = unseal(parse(record("n1", at)[1]).payload)
        live.absorb(metrics, histograms(metrics), 1)
    text = render("r", live.samples()).decode()
    lines = [line for line in text.splitlines() if line.startswith("stress_cluster_probe_response_seconds")]
    values = [float(line.rpartition(" ")[2]) for line in lines if "_bucket" in line]
    assert values == sorted(values)
    assert ('le="+Inf"' in lines[len(values) - 1], values[-1]) == (True, 4.0)
    exact = {float(bound): float(line.rpartition(" ")[2]) for line in lines for bound in re.findall(r'le="([0-9.e-]+)"', line)}
    assert (exact[2.0**-9], exact[2.0**-8], exact[0.5], exact[1.0]) == (1.0, 2.0, 3.0, 3.0)
    assert any(line.startswith("stress_cluster_probe_response_seconds_count") and line.endswith(" 4.0") for line in lines)


def test_counters_are_totals_of_all_windows() -> None:
    """A counter is the sum of its increases, so that a rate can be taken."""
    live = Live()
    for at in (1, 2, 3):
        metrics, _ = unseal(parse(record("n1", at)[1]).payload)
        live.absorb(metrics, histograms(metrics), at)
    line = 'stress_cluster_probe_requests_total{node="n1",phase="p",probe="x",run="r",scenario="s",worker="w"} 6.0'
    assert line in render("r", live.samples(), scenario="s").decode().splitlines()


def test_the_catalogue_keeps_its_rules() -> None:
    """Names are dotted and without units, help is a sentence, labels do not clash with the common ones."""
    for metric in CATALOGUE.values():
        assert re.fullmatch(r"[a-z]+(\.[a-z]+)+", metric.name), metric.name
        assert metric.help.endswith("."), metric.name
        assert metric.unit in ("", "seconds", "bytes", "ratio", "bytes_per_second", "per_second"), metric.name
        assert not set(metric.labels) & set(RESERVED_LABELS), metric.name
        assert not set(metric.name.split(".")) & {"seconds", "bytes", "ratio", "total", "count", "sum", "bucket"}, metric.name


def test_no_samples_is_an_empty_page() -> None:
    """Before the first window there is nothing to show, and that is valid."""
    assert list(text_string_to_metric_families(render("r", []).decode())) == []


PAST, LATE = 1_000 * SECOND_NS, 2_000 * SECOND_NS


def live_of(*values: float, buckets: Buckets | None = None) -> Live:
    live = Live(buckets)
    made = Histogram.of(values)
    row = Row("probe.response", Kind.HISTOGRAM, "seconds", "w", "p", (("probe", "x"),), made.count, made.sum, digest=made.encode())
    metrics, _ = unseal(parse(record("n1", 1, rows=[row])[1]).payload)
    live.absorb(metrics, histograms(metrics), 1)
    return live


def counts_of(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if "_response_seconds_bucket" in line]
    return {line.partition('le="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param(0.005, {"0.005": 1.0, "0.01": 1.0, "+Inf": 1.0}, id="5-ms-is-within-5-ms"),
        pytest.param(0.0049, {"0.005": 1.0, "0.01": 1.0, "+Inf": 1.0}, id="under"),
        pytest.param(0.0051, {"0.005": 0.0, "0.01": 1.0, "+Inf": 1.0}, id="over"),
        pytest.param(0.01, {"0.005": 0.0, "0.01": 1.0, "+Inf": 1.0}, id="the-last-bound"),
        pytest.param(9.0, {"0.005": 0.0, "0.01": 0.0, "+Inf": 1.0}, id="past-all"),
        pytest.param(-1.0, {"0.005": 1.0, "0.01": 1.0, "+Inf": 1.0}, id="negative"),
    ],
)
def test_buckets_are_those_that_were_asked_for(value: float, want: dict[str, float]) -> None:
    """Bounds of a metric's own appear, and a value equal to a bound is within it."""
    buckets = buckets_module.parse("probe.response = 0.005, 0.01")
    assert counts_of(render("r", live_of(value, buckets=buckets).samples(), buckets=buckets).decode()) == want


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60),
    st.lists(st.floats(1e-5, 1e2), min_size=1, max_size=6, unique_by=lambda bound: round(math.log(bound) * 50)),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_buckets_count_within_one_bucket_of_the_truth(values: list[float], bounds: list[float], q: float) -> None:
    """A bucket holds all values up to its bound and none above it by 0.8 %; so a quantile lies in the bucket that holds the true one."""
    buckets = Buckets({"probe.response": tuple(sorted(bounds))})
    (sample,) = live_of(*values, buckets=buckets).samples()
    for bound, count in zip(sorted(bounds), sample.buckets, strict=True):
        assert sum(value <= bound for value in values) <= count <= sum(value < bound * (1 + 2**-7) for value in values)
    counts, edges = [*sample.buckets, sample.count], [*sorted(bounds), math.inf]
    rank = math.ceil(q * len(values))
    edge = next(edge for edge, count in zip(edges, counts, strict=True) if count >= rank)
    true = sorted(values)[rank - 1]
    below = max((one for one in edges if one < edge), default=0.0)
    assert below < true <= edge * (1 + 2**-7)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("probe.respons=1", "did you mean 'probe.response'", id="no-such-metric"),
        pytest.param("probe.requests=1", "is a counter", id="no-histogram"),
        pytest.param("probe.response=1,x", "no list of numbers", id="no-number"),
        pytest.param("probe.response=", "no list of numbers", id="nothing"),
        pytest.param("probe.response=1,1", "do not ascend", id="twice"),
        pytest.param("probe.response=2,1", "do not ascend", id="falling"),
        pytest.param("probe.response=1,inf", "not finite", id="infinite"),
        pytest.param("probe.response=1,nan", "not finite", id="nan"),
        pytest.param("probe.response=1,1.001", "nearer than", id="too-near"),
        pytest.param("probe.response=" + ",".join(map(str, range(1, 202))), "201 bounds", id="too-many"),
        pytest.param("probe.response=1;probe.response=2", "given twice", id="metric-twice"),
    ],
)
def test_bad_buckets_are_refused_with_metric_and_reason(text: str, told: str) -> None:
    """What cannot be shown is refused before a run, and says what is expected."""
    with pytest.raises(InputError) as caught:
        buckets_module.parse(text)
    assert (caught.value.code, told in str(caught.value)) == ("invalid_setting", True)


def test_the_catalogue_may_have_buckets_and_a_setting_beats_them() -> None:
    """First what was set, then the catalogue's, then those of the unit."""
    metric = Metric("a.time", Kind.HISTOGRAM, "seconds", "Time.", buckets=(1.0, 2.0))
    catalogue = {metric.name: metric}
    assert Buckets({"a.time": (5.0,)}, catalogue).bounds("a.time", "seconds") == (5.0,)
    assert Buckets({}, catalogue).bounds("a.time", "seconds") == (1.0, 2.0)
    assert Buckets({}, catalogue).bounds("b.time", "seconds") == buckets_module.BY_UNIT["seconds"]
    assert all(Buckets().bounds(one.name, one.unit) for one in CATALOGUE.values() if one.kind is Kind.HISTOGRAM)


class Many(Source):
    """Five counters: two that were not seen for long, three of now."""

    def latest(self) -> list[Sample]:
        keys = [SeriesKey("load.operations", "", f"n{at}", "w", "p", ()) for at in range(5)]
        return [Sample(key, Kind.COUNTER, 1.0, seen_ns=PAST if at < 2 else LATE) for at, key in enumerate(keys)]

    def refused(self) -> int:
        return 7

    def stale(self) -> int:
        return 4


def shown(options: Options, clock: VirtualClock) -> dict[tuple[str, str], float]:
    """Return the value of each series, by its name and its node or, of what the endpoint tells of itself, its reason."""
    found = _Shown(Many(), options, clock, lambda: {"200": 3}).body(Form.TEXT).decode()
    return {
        (one.name, one.labels["node"].removeprefix("aggregator") + one.labels.get("reason", "")): one.value
        for family in text_string_to_metric_families(found)
        for one in family.samples
    }


@pytest.mark.parametrize("form", Form)
def test_every_series_of_a_page_says_whose_it_is(form: Form) -> None:
    """Run, scenario and node are on each line as the endpoint serves it, also of what it tells of itself; all come from the manifest."""
    options = Options.of_manifest({"run": "run-1", "scenario": {"version": 1, "name": "burst"}})
    page = _Shown(Many(), options, VirtualClock(), lambda: {"200": 3}).body(form).decode()
    parse_page = parse_openmetrics if form is Form.OPENMETRICS else text_string_to_metric_families
    samples = [one for family in parse_page(page) for one in family.samples]
    nodes = {one.labels["node"] for one in samples}
    assert nodes == {"n0", "n1", "n2", "n3", "n4", "aggregator"}
    assert {(one.labels["run"], one.labels["scenario"]) for one in samples} == {("run-1", "burst")}


def test_the_limit_and_idleness_hide_series_and_say_how_many() -> None:
    """Shown and hidden are all there are; the oldest stay; what was not seen for the time set is left out until it is seen again."""
    clock = VirtualClock()
    clock.advance((LATE - clock.boot_ns()) / SECOND_NS)
    prefix = "stress_cluster_exposition_series"
    found = shown(Options(max_series=2, idle_s=300.0), clock)
    assert sorted(node for name, node in found if name == "stress_cluster_load_operations_total") == ["n2", "n3"]
    told = {(name.removeprefix(prefix), label): value for (name, label), value in found.items() if name.startswith(prefix)}
    assert told == {
        ("", ""): 2.0,
        ("_limit", ""): 2.0,
        ("_hidden", "limit"): 1.0,
        ("_hidden", "idle"): 6.0,  # two by the page, four gauges by the source
        ("_hidden", "malformed"): 0.0,
        ("_refused_total", ""): 7.0,
    }
    assert found["stress_cluster_exposition_requests_total", ""] == 3.0
    found = shown(Options(idle_s=1000.0), clock)
    assert sorted(node for name, node in found if name == "stress_cluster_load_operations_total") == ["n0", "n1", "n2", "n3", "n4"]
    assert found[f"{prefix}_hidden", "idle"] == 4.0


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("most", [1, 27, 60, 150, 10_000])
def test_the_limit_counts_what_a_scrape_brings(form: Form, most: int) -> None:
    """A histogram is a series for each of its lines: no scrape has more of the run than the limit, and shown and hidden are all."""

    class Mixed(Source):
        def latest(self) -> list[Sample]:
            return [replace(one, created_s=None if at % 3 else 5.0) for at, one in enumerate(whole_catalogue())]

    def scrape(limit: int) -> tuple[int, dict[str, float]]:
        page = _Shown(Mixed(), Options(max_series=limit), VirtualClock(), dict).body(form).decode()
        parse_page = parse_openmetrics if form is Form.OPENMETRICS else text_string_to_metric_families
        lines = [one for family in parse_page(page) for one in family.samples]
        own = [one for one in lines if one.name.startswith("stress_cluster_exposition_")]
        told = {one.name.removeprefix("stress_cluster_exposition_series") + one.labels.get("reason", ""): one.value for one in own}
        return len(lines) - len(own), told

    everything, _ = scrape(10**6)
    lines, told = scrape(most)
    assert lines == told[""] == min(everything, told[""]) <= most
    assert lines + told["_hiddenlimit"] == everything
    assert most - lines < 29 or lines == everything  # what is left would not hold the next one


def test_a_rare_failure_stays_however_long_it_is_quiet() -> None:
    """A counter of failures that left and came back would show no increase: nobody would be told of the next one."""
    key = SeriesKey("probe.failures", "", "n1", "w", "p", ())

    class Rare(Many):
        def latest(self) -> list[Sample]:
            return [Sample(key, Kind.COUNTER, 1.0, seen_ns=PAST)]

    clock = VirtualClock()
    clock.advance((LATE - clock.boot_ns()) / SECOND_NS)
    assert b"stress_cluster_probe_failures_total{" in _Shown(Rare(), Options(idle_s=1.0), clock, dict).body(Form.TEXT)


def absorb(live: Live, node: str, now_s: float, *rows: Row) -> None:
    metrics, _ = unseal(parse(record(node, 1, rows=rows)[1]).payload)
    live.absorb(metrics, histograms(metrics), round(now_s * SECOND_NS))


def test_series_that_no_page_shows_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit, stale gauges go and so do counters that were idle for a day; vital ones stay; who finds no room is counted."""
    monkeypatch.setattr(live_module, "MAX_SERIES", 3)
    gauge = Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 1, 0.5, 0.5, 0.5, 0.5)
    counter = Row("load.operations", Kind.COUNTER, "", "w", "p", (), 1, 7.0, last=7.0)
    vital = Row("probe.failures", Kind.COUNTER, "", "w", "p", (("probe", "x"), ("reason", "late")), 1, 1.0, last=1.0)
    live, day_s = Live(), 86_400.0
    nodes = lambda: [(one.key.metric, one.key.node) for one in live.samples()]
    absorb(live, "n1", 100.0, gauge, counter, vital)
    absorb(live, "n2", 150.0, counter)
    assert (live.refused, len(nodes())) == (1, 3)
    absorb(live, "n2", 170.0, counter)  # within the minute nothing is looked at
    assert live.refused == 2
    absorb(live, "n2", 210.0, counter)
    assert nodes() == [("load.operations", "n1"), ("probe.failures", "n1"), ("load.operations", "n2")]
    absorb(live, "n3", 100.0 + day_s, counter)
    assert (live.refused, live.samples()[0].key.node) == (3, "n1")
    absorb(live, "n2", 161.0 + day_s, counter)
    absorb(live, "n3", 161.0 + day_s, counter)
    assert nodes() == [("probe.failures", "n1"), ("load.operations", "n2"), ("load.operations", "n3")]
    assert {one.key.node: one.value for one in live.samples()} == {"n1": 1.0, "n2": 14.0, "n3": 7.0}
    absorb(live, "n1", 300.0 + day_s, counter)
    assert live.refused == 4


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_is_content_with_what_the_endpoint_tells_of_itself() -> None:
    """The page as it is served, its own families included, passes `promtool check metrics`."""
    assert PROMTOOL is not None
    page = _Shown(Many(), Options(), VirtualClock(), lambda: {"200": 3, "closed": 1}).body(Form.TEXT)
    assert b"stress_cluster_exposition_requests_total" in page
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    broken = page.replace(b"# HELP stress_cluster_exposition_series_limit", b"# HALP ")  # it does look
    assert subprocess.run([PROMTOOL, "check", "metrics"], input=broken, capture_output=True, check=False, timeout=30).returncode != 0


def test_live_series_know_when_they_began_and_their_highest_value() -> None:
    """OpenMetrics has the start of the first window as creation time, and the highest value of the newest window as exemplar."""
    live = Live()
    for at in (3, 9, 5):
        metrics, _ = unseal(parse(record("n1", at)[1]).payload)
        live.absorb(metrics, histograms(metrics), at)
    families = {family.name: family for family in parse_openmetrics(render("r", live.samples(), Form.OPENMETRICS).decode())}
    created = {one.name: one.value for family in families.values() for one in family.samples if one.name.endswith("_created")}
    assert created == {
        "stress_cluster_probe_requests_created": START_S + 3.0,
        "stress_cluster_probe_response_seconds_created": START_S + 3.0,
    }
    (shown_,) = [one.exemplar for one in families["stress_cluster_probe_response_seconds"].samples if one.exemplar]
    assert (shown_.value, float(shown_.timestamp), shown_.labels) == (0.005, START_S + 5.0, {"run": "r"})


def test_many_scrapes_of_a_changing_run_see_whole_histograms() -> None:
    """While windows come in, each scrape has +Inf equal to the count, buckets that never fall, and a sum that fits its count."""
    live, lock = Live(), threading.Lock()
    window, _ = unseal(parse(record("n1", 250)[1]).payload)
    decoded = histograms(window)

    class Changing(Source):
        def latest(self) -> list[Sample]:
            with lock:
                return live.samples()

    pages = _Shown(Changing(), Options(idle_s=1e6), SystemClock(), dict, fresh_ns=0)
    stop, seen, wrong = threading.Event(), set[float](), list[str]()

    def feed() -> None:
        while not stop.is_set():
            with lock:
                live.absorb(window, decoded, SystemClock().boot_ns())

    def scrape(form: Form) -> None:
        parse_page = parse_openmetrics if form is Form.OPENMETRICS else text_string_to_metric_families
        for _ in range(20):
            for family in parse_page(pages.body(form).decode()):
                if family.name == "stress_cluster_probe_response_seconds":
                    named: dict[str, list[float]] = {}
                    for one in family.samples:
                        named.setdefault(one.name.rpartition("_")[2], []).append(one.value)
                    count = named["count"][0]
                    seen.add(count)
                    if named["bucket"] != sorted(named["bucket"]) or named["bucket"][-1] != count:
                        wrong.append(f"{form}: {named}")
                    if not math.isclose(named["sum"][0], 0.25 * count, rel_tol=1e-9):
                        wrong.append(f"{form}: sum {named['sum']} of {count}")

    feeder = threading.Thread(target=feed)
    scrapers = [threading.Thread(target=scrape, args=(form,)) for form in Form for _ in range(3)]
    feeder.start()
    for thread in scrapers:
        thread.start()
    for thread in scrapers:
        thread.join()
    stop.set()
    feeder.join()
    assert wrong == []
    assert len(seen) > 1
