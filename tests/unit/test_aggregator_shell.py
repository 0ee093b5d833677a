"""The aggregator's shell without Ray: late data of a run that has its end."""

from __future__ import annotations

import pytest

from actors.clock import SystemClock
from cluster.aggregator_shell import AggregatorShell
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import read_json, write_json_atomic
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
