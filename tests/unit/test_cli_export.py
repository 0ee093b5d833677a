"""`export`: a run directory to one file, and everything that can be wrong with the destination or the choice."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.clock import SystemClock, VirtualClock
from cluster import cli
from cluster.analysis.load import load
from cluster.exporters.context import EXPORTED
from cluster.files import write_json_atomic
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import log_files, unread_bytes
from tests.support.windows import end, record

RUN = "20261101-120000-burst-0001"
ROOT = Path(__file__).parents[2]
SHORT_OF_DISK = """
import resource, sys
from cluster import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a finished run of two nodes in runs/ of a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("STRESS_CLUSTER_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "runs" / RUN
    aggregator = Aggregator(RUN, folder, VirtualClock())
    for node in ("n1", "n2"):
        aggregator.push(node, "a", [record(node, 1), record(node, 2), end(3)])
    aggregator.finish({"status": "passed"}, {"status": "passed", "run": RUN, "scenario": {"name": "burst"}})
    aggregator.close()
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["export", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "arrow"])
def test_a_run_becomes_one_file(capsys: pytest.CaptureFixture[str], run_dir: Path, kind: str) -> None:
    """Every row of the run is in the file, named after the run, and the command says so; the run directory is as it was.

    Each row says whose it is, which in the run directory is said once, in its manifest: a run of an earlier version is no other.
    """
    before = sorted(run_dir.rglob("*"))
    code, out, _ = told(capsys, "latest", "--to", kind)
    path = Path(f"{RUN}.{kind}")
    assert (code, out) == (0, f"{path}: 12 rows, {path.stat().st_size} bytes\n")
    assert sorted(run_dir.rglob("*")) == before
    table = load(run_dir).metrics
    if kind == "parquet":
        found = pq.read_table(path)
        assert found.select(table.column_names).equals(table)
        rows = found.to_pylist()
    elif kind == "arrow":
        found = pa.ipc.open_file(path).read_all()
        assert found.select(table.column_names).equals(table)
        rows = found.to_pylist()
    elif kind == "csv":
        rows = list(csv.DictReader(path.open(newline="")))
    else:
        rows = json.loads(path.read_text()) if kind == "json" else [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["metric"], row["node"], float(row["sum"])) for row in rows] == list(
        zip(*(table.column(name).to_pylist() for name in ("metric", "node", "sum")), strict=True)
    )
    assert [(row["run"], row["scenario"], row["node"] in ("n1", "n2")) for row in rows] == [(RUN, "burst", True)] * 12
    assert list(rows[0])[:2] == ["run", "scenario"]


def test_the_answer_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json standard output is one document, also for --to json."""
    code, out, _ = told(capsys, RUN, "--to", "json", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"run": RUN, "to": "json", "status": "passed", "path": f"{RUN}.json", "rows": 12, "bytes": Path(f"{RUN}.json").stat().st_size},
    )


@pytest.mark.parametrize(
    ("options", "want"),
    [
        pytest.param(["--metric", "host.cpu.busy"], {("host.cpu.busy", "n1"), ("host.cpu.busy", "n2")}, id="one-metric"),
        pytest.param(["--metric", "probe.re[qs]*s", "--node", "n1"], {("probe.requests", "n1")}, id="a-glob-and-a-node"),
        pytest.param(
            ["--metric", "host.*", "--metric", "probe.requests", "--node", "n2", "--node", "n2"],
            {("host.cpu.busy", "n2"), ("probe.requests", "n2")},
            id="several-of-each",
        ),
    ],
)
def test_a_choice_of_rows(capsys: pytest.CaptureFixture[str], options: list[str], want: set[tuple[str, str]]) -> None:
    """Metrics and nodes are chosen by name or glob; a row has to fit both."""
    assert told(capsys, RUN, "--to", "parquet", "--out", "x.parquet", *options)[0] == 0
    table = pq.read_table("x.parquet")
    assert set(zip(table.column("metric").to_pylist(), table.column("node").to_pylist(), strict=True)) == want
    assert table.num_rows == 2 * len(want)


def test_a_known_metric_that_the_run_lacks_gives_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    """That is no error: the file is there, valid and empty, and it is said."""
    code, out, err = told(capsys, RUN, "--to", "parquet", "--metric", "halt.latency", "--out", "x")
    assert (code, "0 rows" in out, "no row" in err) == (0, True, True)
    assert pq.read_table("x").schema.remove_metadata().equals(EXPORTED)


@pytest.mark.parametrize(
    ("options", "exit_code", "message", "hint"),
    [
        pytest.param(["--metric", "host.cpu.bussy"], 2, "no metric 'host.cpu.bussy'", "did you mean 'host.cpu.busy'?", id="unknown-metric"),
        pytest.param(["--node", "n7"], 2, "no node 'n7'", "the run has: n1, n2", id="unknown-node"),
        pytest.param(["--out", "nowhere/x.csv"], 2, "nowhere is not a folder", "make it first", id="no-folder"),
        pytest.param(["--out", "runs"], 2, "runs is a folder", "the name of a file", id="a-folder"),
        pytest.param(["--out", "there.csv"], 2, "there.csv exists already", "--force", id="existing-file"),
        pytest.param(["--to", "xml"], 2, "xml", "see `stress-cluster export --help`", id="unknown-kind"),
    ],
)
def test_a_wrong_request_writes_nothing(
    capsys: pytest.CaptureFixture[str], options: list[str], exit_code: int, message: str, hint: str
) -> None:
    """2, with what was wrong and what to do, as text and as JSON; no file appears or changes."""
    Path("there.csv").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    to = [] if "--to" in options else ["--to", "csv"]
    code, _, err = told(capsys, RUN, *to, *options)
    assert code == exit_code
    assert message in err
    assert hint in err
    code, out, _ = told(capsys, RUN, *to, *options, "--json")
    assert code == exit_code
    assert message in json.loads(out)["error"]["message"]
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_an_unknown_run(capsys: pytest.CaptureFixture[str]) -> None:
    """2, and where it was looked for."""
    code, _, err = told(capsys, "none", "--to", "csv")
    assert code == 2
    assert "no run directory 'none'" in err


def test_force_replaces_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """With --force the file that is there is replaced."""
    Path("x.csv").write_text("mine")
    assert told(capsys, RUN, "--to", "csv", "--out", "x.csv", "--force")[0] == 0
    assert Path("x.csv").read_text().startswith("run,scenario,time,window_s,metric,")


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "arrow"])
def test_a_full_disk_leaves_no_half_written_file(run_dir: Path, kind: str) -> None:
    """Where no more bytes fit (here: the limit of a file's size, which the kernel enforces), 3; the file that was there stands."""
    load(run_dir)
    Path("x").write_text("mine")
    command = [sys.executable, "-B", "-c", SHORT_OF_DISK, "export", RUN, "--to", kind, "--out", "x", "--force"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    code, err = done.returncode, done.stderr
    assert code == 3, err
    assert "cannot write x" in err
    assert "File too large" in err
    assert "the old file stands" in err
    assert Path("x").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == ["x"]


def begun(run_dir: Path, heartbeat_s: float) -> Path:
    """Make the run one that goes on, as of this time; return its log, which holds what arrived since the last settling."""
    heartbeat = datetime.fromtimestamp(heartbeat_s, UTC).isoformat()
    (run_dir / "summary.json").unlink()
    write_json_atomic(run_dir / "manifest.json", {"status": "running", "run_id": RUN, "heartbeat": heartbeat})
    aggregator = Aggregator(RUN, run_dir, VirtualClock())
    aggregator.push("n3", "b", [record("n3", 1), record("n3", 2)])
    (log,) = log_files(run_dir, "metrics")
    left = log.read_bytes()  # closing turns it into Parquet
    aggregator.close()
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(left)
    return log


@pytest.mark.parametrize(
    ("age_s", "status", "word"),
    [pytest.param(-3600, "running", "still runs", id="runs"), pytest.param(3600, "error", "The run died", id="its-harness-died")],
)
def test_a_run_that_still_runs_is_exported_as_it_stands(
    capsys: pytest.CaptureFixture[str], run_dir: Path, age_s: float, status: str, word: str
) -> None:
    """What is only in the log is exported too; that it is not the whole run is said, and stands in the answer; the log stays."""
    log = begun(run_dir, SystemClock().wall_ns() / 1e9 - age_s)
    code, out, err = told(capsys, RUN, "--to", "parquet", "--node", "n3", "--out", "x", "--json")
    assert (code, json.loads(out)["status"], pq.read_table("x").num_rows) == (0, status, 6)
    assert word in err
    assert "no whole record" not in err
    assert log.exists()


def test_bytes_of_the_log_that_were_passed_over_are_said(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    """A torn record at the end of the log is not in the file, and its file and size are told; a whole log has none."""
    log = begun(run_dir, SystemClock().wall_ns() / 1e9 + 3600)
    assert unread_bytes(run_dir) == {}
    whole = log.read_bytes()
    with log.open("rb") as file:
        reader = pa.ipc.open_stream(file)
        reader.read_next_batch()
        end = file.tell()
    log.write_bytes(whole[: end + 100])
    code, _, err = told(capsys, RUN, "--to", "parquet", "--node", "n3", "--out", "x")
    assert (code, pq.read_table("x").num_rows) == (0, 3)
    assert f"the last 100 bytes of {log.relative_to(Path.cwd())}" in err


@pytest.mark.parametrize("keep", [0, 3, 100, 2000], ids=["empty", "a-few-bytes", "cut-early", "cut-late"])
@pytest.mark.parametrize("name", ["metrics/part-0000.parquet", "manifest.json", "summary.json", "events.parquet"])
def test_a_damaged_file_is_named(capsys: pytest.CaptureFixture[str], run_dir: Path, name: str, keep: int) -> None:
    """3, with the file and what to do, as text and as JSON; nothing is written."""
    path = run_dir / name
    path.write_bytes(path.read_bytes()[: min(keep, path.stat().st_size - 5)])
    code, _, err = told(capsys, RUN, "--to", "csv", "--out", "x")
    assert code == 3
    assert name in err
    assert "copy the file again" in err
    assert "bug" not in err
    code, out, _ = told(capsys, RUN, "--to", "csv", "--out", "x", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (3, "os")
    assert not Path("x").exists()
