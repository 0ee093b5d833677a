"""The endpoint over real sockets: statuses, codings, bounds, TLS, credentials, health, and its end."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import logging
import random
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from actors.clock import VirtualClock
from actors.errors import HarnessError, InputError
from actors.metrics.registry import Kind
from cluster.exporters import packing
from cluster.exporters.access import Hash, read
from cluster.exporters.exposition import Form
from cluster.exporters.http_message import Response
from cluster.exporters.http_server import Bounds, HttpServer
from cluster.exporters.prometheus import Finding, MetricsServer, Options
from cluster.metrics.live import Sample, SeriesKey
from tests.support.waiting import until

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed, which makes the certificates of these tests")


class Source:
    run_id = "run-1"

    def __init__(self) -> None:
        self.calls = 0
        self.value = 2.5
        self.is_ready = True
        self.broken = False
        self.gate: threading.Event | None = None
        self.entered = threading.Semaphore(0)

    def latest(self) -> list[Sample]:
        self.calls += 1
        self.entered.release()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.broken:
            raise RuntimeError("no samples")
        keys = [SeriesKey("load.operations", "", f"n{at}", "w", "p", ()) for at in range(50)]
        return [Sample(key, Kind.COUNTER, self.value, seen_ns=2**62) for key in keys]

    def stale(self) -> int:
        return 0

    def ready(self) -> bool:
        return self.is_ready

    def refused(self) -> int:
        return 0


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def serve(source):
    """Give a function that starts a server of this source; all are closed at the end."""
    servers = []

    def start(**options) -> MetricsServer:
        servers.append(MetricsServer(source, options=Options(**options)))
        return servers[-1]

    yield start
    if source.gate is not None:
        source.gate.set()
    for server in servers:
        server.close()


def ask(server, path="/metrics", method="GET", context=None, body=None, **headers):
    """Return (status, headers, body); underscores in names are dashes."""
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
    try:
        connection.request(method, path, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def raw(server, data: bytes) -> bytes:
    """Send bytes, end the sending, and return all that comes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while part := connection.recv(1 << 16):
            got += part
        return got


# forms and codings


def test_the_server_answers_caches_and_closes(source):
    """/metrics, /healthz and /readyz answer; a page is kept for half a second; closing frees port and threads."""
    clock, before = VirtualClock(), threading.active_count()
    server = MetricsServer(source, clock=clock)
    try:
        assert ask(server)[0] == 200
        assert ask(server, "/metrics?x=1")[2] == ask(server)[2]
        assert source.calls == 1
        clock.advance(0.6)
        ask(server)
        assert source.calls == 2
        assert [ask(server, path)[0] for path in ("/healthz", "/readyz", "/nothing")] == [200, 200, 404]
        with pytest.raises(HarnessError, match="cannot serve metrics"):
            MetricsServer(source, port=server.port)
    finally:
        server.close()
        server.close()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "/healthz")
    until(lambda: threading.active_count() <= before, 30, "its threads have ended")  # the last one closes its socket after the answer


def test_a_host_that_is_none_is_told(source):
    """An address that cannot be had is an error with a way out, not a trace."""
    with pytest.raises(HarnessError, match="cannot serve metrics on 203"):
        MetricsServer(source, host="203.0.113.7")


def test_forms_are_negotiated(serve):
    """Accept decides between 0.0.4 and OpenMetrics, which ends with its mark and is parsed whole."""
    server = serve()
    status, headers, body = ask(server, Accept="application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert (status, headers["content-type"], headers["vary"]) == (200, Form.OPENMETRICS.value, "Accept, Accept-Encoding")
    assert body.endswith(b"\n# EOF\n")
    assert sum(len(family.samples) for family in parse_openmetrics(body.decode())) > 50
    assert ask(server, Accept="*/*")[1]["content-type"] == Form.TEXT.value
    status, _, body = ask(server, Accept="application/json")
    assert (status, b"text/plain" in body) == (406, True)
    assert ask(server, Accept_Encoding="identity;q=0")[0] == 406


def test_gzip_is_sent_when_asked_for(serve, source):
    """The body unpacks to the plain one, q=0 is respected, health stays plain, and many scrapes cost one compression."""
    server = serve()
    plain = ask(server)
    zipped = ask(server, Accept_Encoding="gzip, deflate")
    assert plain[1].get("content-encoding") is None
    assert (zipped[1]["content-encoding"], zipped[1]["vary"]) == ("gzip", "Accept, Accept-Encoding")
    assert len(zipped[2]) < len(plain[2])
    # pages of one moment differ in what the endpoint tells of itself only when they were made anew
    assert strip(gzip.decompress(zipped[2])) == strip(plain[2])
    assert "content-encoding" not in ask(server, Accept_Encoding="gzip;q=0")[1]
    assert "content-encoding" not in ask(server, "/healthz", Accept_Encoding="gzip")[1]


def test_a_page_is_packed_as_one_member_by_whatever_is_installed(monkeypatch):
    """ISA-L or zlib: the head is gzip's, zlib reads one member to its end, and nothing is left behind it."""
    body = b"stress_cluster_load_operations_total 1.0\n" * 1000
    for compress in (packing.compress, zlib.compress):
        monkeypatch.setattr(packing, "compress", compress)
        reader = zlib.decompressobj(31)
        assert reader.decompress(packing.packed(body)) == body
        assert (reader.eof, reader.unused_data) == (True, b"")


def test_the_page_of_an_empty_run_is_packed_too(serve, source, monkeypatch):
    """A client that rules out the plain form never gets it, however short the page."""
    monkeypatch.setattr(source, "latest", list)
    status, headers, body = ask(serve(), Accept_Encoding="gzip, identity;q=0")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert b"stress_cluster_exposition_series" in gzip.decompress(body)


def test_every_answer_is_dated_by_the_servers_clock(source):
    """Pages, refusals and broken requests have a Date, in the one form that RFC 9110 lets a server write."""
    clock = VirtualClock()
    clock.wall_offset_ns = 784_111_777 * 10**9 - clock.boot_ns()
    server = MetricsServer(source, clock=clock)
    try:
        assert {ask(server, path)[1]["date"] for path in ("/metrics", "/healthz", "/nothing")} == {"Sun, 06 Nov 1994 08:49:37 GMT"}
        assert b"\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n" in raw(server, b"nonsense\r\n\r\n")
    finally:
        server.close()


def test_the_packed_page_is_as_new_as_the_plain_one(source):
    """When a page is made anew, what was packed of the old one is not sent any more."""
    clock = VirtualClock()
    server = MetricsServer(source, clock=clock)
    try:
        ask(server, Accept_Encoding="gzip")
        source.value = 99.25
        clock.advance(0.6)
        plain = ask(server)[2]
        assert gzip.decompress(ask(server, Accept_Encoding="gzip")[2]) == plain
        assert b" 99.25\n" in plain
    finally:
        server.close()


def strip(page: bytes) -> list[bytes]:
    return [line for line in page.splitlines() if b"exposition_requests" not in line]


def test_head_has_the_headers_of_get_and_no_body(serve):
    """HEAD says how long the page is, and sends none of it."""
    server = serve()
    length = ask(server)[1]["content-length"]
    head = raw(server, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1
    assert f"Content-Length: {length}".encode() in head


# statuses


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET /metrics\r\n\r\n", 400, id="no-version"),
        pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", 400, id="tls-to-a-plain-port"),
        pytest.param(b"GET /metrics HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, id="two-hosts"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400, id="folded"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\nA : y\r\n\r\n", 400, id="space-before-colon"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, id="negative-length"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHo", 400, id="cut-off"),
        pytest.param(b"GET metrics HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="no-slash"),
        pytest.param(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", 404, id="no-such-path"),
        pytest.param(b"GET http://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200, id="absolute-form"),
        pytest.param(b"GET /metrics HTTP/1.0\r\n\r\n", 200, id="http-1.0"),
        pytest.param(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405, id="post"),
        pytest.param(b"FOO /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405, id="unknown-method"),
        pytest.param(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413, id="body-one-byte-too-long"),
        pytest.param(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413, id="body-of-any-length"),
        pytest.param(b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 413, id="chunks"),
        pytest.param(b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n", 414, id="long-line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 16384 + b"\r\n", 431, id="long-header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 64 + b"\r\n", 431, id="many-headers"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, id="http-2"),
    ],
)
def test_each_fault_has_its_status(serve, sent, status):
    """What is wrong with a request is answered with the status for it, a length that is right, and a word why."""
    head, _, body = raw(serve(), sent).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body
    assert (b"Allow: GET, HEAD" in head) == (status == 405)


def test_a_failing_source_is_an_error_page_and_no_end(serve, source):
    """When samples cannot be had the scrape fails with 500 and the server lives on."""
    server = serve()
    source.broken = True
    assert ask(server)[::2] == (500, b"cannot render metrics: no samples\n")
    source.broken = False
    assert ask(server)[0] == 200


def test_a_fault_of_the_server_is_told_without_details():
    """An exception in an answer is 500; what it was stands in the log only."""

    def answer(_request):
        raise RuntimeError("secret detail")

    server = HttpServer("127.0.0.1", 0, answer)
    server.start()
    try:
        status, _, body = ask(server)
    finally:
        server.close()
    assert (status, b"secret" in body) == (500, False)


def test_broken_requests_over_sockets_leave_no_mark(serve):
    """Five hundred requests with bytes changed, cut or doubled: each gets an answer or an end, and the server is as it was."""
    server, chance = serve(), random.Random(11)
    good = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 65500\r\n\r\n"
    statuses = set()
    for _ in range(500):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(1, 9)] = chance.randbytes(chance.randrange(4))
            if len(data) < 2:
                break
        got = raw(server, bytes(data))
        statuses.add(got[9:12])
    assert {b"200", b"400"} <= statuses
    assert statuses <= {b"", b"200", b"400", b"404", b"405", b"413", b"505"}
    assert ask(server)[0] == 200
    for thread in server._server._serving():
        thread.join(30)
    assert server._server._serving() == []


# bounds


def test_one_scrape_too_many_is_told_to_come_again(serve, source):
    """With all slots taken the next is 503 with Retry-After, at once; when one is free again, it is answered; both are counted."""
    source.gate = threading.Event()
    server = serve(max_scrapes=1)
    first: list[int] = []
    scraper = threading.Thread(target=lambda: first.append(ask(server)[0]))
    scraper.start()
    assert source.entered.acquire(timeout=30)
    status, headers, _ = ask(server)
    assert (status, headers["retry-after"]) == (503, "1")
    source.gate.set()
    scraper.join()
    assert first == [200]
    assert server._server.counted() == {"503": 1, "200": 1}


def test_a_slow_client_is_told_and_holds_nobody_up(source):
    """A head that does not come in time is 408, though a byte comes now and then; meanwhile others are answered."""
    clock = VirtualClock()
    server = MetricsServer(source, clock=clock, options=Options(timeout_s=30.0, max_scrapes=1))
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(b"GET /metrics HTTP/1.1\r\n")
            assert ask(server, "/healthz")[0] == 200
            answered = select.poll()  # a suite's process has more descriptors than select takes
            answered.register(slow, select.POLLIN)
            while not answered.poll(50):
                clock.advance(31.0)
                slow.sendall(b"a")
            assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    finally:
        server.close()


def test_a_client_that_does_not_read_is_cut_off():
    """An answer that is not taken in time ends the connection, and its slot is free again."""
    begun = threading.Event()

    def answer(request):
        begun.set()
        return Response(http.HTTPStatus.OK, b"x" * (64 << 20))

    server = HttpServer("127.0.0.1", 0, answer, Bounds(requests_max=1, timeout_s=2.0))
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as deaf:
            deaf.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert begun.wait(30)
            for thread in server._serving():
                thread.join(30)
            assert server.counted() == {"200": 1, "closed": 1}
            assert server._slots.acquire(blocking=False), "its slot is free again"
    finally:
        server.close()


def test_more_connections_than_can_be_served_are_closed(serve):
    """Idle connections cannot take all threads: past the bound the next is closed at once, and counted."""
    server = serve(max_scrapes=1)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(5)]
    try:
        assert held[4].recv(1) == b""
        assert server._server.counted() == {"closed": 1}
    finally:
        for one in held:
            one.close()


def knock_until_refused(port):
    while True:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()


def test_closing_lets_a_scrape_finish(source):
    """A scrape under way gets its whole page though the server closes; an idle connection is cut; new ones are refused."""
    source.gate = threading.Event()
    server = MetricsServer(source)
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    got = []
    scraper = threading.Thread(target=lambda: got.append(ask(server)))
    scraper.start()
    assert source.entered.acquire(timeout=30)
    port = server.port
    closer = threading.Thread(target=lambda: server._server.close(grace_s=60))
    closer.start()
    assert idle.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        knock_until_refused(port)
    source.gate.set()
    scraper.join()
    closer.join()
    assert (got[0][0], got[0][2].count(b"stress_cluster_load_operations_total{")) == (200, 50)


# TLS


def certificate(folder: Path, name: str = "localhost") -> tuple[str, str]:
    """Make a certificate for 127.0.0.1 and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True, timeout=60)
    key.chmod(0o600)
    return str(cert), str(key)


@needs_openssl
def test_tls_serves_1_2_and_newer_and_nothing_else(serve, tmp_path):
    """A client that trusts the certificate reads the page; plain HTTP and TLS 1.1 are turned away, and the server lives on."""
    cert, key = certificate(tmp_path)
    server = serve(tls_cert=cert, tls_key=key)
    trusting = ssl.create_default_context(cafile=cert)
    assert ask(server, context=trusting)[0] == 200
    assert server._tls.current().minimum_version is ssl.TLSVersion.TLSv1_2
    with pytest.raises((http.client.BadStatusLine, ConnectionResetError)):
        ask(server)
    with pytest.raises(ssl.SSLError):
        ask(server, context=ssl.create_default_context())
    assert ask(server, context=trusting)[0] == 200
    assert server._server.counted()["handshake"] >= 1


@needs_openssl
def test_a_renewed_certificate_is_taken_and_a_bad_one_is_not(serve, tmp_path):
    """Files that change are read again; when they are wrong the old ones stay in use and /readyz says so, until they are right."""
    cert, key = certificate(tmp_path)
    server = serve(tls_cert=cert, tls_key=key)
    old = ssl.create_default_context(cafile=cert)
    assert ask(server, context=old)[0] == 200
    new_cert, new_key = certificate(tmp_path, "renewed")
    shutil.copy(new_cert, cert)
    status, _, body = ask(server, "/readyz", context=old)
    assert (status, b"do not belong together" in body, b"still in use" in body) == (503, True, True)
    shutil.copy(new_key, key)
    new = ssl.create_default_context(cafile=new_cert)
    assert ask(server, "/readyz", context=new)[0] == 200
    with pytest.raises(ssl.SSLError):
        ask(server, context=old)


@needs_openssl
def test_wrong_tls_files_are_refused_by_name(source, tmp_path):
    """Each way in which the files may be wrong is told before anything is served."""
    cert, key = certificate(tmp_path)
    other = certificate(tmp_path, "other")[1]
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("hello")
    no_pem.chmod(0o600)
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "ec", "-in", key, "-out", str(locked), "-aes256", "-passout", "pass:x"], check=True, capture_output=True)
    open_key = tmp_path / "open.key"
    shutil.copy(key, open_key)
    open_key.chmod(0o644)
    cases = [
        (str(tmp_path / "none.pem"), key, "prometheus.tls_cert: .*none.pem cannot be read"),
        (cert, str(tmp_path / "none.key"), "prometheus.tls_key: .*none.key cannot be read"),
        (cert, other, "do not belong together"),
        (str(no_pem), key, "cannot be used"),
        (cert, str(no_pem), "cannot be used"),
        (cert, str(locked), "cannot be used"),
        (cert, str(open_key), r"can be read by everybody \(mode 644\)"),
    ]
    for tls_cert, tls_key, told in cases:
        with pytest.raises(InputError, match=told) as caught:
            MetricsServer(source, options=Options(tls_cert=tls_cert, tls_key=tls_key))
        assert caught.value.code == "invalid_setting"
        assert caught.value.hint


# credentials


def auth_file(folder: Path) -> Path:
    token = folder / "token"
    token.write_text("tok-0123456789abcdef\n")
    token.chmod(0o600)
    path = folder / "auth.toml"
    path.write_text(
        f'[[user]]\nname = "prom"\npassword = "{Hash.of("pass:word é").text()}"\nroles = ["metrics"]\n'
        f'[[user]]\nname = "probe"\npassword = "{Hash.of("other").text()}"\nroles = ["health"]\n'
        f'[[token]]\nname = "grafana"\nfile = "{token}"\n'
    )
    path.chmod(0o600)
    return path


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "metrics", "readyz"),
    [
        pytest.param(basic("prom", "pass:word é"), 200, 403, id="user-of-metrics"),
        pytest.param(basic("probe", "other"), 403, 200, id="user-of-health"),
        pytest.param("bearer tok-0123456789abcdef", 200, 200, id="token-of-both"),
        pytest.param(None, 401, 200, id="nobody"),
        pytest.param(basic("prom", "wrong"), 401, 401, id="wrong-password"),
        pytest.param(basic("prom", "other"), 401, 401, id="password-of-another"),
        pytest.param(basic("none", "other"), 401, 401, id="no-such-user"),
        pytest.param("Basic !!!", 401, 401, id="no-base64"),
        pytest.param("Basic " + base64.b64encode(b"prom").decode(), 401, 401, id="no-colon"),
        pytest.param("Bearer tok-0123456789abcdeg", 401, 401, id="wrong-token"),
        pytest.param("Bearer ", 401, 401, id="empty-token"),
        pytest.param("Digest x", 401, 401, id="other-scheme"),
    ],
)
def test_roles_decide_who_reads_what(serve, tmp_path, authorization, metrics, readyz):
    """401 with a challenge for the unknown, 403 for the wrong role; a probe without credentials learns yes or no alone."""
    server = serve(auth_file=str(auth_file(tmp_path)))
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    for _ in range(2):  # the second time from memory
        status, told, _ = ask(server, **headers)
        assert (status, "www-authenticate" in told) == (metrics, metrics == 401)
    status, _, body = ask(server, "/readyz", **headers)
    assert status == readyz
    assert (b"checks" in body) == (readyz == 200 and authorization is not None)


def test_a_name_without_a_colon_is_nobody(tmp_path):
    """A user whose password is empty is let in with a colon after the name, as RFC 7617 has it, and not without."""
    path = tmp_path / "auth.toml"
    path.write_text(f'[[user]]\nname = "open"\npassword = "{Hash.of("").text()}"\n')
    path.chmod(0o600)
    credentials = read(path)
    assert credentials.principal(basic("open", "")).name == "open"
    assert credentials.principal("Basic " + base64.b64encode(b"open").decode()) is None


def test_secrets_are_never_logged_or_told(serve, tmp_path, caplog):
    """Neither the log at its loudest nor any answer holds a password, a token or a hash, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    path = auth_file(tmp_path)
    server = serve(auth_file=str(path))
    answers = [
        ask(server, Authorization=one.encode())
        for one in (basic("prom", "s3cret-guess"), "Bearer s3cret-guess", basic("prom", "pass:word é"))
    ]
    hashes = re.findall(r"scrypt:[^\"]+", path.read_text())
    path.write_text(path.read_text() + "\n[[user]]\nname = 'new'\npassword = 's3cret-plain'\n")
    answers.append(ask(server, "/readyz", Authorization=b"Bearer tok-0123456789abcdef"))
    assert (answers[-1][0], b"still in use" in answers[-1][2]) == (503, True)
    told = caplog.text + repr(answers)
    assert "still in use" in caplog.text
    assert not [secret for secret in ("s3cret", "pass:word", "tok-0123", *hashes) if secret in told]


def test_credentials_are_read_again(serve, tmp_path):
    """A token that is replaced in its file is refused from then on, and the new one is taken."""
    server = serve(auth_file=str(auth_file(tmp_path)))
    assert ask(server, Authorization=b"Bearer tok-0123456789abcdef")[0] == 200
    (tmp_path / "token").write_text("another-token-of-tomorrow\n")
    assert ask(server, Authorization=b"Bearer tok-0123456789abcdef")[0] == 401
    assert ask(server, Authorization=b"Bearer another-token-of-tomorrow")[0] == 200


HASH = Hash.of("x", b"salt-of-tests").text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "neither users nor tokens", id="empty"),
        pytest.param("[[user]", "is not TOML", id="no-toml"),
        pytest.param("[[users]]\nname = 'a'", "has users, and only user and token", id="unknown-table"),
        pytest.param("[user]\nname = 'a'", "twice bracketed", id="single-brackets"),
        pytest.param("[[user]]\npassword = 'x'", "user 1 without a name", id="no-name"),
        pytest.param("[[user]]\nname = 'a'\npasword = 'x'", "has pasword at 'a'", id="unknown-key"),
        pytest.param("[[user]]\nname = 'a'\npassword = 'hunter2'", "no hash for 'a'", id="plain-password"),
        pytest.param("[[user]]\nname = 'a'\npassword = 'scrypt:3:8:1:AAAAAAAAAAAA:AAAA'", "no hash for 'a'", id="bad-cost"),
        pytest.param("[[user]]\nname = 'a'", "no hash for 'a'", id="no-password"),
        pytest.param(f"[[user]]\nname = 'a'\npassword = '{HASH}'\nroles = ['root']", "roles that are not among", id="unknown-role"),
        pytest.param(f"[[user]]\nname = 'a'\npassword = '{HASH}'\n" * 2, "'a' twice", id="twice"),
        pytest.param("[[token]]\nname = 'a'", "either a file or a hash", id="token-of-nothing"),
        pytest.param("[[token]]\nname = 'a'\nfile = '/nonexistent/token'", "/nonexistent/token cannot be read", id="no-token-file"),
    ],
)
def test_a_bad_auth_file_is_refused_without_telling_it(source, tmp_path, text, told):
    """What is wrong is told by entry, before anything is served; no secret is repeated."""
    path = tmp_path / "auth.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        MetricsServer(source, options=Options(auth_file=str(path)))
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)
    path.chmod(0o604)
    with pytest.raises(InputError, match="can be read by everybody"):
        MetricsServer(source, options=Options(auth_file=str(path)))


# health


def test_health_flips_with_its_causes_and_names_them(serve, source):
    """/readyz asks each check: what is broken flips it at once with the reason, and what is well again flips it back."""
    state = {"ok": True}
    exporter = lambda: Finding("exporter kafka", state["ok"], "breaker open", {"breaker": "open", "queue": 7, "last_success": None})
    server = serve(checks=(exporter,))
    status, headers, body = ask(server, "/readyz")
    told = json.loads(body)
    assert (status, headers["content-type"], told["status"]) == (200, "application/json", "ok")
    assert [one["name"] for one in told["checks"]] == ["page", "windows", "exporter kafka"]
    assert told["checks"][2]["detail"] == {"breaker": "open", "queue": 7, "last_success": None}
    state["ok"] = False
    status, headers, body = ask(server, "/readyz")
    assert (status, headers["retry-after"], json.loads(body)["checks"][2]["reason"]) == (503, "1", "breaker open")
    assert ask(server, "/healthz")[0] == 200
    state["ok"], source.is_ready = True, False
    assert json.loads(ask(server, "/readyz")[2])["checks"][1] == {"name": "windows", "ok": False, "reason": "windows are not taken yet"}
    source.is_ready = True
    assert ask(server, "/readyz")[0] == 200


def test_each_exporter_has_a_health_of_its_own(serve):
    """One that is broken flips its own /healthz and /readyz, one that is full its /readyz alone; the endpoint's /healthz follows neither.

    The endpoint's own liveness stays apart on purpose: who restarts what is not alive would end a run because a destination is down.
    """
    detail = {"breaker": "open", "queued_rows": 7, "last_success_s_ago": None}
    state = {"well": True, "ready": True}

    def checks():
        return Finding("exporter a", state["well"], "breaker open", detail), Finding(
            "exporter a", state["ready"], "its queue is full", detail
        )

    server = serve(exporters={"a": checks, "b": lambda: (Finding("exporter b", ok=True), Finding("exporter b", ok=True))})

    def statuses():
        paths = ("/exporters/a/healthz", "/exporters/a/readyz", "/exporters/b/healthz", "/exporters/b/readyz", "/healthz")
        return [ask(server, path)[0] for path in paths]

    assert statuses() == [200, 200, 200, 200, 200]
    state["ready"] = False
    assert statuses() == [200, 503, 200, 200, 200]
    assert json.loads(ask(server, "/exporters/a/readyz")[2])["checks"] == [
        {"name": "exporter a", "ok": False, "reason": "its queue is full", "detail": detail}
    ]
    state["well"] = False
    assert statuses() == [503, 503, 200, 200, 200]
    for path in ("/exporters/c/healthz", "/exporters/a", "/exporters/a/metrics", "/exporters/", "/exporters/healthz"):
        assert ask(server, path)[0] == 404, path


def test_a_page_that_cannot_be_made_is_ill_health(source):
    """/healthz says how the last page went and waits for none; /readyz makes one, and a check that fails is a finding."""
    clock = VirtualClock()
    server = MetricsServer(source, clock=clock, options=Options(checks=(lambda: 1 / 0,)))
    try:
        assert ask(server, "/healthz")[0] == 200
        source.broken = True
        clock.advance(0.6)
        assert ask(server)[0] == 500
        status, _, body = ask(server, "/healthz")
        assert (status, json.loads(body)["checks"][0]["reason"]) == (503, "cannot render metrics: no samples")
        source.broken = False
        status, _, body = ask(server, "/readyz")
        assert ask(server, "/healthz")[0] == 200
        assert (status, json.loads(body)["checks"][2]["reason"]) == (503, "the check itself failed: division by zero")
    finally:
        server.close()


def test_a_busy_run_is_alive(serve, source):
    """While samples cannot be had for a lock, /healthz answers at once."""
    source.gate = threading.Event()
    server = serve()
    scraper = threading.Thread(target=ask, args=(server,))
    scraper.start()
    assert source.entered.acquire(timeout=30)
    assert ask(server, "/healthz")[0] == 200
    source.gate.set()
    scraper.join()


def test_a_thread_that_cannot_be_had_costs_one_connection(serve, monkeypatch):
    """Where threads are exhausted a client is sent away; the next one is answered, and the server can be closed."""
    server = serve()
    start, refused = threading.Thread.start, []

    def refuse_once(thread):
        if thread.name == "prometheus-request" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "/healthz")
    assert len(refused) == 1
    assert ask(server, "/healthz")[0] == 200


def test_a_name_of_both_kinds_means_ipv4(source, monkeypatch):
    """Whatever the resolver names first: who scrapes 127.0.0.1 finds it."""
    both = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    server = MetricsServer(source, host="localhost")
    monkeypatch.undo()
    try:
        assert ask(server, "/healthz")[0] == 200
    finally:
        server.close()


def test_options_come_from_the_manifest():
    """What settings said reaches the aggregator in the run's manifest; a manifest without settings gives the defaults."""
    settings = {"prometheus.tls_cert": "/c", "prometheus.buckets": "probe.response=1,2", "prometheus.max_series": 5, "lease_s": 5.0}
    found = Options.of_manifest({"settings": {path: {"value": value, "origin": "x"} for path, value in settings.items()}})
    assert (found.tls_cert, found.max_series, found.buckets.bounds("probe.response", "seconds")) == ("/c", 5, (1.0, 2.0))
    assert Options.of_manifest({}) == Options()
