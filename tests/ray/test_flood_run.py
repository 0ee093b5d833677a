"""Floods in a run by command on two nodes: at once, one after another, told apart in every figure."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

from support import documents
from support.by_command import Runs
from support.leasing import marked
from support.terminal import Terminal
from support.waiting import until

from actors.metrics.registry import CATALOGUE
from actors.ray_loads.ray_load import mark_of
from cluster.analysis import load

AT_ONCE = [
    {"MailboxFlood": {"per_second": 100, "actors": 1, "outstanding": 50, "payload": "128KiB"}, "for": "5s", "tolerance": "100%"},
    {"TaskExplosion": {"per_second": 40, "workers": 1}, "for": "5s", "tolerance": "100%"},
]
LOCK = {"ClusterLock": {"per_second": 20, "contenders": 2, "hold": "15ms", "scope": "cluster"}, "for": "5s", "tolerance": "100%"}
MESH = {"ActorMesh": {"per_second": 20, "actors": 1}, "for": "5s", "tolerance": "100%"}
PLAN = {"sequence": [{"phase": "both", "together": AT_ONCE}, {"phase": "lock", "together": [LOCK, MESH]}]}
RUNS = Runs(PLAN)


def test_floods_at_once_and_one_after_another(standing: Terminal) -> None:
    """Each has its dose, or what it lacks is told; calls add up for each by itself; the lock begins when they are over; nothing is left.

    Each records the metrics that its record names, all of them and no others, with the one type that the catalogue gives each.
    """
    made = {"version": 1, "limits": {"stale": "20s"}, "name": "floods", "targets": {"names": ["n1", "n2"]}, "plan": PLAN}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=200)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    calls: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    doses: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    began: dict[str, datetime] = {}
    over: dict[str, datetime] = {}
    lives: dict[str, float] = defaultdict(float)
    turns, guarded = dict.fromkeys(("flood.lock.shared", "flood.lock.lost"), 0.0), 0.0
    for row in run.metrics.to_pylist():
        if row["metric"] == "flood.calls":
            calls[row["node"], row["worker"]][dict(row["labels"])["fate"]] += row["sum"]
        if row["metric"].startswith(("flood.", "mesh.", "load.")):
            assert row["kind"] == CATALOGUE[row["metric"]].kind
        if row["metric"].startswith("operation."):
            lives[row["metric"]] += row["sum"]
        if row["metric"] in turns:
            turns[row["metric"]] += row["sum"]
        if row["metric"] == "flood.lock.guarded":
            guarded = max(guarded, row["max"])
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
    of_locks = [counts["cancelled"] for (_, worker), counts in calls.items() if "ClusterLock" in worker]
    kept = turns["flood.lock.shared"] - turns["flood.lock.lost"]
    assert 0 <= guarded - kept <= sum(of_locks), "one lock of both nodes: what it guards counts the turns of all"
    RUNS.assert_recorded(run)
    floods = [worker for worker in began if "MailboxFlood" in worker or "TaskExplosion" in worker]
    lock_began = min(began[worker] for worker in began if "ClusterLock" in worker)
    assert lock_began - max(began[worker] for worker in floods) > timedelta(seconds=3)
    assert max(over[worker] for worker in floods) - lock_began < timedelta(seconds=2)  # one window holds both an end and a beginning
    assert [node["clean"] for node in ended.document["nodes"]] == [True, True]


def test_where_a_chain_goes_on_a_part_that_fails_ends_alone(standing: Terminal) -> None:
    """What a flood calls is killed in mid-chain: that part has failed, the next one begins at its instant, and the run does not pass."""
    flood = {"MailboxFlood": {"per_second": 50, "actors": 1}, "for": "5s", "phase": "flood", "tolerance": "100%"}
    plan = {"sequence": [flood, {**LOCK, "for": "4s", "phase": "lock"}], "on_failure": "continue"}
    made = {"version": 1, "limits": {"stale": "20s"}, "name": "chain", "targets": {"names": ["n1"]}, "plan": plan}
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    command.await_text("run is running", 90)
    os.kill(until(lambda: called_by("0.0.MailboxFlood@n1"), 5, "the flood's actor")[0], signal.SIGKILL)
    ended = command.wait(60)
    assert ended.code == 5, str(ended)
    assert any("0.0.MailboxFlood@n1 has failed" in one["reason"] for one in ended.document["reasons"]), ended.document["reasons"]
    run = load(Path(ended.document["run_dir"]))
    assert [one["severity"] for one in run.events.to_pylist() if one["kind"] == "part_failed"] == ["warning"]
    rows = [row for row in run.metrics.to_pylist() if row["metric"] == "load.operations" and row["sum"]]
    begun = {phase: min(row["time"] for row in rows if row["phase"] == phase) for phase in ("flood", "lock")}
    assert timedelta(seconds=4) <= begun["lock"] - begun["flood"] <= timedelta(seconds=6)
    assert sum(row["sum"] for row in rows if row["phase"] == "lock") > 40
    assert [node["clean"] for node in ended.document["nodes"]] == [True]
    assert marked() == []


def called_by(operation: str) -> list[int]:
    """Return the processes that Ray started for an operation, by the mark in their environment."""
    mark = mark_of(operation, 0, 0).partition("-")[0].encode()
    return [pid for pid in marked() if mark in Path(f"/proc/{pid}/environ").read_bytes()]
