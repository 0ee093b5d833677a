"""A cascade of failures among real actors of Ray, by command on two nodes with and without a breaker."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from support import documents
from support.by_command import Runs
from support.leasing import marked
from support.terminal import Terminal

from actors.ray_loads.service_graph import grow
from cluster.analysis import load

OPTIONS = {"services": 4, "levels": 3, "fan_out": 1, "graph_seed": 7}
DEPTH_MAX = 1  # what a breaker has to keep it to


def part(node: str, **more: Any) -> dict[str, Any]:
    return {"Cascade": {"per_second": 20, **OPTIONS, **more}, "for": "6s", "targets": {"names": [node]}, "tolerance": "100%"}


PLAN = {"together": [part("n1"), part("n1", how="killed"), part("n2", breaker=True)]}
RUNS = Runs(PLAN)


def test_a_breaker_keeps_it_within_its_depth_and_a_seed_has_one_order(standing: Terminal) -> None:
    """Without one it goes to the top, in the same order whether the first hangs or dies; with one it stops; what must hold is judged."""
    keep = [
        {"threshold": {"name": node, "metric": "cascade.depth", "stat": "max", "op": "<=", "value": DEPTH_MAX, "node": node}}
        for node in ("n1", "n2")
    ]
    made = {
        "version": 1,
        "name": "cascade",
        "limits": {"stale": "20s"},
        "targets": {"names": ["n1", "n2"]},
        "hypotheses": keep,
        "plan": PLAN,
    }
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=200)
    assert ended.code == 1, str(ended)
    run = load(Path(ended.document["run_dir"]))
    assert run.summary is not None
    assert {one["name"]: one["held"] for one in run.summary["hypotheses"]} == {"n1": False, "n2": True}
    last: dict[str, dict[str, float]] = defaultdict(dict)
    rounds: dict[str, dict[str, float]] = defaultdict(dict)
    calls: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in run.metrics.to_pylist():
        if row["metric"] in {"cascade.depth", "cascade.time", "cascade.failed", "cascade.blast.radius"}:
            last[row["worker"]][row["metric"]] = row["last"]
        if row["metric"] == "cascade.round":
            rounds[row["worker"]][dict(row["labels"])["service"]] = row["last"]
        if row["metric"] in {"cascade.calls", "cascade.requests", "flood.calls"}:
            calls[row["worker"]][f"{row['metric']}.{dict(row['labels'])['fate']}"] += row["sum"]
    hung, killed, kept = sorted(last)
    graph = grow(OPTIONS["graph_seed"], 4, 3, 1)
    for worker in (hung, killed):
        assert last[worker]["cascade.depth"] == 2 > DEPTH_MAX, last
        assert 1.0 < last[worker]["cascade.time"] < 4.5
        assert last[worker]["cascade.blast.radius"] == last[worker]["cascade.failed"] / 4 >= 0.75
        assert [name for name, at in rounds[worker].items() if at == 0.0] == [graph.first]
        assert calls[worker]["cascade.calls.refused"] > 0
        assert calls[worker]["cascade.requests.refused"] > 0
        assert calls[worker]["cascade.calls.degraded"] == 0
    assert rounds[hung] == rounds[killed]
    assert (calls[hung]["cascade.calls.timed_out"] > 0, calls[hung]["cascade.calls.died"]) == (True, 0)
    assert (calls[killed]["cascade.calls.timed_out"], calls[killed]["cascade.calls.died"] > 0) == (0, True)
    assert (last[kept]["cascade.depth"], last[kept]["cascade.failed"]) == (0, 1)
    assert calls[kept]["cascade.calls.degraded"] > calls[kept]["cascade.calls.timed_out"] >= 3
    assert calls[kept]["cascade.requests.refused"] == 0
    for worker in last:
        assert sum(calls[worker][f"cascade.requests.{fate}"] for fate in ("taken", "refused")) == calls[worker]["flood.calls.finished"] > 60
    RUNS.assert_recorded(run)
    stories = [json.loads(row["data"]) for row in run.events.to_pylist() if row["kind"] == "cascade"]
    told = {one["operation"]: one for one in stories}
    assert [len(some) for some in told[hung]["rounds"]] == [1, 1, len(rounds[hung]) - 2]
    assert [node["clean"] for node in ended.document["nodes"]] == [True, True]
    assert marked() == []
