"""The aggregator's shell without Ray: late data of a run that has its end."""

from __future__ import annotations

import threading

import pytest

from actors.clock import SystemClock
from actors.errors import HarnessError
from cluster.aggregator_shell import AggregatorShell
from cluster.files import read_json, write_json_atomic
from cluster.metrics.aggregator import Aggregator
from tests.support.windows import end, record

RUN = "20260101-120000-late-1a2b"


@pytest.mark.parametrize(("status", "want"), [("error", 3), ("running", None)])
def test_late_data_of_an_ended_run_is_in_its_files_at_once(tmp_path, monkeypatch, status, want):
    """Also by an aggregator that was started for it alone; a run that goes on gets its files at its end."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    directory = tmp_path / "state" / "runs" / RUN
    first = Aggregator(RUN, directory, SystemClock())
    first.push("n1", "a", [record("n1", 1)])
    write_json_atomic(directory / "manifest.json", {"run": RUN, "status": status})
    if status != "running":
        first.finish()
    first.close()
    shell = AggregatorShell(RUN, lambda: None)
    try:
        assert shell.push("n1", "a", [record("n1", 2), end(3)]) == 3
        streams = (read_json(directory / "manifest.json") or {}).get("streams", [])
        assert [stream["expected_end"] for stream in streams] == ([want] if want else [])
        assert bool(list(directory.glob("metrics/*.parquet"))) is bool(want)
    finally:
        shell.leave()


def test_what_came_before_the_very_end_is_in_the_files_and_what_comes_later_is_refused(tmp_path, monkeypatch):
    """An aggregator that is told to leave loses nothing that it has acknowledged, and acknowledges nothing more."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    directory = tmp_path / "state" / "runs" / RUN
    Aggregator(RUN, directory, SystemClock()).close()
    write_json_atomic(directory / "manifest.json", {"run": RUN, "status": "error"})
    ended = threading.Event()
    shell = AggregatorShell(RUN, ended.set)
    shell._core.push("n1", "a", [record("n1", 1), end(2)])  # taken, and the process is told to leave before its files were made
    shell.leave()
    assert ended.wait(10)
    assert [stream["expected_end"] for stream in (read_json(directory / "manifest.json") or {})["streams"]] == [2]
    with pytest.raises(HarnessError, match="has ended"):
        shell.push("n1", "a", [record("n1", 3)])
