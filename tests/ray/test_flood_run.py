"""Floods in a run by command on two nodes: at once, one after another, told apart in every figure."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

from support import documents
from support.by_command import Runs
from support.terminal import Terminal

from actors.metrics.registry import CATALOGUE
from cluster.analysis import load

AT_ONCE = [
    {"MailboxFlood": {"per_second": 100, "actors": 1, "outstanding": 50, "payload": "128KiB"}, "for": "5s", "tolerance": "100%"},
    {"TaskExplosion": {"per_second": 40, "workers": 1}, "for": "5s", "tolerance": "100%"},
]
LOCK = {"ClusterLock": {"per_second": 20, "contenders": 2, "hold": "30ms"}, "for": "5s", "tolerance": "100%"}
MESH = {"ActorMesh": {"per_second": 20, "actors": 1}, "for": "5s", "tolerance": "100%"}
PLAN = {"sequence": [{"phase": "both", "together": AT_ONCE}, {"phase": "lock", "together": [LOCK, MESH]}]}
RUNS = Runs(PLAN)


def test_floods_at_once_and_one_after_another(standing: Terminal) -> None:
    """Each has its dose, or what it lacks is told; calls add up for each by itself; the lock begins when they are over; nothing is left.

    Each records the metrics that its record names, all of them and no others, with the one type that the catalogue gives each.
    """
    standing.settings["STRESS_CLUSTER_LEASE_S"] = "20"  # Ray starts many processes at once here, and leases are not what is asked
    made = {"version": 1, "limits": {"stale": "20s"}, "name": "floods", "targets": {"names": ["n1", "n2"]}, "plan": PLAN}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=200)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    calls: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    doses: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    began: dict[str, datetime] = {}
    over: dict[str, datetime] = {}
    lives: dict[str, float] = defaultdict(float)
    for row in run.metrics.to_pylist():
        if row["metric"] == "flood.calls":
            calls[row["node"], row["worker"]][dict(row["labels"])["fate"]] += row["sum"]
        if row["metric"].startswith(("flood.", "mesh.", "load.")):
            assert row["kind"] == CATALOGUE[row["metric"]].kind
        if row["metric"].startswith("operation."):
            lives[row["metric"]] += row["sum"]
        if row["metric"].startswith("dose."):
            doses[row["node"], row["worker"]][row["metric"]].append(row["last"])
        if row["metric"] == "load.operations" and row["sum"]:
            began[row["worker"]] = min(began.get(row["worker"], row["time"]), row["time"])
            over[row["worker"]] = max(over.get(row["worker"], row["time"]), row["time"])
    assert len(calls) == 8, sorted(calls)
    assert lives == {"operation.started": 8.0, "operation.completed": 8.0}
    told = {(one["node"], one["operation"]): one for one in ended.document["dose"]}
    for key, dose in doses.items():  # on a busy machine less than is asked, and told so
        asked, achieved = fmean(dose["dose.requested"]), fmean(dose["dose.achieved"])
        assert 0.4 * asked < achieved < 1.2 * asked, dose
        assert achieved >= 0.8 * asked or told[key]["achieved"] < 0.9 * told[key]["requested"], (dose, told[key])
    for counts in calls.values():
        assert counts["offered"] == counts["accepted"] > 50
        assert counts["accepted"] == counts["finished"] + counts["cancelled"]
        assert counts["failed"] == counts["dropped"] == counts["rejected"] == 0
    RUNS.assert_recorded(run)
    floods = [worker for worker in began if "MailboxFlood" in worker or "TaskExplosion" in worker]
    lock_began = min(began[worker] for worker in began if "ClusterLock" in worker)
    assert lock_began - max(began[worker] for worker in floods) > timedelta(seconds=3)
    assert max(over[worker] for worker in floods) - lock_began < timedelta(seconds=2)  # one window holds both an end and a beginning
    assert [node["clean"] for node in ended.document["nodes"]] == [True, True]
