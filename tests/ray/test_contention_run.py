"""The catalogue's contention by the command line on two nodes at once: doses as agents read them of the kernel, and what is recorded."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from support import documents
from support.by_command import Runs
from support.terminal import Terminal

from actors.metrics.registry import CATALOGUE
from cluster.analysis import load
from scenarios import catalogue, text

SCENARIO: dict[str, Any] = text.to_data(catalogue.get("contention"))
AT_RANDOM = {"Livelock": {"count": 1, "retry": "at_random"}, "for": "20s"}  # the control: in step they only try, and nobody waits
RUNS = Runs([SCENARIO["plan"], AT_RANDOM])


def test_locks_are_contended_on_two_nodes_as_asked_and_free_after(standing: Terminal) -> None:
    """Every dose is reached on each node, each kind records its documented metrics alone, deadlocks are named, and no load is left."""
    plan = {"together": [SCENARIO["plan"], AT_RANDOM]}
    made = {**SCENARIO, "plan": plan, "targets": {"names": ["n1", "n2"]}}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=150)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    assert run.summary is not None
    assert [one["reached"] for one in run.summary["dose"]] == [True] * 16, run.summary["dose"]
    sums: dict[str, float] = defaultdict(float)
    waiters: dict[tuple[str, str], float] = {}
    for row in run.metrics.select(["time", "metric", "kind", "worker", "sum", "last"]).to_pylist():
        sums[row["metric"]] += row["sum"] or 0.0
        if row["metric"].startswith(("concurrency.", "load.")):
            assert row["kind"] == CATALOGUE[row["metric"]].kind
        if row["metric"] == "concurrency.lock.waiters":
            waiters[row["worker"], row["metric"]] = row["last"]
    RUNS.assert_recorded(run)
    assert sums["operation.started"] == sums["operation.completed"] + sums["operation.failed"] == 16
    assert sums["concurrency.deadlock.planted"] == sums["concurrency.deadlock.detected"] + sums["concurrency.deadlock.cut"] > 0
    assert sums["concurrency.livelock.detected"] == 2
    assert set(waiters.values()) == {0.0}
    assert standing.loads() == []
