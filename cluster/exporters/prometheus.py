"""The endpoint of one run: /metrics for Prometheus, in two forms, /api/v1/query, /api/v1/stream, /healthz and /readyz.

TLS and credentials where set.

/healthz says whether this endpoint is alive, /readyz whether all is well, each exporter of the run included; /exporters/NAME/healthz and
/exporters/NAME/readyz say the same of one exporter. /healthz does not follow the exporters: who restarts what is not alive would end a run
because a destination of its metrics is down.

Families are named by the catalogue (`Metric.family`), carry its help, and have the labels run, scenario, node, worker, phase and those
that the metric declares. Counters are totals of the run so far; histograms have classic buckets (`Buckets`). The endpoint tells of itself
too: how many series it shows and hides, and why, and how requests ended.

Series are counted as Prometheus stores them: each line is one. Those beyond the limit are hidden, the youngest first; so are those
that were not seen for a while, until they come back.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from actors.clock import MILLISECOND_NS, SECOND_NS, Clock, SystemClock
from actors.metrics.registry import CATALOGUE, Kind, Metric

from ..metrics import buckets as bucket_settings
from ..metrics.buckets import Buckets
from ..metrics.live import Sample, SeriesKey
from ..metrics.own_stream import OWN as OWN_NODE
from ..stored import scenario_name
from . import access, tls
from .exposition import Form
from .http_message import Refused, Request, Response
from .http_server import Bounds, HttpServer
from .negotiation import coding_of, form_of
from .packing import packed
from .page import Page, Rendered
from .query_api import Ask, answered
from .stream_api import Follow, streamed

_LOG: Final = logging.getLogger(__name__)
_FRESH_NS: Final = 500 * MILLISECOND_NS
_PATHS: Final = ("/metrics", "/healthz", "/readyz")
_QUERY: Final = "/api/v1/query"
_STREAM: Final = "/api/v1/stream"
_EXPORTERS: Final = "/exporters/"

OWN: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric("exposition.series", Kind.GAUGE, "", "Series of the run that this page shows."),
        Metric("exposition.series.limit", Kind.GAUGE, "", "Series of the run that a page may show."),
        Metric(
            "exposition.series.hidden",
            Kind.GAUGE,
            "",
            "Series that this page does not show: over the limit, idle for long, or not allowed by OpenMetrics (as of the page before).",
            ("reason",),
        ),
        Metric(
            "exposition.series.refused", Kind.COUNTER, "", "Windows of series that the aggregator does not follow, being at its own limit."
        ),
        Metric(
            "exposition.requests", Kind.COUNTER, "", "Requests to this endpoint, by status; closed and handshake never had one.", ("code",)
        ),
    )
}


class Source(Protocol):
    """What the server shows; an `Aggregator` is one."""

    @property
    def run_id(self) -> str:
        """The run whose metrics these are."""
        ...

    def latest(self) -> Sequence[Sample]:
        """Return what every series stands at, the oldest series first; gauges of what has ended may be left out."""
        ...

    def stale(self) -> int:
        """Return how many series `latest` leaves out."""
        ...

    def ready(self) -> bool:
        """Tell whether windows are taken."""
        ...

    def refused(self) -> int:
        """Return how many windows of series are not followed, for there are too many series."""
        ...


class Finding(NamedTuple):
    """What a check found; `detail` is JSON: an exporter's breaker state, queue depth, last success, say."""

    name: str
    ok: bool
    reason: str = ""
    detail: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve. Paths are on the node that serves; `scenario` is on each series; `checks` are asked at each look at /readyz.

    `exporters` give, by name, what the /healthz and the /readyz of one exporter say.
    """

    tls_cert: str = ""
    tls_key: str = ""
    auth_file: str = ""
    buckets: Buckets = field(default_factory=Buckets)
    max_series: int = 100_000
    max_scrapes: int = 8
    idle_s: float = 86_400.0
    timeout_s: float = 10.0
    checks: tuple[Callable[[], Finding], ...] = ()
    exporters: Mapping[str, Callable[[], tuple[Finding, Finding]]] = field(default_factory=dict)
    scenario: str = ""

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Options:
        """Return the options that stand in a run's manifest. Raises `InputError` for buckets that are none."""
        said = {path.removeprefix("prometheus."): one["value"] for path, one in (manifest.get("settings") or {}).items()}
        names = ("tls_cert", "tls_key", "auth_file", "max_series", "max_scrapes", "idle_s", "timeout_s")
        known = {name: said[name] for name in names if name in said}
        return cls(buckets=bucket_settings.parse(said.get("buckets", "")), scenario=scenario_name(manifest), **known)


def render(run: str, samples: Sequence[Sample], form: Form = Form.TEXT, buckets: Buckets | None = None, *, scenario: str = "") -> bytes:
    """Return the page of these samples, without what an endpoint tells of itself."""
    return Page(run, form, buckets, scenario=scenario).render(samples).body


class _Shown:
    """The last page in each form, kept for half a second: many scrapers cost one rendering, and one compression."""

    def __init__(
        self, source: Source, options: Options, clock: Clock, counted: Callable[[], Mapping[str, int]], fresh_ns: int = _FRESH_NS
    ) -> None:
        self._source, self._options, self._clock, self._counted = source, options, clock, counted
        self._lock = threading.Lock()
        catalogue = {**CATALOGUE, **OWN}
        self._pages = {form: Page(source.run_id, form, options.buckets, catalogue, scenario=options.scenario) for form in Form}
        self._kept: dict[Form, tuple[int, Rendered]] = {}
        self._zipped: dict[Form, bytes] = {}
        self._malformed = 0
        self._trouble = ""
        self._fresh_ns = fresh_ns

    def body(self, form: Form, *, zipped: bool = False) -> bytes:
        """Return the page in a form, at most half a second old."""
        with self._lock:
            body = self._fresh(form).body
            if not zipped:
                return body
            if form not in self._zipped:
                self._zipped[form] = packed(body)
            return self._zipped[form]

    def last(self) -> Finding:
        """Return how the last rendering went. Waits for nothing: a run that is busy is alive."""
        return Finding("page", not self._trouble, self._trouble)

    def _fresh(self, form: Form) -> Rendered:
        now_ns = self._clock.boot_ns()
        kept = self._kept.get(form)
        if kept is None or now_ns - kept[0] >= self._fresh_ns:
            try:
                rendered = self._pages[form].render(self._samples(self._pages[form], now_ns))
            except Exception as error:
                self._trouble = f"cannot render metrics: {error}"
                raise
            self._trouble = ""
            self._malformed = rendered.malformed if form is Form.OPENMETRICS else self._malformed
            kept = self._kept[form] = (now_ns, rendered)
            self._zipped.pop(form, None)
        return kept[1]

    def _samples(self, page: Page, now_ns: int) -> list[Sample]:
        latest = self._source.latest()
        since_ns = now_ns - int(self._options.idle_s * SECOND_NS)
        alive = [one for one in latest if one.seen_ns >= since_ns or _is_vital(one)]
        idle = [one for one in latest if one.seen_ns < since_ns and not _is_vital(one)] if len(alive) < len(latest) else []
        shown, lines = page.fitting(alive, self._options.max_series)
        beyond = page.lines(alive[len(shown) :])
        hidden = {"limit": beyond, "idle": page.lines(idle) + self._source.stale(), "malformed": self._malformed}
        return [*shown, *self._own(lines, hidden)]

    def _own(self, shown: int, hidden: Mapping[str, int]) -> Iterable[Sample]:
        yield _own_sample("exposition.series", shown)
        yield _own_sample("exposition.series.limit", self._options.max_series)
        yield from (_own_sample("exposition.series.hidden", count, ("reason", reason)) for reason, count in hidden.items())
        yield _own_sample("exposition.series.refused", self._source.refused())
        yield from (_own_sample("exposition.requests", count, ("code", code)) for code, count in sorted(self._counted().items()))


def _is_vital(sample: Sample) -> bool:
    """Tell whether a series stays although it is idle: a rare failure that came back as a new series would be no increase."""
    known = CATALOGUE.get(sample.key.metric)
    return known is not None and known.vital


def _own_sample(name: str, value: float, *labels: tuple[str, str]) -> Sample:
    return Sample(SeriesKey(name, "", OWN_NODE, "", "", labels), OWN[name].kind, float(value))


class MetricsServer:
    """Serves /metrics, /healthz and /readyz until `close`; /api/v1/query when `ask` answers it, /api/v1/stream when `follow` does.

    Port 0 takes a free one; see `port`.
    Raises `HarnessError` when the address cannot be had, `InputError` when files of the options are wrong.
    """

    def __init__(
        self,
        source: Source,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
        options: Options | None = None,
        ask: Ask | None = None,
        follow: Follow | None = None,
    ) -> None:
        self._source, self._options, self._ask, self._follow = source, options or Options(), ask, follow
        given = self._options
        self._tls = tls.watched(Path(given.tls_cert), Path(given.tls_key)) if given.tls_cert else None
        self._credentials = access.watched(Path(given.auth_file)) if given.auth_file else None
        clock = clock or SystemClock()
        bounds = Bounds(given.max_scrapes, given.timeout_s)
        self._server = HttpServer(host, port, self._answer, bounds, lambda: self._tls.current() if self._tls else None, clock)
        self._shown = _Shown(source, given, clock, self._server.counted)
        self._server.start()

    @property
    def port(self) -> int:
        """The port that is served."""
        return self._server.port

    def close(self) -> None:
        """Stop serving, let scrapes and streams under way finish for 5 s at most, and give up the port. A stream ends with its feed."""
        self._server.close()

    # requests

    def _answer(self, request: Request) -> Response:
        paths = (*_PATHS, *([_QUERY] if self._ask else []), *([_STREAM] if self._follow else []))
        name, _, health = request.path.removeprefix(_EXPORTERS).rpartition("/")
        is_of_one = request.path.startswith(_EXPORTERS) and name in self._options.exporters and f"/{health}" in _PATHS[1:]
        if request.path not in paths and not is_of_one:
            raise Refused(HTTPStatus.NOT_FOUND, f"try {', '.join(paths[:-1])} or {paths[-1]}")
        if request.method not in {"GET", "HEAD"}:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered here", (("Allow", "GET, HEAD"),))
        if request.path == "/metrics":
            self._check_role(request, "metrics")
            return self._metrics(request)
        if request.path == _QUERY and self._ask is not None:
            self._check_role(request, "metrics")
            return answered(request.query, self._ask)
        if request.path == _STREAM and self._follow is not None:
            self._check_role(request, "metrics")
            return streamed(request.query, self._follow)
        if is_of_one:
            findings = [_checked(lambda: self._options.exporters[name]()[health == "readyz"])]
        else:
            findings = self._findings() if request.path == "/readyz" else [self._shown.last()]
        return _told(findings, reasons=self._may_see_reasons(request))

    def _check_role(self, request: Request, role: str) -> None:
        if self._credentials is None:
            return
        principal = self._credentials.current().principal(request.headers.get("authorization"))
        if principal is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "credentials are needed here", access.CHALLENGES)
        if role not in principal.roles:
            raise Refused(HTTPStatus.FORBIDDEN, f"this needs the role {role}")

    def _may_see_reasons(self, request: Request) -> bool:
        """Tell whether the sender may see more of the health than yes or no. Wrong credentials are refused; a plain probe has none."""
        if self._credentials is None:
            return True
        if "authorization" not in request.headers:
            return False
        self._check_role(request, "health")
        return True

    def _metrics(self, request: Request) -> Response:
        form, coding = form_of(request.headers.get("accept")), coding_of(request.headers.get("accept-encoding"))
        if form is None:
            raise Refused(HTTPStatus.NOT_ACCEPTABLE, f"there is {Form.TEXT} and {Form.OPENMETRICS}")
        if coding is None:
            raise Refused(HTTPStatus.NOT_ACCEPTABLE, "there is gzip and identity")
        try:
            body = self._shown.body(form, zipped=coding == "gzip")
        except Exception as error:
            _LOG.exception("cannot render metrics")
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot render metrics: {error}") from error
        headers = [("Content-Type", form.value), ("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "no-store")]
        return Response(HTTPStatus.OK, body, (*headers, ("Content-Encoding", "gzip")) if coding == "gzip" else tuple(headers))

    # health

    def _findings(self) -> list[Finding]:
        """Return what is well and what is not: the page first, then what a run needs, then what is merely wrong."""
        found = [_page_finding(self._shown), Finding("windows", self._source.ready(), "windows are not taken yet")]
        for name, watched in (("tls", self._tls), ("credentials", self._credentials)):
            if watched is not None:
                watched.current()
                found.append(Finding(name, not watched.problem, watched.problem))
        return [*found, *map(_checked, self._options.checks)]


def _page_finding(shown: _Shown) -> Finding:
    try:
        size = len(shown.body(Form.TEXT))
    except Exception as error:
        _LOG.exception("cannot render metrics")
        return Finding("page", ok=False, reason=f"cannot render metrics: {error}")
    return Finding("page", ok=True, detail={"bytes": size})


def _checked(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        _LOG.exception("a check failed")
        return Finding(getattr(check, "__name__", "check"), ok=False, reason=f"the check itself failed: {error}")


def _told(findings: Sequence[Finding], *, reasons: bool) -> Response:
    well = all(one.ok for one in findings)
    document: dict[str, Any] = {"status": "ok" if well else "not ok"}
    if reasons:
        document["checks"] = [
            {
                "name": one.name,
                "ok": one.ok,
                **({} if one.ok else {"reason": one.reason}),
                **({"detail": dict(one.detail)} if one.detail else {}),
            }
            for one in findings
        ]
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, json.dumps(document).encode() + b"\n", tuple(headers if well else [*headers, ("Retry-After", "1")]))
