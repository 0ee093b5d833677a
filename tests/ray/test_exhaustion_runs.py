"""All simulators of exhaustion by the command line on two nodes at once: what an outside observer counts in every tenth of a second."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support import documents, held
from support.observe import allocated_bytes, boot_s
from support.terminal import Terminal
from support.waiting import until

from actors.capability import effective_capabilities
from actors.simulator import REGISTRY, record_of
from cluster.analysis import load

NODES = ["n1", "n2"]
FOR_S, OVERLAP_S = 16.0, 10.0
DISK = 200 * documents.MIB
TOGETHER: dict[str, dict[str, Any]] = {
    "Descriptors": {"count": 200},
    "Mappings": {"count": 500, "form": "shared"},
    "Sockets": {"count": 100, "protocol": "udp"},
    "DiskFill": {"bytes": "200MiB", "reserve": "64MiB"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "Ports": {"count": 60, "ports": 40},
    "Connections": {"count": 40},
    "Threads": {"count": 60},
    "Processes": {"count": 8},
    "Inodes": {"count": 80},
    "SharedMemory": {"count": 50},
    "DiskIO": {"per_second": 1 << 20, "file": "8MiB"},
}


def write(standing: Terminal, loads: dict[str, dict[str, Any]], for_s: float) -> str:
    """Write a scenario that holds loads together on both nodes, and return its path."""
    parts = [{kind: options, "for": f"{for_s:g}s"} for kind, options in loads.items()]
    parts = [{**part, "tolerance": "100%"} if "DiskIO" in part else part for part in parts]  # how busy the disk is, others say too
    made = {"version": 1, "name": "exhaust", "targets": {"names": NODES}, "profile": "aggressive", "plan": {"together": parts}}
    return documents.write(standing.folder, made)


def recorded(run: Any) -> dict[str, set[str]]:
    """Return the metrics that each simulator's loads recorded."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in run.metrics.select(["metric", "worker", "count"]).to_pylist():
        if row["metric"].startswith("load.") and row["count"]:
            found[row["worker"].partition("@")[0].rpartition(".")[2]].add(row["metric"])
    return found


def at_target(standing: Terminal, pids: list[int]) -> bool:
    """Tell whether descriptors, maps, sockets and disk are all held on both nodes now, by counts of the kernel."""
    nulls = [held.links_to(pid, "/dev/null") for pid in pids]
    zeros = [held.maps_of(pid, "/dev/zero (deleted)") for pid in pids]
    sockets = [held.sockets(pid, "UDP") for pid in pids]
    fills = [allocated_bytes(path) for path in standing.fills()]
    return (
        sum(198 <= count - 2 <= 203 for count in nulls) == 2  # beside standard input and output
        and sum(495 <= count <= 505 for count in zeros) == 2
        and sum(99 <= count <= 101 for count in sockets) == 2
        and sum(0.99 * DISK <= size <= 1.01 * DISK for size in fills) == 2
    )


def test_four_are_held_together_on_two_nodes(standing: Terminal) -> None:
    """In each sample of ten seconds all four counts are at target at once on both nodes; the result says so, and nothing is left."""
    command = standing.start("run", write(standing, TOGETHER, FOR_S), "--yes", "--json")
    standing.await_load(2 * (len(TOGETHER) - 1), 120)  # a disk fill has no process of its own
    pids = standing.loads()
    until(lambda: at_target(standing, pids), 60, lambda: f"all at target; said {command.text()}")
    begun_s, pause, samples = boot_s(), threading.Event(), []
    while boot_s() - begun_s < OVERLAP_S + 0.5:
        samples.append(at_target(standing, pids))
        pause.wait(0.1)
    assert len(samples) >= 20
    assert all(samples), samples
    ended = command.wait(120)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    summary = run.summary or {}
    assert summary["partial"] == []
    assert summary["overlap"]["operations"] == 2 * len(TOGETHER)
    assert summary["overlap"]["for_s"] >= OVERLAP_S
    assert recorded(run) == {kind: set(record_of(kind).metrics) - {"load.refused"} for kind in TOGETHER if kind != "DiskFill"}
    assert standing.loads() == []
    assert standing.fills() == []


def test_a_partial_allocation_is_the_result_of_a_run(standing: Terminal) -> None:
    """A run that asks for more ports than there are is inconclusive (5) and says how many of how many it got, and why; all else is had."""
    if "CAP_SYS_ADMIN" not in effective_capabilities(Path("/proc/self/status").read_text()):
        pytest.skip("a network namespace needs CAP_SYS_ADMIN")
    assert {*TOGETHER, *OTHERS} >= {kind for kind, record in REGISTRY.items() if record.family == "exhaustion"}
    ended = standing.run("run", write(standing, OTHERS, 6.0), "--yes", "--json", within_s=150)
    assert ended.code == 5, str(ended)
    run = load(Path(ended.document["run_dir"]))
    partial = {one["node"]: (one["errno"], one["requested"], one["allocated"]) for one in (run.summary or {})["partial"]}
    assert partial == dict.fromkeys(NODES, ("EADDRNOTAVAIL", 60, 40))
    assert "partial" in run.events.column("kind").to_pylist()
    unrefused = {kind: set() if kind == "Ports" else {"load.refused"} for kind in OTHERS}
    assert recorded(run) == {kind: set(record_of(kind).metrics) - unrefused[kind] for kind in OTHERS}
    assert standing.loads() == []
