"""Every exit code of the contract, from runs that earn it: on the standing raylets where no Ray of its own is needed."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from support import documents, waiting
from support.embedded import FinishedRun
from support.terminal import Ended, Terminal, terminal

from actors.errors import CODES

HELD = {"threshold": {"name": "held", "metric": "host.cpu.busy", "stat": "max", "op": "<=", "value": "100%"}}
BROKEN = {"threshold": {"name": "broken", "metric": "host.cpu.busy", "stat": "max", "op": "<", "value": "0%"}}
PROBED = {"actor_probe": {"name": "probed", "value": "1s", "timeout": "20s", "rate_hz": 10}}


def verdict(ended: Ended) -> tuple[int, str, str]:
    """Return exit code, status, and the status in the run directory's manifest."""
    document = ended.document
    folder = document["run_dir"]
    manifest = json.loads((Path(folder) / "manifest.json").read_text()) if folder else {"status": None, "exit_code": None}
    assert manifest["exit_code"] in (None, ended.code)
    return ended.code, document["status"], manifest["status"]


def held_of(ended: Ended) -> dict[str, bool | None]:
    return {one["name"]: one["held"] for one in ended.document["hypotheses"]}


def run(here: Terminal, *arguments: str) -> Ended:
    return here.run("run", *arguments, "--yes", "--json", within_s=90)


def test_a_broken_threshold_is_a_failure(standing: Terminal) -> None:
    """A threshold on a catalogue metric that does not hold gives 1, beside one that holds."""
    made = documents.document("threshold", 4, cpu="5%", disk=None, hypotheses=(HELD, BROKEN))
    ended = run(standing, documents.write(standing.folder, made))
    assert verdict(ended) == (1, "failed", "failed"), str(ended)
    assert held_of(ended) == {"held": True, "broken": False}


def test_a_probe_of_a_stopped_actor_is_a_failure(standing: Terminal) -> None:
    """SIGSTOP of one probed actor for 2.5 s is seen by the open-loop probe, counted from the intended starts, and gives 1."""
    made = documents.document("probe", 15, cpu="5%", memory=None, disk=None, hypotheses=(HELD, PROBED))
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json", "--prometheus-port", "0")
    command.await_text("running", 60)
    waiting.until(lambda: calls_made(standing) > 30, 30, "calls of all three probed actors")
    victim = standing.belonging("target")[0]
    victim.signal(signal.SIGSTOP)
    try:
        time.sleep(2.5)
    finally:
        victim.signal(signal.SIGCONT)
    ended = command.wait(60)
    assert verdict(ended) == (1, "failed", "failed"), str(ended)
    assert held_of(ended) == {"held": True, "probed": False}
    observed = next(one["observed"] for one in ended.document["hypotheses"] if one["name"] == "probed")
    assert 1.0 < observed < 10.0


def calls_made(here: Terminal) -> float:
    """Return how many calls the probe has made so far, by the run's own endpoint."""
    endpoint = json.loads((here.run_dir() / "manifest.json").read_text())["prometheus"]
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint['port']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("stress_cluster_probe_requests_total"))


def test_a_missed_dose_is_inconclusive(standing: Terminal) -> None:
    """A disk fill whose reserve leaves it no room reaches no dose: 5, and the entry says so."""
    made = documents.document("dose", 5, cpu="5%", memory=None, reserve="100TiB")
    ended = run(standing, documents.write(standing.folder, made))
    assert verdict(ended) == (5, "inconclusive", "inconclusive"), str(ended)
    missed = {one["node"]: one["achieved"] for one in ended.document["dose"] if one["reached"] is False and "DiskFill" in one["operation"]}
    assert missed == {"n1": 0.0, "n2": 0.0, "n3": 0.0}, str(ended)


def ten_tebibytes() -> dict:
    return documents.document("huge", 5, memory="10TiB")


def no_such_label() -> dict:
    return documents.document("label", 5, targets={"labels": {"zone": "nowhere"}})


@pytest.mark.parametrize(("made", "code", "words"), [(ten_tebibytes(), "budget", "memory"), (no_such_label(), "no_target", "zone")])
def test_what_this_cluster_forbids_is_refused(standing: Terminal, made: dict, code: str, words: str) -> None:
    """10 TiB of memory and a label that no node has give 6 with the reason, and no load starts."""
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    while command.process.poll() is None:
        assert not standing.loads()
    ended = command.wait(5)
    assert verdict(ended) == (6, "refused", None), str(ended)
    error = ended.document["error"]
    assert error["code"] == code
    assert words in error["message"] + error["hint"]
    assert error["hint"]
    assert not list(standing.out.iterdir())


def test_a_halt_in_force_refuses_and_resume_lifts_it(standing: Terminal, finished: FinishedRun) -> None:
    """With a halt in force a run is refused (6); after `resume` the replay of an earlier run passes with the byte-equal plan."""
    assert standing.run("halt", "--json").code == 0
    try:
        ended = run(standing, finished.scenario)
        assert verdict(ended) == (6, "refused", None), str(ended)
        assert ended.document["error"]["code"] == "halted"
        assert "resume" in ended.document["error"]["hint"]
    finally:
        assert standing.run("resume", "--json").code == 0
    ended = run(standing, f"replay:{finished.folder}")
    assert ended.code in (0, 5), ended  # the dose is judged elsewhere
    assert ended.document["drift"] == []
    folder = standing.run_dir()
    assert (folder / "plan.json").read_bytes() == (finished.folder / "plan.json").read_bytes()
    assert json.loads((folder / "manifest.json").read_text())["replay_of"] == finished.folder.name


def test_same_scenario_seed_and_nodes_give_the_byte_equal_plan(standing: Terminal, finished: FinishedRun) -> None:
    """On another cluster with nodes of the same names the stored plan is byte-equal; with another seed it is not."""
    command = standing.start("run", finished.scenario, "--yes", "--json")
    waiting.until(lambda: list(standing.out.glob("*/plan.json")), 60, "a stored plan")
    assert (standing.run_dir() / "plan.json").read_bytes() == (finished.folder / "plan.json").read_bytes()
    command.send(signal.SIGTERM)
    assert command.wait(30).code == 130
    other = standing.start("run", finished.scenario, "--seed", "4", "--yes", "--json")
    waiting.until(lambda: len(list(standing.out.glob("*/plan.json"))) == 2, 60, "another plan")
    assert (standing.run_dir() / "plan.json").read_bytes() != (finished.folder / "plan.json").read_bytes()
    other.send(signal.SIGHUP)
    assert other.wait(30).code == 130


def test_replay_on_fewer_nodes_tells_the_drift_and_a_time_limit_ends_it(finished: FinishedRun) -> None:
    """Replaying a plan of three nodes where there is one names the two that are missing; `--timeout` ends the run with 7."""
    with terminal() as here:
        ended = here.run("run", f"replay:{finished.folder}", "--nodes", "1", "--timeout", "3s", "--json", within_s=90)
        assert verdict(ended) == (7, "timeout", "timeout"), str(ended)
        for node in ("n2", "n3"):
            assert any(node in line for line in ended.document["drift"])
            assert f"{node} is gone" in ended.err
        manifest = json.loads((here.run_dir() / "manifest.json").read_text())
        assert manifest["drift"] == ended.document["drift"]
        assert {one["node"] for one in ended.document["dose"]} <= {"n1"}


BAD = {
    "unknown key": '{"version": 1, "name": "x", "sede": 3, "plan": {"CpuLoad": {"fraction": "5%"}, "for": "1s"}}',
    "NaN": '{"version": 1, "name": "x", "plan": {"CpuLoad": {"fraction": .nan}, "for": "1s"}}',
    "negative": '{"version": 1, "name": "x", "plan": {"CpuLoad": {"fraction": "-5%"}, "for": "1s"}}',
    "101 %": '{"version": 1, "name": "x", "plan": {"CpuLoad": {"fraction": "101%"}, "for": "1s"}}',
    "wrong version": '{"version": 99, "name": "x", "plan": {"CpuLoad": {"fraction": "5%"}, "for": "1s"}}',
    "no targets": '{"version": 1, "name": "x", "targets": {"count": 0}, "plan": {"CpuLoad": {"fraction": "5%"}, "for": "1s"}}',
    "bomb": "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)),
    "binary": "\x00\x01\x7fELF\x02",
    "missing file": None,
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_invalid_and_starts_nothing(name: str) -> None:
    """What is visible in the document alone gives 2 with place, expectation and advice; no process and no STATE appear."""
    with terminal() as here:
        path = here.folder / "bad.yaml"
        if BAD[name] is not None:
            path.write_text(BAD[name])
        command = here.start("run", str(path), "--nodes", "3", "--json")
        seen: set[str] = set()
        while command.process.poll() is None:
            seen |= {one.role for one in here.belonging()}
        ended = command.wait(5)
        assert ended.code == 2, str(ended)
        error = ended.document["error"]
        assert error["code"] in CODES
        assert "bad.yaml" in error["message"]
        assert error["hint"] or any(word in error["message"] for word in ("expected", "must", "needs"))  # what to do instead
        assert seen <= {"command"}
        assert not here.state.exists()
        assert not list(here.out.iterdir())
