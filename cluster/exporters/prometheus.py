"""Prometheus: samples to families to text, and a small HTTP server around it.

Families are named by the catalogue (`Metric.family`), carry its help, and have the labels run, node, worker, phase and those that the
metric declares. Counters are totals of the run so far; histograms have classic buckets at powers of two. Rendering is pure.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.utils import floatToGoString

from actors.clock import MILLISECOND_NS, Clock, SystemClock
from actors.errors import HarnessError
from actors.metrics.registry import CATALOGUE, Kind, Metric

from ..metrics.live import Sample, bounds

_LOG: Final = logging.getLogger(__name__)
_COMMON: Final = ("run", "node", "worker", "phase")
_FRESH_NS: Final = 500 * MILLISECOND_NS
_REQUEST_TIMEOUT_S: Final = 10.0


class Source(Protocol):
    """What the server shows; an `Aggregator` is one."""

    @property
    def run_id(self) -> str:
        """The run whose metrics these are."""
        ...

    def latest(self) -> list[Sample]:
        """Return what every series stands at."""
        ...

    def ready(self) -> bool:
        """Tell whether windows are taken."""
        ...


class _Families:
    """The samples of one moment, as `generate_latest` wants to collect them."""

    def __init__(self, run: str, samples: Iterable[Sample]) -> None:
        self._run = run
        self._groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            if sample.key.metric in CATALOGUE:
                self._groups.setdefault((sample.key.metric, sample.key.unit), []).append(sample)

    def collect(self) -> Iterator[Any]:
        for (name, unit), samples in sorted(self._groups.items()):
            metric = CATALOGUE[name]
            family = _family(metric, unit)
            for sample in samples:
                _add(family, metric, self._label_values(metric, sample), sample)
            yield family

    def _label_values(self, metric: Metric, sample: Sample) -> list[str]:
        declared = dict(sample.key.labels)
        key = sample.key
        return [self._run, key.node, key.worker, key.phase, *(declared.get(label, "") for label in metric.labels)]


def _family(metric: Metric, unit: str) -> Any:
    labels = [*_COMMON, *metric.labels]
    make = {Kind.COUNTER: CounterMetricFamily, Kind.GAUGE: GaugeMetricFamily, Kind.HISTOGRAM: HistogramMetricFamily}[metric.kind]
    return make(metric.family(unit).removesuffix("_total"), metric.help, labels=labels)


def _add(family: Any, metric: Metric, labels: list[str], sample: Sample) -> None:
    if metric.kind is not Kind.HISTOGRAM:
        family.add_metric(labels, sample.value)
        return
    buckets = [(floatToGoString(bound), float(count)) for bound, count in zip(bounds(sample.key.unit), sample.buckets, strict=True)]
    family.add_metric(labels, buckets=[*buckets, ("+Inf", float(sample.count))], sum_value=sample.sum)


def render(run: str, samples: Iterable[Sample]) -> bytes:
    """Return the text exposition (0.0.4) of these samples."""
    return bytes(generate_latest(_Families(run, samples)))


class MetricsServer:
    """Serves /metrics, /healthz and /readyz until `close`. Port 0 takes a free one; see `port`.

    Raises `HarnessError` when the address cannot be had.
    """

    def __init__(self, source: Source, host: str = "127.0.0.1", port: int = 0, clock: Clock | None = None) -> None:
        self._source = source
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._body = b""
        self._rendered_ns: int | None = None
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise HarnessError("os", f"cannot serve metrics on {host}:{port}: {error}", "choose another --prometheus-port") from error
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="prometheus", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is served."""
        return int(self._server.server_address[1])

    def answer(self, path: str) -> tuple[HTTPStatus, bytes]:
        """Return status and body for a path."""
        match path.partition("?")[0]:
            case "/metrics":
                return HTTPStatus.OK, self._metrics()
            case "/healthz":
                return HTTPStatus.OK, b"ok\n"
            case "/readyz":
                ready = self._source.ready()
                return (HTTPStatus.OK, b"ready\n") if ready else (HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
            case _:
                return HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n"

    def _metrics(self) -> bytes:
        """Return the text; many scrapers within half a second cost one rendering."""
        with self._lock:
            now_ns = self._clock.boot_ns()
            if self._rendered_ns is None or now_ns - self._rendered_ns >= _FRESH_NS:
                self._body = render(self._source.run_id, self._source.latest())
                self._rendered_ns = now_ns
            return self._body

    def close(self) -> None:
        """Stop serving and give up the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], owner: MetricsServer) -> None:
        self.owner = owner
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # a scraper that hangs up is no error of ours
        _LOG.debug("request of %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_TIMEOUT_S
    server_version = "stress-cluster"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            status, body = self.server.owner.answer(self.path)
        except Exception as error:
            _LOG.exception("cannot render metrics")
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot render metrics: {error}\n".encode()
        zipped = len(body) > 1024 and "gzip" in self.headers.get("Accept-Encoding", "")
        if zipped:
            body = zlib.compress(body, 1, wbits=31)
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4 if status is HTTPStatus.OK else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if zipped:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the signature of the base class
        _LOG.debug(format, *args)
