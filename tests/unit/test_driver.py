"""The driver with a fake orchestrator: how long it follows a run, and with what it comes back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.errors import HarnessError
from cluster import driver_main
from cluster.driver import RunRequest
from cluster.driver_main import Driver
from cluster.settings import load

PASSED = {"status": "passed", "exit_code": 0, "message": "all held", "summary": {}}
REFUSED_LATE = {"status": "error", "exit_code": 3, "message": "n1 did not get ready", "summary": {}}


class FakeOrchestrator:
    """Tells one phase a question, and the outcome with the last one."""

    def __init__(self, phases: list[str], outcome: dict[str, Any] | None) -> None:
        self.phases, self.outcome, self.calls = phases, outcome, list[tuple[Any, ...]]()

    def call(self, method: str, *args: Any, **_: Any) -> Any:
        self.calls.append((method, *args))
        if method == "follow":
            if not self.phases:
                raise HarnessError("internal", "asked after the end")
            phase = self.phases.pop(0)
            outcome = None if self.phases else self.outcome
            return {"phase": phase, "cursor": 0, "events": [], "progress": {}, "outcome": outcome}
        return None


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make drivers that wait for nothing and copy no files."""
    monkeypatch.setattr(driver_main, "FOLLOW_S", 0.0)
    monkeypatch.setenv(driver_main.ENV_STATE_DIR, str(tmp_path / "state"))
    monkeypatch.setattr(Driver, "_mirror", lambda self, only=(): None)
    settings = load({"state_dir": str(tmp_path / "state")}, environ={})
    opened: list[int] = []

    def make(orchestrator: FakeOrchestrator, *, detach: bool, held: bool = False) -> Driver:
        reading, writing = os.pipe()
        opened.append(reading)
        driver = Driver(RunRequest("", "r1", tmp_path / "runs", settings, address="auto", detach=detach, held=held), writing)
        driver._orchestrator = orchestrator
        return driver

    yield make
    for fd in opened:
        os.close(fd)


class Turns:
    """An event that ends after some waits."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def wait(self, _: float) -> bool:
        self.turns -= 1
        return self.turns < 0


@pytest.mark.parametrize(
    ("held", "parent", "state", "beats"),
    [
        pytest.param(True, 7, "S", 3, id="its-caller-runs"),
        pytest.param(True, 7, "T", 0, id="its-caller-is-stopped"),
        pytest.param(True, 7, "t", 0, id="its-caller-is-traced"),
        pytest.param(True, 7, "Z", 0, id="its-caller-is-dead-and-not-waited-for"),
        pytest.param(True, 1, "S", 0, id="its-caller-is-gone-and-somebody-keeps-the-pipe"),
        pytest.param(True, 7, None, 0, id="nothing-is-known-of-its-caller"),
        pytest.param(False, 7, "T", 3, id="a-run-goes-on-without-a-caller-that-looks"),
    ],
)
def test_a_hold_is_leased_to_a_caller_that_runs(
    made: Any, monkeypatch: pytest.MonkeyPatch, held: bool, parent: int, state: str | None, beats: int
) -> None:
    """The driver of a hold beats for nobody else, so that what a sleeping or dead caller forgot ends with the lease."""
    orchestrator = FakeOrchestrator([], None)
    monkeypatch.setattr(driver_main.os, "getppid", lambda: 7)
    driver = made(orchestrator, detach=False, held=held)
    monkeypatch.setattr(driver_main.os, "getppid", lambda: parent)
    monkeypatch.setattr(driver_main, "read_stat", lambda pid: SimpleNamespace(state=state) if state and pid == 7 else None)
    driver._ended = Turns(3)
    driver._beat()
    assert orchestrator.calls == [("beat", "r1")] * beats


def test_a_hold_that_is_let_go_has_ended_as_planned(made: Any) -> None:
    """The first word counts: a signal after it cancels nothing, and a release after a signal is still a cancellation."""
    for words, cause in ((("let go", "SIGINT"), "passed"), (("SIGINT", "let go"), "cancelled")):
        orchestrator = FakeOrchestrator(["running", "stopping", "done"], PASSED)
        driver = made(orchestrator, detach=False)
        for word in words:
            driver.ask_stop(word, "passed" if word == "let go" else "cancelled")
        driver._follow()
        assert [call for call in orchestrator.calls if call[0] == "stop"] == [("stop", "r1", cause, words[0])]


def test_a_detached_driver_comes_back_once_load_runs(made: Any) -> None:
    """It follows through preparation, then leaves the run to itself: `running`, and no word of a verdict."""
    orchestrator = FakeOrchestrator(["admitted", "preparing", "starting", "running", "running", "done"], PASSED)
    found = made(orchestrator, detach=True)._follow()
    assert found == {"status": "running", "message": "Follow it with `stress-cluster watch r1`"}
    assert orchestrator.phases == ["running", "done"]


@pytest.mark.parametrize(
    ("phases", "outcome"),
    [
        pytest.param(["preparing", "stopping", "collecting", "done"], REFUSED_LATE, id="failed-before-load"),
        pytest.param(["starting", "stopping", "done"], PASSED, id="load-too-short-to-be-seen"),
    ],
)
def test_a_detached_run_that_ends_first_has_its_own_code(made: Any, phases: list[str], outcome: dict[str, Any]) -> None:
    """What ended before its load was seen to run comes back with its outcome, as if it had not been detached."""
    assert made(FakeOrchestrator(phases, outcome), detach=True)._follow() == outcome


def test_a_detached_run_that_is_being_stopped_is_followed_to_its_end(made: Any) -> None:
    """Ctrl-C before load runs stops the run, and the command waits for it."""
    cancelled = {**PASSED, "status": "cancelled", "exit_code": 130}
    orchestrator = FakeOrchestrator(["preparing", "running", "stopping", "done"], cancelled)
    driver = made(orchestrator, detach=True)
    driver.ask_stop("SIGINT")
    assert driver._follow() == cancelled
    assert ("stop", "r1", "cancelled", "SIGINT") in orchestrator.calls


def test_an_attached_driver_follows_to_the_verdict(made: Any) -> None:
    """Without --detach a running load is no end."""
    assert made(FakeOrchestrator(["running", "running", "done"], PASSED), detach=False)._follow() == PASSED


def test_what_is_submitted_says_where_the_driver_writes(tmp_path: Path) -> None:
    """The manifest in STATE names the driver's run directory, so that `recover` finds it."""
    request = RunRequest("version: 1\nname: a\nplan:\n  CpuLoad: {fraction: 1%}\n  for: 1s\n", "r1", tmp_path, load({}, environ={}))
    submission = driver_main.submission_of(request)
    assert submission.manifest["out"] == str(tmp_path / "r1")
    assert json.dumps(dict(submission.manifest))
