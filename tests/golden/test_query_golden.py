"""`query` as people and programs read it, against the files beside this one. `UPDATE_GOLDEN=1` writes them anew; read them then."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster import cli
from tests.support.asked import RUN, make_run

HERE = Path(__file__).parent
QUESTIONS = {
    "query.txt": [
        ["probe.response"],
        ["probe.response", "--stat", "p99", "--stat", "count", "--stat", "rate", "--by", "node", "--every", "10s", "--since", "5s"],
        ["probe.*", "--label", "probe=front", "--node", "n2"],
        ["probe.requests", "--accumulator", "top", "--of", "probe"],
        ["probe.response", "--accumulator", "t_digest", "--by", "node"],
        ["dose.achieved", "--by", "worker"],
        ["host.cpu.busy", "--with", "probe.response", "--lag", "5s", "--by", "node"],
        ["probe.response", "--node", "n7"],
        ["halt.latency"],
    ],
    "query.json": [["probe.response", "--stat", "p99", "--stat", "mean", "--by", "node", "--every", "15s", "--json"]],
    "query.related.json": [["host.cpu.busy", "--with", "probe.response", "--lag", "5s", "--json"]],
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_as_they_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables with units, estimates and notes; one JSON document; 0 also for an empty answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    make_run(tmp_path / "runs" / RUN)
    told = []
    for words in QUESTIONS[name]:
        assert cli.main(["query", "latest", *words]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        told.append(said.out if name.endswith(".json") else f"$ stress-cluster query latest {' '.join(words)}\n{said.out}\n")
    if name.endswith(".json"):
        assert json.loads(told[0])["run"] == RUN
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text("".join(told))
    assert "".join(told) == path.read_text()
