"""A real Prometheus server scrapes the endpoint over TLS with credentials, and answers questions about what it read."""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from actors.clock import SystemClock
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.exporters.access import Hash
from cluster.exporters.prometheus import MetricsServer, Options
from cluster.metrics.live import Live, Sample
from cluster.metrics.windows import Row, histograms, unseal
from cluster.outbox import parse
from tests.support.prometheus import PROMETHEUS, ask, serving
from tests.support.waiting import until
from tests.support.windows import START_S, record

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(
    not (PROMETHEUS and OPENSSL), reason="prometheus or openssl is not installed (Debian packages of these names)"
)
VALUES = [0.001 * at for at in range(1, 1001)]  # 1 ms to 1 s, evenly
TOKEN = "token-of-this-test-0123"


class Source:
    """A run whose operation may end: then its gauge is gone."""

    run_id = "run-1"

    def __init__(self) -> None:
        self.live, self.lock, self.has_gauge = Live(), threading.Lock(), True
        made = Histogram.of(VALUES)
        rows = [
            Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", 'a "b" \\c\n'),), 1, 41.0, last=0.0),
            Row("probe.response", Kind.HISTOGRAM, "seconds", "w", "p", (("probe", "x"),), made.count, made.sum, digest=made.encode()),
            Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 1, 0.25, 0.25, 0.25, 0.25),
        ]
        metrics, _ = unseal(parse(record("n1", 1, rows=rows)[1]).payload)
        self.live.absorb(metrics, histograms(metrics), SystemClock().boot_ns())

    def latest(self) -> list[Sample]:
        with self.lock:
            return [one for one in self.live.samples() if self.has_gauge or one.kind is not Kind.GAUGE]

    def stale(self) -> int:
        return 0

    def ready(self) -> bool:
        return True

    def refused(self) -> int:
        return 0


@pytest.fixture
def folder(tmp_path):
    """Hold a certificate, a file of credentials, and the files with which Prometheus is let in, or not."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    command += ["-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    auth = f'[[user]]\nname = "prom"\npassword = "{Hash.of("right").text()}"\n[[token]]\nname = "t"\nhash = "{Hash.of(TOKEN).text()}"\n'
    for name, text in (("auth.toml", auth), ("right", "right"), ("wrong", "wrong"), ("token", TOKEN)):
        (tmp_path / name).write_text(text)
    for name in ("auth.toml", "tls.key"):
        (tmp_path / name).chmod(0o600)
    return tmp_path


def job(name: str, port: int, folder: Path, access: str) -> str:
    return f"""
  - job_name: {name}
    scheme: https
    honor_labels: true
    tls_config: {{ca_file: {folder / "tls.pem"}}}
    {access}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]"""


@pytest.fixture
def prometheus(folder):
    """Give a function that starts a Prometheus which scrapes a port, and returns its address; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(port: int) -> str:
            password = "basic_auth: {{username: prom, password_file: {}}}"
            jobs = [
                job("basic", port, folder, password.format(folder / "right")),
                job("bearer", port, folder, f"authorization: {{credentials_file: {folder / 'token'}}}"),
                job("wrong", port, folder, password.format(folder / "wrong")),
            ]
            return stack.enter_context(serving(folder, "".join(jobs)))

        yield start


def values(api: str, query: str) -> list[float]:
    return [float(one["value"][1]) for one in ask(api, "query", query=query)["result"]]


def settle(api: str, query: str, want: list[float]) -> None:
    """Wait until a query has this answer: a scrape may be late on a busy machine."""
    until(
        lambda: values(api, query) == want, 90, lambda: f"{query} is {values(api, query)}, not {want}: {json.dumps(targets(api), indent=1)}"
    )


def targets(api: str):
    return ask(api, "targets")["activeTargets"]


def check_told(api: str) -> None:
    """Labels, help, unit and exemplar are what went in."""
    series = ask(api, "series", **{"match[]": 'stress_cluster_probe_requests_total{job="basic"}'})
    assert [(one["probe"], one["run"], one["node"]) for one in series] == [('a "b" \\c\n', "run-1", "n1")]
    (told,) = ask(api, "metadata", metric="stress_cluster_probe_response_seconds")["stress_cluster_probe_response_seconds"]
    assert (told["type"], told["unit"]) == ("histogram", "seconds")
    assert told["help"].startswith("Time from a probe's intended start")
    window = {"start": str(START_S), "end": str(START_S + 10)}
    found = ask(api, "query_exemplars", query='stress_cluster_probe_response_seconds_bucket{job="basic"}', **window)
    assert [(one["labels"], one["value"]) for series in found for one in series["exemplars"]] == [({"run": "run-1"}, "1")]


def test_prometheus_reads_what_was_recorded(folder, prometheus):
    """It is let in by password and by token, not with a wrong one; counter, labels, quantile, help, unit and exemplar are what
    went in; and a series that is left out of the page is stale at the next scrape."""
    source = Source()
    options = Options(
        tls_cert=str(folder / "tls.pem"), tls_key=str(folder / "tls.key"), auth_file=str(folder / "auth.toml"), idle_s=86_400.0
    )
    server = MetricsServer(source, options=options)
    try:
        api = prometheus(server.port)
        for name, want in (("basic", 1.0), ("bearer", 1.0), ("wrong", 0.0)):
            settle(api, f'up{{job="{name}"}}', [want])
        until(
            lambda: any("401" in one["lastError"] for one in targets(api) if one["labels"]["job"] == "wrong"),
            60,
            "the wrong password is 401",
        )
        settle(api, 'stress_cluster_probe_requests_total{job="basic"}', [41.0])
        settle(api, 'stress_cluster_probe_response_seconds_count{job="bearer"}', [1000.0])
        settle(api, 'stress_cluster_probe_response_seconds_sum{job="basic"}', [pytest.approx(sum(VALUES))])
        settle(api, 'stress_cluster_host_cpu_busy_ratio{job="basic"}', [0.25])
        for q in (0.5, 0.9, 0.99):
            query = f'histogram_quantile({q}, stress_cluster_probe_response_seconds_bucket{{job="basic"}})'
            (found,) = until(lambda query=query: values(api, query), 60, query)
            assert q / 2 < found < q * 2  # the bounds are powers of two
        check_told(api)
        source.has_gauge = False
        settle(api, 'stress_cluster_host_cpu_busy_ratio{job="basic"}', [])
        settle(api, 'stress_cluster_probe_requests_total{job="basic"}', [41.0])
    finally:
        server.close()
    assert server._server.counted()["200"] > 2


def test_the_endpoint_needs_what_prometheus_gave(folder):
    """The other side of it: the same endpoint without credentials is 401 over the same TLS."""
    options = Options(tls_cert=str(folder / "tls.pem"), tls_key=str(folder / "tls.key"), auth_file=str(folder / "auth.toml"))
    server = MetricsServer(Source(), options=options)
    try:
        context = ssl.create_default_context(cafile=str(folder / "tls.pem"))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"https://127.0.0.1:{server.port}/metrics", context=context, timeout=30)
        caught.value.close()
        assert caught.value.code == 401
    finally:
        server.close()
