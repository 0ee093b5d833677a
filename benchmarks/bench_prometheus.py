"""What does a scrape of 100,000 series cost? Text and gzip, in both forms, with prometheus_client in the same run.

Run: python benchmarks/bench_prometheus.py. Times are milliseconds, best of the rounds; between two rounds of ours every series gets a new
value, as it does between two scrapes. `first` has no layout to go on from, `one more` has one new series. The pages of ours
and the client's are compared byte for byte. `numbers` is the part that turns floats into text, `repr` the same by Python. Ratios are of
CPU time, so that other work on the same cores falls on neither side. `scrape` is a whole request with gzip over loopback, to our server
and to the client's, both in this process. The page passes promtool where there is one. `gzip` is by what is installed, ISA-L or zlib.
"""

from __future__ import annotations

import gzip
import http.client
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import prometheus_client
from machine import at_most, store
from peers import installed, measured
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.utils import floatToGoString

from actors.clock import SystemClock
from actors.metrics.registry import CATALOGUE, CONTEXT, Kind
from cluster.exporters.exposition import Form
from cluster.exporters.numbers import texts
from cluster.exporters.packing import packed
from cluster.exporters.page import Page
from cluster.exporters.prometheus import MetricsServer, Options, _Shown
from cluster.metrics.live import Sample, SeriesKey

SERIES = 100_000
ROUNDS = 15
PEER_ROUNDS = 3
RATIO, GZIP_RATIO, SCRAPE_RATIO = 20.0, 10.0, 4.0
OTEL_SERIES = 1_000  # under the SDK's limit of 2,000 attribute sets
METRICS = ("load.operations", "metrics.dropped", "host.cpu.busy", "host.memory.used", "agent.lease.remaining")


def made() -> list[Sample]:
    """Return series of counters and gauges on many nodes, with totals, fractions, bytes and seconds."""
    chance = np.random.default_rng(1)
    found = []
    per_metric = SERIES // len(METRICS)
    for name in METRICS:
        metric = CATALOGUE[name]
        labels = tuple((label, "queue") for label in metric.labels)
        values = (
            chance.integers(0, 1 << 34, per_metric).astype(float) if metric.unit in ("", "bytes") else chance.lognormal(-3, 2, per_metric)
        )
        for at, value in enumerate(values.tolist()):
            key = SeriesKey(name, metric.unit, f"node-{at % 500:03d}", f"operation-{at // 500:03d}", "sustained", labels)
            found.append(Sample(key, metric.kind, value, seen_ns=SystemClock().boot_ns()))
    return found


class Collector:
    """The same series as the client wants to collect them."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def collect(self) -> Any:
        for name in sorted(METRICS):
            metric = CATALOGUE[name]
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.family().removesuffix("_total"), metric.help, labels=[*CONTEXT, *metric.labels])
            family.unit = metric.unit
            for one in self.samples:
                if one.key.metric == name:
                    values = dict(one.key.labels)
                    context = ("run-1", "burst", one.key.node, one.key.worker, one.key.phase)
                    family.add_metric([*context, *(values[label] for label in metric.labels)], one.value)
            yield family


def best_ms(call: Callable[[], object], rounds: int, before: Callable[[], object] | None = None) -> tuple[float, float]:
    """Return the best wall and CPU time of a call; `before` runs untimed."""
    wall, cpu = [], []
    for _ in range(rounds):
        if before is not None:
            before()
        began, began_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return round(min(wall) * 1e3, 2), round(min(cpu) * 1e3, 2)


class Run:
    """What a server shows, with new values at each look."""

    run_id = "run-1"

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def move(self) -> None:
        self.samples = [replace(one, value=one.value * 1.0009) for one in self.samples]

    def latest(self) -> list[Sample]:
        return list(self.samples)

    def stale(self) -> int:
        return 0

    def ready(self) -> bool:
        return True

    def refused(self) -> int:
        return 0


def of_form(form: Form, run: Run, figures: dict[str, Any]) -> None:
    """Measure one form against the client's."""
    name = form.name.lower()
    page = Page("run-1", form, scenario="burst")
    figures[f"{name}_first_ms"], _ = best_ms(lambda: Page("run-1", form, scenario="burst").render(run.samples), PEER_ROUNDS)
    body = page.render(run.samples).body
    figures[f"{name}_ms"], figures[f"{name}_cpu_ms"] = best_ms(lambda: page.render(run.samples), ROUNDS, run.move)
    newcomer = replace(run.samples[0], key=run.samples[0].key._replace(node="new"))
    figures[f"{name}_one_more_ms"], _ = best_ms(
        lambda: page.render([*run.samples, newcomer]), PEER_ROUNDS, lambda: page.render(run.samples)
    )
    write = openmetrics_latest if form is Form.OPENMETRICS else prometheus_client.generate_latest
    ours = page.render(run.samples).body
    figures[f"{name}_client_ms"], figures[f"{name}_client_cpu_ms"] = best_ms(lambda: write(Collector(run.samples)), PEER_ROUNDS)
    figures[f"{name}_equal"] = ours == write(Collector(run.samples))
    figures[f"{name}_bytes"] = len(body)


def get(port: int) -> None:
    """Scrape once, as Prometheus asks."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Encoding"]) == (200, "gzip")
    assert answer.read()
    connection.close()


def scrapes(run: Run) -> dict[str, float]:
    """Return the time of a whole scrape, from our server and from the client's."""

    def later() -> None:
        run.move()
        time.sleep(0.6)  # past the half second for which a page is kept

    server = MetricsServer(run, "127.0.0.1", 0, options=Options(scenario="burst"))
    get(server.port)
    ours, ours_cpu = best_ms(lambda: get(server.port), PEER_ROUNDS, later)
    server.close()
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(Collector(run.samples))
    httpd, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    theirs, theirs_cpu = best_ms(lambda: get(httpd.server_port), PEER_ROUNDS)
    httpd.shutdown()
    httpd.server_close()
    thread.join()
    return {"scrape_ms": ours, "scrape_client_ms": theirs, "scrape_cpu_ms": ours_cpu, "scrape_client_cpu_ms": theirs_cpu}


def opentelemetry_us() -> float:
    """Return microseconds a series of a page by OpenTelemetry's reader and the client's writer."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider

    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    gauge = provider.get_meter("bench").create_gauge("host_cpu_busy")
    for at in range(OTEL_SERIES):
        gauge.set(at * 0.001, {"node": f"node-{at:04d}"})
    took_ms, _ = best_ms(lambda: prometheus_client.generate_latest(prometheus_client.REGISTRY), PEER_ROUNDS)
    provider.shutdown()
    return round(took_ms * 1e3 / OTEL_SERIES, 2)


def promtool(body: bytes) -> str:
    """Return what promtool says of a page: clean, its complaint, or that it is missing."""
    tool = shutil.which("promtool")
    if tool is None:
        return "missing: not installed"
    done = subprocess.run([tool, "check", "metrics"], input=body, capture_output=True, check=False)
    return "clean" if done.returncode == 0 else done.stderr.decode(errors="replace")[:500]


def main() -> int:
    run = Run(made())
    figures: dict[str, Any] = {"series": len(run.samples)}
    for form in Form:
        of_form(form, run, figures)
    body = Page("run-1", Form.TEXT, scenario="burst").render(run.samples).body
    figures["gzip_ms"], figures["gzip_cpu_ms"] = best_ms(lambda: packed(body), PEER_ROUNDS)
    figures["gzip_zlib_ms"], figures["gzip_zlib_cpu_ms"] = best_ms(lambda: zlib.compress(body, 1, wbits=31), PEER_ROUNDS)
    figures["gzip_bytes"] = len(packed(body))
    figures["gzip_zlib_bytes"] = len(zlib.compress(body, 1, wbits=31))
    figures["client_gzip_ms"], figures["client_gzip_cpu_ms"] = best_ms(lambda: gzip.compress(body), 1)
    shown = _Shown(run, Options(), SystemClock(), dict, fresh_ns=0)
    shown.body(Form.TEXT)
    figures["served_ms"], figures["served_cpu_ms"] = best_ms(lambda: shown.body(Form.TEXT), ROUNDS, run.move)
    figures["served_gzip_ms"], figures["served_gzip_cpu_ms"] = best_ms(lambda: shown.body(Form.TEXT, zipped=True), ROUNDS, run.move)
    values = np.array([one.value for one in run.samples])
    figures["numbers_ms"], _ = best_ms(lambda: texts(values), ROUNDS)
    figures["numbers_repr_ms"], _ = best_ms(lambda: [floatToGoString(value) for value in values.tolist()], PEER_ROUNDS)
    figures |= scrapes(run)
    figures["opentelemetry_us_a_series"] = measured("opentelemetry.exporter.prometheus", opentelemetry_us)
    figures["promtool"] = promtool(body)
    times = figures["text_client_cpu_ms"] / figures["text_cpu_ms"]
    gzip_times = (figures["text_client_cpu_ms"] + figures["client_gzip_cpu_ms"]) / figures["served_gzip_cpu_ms"]
    scrape_times = figures["scrape_client_cpu_ms"] / figures["scrape_cpu_ms"]
    figures |= {
        "times_faster": round(times, 1),
        "times_faster_with_gzip": round(gzip_times, 1),
        "times_faster_a_scrape": round(scrape_times, 1),
    }
    goals = {
        "pages equal to prometheus_client's, byte for byte": (1.0, bool(figures["text_equal"] and figures["openmetrics_equal"])),
        "promtool has no complaint, where it is installed": (1.0, figures["promtool"] in ("clean", "missing: not installed")),
        "times faster than prometheus_client, at least": (RATIO, times >= RATIO),
        "times faster than prometheus_client with gzip, at least": (GZIP_RATIO, gzip_times >= GZIP_RATIO),
        "a scrape, times faster than from prometheus_client's server, at least": (SCRAPE_RATIO, scrape_times >= SCRAPE_RATIO),
    }
    reported = {
        "text of 100,000 series, byte-equal numbers, ms": at_most(40.0, figures["text_ms"]),
        "text with gzip, ms": at_most(40.0, figures["served_gzip_ms"]),
        "text with gzip, ms of CPU": at_most(40.0, figures["served_gzip_cpu_ms"]),
        "text with gzip, by zlib alone, ms of CPU": at_most(40.0, round(figures["served_cpu_ms"] + figures["gzip_zlib_cpu_ms"], 2)),
        "a scrape, ms": at_most(400.0, figures["scrape_ms"]),
    }
    packages = ("numpy", "pyarrow", "prometheus_client", *installed("isal", "opentelemetry-exporter-prometheus"))
    return store("prometheus", figures, goals, packages, reported=reported)


if __name__ == "__main__":
    sys.exit(main())
