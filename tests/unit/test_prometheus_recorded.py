"""From `handle.record` to what a scraper reads: recorder, segment, stream, aggregator, endpoint and the client's parsers, all real."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cluster.exporters.exposition import Form
from cluster.exporters.prometheus import MetricsServer, Options
from tests.support.observe import anonymous_bytes
from tests.support.recorded import BATCH, BATCHES, WINDOWS, MetricPath

ROOT = Path(__file__).parents[2]
PARSERS = {Form.TEXT: parse_text, Form.OPENMETRICS: parse_openmetrics}
NODES = ("n1", "n2")
TEXTS = ("a", 'b "quoted", \\ and\nbroken')
Series = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[MetricPath]:
    made = MetricPath(tmp_path, NODES)
    yield made
    made.close()


def scraped(path: MetricPath, form: Form) -> dict[Series, float]:
    """Scrape over HTTP and return what the client's parser reads: name, without the prefix, and labels to value."""
    server = MetricsServer(path.aggregator, options=Options(scenario="small"))
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": form.value})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["Content-Type"] == form.value
            page = answer.read().decode()
    finally:
        server.close()
    read = [one for family in PARSERS[form](page) for one in family.samples]
    found = {series(one.name.removeprefix("stress_cluster_"), **one.labels): one.value for one in read}
    assert len(found) == len(read), "a series is there twice"
    return found


def series(name: str, **labels: str) -> Series:
    return name, tuple(sorted(labels.items()))


def of_load(name: str, node: str, **labels: str) -> Series:
    return series(name, run="r", scenario="small", node=node, worker="w", phase="p", **labels)


@pytest.mark.parametrize("form", Form)
def test_two_label_sets_incremented_k_times_read_k_each(path: MetricPath, form: Form) -> None:
    """Each label set of a counter has its own total of single increments, on each of two nodes, over several windows, in either form."""
    counts = {("n1", TEXTS[0]): 7, ("n1", TEXTS[1]): 11, ("n2", TEXTS[0]): 5, ("n2", TEXTS[1]): 3}
    for _ in range(3):
        for (node, probe), count in counts.items():
            for _ in range(count):
                path.nodes[node].recorder.counter("probe.requests", probe=probe).record(1.0)
        path.close_window()
    found = {key: value for key, value in scraped(path, form).items() if key[0] == "probe_requests_total"}
    assert found == {of_load("probe_requests_total", node, probe=probe): 3.0 * count for (node, probe), count in counts.items()}


@pytest.mark.parametrize("form", Form)
def test_each_label_set_of_a_gauge_keeps_its_state(path: MetricPath, form: Form) -> None:
    """A gauge shows the newest value of each label set on each node, and not one for all."""
    states = {(node, resource): float(at) for at, (node, resource) in enumerate(itertools.product(NODES, TEXTS))}
    for later in (0.25, 0.5):
        for (node, resource), state in states.items():
            path.nodes[node].recorder.gauge("safety.ceiling", resource=resource).record(state + later)
        path.close_window()
    found = {key: value for key, value in scraped(path, form).items() if key[0] == "safety_ceiling_ratio"}
    assert found == {of_load("safety_ceiling_ratio", node, resource=resource): 0.5 + state for (node, resource), state in states.items()}


@pytest.mark.parametrize("form", Form)
def test_recorded_histograms_are_cumulative_and_keep_their_labels(path: MetricPath, form: Form) -> None:
    """For each label set buckets never fall, +Inf is the count, and each holds all samples up to its bound and none past it by 0.8 %."""
    chance = np.random.default_rng(5)
    sets = list(itertools.product(NODES, TEXTS))
    values = {one: chance.lognormal(-5, 2, 3_000 + at) for at, one in enumerate(sets)}
    for part in range(3):
        for (node, probe), mine in values.items():
            path.nodes[node].recorder.histogram("probe.response", probe=probe).record_many(np.array_split(mine, 3)[part])
        path.close_window()
    found = scraped(path, form)
    bounds = sorted({float(dict(key[1])["le"]): dict(key[1])["le"] for key in found if key[0] == "probe_response_seconds_bucket"}.items())
    for (node, probe), mine in values.items():
        counts = [found[of_load("probe_response_seconds_bucket", node, probe=probe, le=le)] for _, le in bounds]
        assert counts == sorted(counts)
        assert (bounds[-1], counts[-1]) == ((math.inf, "+Inf"), mine.size)
        assert found[of_load("probe_response_seconds_count", node, probe=probe)] == mine.size
        assert found[of_load("probe_response_seconds_sum", node, probe=probe)] == pytest.approx(mine.sum(), rel=1e-9)
        for (bound, _), count in zip(bounds, counts, strict=True):
            assert (mine <= bound).sum() <= count <= (mine < bound * (1 + 2**-7)).sum()


def test_ten_million_observations_take_no_more_memory_than_one(tmp_path: Path) -> None:
    """A process that records, takes windows and makes pages holds, seen from outside, no more after 10^7 samples than after 10^6."""
    (first, before), (last, after) = watched("samples", str(tmp_path))
    whole = WINDOWS * BATCHES * BATCH
    assert (first, last, whole) == ([whole // 10] * 2, [whole] * 2, 10**7)
    assert after - before <= 4 << 20, f"{(after - before) / (1 << 20):.1f} MiB more"


@pytest.mark.parametrize(
    ("offered", "at_once"),
    [
        pytest.param(30_000, 1_000, id="short"),
        pytest.param(1_000_000, 10_000, id="a-million", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_label_sets_that_come_and_go_take_no_more_memory(offered: int, at_once: int) -> None:
    """A page's state holds, seen from outside, no more after far more label sets than its limit, and all that are in use are on it."""
    (first, before), (last, after) = watched("series", str(offered), str(at_once))
    assert first[1] == last[1] == 0, "none was refused"
    assert at_once // 10 <= last[0] <= at_once
    assert after - before <= 4 << 20, f"{(after - before) / (1 << 20):.1f} MiB more"


def watched(*words: str) -> list[tuple[list[int], int]]:
    """Run `tests.support.recorded`; return what it said twice, and the memory that it had then."""
    command = [sys.executable, "-m", "tests.support.recorded", *words]
    seen = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            for _ in range(2):
                told = [int(word) for word in child.stdout.readline().split()]
                seen.append((told, anonymous_bytes(child.pid)))
                child.stdin.write("\n")
                child.stdin.flush()
            assert child.wait(30) == 0
        finally:
            child.kill()
    return seen
