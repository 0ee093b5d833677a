"""`exporters` and `trace` on the command line: what is asked of whom, what is printed, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from actors.errors import InputError
from cluster import cli
from cluster.cli import ports
from cluster.files import write_json_atomic

RUN = "20260101-120000-small-1a2b"
STOOD = {
    "name": "csv",
    "ok": False,
    "paused": False,
    "breaker": "open",
    "detail": "OSError: no space",
    "delivered_rows": 1200,
    "queued_rows": 7,
    "spilled_rows": 0,
    "dropped_rows": {"newest": 3, "oldest": 2},
    "attempts": 9,
    "failures": {"OSError": 4},
    "rows_per_s": 41.6,
    "latency_s": {"p50": 0.050, "p99": 0.0612},
}


class Link:
    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def exporters(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a folder and a state folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("STRESS_CLUSTER_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def linked(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Link:
    made = Link(answer)
    monkeypatch.setattr(ports, "connect", lambda *_: made)
    return made


def ended(folder: Path, **summary: Any) -> None:
    (folder / "runs" / RUN).mkdir(parents=True)
    write_json_atomic(folder / "runs" / RUN / "manifest.json", {"run": RUN, "status": "passed", "exit_code": 0})
    write_json_atomic(folder / "runs" / RUN / "summary.json", {"status": "passed", **summary})


def test_a_run_that_goes_on_is_asked_and_its_exporters_are_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """State, rows, rate, queue, losses, calls, durations, and the last error below."""
    link = linked(
        monkeypatch, {"run": RUN, "status": "running", "exporters": [STOOD, {**STOOD, "name": "b", "paused": True, "detail": ""}]}
    )
    assert cli.main(["exporters", "latest"]) == 0
    head, first, second, _, error = capsys.readouterr().out.splitlines()
    assert head.split() == ["exporter", "state", "delivered", "rows/s", "queued", "on", "disk", "dropped", "calls", "failed", "p50", "p99"]
    assert first.split("  ")[0] == "csv"
    for word in ("failing, breaker open", "1200", "42", "5", "9", "4", "50 ms", "61.2 ms"):
        assert word in first
    assert "paused" in second
    assert error == "csv: OSError: no space"
    assert link.calls == [("latest", [], [], [])]


def test_changes_go_to_the_run_and_a_wrong_one_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], alone: Path
) -> None:
    """Each option is repeatable; a run that has ended is not changed, so the cluster is asked and says so."""
    ended(alone)
    link = linked(monkeypatch, {"run": RUN, "status": "running", "exporters": [STOOD]})
    words = ["--pause", "a", "--pause", "b", "--resume", "c", "--set", "a.queue_rows=5", "--json"]
    assert cli.main(["exporters", RUN, *words]) == 0
    assert link.calls == [(RUN, ["a", "b"], ["c"], ["a.queue_rows=5"])]
    assert json.loads(capsys.readouterr().out)["exporters"][0]["name"] == "csv"
    linked(monkeypatch, InputError("unknown_name", "this run has no exporter 'c'", "there are: a"))
    assert cli.main(["exporters", RUN, "--pause", "c"]) == 2
    assert "there are: a" in capsys.readouterr().err


@pytest.mark.parametrize(("summary", "words"), [({"exporters": [STOOD]}, "csv"), ({}, f"run {RUN} has no exporters")])
def test_a_run_that_has_ended_tells_from_its_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], alone: Path, summary: dict[str, Any], words: str
) -> None:
    """No cluster is needed."""
    ended(alone, **summary)
    link = linked(monkeypatch, AssertionError("nobody is to be asked"))
    assert cli.main(["exporters", "latest"]) == 0
    assert words in capsys.readouterr().out
    assert link.calls == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["probe.respons"], "did you mean 'probe.response'", id="metric"),
        pytest.param(["probe.response", "--label", "x"], "expected NAME=VALUE", id="label"),
        pytest.param(["probe.response", "--at", "soon"], "--at is 'soon'", id="moment"),
        pytest.param(["probe.response", "--at", "5s"], "when this run began is not known", id="offset"),
        pytest.param(["probe.response"], "no row of this run is meant", id="row"),
        pytest.param([f"{RUN}:x"], "is no trace id", id="id"),
    ],
)
def test_a_trace_that_cannot_be_told_ends_with_2(capsys: pytest.CaptureFixture[str], alone: Path, words: list[str], message: str) -> None:
    """With what was expected."""
    ended(alone)
    assert cli.main(["trace", RUN, *words]) == 2
    assert message in capsys.readouterr().err
