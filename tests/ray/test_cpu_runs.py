"""The CPU simulators by the command line on two nodes at once: doses as agents read them, what is recorded, what the story says."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from support import documents
from support.by_command import Runs
from support.terminal import Terminal

from actors.simulator import record_of
from cluster.analysis import load

ANY = {"for": "6s", "tolerance": "100%"}
PLAN: dict[str, Any] = {
    "sequence": [
        {
            "together": [
                {"CpuLoad": {"fraction": "10%", "kernel": "simd", "affinity": "pinned"}, "phase": "packed", **ANY},
                {"CpuLoad": {"fraction": "10%", "mode": "slowdown"}, "phase": "slow", **ANY},
            ]
        },
        {"CpuPressure": {"fraction": "40%", "kernel": "float"}, "phase": "wait", **ANY},  # more than waits without it: it has to work
    ]
}
RUNS = Runs(PLAN)


def test_cpu_simulators_load_two_nodes(standing: Terminal) -> None:
    """A packed kernel and a slowdown load side by side, waiting is measured as a share of time, and all is recorded as it is documented.

    How well doses are held is asked elsewhere: here others of this machine decide that, so any dose is tolerated.
    """
    targets, metrics = {"names": ["n1", "n2"]}, {"level": "verbose"}
    made = {"version": 1, "name": "cpu", "targets": targets, "profile": "aggressive", "metrics": metrics, "plan": PLAN}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=150)
    assert ended.code == 0, str(ended)
    folder = Path(ended.document["run_dir"])
    doses: dict[tuple[str, str], list[float]] = defaultdict(list)
    recorded: set[str] = set()
    run = load(folder)
    for row in run.metrics.select(["metric", "node", "worker", "phase", "last"]).to_pylist():
        if row["metric"] == "dose.achieved":
            doses[row["node"], row["phase"]].append(row["last"])
        elif row["metric"].startswith("load.") and row["phase"] == "slow":
            recorded.add(row["metric"])
    assert doses.keys() == {(node, phase) for node in ("n1", "n2") for phase in ("packed", "slow", "wait")}
    assert all(0.0 <= share <= 1.05 for seen in doses.values() for share in seen), doses
    assert all(max(seen) > 0.02 for seen in doses.values()), doses
    RUNS.assert_recorded(run)
    assert recorded == set(record_of("CpuLoad").metrics), "of the slowdown alone"
    told = [row for row in pq.read_table(folder / "events.parquet").to_pylist() if "simulated" in row["message"]]
    assert sorted(row["node"] for row in told) == ["n1", "n2"]
    assert all("CpuLoad@" in json.loads(row["data"])["operation"] for row in told)
    assert standing.loads() == []
