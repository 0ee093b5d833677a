"""Loads in limited control groups of their own, by command on two nodes at once; and a node where no such group can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import documents
from support.by_command import NODES, Runs
from support.terminal import Terminal
from support.waiting import until

from actors import memory_group
from cluster.analysis import load

MIB = documents.MIB
LOADS: list[dict[str, Any]] = [
    {"MemoryStall": {"fraction": "10%"}, "phase": "waits"},
    {"VmPressure": {"per_second": 100, "file": "1MiB", "limited": True}, "phase": "faults"},
]
RUNS = Runs(LOADS)
LIMITS = [64 * MIB, 64 * MIB, 65 * MIB, 65 * MIB]  # of each load, on each node
PLAN = {"together": [{**one, "for": "8s"} for one in LOADS]}
SCENARIO = {"version": 1, "name": "limited", "targets": {"names": list(NODES)}, "profile": "aggressive", "plan": PLAN}


def limits(pids: list[int]) -> list[int]:
    """Return the limit of memory that the nearest group has, of each process that has one of less than 1 GiB, in order (cgroups(7))."""
    found = []
    for pid in pids:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, names, path = line.split(":", 2)
            roots = ["/sys/fs/cgroup/memory"] if "memory" in names.split(",") else ["/sys/fs/cgroup"] if number == "0" else []
            for file in (Path(f"{root}{path}/{name}") for root in roots for name in ("memory.max", "memory.limit_in_bytes")):
                found += [int(file.read_text())] if file.exists() and file.read_text().strip().isdigit() else []
    return sorted(one for one in found if one < 1 << 30)


def test_waiting_and_faults_in_limited_groups_on_two_nodes(standing: Terminal) -> None:
    """Each load is in a group with its own limit, records what is documented, and has its dose or is told to lack it; no group is left.

    Where no group of memory can be made, the run is refused before any load, with the reason and what would allow it.
    """
    command = standing.start("run", documents.write(standing.folder, SCENARIO), "--yes", "--json")
    if memory_group.find() is None:
        refused = command.wait(90)
        assert (refused.code, refused.document["error"]["code"]) == (6, "capability"), str(refused)
        assert memory_group.NO_GROUP in str(refused)
        pytest.skip(f"unsupported here, and said so: {memory_group.NO_GROUP}")
    until(lambda: limits(standing.loads()) == LIMITS, 60, lambda: f"{limits(standing.loads())}; it said {command.text()}")
    ended = command.wait(90)
    assert ended.code in {0, 5}, str(ended)
    run = load(Path(ended.document["run_dir"]))
    RUNS.assert_recorded(run)
    assert run.summary is not None
    doses = run.summary["dose"]
    assert {(one["node"], round(one["requested"], 6)) for one in doses} == {
        (node, asked) for node in ("n1", "n2") for asked in (0.1, 100.0)
    }
    assert (ended.code == 0) == all(one["reached"] for one in doses), doses
    for one in doses:  # where others of this machine take the processor, less may be there, but it is told
        assert not one["reached"] or one["achieved"] == pytest.approx(one["requested"], rel=0.5), one
        assert one["reached"] or "windows" in one["reason"], one
        assert one["achieved"] > 0.2 * one["requested"], one
    assert standing.loads() == []
    assert [node["clean"] for node in ended.document["nodes"]] == [True, True]
