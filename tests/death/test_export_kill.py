"""An aggregator with exporters in a process of its own, killed with SIGKILL at seeded moments, and replaced: what its files hold then."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from actors.messages import NodeSpec
from cluster.aggregator_shell import AggregatorShell
from cluster.conclusion import Ending
from cluster.exporters.files import rotated
from cluster.metrics.store import read_run
from scenarios import text
from scenarios.plan import resolve
from tests.support.killing import killed
from tests.support.windows import end, record

RUN = "20260101-120000-killed-1a2b"
RECORDS = 400
KILLS = 5
SCENARIO = {
    "version": 1,
    "name": "killed",
    "plan": {"CpuLoad": {"fraction": 0.1}, "for": 5},
    "exporters": {
        "destinations": [
            {"type": "jsonl", "path": "m.jsonl", "batch_age": 0.1, "flush": 0.15, "rotate": "60KB"},
            {"type": "csv", "path": "m.csv", "batch_age": 0.1, "flush": 0.15, "spill": True, "write_ahead": True, "rotate": "40KB"},
            {"type": "json", "path": "m.json", "batch_age": 0.02},
            {"type": "parquet", "path": "m.parquet", "batch_age": 0.02, "spill": True, "overflow": "spill"},
        ],
        "drain": 30,
    },
}

CHILD = """
import json, sys, time
from cluster.aggregator_shell import AggregatorShell
from cluster import run_exports
from tests.support.windows import record

run_exports.TICK_S, run_exports.SAVE_S = 0.05, 0.05
run, records, manifest, plan = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4].encode()
shell = AggregatorShell(run, lambda: None)
if shell._replaced_ns == 0:
    shell.begin(manifest, plan, "127.0.0.1", None)
print("ready", flush=True)
at = shell.push("n1", "a", [])
while at < records:
    at = shell.push("n1", "a", [record("n1", number) for number in range(max(1, at - 1), min(at + 4, records + 1))])
    print(at, flush=True)
    time.sleep(0.004)
"""


def counted(rows: list[dict]) -> Counter:
    return Counter((row["metric"], row["node"], str(row["time"])[:19].replace("T", " "), float(row["last"] or 0)) for row in rows)


def csv_rows(path: Path) -> list[dict]:
    """Return the rows of a CSV file as Python's reader has them; Arrow's and pandas' have as many, and all records the header's width."""
    with path.open(newline="", encoding="utf-8") as file:
        head, *records = csv.reader(file)
    assert [len(record) for record in records] == [len(head)] * len(records)
    assert head not in records, "a header that is there twice"
    found = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))
    assert (found.num_rows, found.column_names) == (len(records), head)
    pandas = pytest.importorskip("pandas")
    assert list(pandas.read_csv(path, keep_default_na=False)["metric"]) == [record[head.index("metric")] for record in records]
    return [dict(zip(head, record, strict=True)) for record in records]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_any_deaths_every_acknowledged_row_is_in_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Files that appear whole hold each row of the run once, the others at least once; not all of these come again with each death."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    chance = random.Random(seed)
    manifest = {"run": RUN, "scenario": SCENARIO}
    plan = resolve(text.from_data(SCENARIO), [NodeSpec("n1")], 0).to_json()
    exports = tmp_path / "state" / "runs" / RUN / "exports"
    acknowledged = 0
    for _ in range(KILLS):
        said = (RUN, RECORDS, json.dumps(manifest), plan.decode())
        acknowledged = max(acknowledged, killed(CHILD, *said, after_s=chance.uniform(0.1, 0.6)))
        for path in (*rotated(exports / "m.jsonl"), *exports.glob("m.jsonl")):
            *lines, torn = path.read_bytes().split(b"\n")
            assert all(map(json.loads, lines))
            assert not torn or path.name == "m.jsonl", "a file that is full has a torn line"
        assert not (exports / "m.json").exists()
        assert not (exports / "m.parquet").exists()
    shell = AggregatorShell(RUN, lambda: None)
    held = shell.push("n1", "a", [])
    assert held >= acknowledged > 0, f"seed {seed}"
    shell.push("n1", "a", [*(record("n1", at) for at in range(held + 1, RECORDS + 1)), end(RECORDS + 1)])
    reports = shell.conclude(Ending(RUN, (), (), (), 0, None, None))["summary"]["exporters"]
    want = counted(read_run(shell.directory).metrics.to_pylist())
    assert {number for metric, node, _, number in want if (metric, node) == ("host.cpu.busy", "n1")} == {
        number / 100 for number in range(1, RECORDS + 1)
    }
    assert [one["complete"] for one in reports] == [True] * 4, reports
    assert counted(pq.read_table(exports / "m.parquet").to_pylist()) == want, f"seed {seed}"
    assert counted(json.loads((exports / "m.json").read_text())) == want, f"seed {seed}"
    texts = [*rotated(exports / "m.jsonl"), exports / "m.jsonl"]
    lines = [json.loads(line) for path in texts for line in path.read_text().splitlines()]
    assert len(texts) > 1
    assert counted(lines) >= want, f"seed {seed}"
    assert len(lines) < KILLS * want.total(), f"seed {seed}"
    tables = [*rotated(exports / "m.csv"), exports / "m.csv"]
    assert len(tables) > 1
    assert counted([row for path in tables for row in csv_rows(path)]) >= want, f"seed {seed}"
    for one in reports:
        assert one["earlier_rows"] + one["produced_rows"] == want.total(), one
    assert not list(exports.glob(".*"))
    shell.leave()
