"""A run with exporters on a standing cluster: its files hold what its run directory holds, and its documents say so."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
from support import documents
from support.terminal import Terminal

from cluster.analysis import load


def test_the_files_of_a_runs_exporters_hold_its_rows(standing: Terminal) -> None:
    """Files of the run directory and one elsewhere have every row that their rules let through; a failing one changes no verdict."""
    exporters = {
        "destinations": [
            {"type": "jsonl", "path": f"{standing.folder}/{{run}}.jsonl"},
            {"type": "parquet", "path": "all.parquet"},
            {"type": "csv", "path": "dose.csv", "rules": [{"when": {"metric": "dose.*"}, "keep": True}]},
        ]
    }
    made = documents.document("exported", 4, cpu="10%", memory=None, disk=None, exporters=exporters, targets={"count": 1})
    ended = standing.run("run", documents.write(standing.folder, made), "--export", "json:all.json", "--yes", "--json")
    assert ended.code == 0, str(ended)
    folder = standing.run_dir()
    rows = load(folder).metrics
    told = {one["name"]: one for one in ended.document["exporters"]}
    assert list(told) == ["jsonl", "parquet", "csv", "json"]
    assert all(one["complete"] for one in told.values()), told
    lines = [json.loads(line) for line in (standing.folder / f"{folder.name}.jsonl").read_text().splitlines()]
    dose = list(csv.DictReader((folder / "exports" / "dose.csv").read_text().splitlines()))
    assert len(lines) == rows.num_rows == told["jsonl"]["delivered_rows"]
    assert pq.read_table(folder / "exports" / "all.parquet").num_rows == rows.num_rows
    assert len(json.loads((folder / "exports" / "all.json").read_text())) == rows.num_rows
    assert {row["metric"] for row in dose} == {"dose.requested", "dose.achieved", "dose.own"} & {*rows["metric"].to_pylist()}
    assert len(dose) + told["csv"]["filtered_rows"] == rows.num_rows
    assert {"export.delivered", "export.queue"} <= {*rows["metric"].to_pylist()}
    report = standing.run("report", str(folder))
    assert f"jsonl: {rows.num_rows} rows in {standing.folder}/{folder.name}.jsonl, complete" in report.out
    again = standing.run("run", f"replay:{folder.name}", "--yes", "--json")  # {run} is another now
    assert again.code == 0, str(again)
    busy = standing.run(
        "run", documents.write(standing.folder, made), "--export", f"csv:{standing.folder}/{folder.name}.jsonl", "--yes", "--json"
    )
    assert (busy.code, busy.document["status"]) == (6, "refused"), str(busy)
    assert "exists already" in busy.document["error"]["message"]
