"""`query`: which run it reads, what it refuses, and that a living or damaged run is said."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actors.clock import SystemClock
from actors.errors import InputError
from cluster import cli
from cluster.analysis.load import load
from cluster.files import write_json_atomic
from tests.support.asked import MANIFEST, RUN, make_run


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a finished run in runs/ of a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("STRESS_CLUSTER_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    make_run(tmp_path / "runs" / RUN)
    return tmp_path / "runs" / RUN


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["query", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("run", ["latest", RUN, f"runs/{RUN}"])
def test_a_run_is_named_as_for_report(capsys: pytest.CaptureFixture[str], run: str) -> None:
    """A run id, a directory and `latest` give the same answer, and nothing of the run changes."""
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    code, out, err = told(capsys, run, "probe.response", "--stat", "count", "--json")
    document = json.loads(out)
    assert (code, err, document["run"], document["scenario"], document["status"]) == (0, "", RUN, "burst", "passed")
    assert document["rows"][0]["figures"]["count"]["value"] == 2 * 2 * 2 * 30
    assert document["metrics"]["probe.response"]["help"].startswith("Time from")
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        pytest.param(["probe.respons"], "unknown metric 'probe.respons'", "did you mean 'probe.response'?", id="metric"),
        pytest.param(["probe.response", "--label", "prob=x"], "no label 'prob'", "did you mean 'probe'?", id="label"),
        pytest.param(["probe.response", "--stat", "p95"], "unknown statistic 'p95'", "did you mean", id="stat"),
        pytest.param(["probe.response", "--by", "nodes"], "split by 'nodes'", "did you mean 'node'?", id="by"),
        pytest.param(["probe.response", "--since", "soon"], "since: 'soon' is no time", "10s", id="since"),
        pytest.param(["probe.response", "--accumulator", "t_digset"], "unknown accumulator", "did you mean 't_digest'?", id="accumulator"),
        pytest.param(["probe.response", "--every", "5"], "every: expected a duration", "", id="every"),
        pytest.param(["host.cpu.busy", "--with", "probe.response", "--lag", "25s"], "9 steps have both", "shorter lag", id="too-few"),
        pytest.param(["host.cpu.busy", "--with", "halt.latency"], "0 steps have both", "no window of halt.latency", id="nothing"),
    ],
)
def test_a_wrong_question_gives_2(capsys: pytest.CaptureFixture[str], words: list[str], message: str, hint: str) -> None:
    """With what was wrong and what to do, as text and as the error document."""
    code, out, err = told(capsys, RUN, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert hint in err
    code, out, _ = told(capsys, RUN, *words, "--json")
    assert code == 2
    assert message in json.loads(out)["error"]["message"]


def test_a_wrong_question_is_said_before_the_run_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong in the words alone needs no run; an unknown run is 2 as well."""
    assert "unknown metric" in told(capsys, "none", "prob")[2]
    assert "no run directory 'none'" in told(capsys, "none", "probe.response")[2]


def test_a_time_and_an_offset_may_stand_together(capsys: pytest.CaptureFixture[str]) -> None:
    """An offset counts from the run's own start, on whichever side it stands: from 22:13:25 to 20.4 s past 22:13:20 are 16 windows."""
    code, out, _ = told(capsys, RUN, "host.cpu.busy", "--since", "2023-11-14T22:13:25Z", "--until", "20s", "--node", "n1", "--json")
    assert (code, json.loads(out)["rows"][0]["windows"]) == (0, 16)
    assert "ends before it begins" in told(capsys, RUN, "host.cpu.busy", "--since", "2023-11-14T22:13:50Z", "--until", "20s")[2]


@pytest.mark.parametrize(
    ("age_s", "status", "word"),
    [pytest.param(-3600, "running", "still runs", id="runs"), pytest.param(3600, "error", "The run died", id="its-harness-died")],
)
def test_a_run_that_still_runs_answers_as_it_stands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, age_s: float, status: str, word: str
) -> None:
    """What is only in the log is answered too, and it is said that more may come."""
    living = tmp_path / "runs" / "20231115-000000-burst-0002"
    aggregator = make_run(living, finish=False)
    heartbeat = datetime.fromtimestamp(SystemClock().wall_ns() / 1e9 - age_s, UTC).isoformat()
    write_json_atomic(living / "manifest.json", {**MANIFEST, "run": living.name, "status": "running", "heartbeat": heartbeat})
    code, out, err = told(capsys, "latest", "probe.response", "--stat", "count", "--json")
    assert (code, json.loads(out)["status"], json.loads(out)["rows"][0]["figures"]["count"]["value"]) == (0, status, 240)
    assert word in err
    aggregator.close()


def test_a_damaged_file_is_named(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    """3, with the file and what to do."""
    path = run_dir / "metrics" / "part-0000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    code, _, err = told(capsys, RUN, "probe.response")
    assert code == 3
    assert "part-0000.parquet" in err
    assert "copy the file again" in err


def test_notebooks_and_the_command_give_the_same(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    """`RunData.query` and `correlate` take the command's words as keywords and answer alike."""
    data = load(run_dir)
    words = ["--stat", "p99", "--stat", "rate", "--by", "node", "--every", "5s", "--since", "2s", "--label", "probe=front"]
    document = json.loads(told(capsys, RUN, "probe.response", *words, "--json")[1])
    found = data.query("probe.response", "p99", "rate", by="node", every="5s", since="2s", label="probe=front")
    assert found.to_json()["rows"] == document["rows"]
    document = json.loads(told(capsys, RUN, "host.cpu.busy", "--with", "probe.response", "--lag", "5s", "--node", "n1", "--json")[1])
    related = data.correlate("host.cpu.busy", "probe.response", lag="5s", node="n1")
    assert related.to_json()["pairs"] == document["pairs"]
    assert (document["pairs"][0]["pearson"]["lag_s"], document["pairs"][0]["pearson"]["notable"]) == (3.0, True)
    top = data.query("probe.requests", accumulator="top", of="probe")
    assert top.rows[0].figures["top"].value == (("back", 480, 480), ("front", 120, 120))
    with pytest.raises(InputError, match="no 'nodes'"):
        data.query("probe.response", nodes="n1")
