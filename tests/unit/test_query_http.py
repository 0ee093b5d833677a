"""/api/v1/query over real sockets: answers, errors, credentials, the cache, and that what is asked while windows come is right."""

from __future__ import annotations

import base64
import http.client
import json
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from actors.errors import HarnessError
from cluster import cli
from cluster.exporters.access import Hash
from cluster.exporters.prometheus import MetricsServer, Options
from cluster.exporters.query_api import WORDS_MAX
from cluster.files import write_json_atomic
from cluster.metrics import answers
from cluster.metrics.aggregator import Aggregator
from tests.support.asked import MANIFEST, RUN, SECONDS, make_run, rows
from tests.support.windows import START_S, record

PATH = "/api/v1/query"


@pytest.fixture
def core(tmp_path: Path) -> Aggregator:
    """Make a run that goes on."""
    made = make_run(tmp_path / "runs" / RUN, finish=False)
    write_json_atomic(made.directory / "manifest.json", {**MANIFEST, "status": "running"})
    yield made
    made.close()


@pytest.fixture
def serve(core: Aggregator):
    """Give a function that serves the run; all servers are closed at the end."""
    servers = []

    def start(**options) -> MetricsServer:
        servers.append(MetricsServer(core, options=Options(**options), ask=core.answers.ask))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server, words, method="GET", **headers):
    """Return (status, headers, body) for words, or for a query string as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, f"{PATH}?{words if isinstance(words, str) else urlencode(words, doseq=True)}", headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def document(server, **words):
    status, headers, body = ask(server, words)
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
    return json.loads(body)


QUESTIONS = [
    pytest.param(
        {"metric": "probe.response", "stat": ["p99", "count"], "by": ["node", "probe"], "every": "5s", "since": "10s"}, id="figures"
    ),
    pytest.param({"metric": "probe.*", "label": "probe=front", "node": "n*"}, id="a-glob"),
    pytest.param({"metric": "probe.requests", "accumulator": "top", "of": "probe"}, id="an-accumulator"),
    pytest.param({"metric": "host.cpu.busy", "with": "probe.response", "lag": "5s", "by": "node"}, id="a-correlation"),
    pytest.param({"metric": "halt.latency"}, id="an-empty-answer"),
]


@pytest.mark.parametrize("words", QUESTIONS)
def test_the_answer_is_that_of_the_command(words, core, serve, tmp_path, monkeypatch, capsys):
    """The same words give the same document, but for the status, which the command judges by the heartbeat."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    options = [
        part
        for word, texts in words.items()
        if word != "metric"
        for one in ([texts] if isinstance(texts, str) else texts)
        for part in (f"--{word}", one)
    ]
    assert cli.main(["query", RUN, words["metric"], *options, "--json"]) == 0
    want = json.loads(capsys.readouterr().out)
    assert {**document(serve(), **words), "status": ""} == {**want, "status": ""}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param({"metric": "probe.respons"}, "unknown_name", "unknown metric", id="metric"),
        pytest.param({"metric": "probe.response", "label": "prob=x"}, "unknown_key", "no label 'prob'", id="label"),
        pytest.param({"metric": "probe.response", "stats": "p99"}, "unknown_key", "no 'stats'", id="word"),
        pytest.param({}, "invalid_value", "needs a metric", id="nothing"),
        pytest.param({"metric": "host.cpu.busy", "with": "halt.latency"}, "invalid_value", "0 steps have both", id="too-few-windows"),
        pytest.param({"metric": "probe.response", "accumulator": "nobody"}, "unknown_name", "unknown accumulator", id="accumulator"),
        pytest.param("metric=probe.response&stat", "invalid_value", "cannot be read", id="no-value"),
        pytest.param("metric=%ff", "invalid_value", "cannot be read", id="no-text"),
        pytest.param("&".join(["stat=p99"] * (WORDS_MAX + 1)), "invalid_value", "cannot be read", id="too-many"),
    ],
)
def test_a_wrong_question_gets_400_and_the_error_document(words, code, message, serve):
    """As the command prints it with --json."""
    status, headers, body = ask(serve(), words)
    error = json.loads(body)["error"]
    assert (status, headers["content-type"], error["code"]) == (400, "application/json", code)
    assert message in error["message"]
    assert set(error) == {"code", "message", "hint"}


def test_texts_are_decoded(serve):
    """Percent signs and plus signs are what they are in a query string."""
    told = json.loads(ask(serve(), f"metric=probe.requests&label={quote('probe=front')}&stat=sum&worker=pro%62er")[2])
    assert [row["figures"]["sum"]["value"] for row in told["rows"]] == [2.0 * 2 * SECONDS]


def test_a_question_of_two_nodes_with_pattern_label_and_window_is_exact(serve):
    """Name pattern, tag and time together: count and sum are those of what was recorded, and other tags are left out."""
    told = document(
        serve(), metric="probe.req*", label="probe=back", stat=["count", "sum"], since="2023-11-14T22:13:25Z", until="2023-11-14T22:13:35Z"
    )
    (row,) = told["rows"]
    assert (row["windows"], row["figures"]["count"]["value"], row["figures"]["sum"]["value"]) == (20, 40.0, 160.0)


def test_answers_come_from_the_cache_until_there_is_news(core, serve):
    """A repeat is a hit, reads no file and computes no quantile; a new window is in the next answer; no quantile is computed before."""
    server = serve()
    assert core.answers.quantile_computations == 0
    words = {"metric": "probe.response", "stat": ["p99", "count"]}
    first = document(server, **words)
    assert core.answers.quantile_computations == 1
    hits, misses = core.answers.counts().hits, core.answers.counts().misses
    assert document(server, **words) == first
    assert document(server, **words, since="") == first
    assert (core.answers.counts().misses, core.answers.quantile_computations) == (misses, 1)
    assert core.answers.counts().hits == hits + 2
    core.push("n1", "a", [record("n1", SECONDS + 1, rows=rows("n1", SECONDS + 1))])
    assert document(server, **words)["rows"][0]["figures"]["count"]["value"] == first["rows"][0]["figures"]["count"]["value"] + 4
    assert core.answers.quantile_computations == 2


def test_the_time_that_windows_cover_is_followed(core, serve, monkeypatch):
    """It is read once; then rates go by what has come since, and by the files again after a push that failed or a rolling up."""
    server = serve()
    words = {"metric": "probe.requests", "stat": ["rate", "sum"], "label": "probe=front", "node": "n1"}

    def rate_and_span():
        figures = document(server, **words)["rows"][0]["figures"]
        return figures["rate"]["value"], round(figures["sum"]["value"] / figures["rate"]["value"], 6)

    read = []
    real = answers.read_metrics
    monkeypatch.setattr(answers, "read_metrics", lambda folder, columns, wanted: (read.append(columns), real(folder, columns, wanted))[1])
    assert rate_and_span() == (2.0, SECONDS)
    core.push("n1", "a", [record("n1", SECONDS + 1, rows=rows("n1", SECONDS + 1))])
    core.push("n1", "a", [record("n1", SECONDS + 2, rows=rows("n1", SECONDS + 2), start_s=START_S + SECONDS + 41)])
    assert rate_and_span()[1] == SECONDS + 41
    assert read.count(["time", "window_s"]) == 1
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HarnessError, match="No space"):
            core.push("n1", "a", [record("n1", SECONDS + 3, rows=rows("n1", SECONDS + 3))])
    assert rate_and_span()[1] == SECONDS + 41
    assert read.count(["time", "window_s"]) == 2


def basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_credentials_are_those_of_metrics(serve, tmp_path):
    """Whoever may read /metrics may ask, and nobody else: 401 without credentials, 403 without the role, before anything is read."""
    path = tmp_path / "auth.toml"
    entries = [("ann", ["metrics"]), ("bob", ["health"])]
    path.write_text(
        "".join(f'[[user]]\nname = "{name}"\npassword = "{Hash.of(name).text()}"\nroles = {roles}\n' for name, roles in entries)
    )
    path.chmod(0o600)
    server = serve(auth_file=str(path))
    words = {"metric": "probe.response"}
    assert [ask(server, words, **headers)[0] for headers in ({}, basic("ann", "no"), basic("bob", "bob"), basic("ann", "ann"))] == [
        401,
        401,
        403,
        200,
    ]
    assert ask(server, {"metric": "nothing"})[0] == 401


def test_only_get_and_head(serve):
    """A head has the length of the answer and no body; other methods are not allowed."""
    words = {"metric": "probe.response"}
    body = ask(serve(), words)[2]
    status, headers, nothing = ask(serve(), words, method="HEAD")
    assert (status, headers["content-length"], nothing) == (200, str(len(body)), b"")
    assert ask(serve(), words, method="POST")[0] == 405


def test_an_endpoint_that_cannot_be_asked_says_where_else_to_look(core):
    """Without answers there is no such path; what cannot be answered now is 503 with the error document."""
    for given, want in ((None, 404), (busy, 503)):
        server = MetricsServer(core, ask=given)
        try:
            status, headers, body = ask(server, {"metric": "probe.response"})
        finally:
            server.close()
        assert status == want
    assert (json.loads(body)["error"]["code"], headers["retry-after"]) == ("busy", "1")


def busy(words):
    raise HarnessError("busy", "the files changed while they were read", "try again")
