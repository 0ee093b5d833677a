"""A run with exporters on an embedded Ray: its files hold what its run directory holds, and its documents say so."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
from support import documents
from support.terminal import terminal

from cluster.analysis import load


def test_the_files_of_a_runs_exporters_hold_its_rows() -> None:
    """Files of the run directory and one elsewhere have every row that their rules let through; a failing one changes no verdict."""
    with terminal() as here:
        exporters = {
            "destinations": [
                {"type": "jsonl", "path": f"{here.folder}/{{run}}.jsonl"},
                {"type": "parquet", "path": "all.parquet"},
                {"type": "csv", "path": "dose.csv", "rules": [{"when": {"metric": "dose.*"}, "keep": True}]},
            ]
        }
        made = documents.document("exported", 4, cpu="10%", memory=None, disk=None, exporters=exporters)
        ended = here.run("run", documents.write(here.folder, made), "--export", "json:all.json", "--json")
        assert ended.code == 0, str(ended)
        folder = here.run_dir()
        rows = load(folder).metrics
        told = {one["name"]: one for one in ended.document["exporters"]}
        assert list(told) == ["jsonl", "parquet", "csv", "json"]
        assert all(one["complete"] for one in told.values()), told
        lines = [json.loads(line) for line in (here.folder / f"{folder.name}.jsonl").read_text().splitlines()]
        dose = list(csv.DictReader((folder / "exports" / "dose.csv").read_text().splitlines()))
        assert len(lines) == rows.num_rows == told["jsonl"]["delivered_rows"]
        assert pq.read_table(folder / "exports" / "all.parquet").num_rows == rows.num_rows
        assert len(json.loads((folder / "exports" / "all.json").read_text())) == rows.num_rows
        assert {row["metric"] for row in dose} == {"dose.requested", "dose.achieved", "dose.own"} & {*rows["metric"].to_pylist()}
        assert len(dose) + told["csv"]["filtered_rows"] == rows.num_rows
        assert {"export.delivered", "export.queue"} <= {*rows["metric"].to_pylist()}
        traced = here.run("trace", folder.name, "dose.achieved", "--json")
        run, node, _, record, _ = traced.document["trace"].split(":")
        assert (run, traced.document["records"][0]["node"], traced.document["records"][0]["record"]) == (folder.name, node, int(record))
        assert {one["exporter"]: one["outcome"] for one in traced.document["exports"]} == dict.fromkeys(told, "delivered"), traced.document
        listed = here.run("exporters", folder.name, "--json").document["exporters"]
        assert [(one["name"], one["delivered_rows"]) for one in listed] == [(name, one["delivered_rows"]) for name, one in told.items()]
        report = here.run("report", str(folder))
        assert f"jsonl: {rows.num_rows} rows in {here.folder}/{folder.name}.jsonl, complete" in report.out
        again = here.run("run", f"replay:{folder.name}", "--json")  # {run} is another now
        assert again.code == 0, str(again)
        busy = here.run("run", documents.write(here.folder, made), "--export", f"csv:{here.folder}/{folder.name}.jsonl", "--json")
        assert (busy.code, busy.document["status"]) == (6, "refused"), str(busy)
        assert "exists already" in busy.document["error"]["message"]
