"""`halt` and `resume` work exactly when they are needed: this machine's guardian first, and whatever becomes of the cluster is told."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from actors.errors import HarnessError
from cluster import client, halting
from cluster.client import Connection
from cluster.halting import ClusterOrder
from cluster.settings import Settings

DONE = {"generation": 9, "on": True, "nodes": ["n1"], "unreached": [], "runs": [{"run": "r"}]}


class Guardian:
    """A guardian that keeps generation 4, and writes down in `story` what it is told."""

    def __init__(self, story, fails=False):
        self.story, self.fails, self.hello = story, fails, {"halt": {"generation": 4, "on": False}}

    def __enter__(self):
        if self.fails:
            raise HarnessError("timeout", "no guardian answers")
        return self

    def __exit__(self, *_):
        pass

    def call(self, word, **fields):
        self.story.append((word, fields))
        return {"halt": {"generation": 5, "on": word == "halt"}, "killed": ["k"], "decided_ns": 1_000_000, "last_gone_ns": 3_000_000}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Return a function that halts or resumes at an address; gives (the answer, what happened in its order, the notes)."""

    def tell(address, on=True, cluster=DONE, fails=False, **options):
        story, notes = [], []

        class Order:
            def __init__(self, address, settings, **fields):
                story.append(("cluster", fields))

            def answer(self):
                story.append(("answered", len(notes)))
                return cluster

        monkeypatch.setattr(client, "ClusterOrder", Order)
        link = Connection(Settings(state_dir=str(tmp_path)), address, **options)
        link._guardian = lambda: Guardian(story, fails)
        found = (link.halt if on else link.resume)(notes.append)
        return found, story, notes

    return tell


@pytest.mark.parametrize("on", [True, False])
def test_this_machine_is_told_without_a_generation_and_the_cluster_a_higher_one(told, on):
    """The local result stands and is told before the cluster is waited for."""
    found, story, notes = told("1.2.3.4:6379", on=on)
    assert ("halt" if on else "resume", {}) in story
    assert ("cluster", {"on": on, "above": 5, "ship": False}) in story
    assert story[-1] == ("answered", 1)
    assert "this machine" in notes[0]
    assert (found["generation"], found["nodes"], found["killed"], found["halt_latency_ms"]) == (9, ["n1"], ["k"], 2.0)


def test_without_a_cluster_only_this_machine_is_told(told):
    """No address, no question to Ray, nothing unreached."""
    found, story, _ = told("")
    assert [word for word, _ in story] == ["halt"]
    assert (found["generation"], found["unreached"]) == (5, [])


def test_a_cluster_that_does_not_answer_leaves_the_local_halt_standing(told):
    """The answer names both."""
    found, _, _ = told("1.2.3.4:6379", cluster={"nodes": [], "unreached": ["the cluster at 1.2.3.4:6379: nothing listens there"]})
    assert (found["on"], found["generation"], found["killed"]) == (True, 5, ["k"])
    assert found["unreached"] == ["the cluster at 1.2.3.4:6379: nothing listens there"]


@pytest.mark.parametrize("is_alive", [True, False])
def test_an_embedded_ray_that_went_with_its_halted_run_is_not_missed(told, monkeypatch, is_alive):
    """All its nodes are this machine; one that is still there and does not answer is named."""
    monkeypatch.setattr(client, "find_embedded", lambda _: [{"address": "127.0.0.2:1"}] if is_alive else [])
    silent = {"nodes": [], "unreached": ["the cluster at 127.0.0.2:1: nothing listens there"]}
    found, _, _ = told("127.0.0.2:1", cluster=silent, is_embedded=True)
    assert found["unreached"] == (silent["unreached"] if is_alive else [])
    assert found["on"] is True


def test_a_dead_guardian_here_does_not_keep_the_halt_from_the_cluster(told):
    """It is named among what was not reached; without any cluster it is an error."""
    found, _, _ = told("1.2.3.4:6379", fails=True)
    assert found["nodes"] == ["n1"]
    assert found["unreached"] == ["this machine: no guardian answers"]
    with pytest.raises(HarnessError):
        told("", fails=True)


def child(monkeypatch, script):
    """Have this script in place of the process that talks to Ray."""
    real = subprocess.Popen
    monkeypatch.setattr(halting.subprocess, "Popen", lambda _, **options: real([sys.executable, "-c", script], **options))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param("import time; time.sleep(60)", "no answer within", id="it-hangs"),
        pytest.param("import os; os._exit(1)", "ended the process", id="ray-ends-it"),
        pytest.param('print(\'{"error": "no Ray cluster answers"}\')', "no Ray cluster answers", id="it-refuses"),
    ],
)
def test_whatever_ray_does_to_the_child_is_an_answer_in_time(monkeypatch, script, words):
    """A cluster that hangs, or that takes its caller along, is one that was not reached."""
    child(monkeypatch, script)
    found = ClusterOrder("auto", Settings(), on=True, above=1, ship=False).answer(0.5 if "sleep" in script else 30)
    assert found["nodes"] == []
    assert found["unreached"][0].startswith("the cluster at auto: ")
    assert words in found["unreached"][0]


def test_a_cluster_that_ends_while_it_is_asked_is_not_waited_for(monkeypatch):
    """A halt that ends an embedded Ray takes along what would have answered."""
    child(monkeypatch, "import time; time.sleep(60)")
    answers = iter([True, False])
    monkeypatch.setattr(halting, "is_answered", lambda _: next(answers))
    found = ClusterOrder("127.0.0.1:1", Settings(), on=True, above=1, ship=False).answer(60)
    assert "nothing listens there any more" in found["unreached"][0]


def test_the_child_is_asked_at_once_and_its_last_line_is_the_answer(monkeypatch):
    """What Ray prints before it is no part of it."""
    child(monkeypatch, "import sys, json; asked = json.loads(sys.stdin.readline()); print('noise'); print(json.dumps({'asked': asked}))")
    asked = ClusterOrder("auto", Settings(lease_s=3.0), on=False, above=7, ship=True).answer(30)["asked"]
    assert (asked["address"], asked["on"], asked["above"], asked["ship"]) == ("auto", False, 7, True)
    assert asked["settings"]["lease_s"] == 3.0


def test_a_dead_head_is_known_without_ray(monkeypatch):
    """Ray takes two minutes to give up on a port where nothing listens; here it is not even asked."""
    monkeypatch.setattr(halting.subprocess, "Popen", None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        assert halting.is_answered(f"127.0.0.1:{port}")
    assert "nothing listens" in ClusterOrder(f"127.0.0.1:{port}", Settings(), on=True, above=1, ship=False).answer()["unreached"][0]
    assert all(halting.is_answered(address) for address in ("auto", "local", "ray://head:10001"))


class Orchestrator:
    """An orchestrator with one run that is gone, with its Ray, as soon as it was told to stop it."""

    def __init__(self, at_stop):
        self.at_stop, self.is_gone = at_stop, False

    def call(self, word, *arguments, **_):
        if self.is_gone:
            raise HarnessError("lost", "the actor died")
        if word == "stop":
            self.is_gone = True
            self.at_stop()
        return {"status": {"runs": {"r-1": {}}}, "stop": True}[word]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Return a function that stops a run whose orchestrator goes away at once, having left this manifest; gives the answer."""
    monkeypatch.setattr(client, "LOST_S", 0.3)

    def stop(manifest):
        folder = tmp_path / "runs" / "r-1"
        folder.mkdir(parents=True)
        link = Connection(Settings(state_dir=str(tmp_path)), "1.2.3.4:6379")
        link.__dict__["_orchestrator"] = Orchestrator(lambda: (folder / "manifest.json").write_text(json.dumps(manifest)))
        return link.stop("latest")

    return stop


def test_a_run_that_took_its_ray_along_when_it_was_stopped_is_told_from_state(stopped):
    """The driver of an embedded Ray ends it as soon as the run has ended: `stop` is not too late to say how."""
    told = stopped({"run": "r-1", "status": "cancelled", "exit_code": 130})
    assert told["runs"] == [{"run": "r-1", "status": "cancelled", "exit_code": 130}]


def test_a_run_whose_end_nobody_wrote_down_is_lost(stopped):
    """It says running, and its orchestrator is gone: `stop` waits a while, and then says what it does not know."""
    with pytest.raises(HarnessError, match="not how it ended: the actor died") as raised:
        stopped({"run": "r-1", "status": "running", "heartbeat": "2100-01-01T00:00:00Z"})
    assert raised.value.code == "lost"
