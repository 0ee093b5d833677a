from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.clock import VirtualClock
from actors.errors import InputError
from cluster.analysis.load import find_run, load, settle
from cluster.files import write_json_atomic
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import log_files
from cluster.metrics.windows import EVENTS, METRICS
from tests.support.windows import end, record


@pytest.fixture
def run(tmp_path: Path) -> Aggregator:
    aggregator = Aggregator("20261101-120000-burst-0001", tmp_path / "20261101-120000-burst-0001", VirtualClock())
    aggregator.push("n1", "a", [record("n1", 1), record("n1", 2)])
    return aggregator


def test_a_live_run_is_read_where_it_lies(run: Aggregator) -> None:
    """Reading while the aggregator writes gives what is held, and changes no file."""
    before = run.files()
    data = load(run.directory)
    assert (data.metrics.num_rows, data.events.num_rows, data.summary, data.plan) == (6, 2, None, None)
    assert (data.metrics.schema, data.events.schema) == (METRICS, EVENTS)
    assert run.files() == before


def test_a_finished_run_is_all_there(run: Aggregator) -> None:
    """Tables and documents of a finished run; DuckDB and friends see the same files."""
    write_json_atomic(run.directory / "plan.json", {"operations": []})
    run.push("n1", "a", [end(3)])
    run.finish({"status": "passed"}, {"status": "passed"})
    run.close()
    data = load(run.directory)
    assert (data.summary or {})["status"] == (data.manifest or {})["status"] == "passed"
    assert data.plan == {"operations": []}
    assert data.metrics.num_rows == pq.read_table(run.directory / "metrics").num_rows == 6


def test_the_log_that_a_crash_left_is_settled(run: Aggregator) -> None:
    """A run that has ended but kept its log gets its Parquet files at the next load, and reads the same before and after."""
    live = load(run.directory)
    run.close()
    write_json_atomic(run.directory / "manifest.json", {"status": "error"})
    data = load(run.directory)
    assert data.metrics.equals(live.metrics)
    assert data.events.equals(live.events)
    assert not log_files(run.directory, "metrics")
    assert load(run.directory).metrics.equals(live.metrics)


def test_a_run_that_is_running_is_left_alone(run: Aggregator) -> None:
    """While the manifest says running, reading never rewrites, also when no writer is there: that is for `recover` to do."""
    run.close()
    write_json_atomic(run.directory / "manifest.json", {"status": "running"})
    assert load(run.directory).metrics.num_rows == 6
    assert log_files(run.directory, "metrics")
    assert settle(run.directory)
    assert not log_files(run.directory, "metrics")
    assert not settle(run.directory)


def test_settling_beside_a_writer_does_nothing(run: Aggregator) -> None:
    """A directory that has a writer is left to it."""
    assert not settle(run.directory)
    assert log_files(run.directory, "metrics")


def test_frames(run: Aggregator) -> None:
    """Where pandas is installed the same comes as frames, labels as dictionaries."""
    pytest.importorskip("pandas")
    frame = load(run.directory).metrics_frame()
    assert frame[frame.metric == "probe.requests"]["labels"].tolist() == [{"probe": "x"}, {"probe": "x"}]
    assert len(load(run.directory).events_frame()) == 2


def test_runs_are_found_by_id_path_and_latest(run: Aggregator, tmp_path: Path) -> None:
    """A run is named by its directory, by its id, or as the latest of a folder; what is none is refused with a hint."""
    older = tmp_path / "20261031-235959-burst-ffff"
    older.mkdir()
    (older / "manifest.json").write_text(json.dumps({"status": "passed"}))
    assert find_run(run.directory) == find_run(run.run_id, tmp_path) == find_run("latest", tmp_path) == run.directory
    for name in ("nothing", str(tmp_path)):
        with pytest.raises(InputError, match="neither a run directory"):
            find_run(name, tmp_path / "x")
    with pytest.raises(InputError, match="no run in"):
        find_run("latest", tmp_path / "x")
