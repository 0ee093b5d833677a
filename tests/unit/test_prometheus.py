from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import threading
import zlib

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.clock import VirtualClock
from actors.errors import HarnessError
from actors.metrics.registry import CATALOGUE, RESERVED_LABELS, Kind
from cluster.exporters.prometheus import MetricsServer, render
from cluster.metrics.live import Live, Sample, SeriesKey, bounds
from cluster.metrics.windows import histograms, unseal
from cluster.outbox import parse
from tests.support.windows import record

PROMTOOL = shutil.which("promtool")


def whole_catalogue() -> list[Sample]:
    made = []
    for metric in CATALOGUE.values():
        for unit in (metric.unit, *metric.other_units):
            for node in ("n1", 'n"2\\\n'):
                key = SeriesKey(metric.name, unit, node, "op", "ramp", tuple((label, "x") for label in metric.labels))
                edges = bounds(unit)
                buckets = tuple(range(len(edges))) if metric.kind is Kind.HISTOGRAM else ()
                made.append(Sample(key, metric.kind, 1.5, len(edges) + 2, 3.25, buckets))
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

    def ready(self) -> bool:
        return self.is_ready


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_is_content_with_the_whole_catalogue() -> None:
    """`promtool check metrics` has nothing to say about any metric that there is."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=render("run-1", whole_catalogue()), capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_family_is_there_once_with_help_type_and_labels() -> None:
    """What promtool does not check: one TYPE per family, no series twice, families in one piece, declared labels."""
    text = render("run-1", whole_catalogue()).decode()
    families = list(text_string_to_metric_families(text))
    assert sorted(text.count(f"# TYPE {name} ") for name in re.findall(r"# TYPE (\S+) ", text)) == [1] * len(families)
    assert len(families) == sum(1 + len(metric.other_units) for metric in CATALOGUE.values())
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]
    assert len(series) == len(set(series))
    for family in families:
        for sample in family.samples:
            assert {"run", "node", "worker", "phase"} <= set(sample.labels)
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
    assert (exact[2.0**-9], exact[2.0**-8], exact[0.5], exact[1.0]) == (1.0, 2.0, 2.0, 3.0)
    assert any(line.startswith("stress_cluster_probe_response_seconds_count") and line.endswith(" 4.0") for line in lines)


def test_counters_are_totals_of_all_windows() -> None:
    """A counter is the sum of its increases, so that a rate can be taken."""
    live = Live()
    for at in (1, 2, 3):
        metrics, _ = unseal(parse(record("n1", at)[1]).payload)
        live.absorb(metrics, histograms(metrics), at)
    line = 'stress_cluster_probe_requests_total{node="n1",phase="p",probe="x",run="r",worker="w"} 6.0'
    assert line in render("r", live.samples()).decode().splitlines()


def test_the_catalogue_keeps_its_rules() -> None:
    """Names are dotted and without units, help is a sentence, labels do not clash with the common ones."""
    for metric in CATALOGUE.values():
        assert re.fullmatch(r"[a-z]+(\.[a-z]+)+", metric.name), metric.name
        assert metric.help.endswith("."), metric.name
        assert metric.unit in ("", "seconds", "bytes", "ratio"), metric.name
        assert not set(metric.labels) & set(RESERVED_LABELS), metric.name
        assert not set(metric.name.split(".")) & {"seconds", "bytes", "ratio", "total", "count", "sum", "bucket"}, metric.name


def test_no_samples_is_an_empty_page() -> None:
    """Before the first window there is nothing to show, and that is valid."""
    assert list(text_string_to_metric_families(render("r", []).decode())) == []


def get(server: MetricsServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_server_answers_and_closes() -> None:
    """/metrics, /healthz and /readyz answer; the rendering is kept for half a second; closing frees port and threads."""
    source, clock = Source(), VirtualClock()
    before = threading.active_count()
    server = MetricsServer(source, clock=clock)
    try:
        status, headers, body = get(server, "/metrics")
        assert (status, body) == (200, render("run-1", whole_catalogue()))
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        _, headers, zipped = get(server, "/metrics?x=1", **{"Accept-Encoding": "gzip, deflate"})
        assert headers["Content-Encoding"] == "gzip"
        assert zlib.decompress(zipped, wbits=31) == body
        assert source.calls == 1
        clock.advance(0.6)
        get(server, "/metrics")
        assert source.calls == 2
        assert [get(server, path)[0] for path in ("/healthz", "/readyz", "/nothing")] == [200, 200, 404]
        source.is_ready = False
        assert (get(server, "/healthz")[0], get(server, "/readyz")[0]) == (200, 503)
        with pytest.raises(HarnessError, match="cannot serve metrics"):
            MetricsServer(source, port=server.port)
    finally:
        server.close()
    with pytest.raises(ConnectionRefusedError):
        get(server, "/healthz")
    for thread in threading.enumerate():
        if thread.name.startswith("Thread-"):
            thread.join(5)
    assert threading.active_count() <= before


def test_a_failing_source_is_an_error_page() -> None:
    """When samples cannot be had the scrape fails with 500 and the server lives on."""
    source = Source()
    server = MetricsServer(source)
    try:
        source.broken = True
        status, _, body = get(server, "/metrics")
        assert (status, body) == (500, b"cannot render metrics: no samples\n")
        source.broken = False
        assert get(server, "/metrics")[0] == 200
    finally:
        server.close()
