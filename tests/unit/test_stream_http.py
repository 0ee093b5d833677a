"""/api/v1/stream over real sockets: each client gets every window it chose, or an exact count of its own drops, and delays nobody."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest

from actors.errors import HarnessError, InputError, RefusedError
from actors.metrics.registry import Kind
from cluster.analysis import follow
from cluster.exporters.access import Hash
from cluster.exporters.context import Context
from cluster.exporters.prometheus import MetricsServer, Options
from cluster.exporters.stream_api import Lines
from cluster.exporters.text import TextForm
from cluster.files import write_json_atomic
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.asking import About
from cluster.metrics.store import read_run
from cluster.metrics.subscription import Counts
from cluster.metrics.window_feed import WindowFeed
from cluster.metrics.windows import Row
from tests.support.asked import MANIFEST, RUN, SECONDS, make_run, rows
from tests.support.waiting import until
from tests.support.windows import record

PATH = "/api/v1/stream"
ABOUT = About(RUN, "burst", "running")


@pytest.fixture
def feed() -> WindowFeed:
    return WindowFeed()


@pytest.fixture
def core(tmp_path: Path, feed: WindowFeed) -> Iterator[Aggregator]:
    """Make a run that goes on."""
    made = make_run(tmp_path / "runs" / RUN, finish=False)
    made.watch(feed.take)
    yield made
    made.close()


@pytest.fixture
def serve(core: Aggregator, feed: WindowFeed):
    """Give a function that serves the run; all servers are closed at the end."""
    servers = []

    def start(**options) -> MetricsServer:
        servers.append(MetricsServer(core, options=Options(**options), follow=lambda words: (feed.subscribe(words), ABOUT)))
        return servers[-1]

    yield start
    feed.close()
    for server in servers:
        server.close()


class Client:
    """One client that reads lines when it is told to. It has subscribed once it is made."""

    def __init__(self, server: MetricsServer, method: str = "GET", words=(), **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.connection.request(method, f"{PATH}?{urlencode(words)}", headers=headers)
        self.answer = self.connection.getresponse()
        self.status = self.answer.status
        self.first = self.answer.readline()

    def rest(self) -> tuple[list[dict], dict]:
        """Return all windows to the end, and the last counts."""
        lines = [json.loads(line) for line in self.answer.read().splitlines()]
        assert lines[-1]["stream"]["ended"]
        return [line for line in lines if "stream" not in line], lines[-1]["stream"]

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def second(core: Aggregator, number: int) -> int:
    """Push one more second of both nodes; return how many windows that is."""
    made = {node: rows(node, number) for node in ("n1", "n2")}
    for node, found in made.items():
        core.push(node, "a", [record(node, number, rows=found)])
    return sum(map(len, made.values()))


def test_three_clients_each_get_all_or_know_what_they_missed(core, serve, feed):
    """All windows in the form of an export, the chosen ones, and the last of each push for one that holds three: counts are exact."""
    server = serve()
    clients = [
        Client(server),
        Client(server, words=[("metric", "probe.*"), ("label", "probe=front"), ("node", "n2")]),
        Client(server, words=[("bound", "3"), ("node", "n1")]),
    ]
    assert [one.answer.getheader("content-type") for one in clients] == ["application/x-ndjson"] * 3
    assert json.loads(clients[0].first)["stream"]["offered"] == 0
    offered = sum(second(core, SECONDS + at) for at in (1, 2))
    feed.close()
    (every, counts), (front, chosen), (few, small) = (one.rest() for one in clients)
    context = Context(RUN, "burst")
    stored = [row for batch in read_run(core.directory).metrics.to_batches() for row in TextForm().rows(context.on(batch))]
    assert every == stored[-offered:]
    assert len(every) == counts["offered"] == counts["delivered"] == offered
    assert [(row["metric"], row["node"], row["labels"]) for row in front] == [
        ("probe.response", "n2", {"probe": "front"}),
        ("probe.requests", "n2", {"probe": "front"}),
    ] * 2
    assert (chosen["offered"], chosen["dropped"]) == (4, 0)
    mine = offered - sum(len(rows("n2", SECONDS + at)) for at in (1, 2))
    assert small["offered"] == mine
    assert small["delivered"] == len(few) == mine - small["dropped"]
    assert small["dropped"] >= mine - 6
    assert {(row["run"], row["scenario"], bool(row["node"])) for row in (*every, *front, *few)} == {(RUN, "burst", True)}


def test_a_stalled_client_holds_its_bound_and_delays_nobody(core, serve, feed):
    """It reads nothing while more comes than sockets hold: its queue stays within its bound, another has all, and leaving frees it."""
    server = serve()
    stalled, quick = Client(server, words=[("bound", "500")]), Client(server, words=[("metric", "probe.requests")])
    wide = [Row("host.cpu.busy", Kind.GAUGE, "ratio", f"w{at:0400}", "p", (), 1, 0.5, 0.5, 0.5, 0.5) for at in range(2000)]
    one = Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", "x"),), 1, 1.0, last=0.0)
    slow = feed._feed._subscriptions[0]
    for number in range(1, 21):
        core.push("n3", "c", [record("n3", number, rows=[*wide, one])])
        assert json.loads(quick.answer.readline())["sum"] == 1.0
        assert slow.counts().waiting <= 500
    counts = slow.counts()
    assert counts.offered == 20 * 2001
    assert counts.dropped >= 19 * 1501
    assert counts.delivered + counts.dropped + counts.waiting == counts.offered
    stalled.close()
    until(lambda: feed.subscribers == 1, 20)
    assert slow.counts() == Counts(counts.offered, counts.delivered, counts.dropped + counts.waiting, 0)
    quick.close()


def test_streams_leave_room_for_scrapes(serve, feed):
    """As many streams as scrapes may be open; one more is told when to come again, and a scrape is answered beside them."""
    server = serve(max_scrapes=1)
    first = Client(server)
    assert (first.status, Client(server).status) == (200, 503)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 200
    connection.close()
    assert feed.subscribers == 1
    first.close()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([("metric", "probe.respons")], "unknown_name"),
        ([("label", "prob=x"), ("metric", "probe.response")], "unknown_key"),
        ([("stat", "p99")], "unknown_key"),
        ([("bound", "0")], "invalid_value"),
        ([("bound", "many")], "invalid_value"),
        ([("bound", "1"), ("bound", "2")], "invalid_value"),
        ([("overflow", "block")], "unknown_name"),
    ],
)
def test_wrong_words_are_refused(words, code, serve, feed):
    """With 400 and the command's error document; nobody is subscribed."""
    client = Client(serve(), words=words)
    assert (client.status, json.loads(client.first)["error"]["code"], feed.subscribers) == (400, code, 0)


def test_nothing_is_left_of_a_head_and_nothing_comes_after_the_end(serve, feed):
    """A head subscribes nobody; a run that has ended answers 410; credentials are asked for before anything else."""
    server = serve()
    head = Client(server, method="HEAD")
    assert (head.status, head.first) == (200, b"")
    until(lambda: feed.subscribers == 0, 20)
    feed.close()
    gone = Client(server)
    assert (gone.status, json.loads(gone.first)["error"]["code"]) == (410, "expired")


def test_credentials_are_those_of_metrics(serve, feed, tmp_path):
    """Whoever may read /metrics may listen, and nobody else."""
    path = tmp_path / "auth.toml"
    path.write_text(f'[[user]]\nname = "ann"\npassword = "{Hash.of("ann").text()}"\nroles = ["metrics"]\n')
    path.chmod(0o600)
    server = serve(auth_file=str(path))
    right = {"Authorization": "Basic " + base64.b64encode(b"ann:ann").decode()}
    known = Client(server, **right)
    assert (Client(server).status, known.status, feed.subscribers) == (401, 200, 1)
    with pytest.raises(RefusedError, match="credentials"):
        follow(f"http://127.0.0.1:{server.port}")
    with follow(f"http://127.0.0.1:{server.port}", headers=right):
        assert feed.subscribers == 2
    known.close()


def test_silence_is_told(feed):
    """While nothing comes the client is told its counts, so that both sides see that the other lives."""
    lines = Lines(feed.subscribe({}), ABOUT, beat_s=0.0)
    said = iter(lines)
    assert [json.loads(next(said))["stream"]["ended"] for _ in range(3)] == [False] * 3
    feed.close()
    assert [json.loads(line)["stream"]["ended"] for line in said] == [True]
    lines.close()


# from Python


def test_a_notebook_follows_a_run(core, serve, feed):
    """By its directory, one metric of one node: each window as it comes, then the end and its counts; `async for` does the same."""
    server = serve()
    write_json_atomic(core.directory / "manifest.json", {**MANIFEST, "prometheus": {"host": "0.0.0.0", "port": server.port}})
    with follow(core.directory, "probe.requests", node="n1", label="probe=back") as windows:
        for number in (1, 2):
            second(core, SECONDS + number)
            window = next(windows)
            assert (window["run"], window["node"], window["sum"]) == (RUN, "n1", 8.0)
        other = follow(f"http://127.0.0.1:{server.port}/", "host.*", bound="10")
        second(core, SECONDS + 3)
        feed.close()
        assert len(list(windows)) == 1
        assert windows.counts == Counts(3, 3, 0, 0)

    async def read() -> list[str]:
        return [window["metric"] async for window in other]

    assert asyncio.run(read()) == ["host.cpu.busy"] * 2
    assert other.counts.offered == 2
    other.close()
    with pytest.raises(RefusedError, match="has ended"):
        follow(core.directory)


def test_what_cannot_be_followed_is_said(core, serve, feed, tmp_path):
    """A run without an endpoint, words that are none, an endpoint that is gone, and a stream that breaks off."""
    server = serve()
    url = f"http://127.0.0.1:{server.port}"
    with pytest.raises(InputError, match="no endpoint"):
        follow(core.directory)
    with pytest.raises(InputError, match="unknown metric"):
        follow(url, "probe.nothing")
    windows = follow(url)
    until(lambda: feed.subscribers == 1, 20)
    for connection in list(server._server._open.values()):
        with suppress(OSError):  # of a request that is answered
            connection.socket.shutdown(2)
    with pytest.raises(HarnessError, match="broke off"):
        next(windows)
    windows.close()
    feed.close()
    server.close()
    with pytest.raises(HarnessError, match="does not answer"):
        follow(url)
