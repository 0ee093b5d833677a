"""A run with exporters on a standing cluster: its files hold what its run directory holds, and its documents say so."""

from __future__ import annotations

import csv
import json
import signal

import pyarrow.parquet as pq
from support import documents
from support.terminal import Terminal

from cluster.analysis import load


def test_the_files_of_a_runs_exporters_hold_its_rows(standing: Terminal) -> None:
    """Files of the run directory and one elsewhere have every row that their rules let through, also of a run that SIGTERM ended."""
    exporters = {
        "destinations": [
            {"type": "jsonl", "path": f"{standing.folder}/{{run}}.jsonl"},
            {"type": "parquet", "path": "all.parquet"},
            {"type": "csv", "path": "dose.csv", "rules": [{"when": {"metric": "dose.*"}, "keep": True}]},
        ]
    }
    made = documents.document("exported", 4, cpu="10%", memory=None, disk=None, exporters=exporters, targets={"count": 2})
    ended = standing.run("run", documents.write(standing.folder, made), "--export", "json:all.json", "--yes", "--json")
    assert ended.code == 0, str(ended)
    folder = standing.run_dir()
    rows = load(folder).metrics
    told = {one["name"]: one for one in ended.document["exporters"]}
    assert list(told) == ["jsonl", "parquet", "csv", "json"]
    assert all(one["complete"] for one in told.values()), told
    lines = [json.loads(line) for line in (standing.folder / f"{folder.name}.jsonl").read_text().splitlines()]
    dose = list(csv.DictReader((folder / "exports" / "dose.csv").read_text().splitlines()))
    columns = pq.read_table(folder / "exports" / "all.parquet").to_pylist()
    array = json.loads((folder / "exports" / "all.json").read_text())
    assert len(lines) == len(columns) == len(array) == rows.num_rows == told["jsonl"]["delivered_rows"]
    assert len({row["node"] for row in lines if row["metric"] == "dose.achieved"}) == 2
    for found in (lines, columns, array, dose):
        assert {(row["run"], row["scenario"], bool(row["node"])) for row in found} == {(folder.name, "exported", True)}
    assert {row["metric"] for row in dose} == {"dose.requested", "dose.achieved", "dose.own"} & {*rows["metric"].to_pylist()}
    assert len(dose) + told["csv"]["filtered_rows"] == rows.num_rows
    told_of = {row["metric"]: row["unit"] for row in rows.to_pylist() if row["metric"].startswith("export.")}
    assert told_of.keys() >= {"export.delivered", "export.delivered.size", "export.queue", "export.unrouted"}
    assert (told_of["export.delivered.size"], told_of["export.unrouted"]) == ("bytes", "")
    traced = standing.run("trace", folder.name, "dose.achieved", "--json")
    run, node, _, record, _ = traced.document["trace"].split(":")
    assert (run, traced.document["records"][0]["node"], traced.document["records"][0]["record"]) == (folder.name, node, int(record))
    assert {one["exporter"]: one["outcome"] for one in traced.document["exports"]} == dict.fromkeys(told, "delivered"), traced.document
    listed = standing.run("exporters", folder.name, "--json").document["exporters"]
    assert [(one["name"], one["delivered_rows"]) for one in listed] == [(name, one["delivered_rows"]) for name, one in told.items()]
    report = standing.run("report", str(folder))
    assert f"jsonl: {rows.num_rows} rows in {standing.folder}/{folder.name}.jsonl, complete" in report.out
    replaying = standing.start("run", f"replay:{folder.name}", "--yes", "--json")  # {run} is another now
    standing.await_load(1)
    replaying.send(signal.SIGTERM)
    again = replaying.wait(60)
    assert (again.code, again.document["status"]) == (130, "cancelled"), str(again)
    stopped = standing.run_dir()
    assert stopped != folder
    rows = load(stopped).metrics
    assert rows.num_rows > 0
    assert all(one["complete"] for one in again.document["exporters"]), again.document["exporters"]
    assert len((standing.folder / f"{stopped.name}.jsonl").read_text().splitlines()) == rows.num_rows
    assert pq.read_table(stopped / "exports" / "all.parquet").num_rows == rows.num_rows
    busy = standing.run(
        "run", documents.write(standing.folder, made), "--export", f"csv:{standing.folder}/{folder.name}.jsonl", "--yes", "--json"
    )
    assert (busy.code, busy.document["status"]) == (6, "refused"), str(busy)
    assert "exists already" in busy.document["error"]["message"]
