"""All simulators of exhaustion by the command line on two nodes at once: what an outside observer counts in every tenth of a second."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401  # mapped once, and not in the first test that reads a run, which the check would tell of
import pytest
from support import documents, held
from support.by_command import NODES, Runs
from support.observe import allocated_bytes, boot_s
from support.terminal import Terminal
from support.waiting import until

from actors.capability import effective_capabilities
from actors.simulator import REGISTRY
from cluster.analysis import load

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
    "Semaphores": {"count": 60, "sets": 40},
    "DiskIO": {"per_second": 1 << 20, "file": "8MiB"},
    "MemoryPressure": {"bytes": "64MiB"},
}
HELD = Runs(TOGETHER, never={kind: {"load.refused"} for kind in TOGETHER})
SHORT = {"Ports": "EADDRNOTAVAIL", "Semaphores": "ENOSPC"}  # they ask for 60 where there are 40
OF_OTHERS = Runs(OTHERS, never={kind: {"load.refused"} for kind in OTHERS if kind not in SHORT})
RUNS = (HELD, OF_OTHERS)


def write(standing: Terminal, loads: dict[str, dict[str, Any]], for_s: float) -> str:
    """Write a scenario that holds loads together on both nodes, and return its path."""
    parts = [{kind: options, "for": f"{for_s:g}s"} for kind, options in loads.items()]
    parts = [{**part, "tolerance": "100%"} if "DiskIO" in part else part for part in parts]  # how busy the disk is, others say too
    made = {"version": 1, "name": "exhaust", "targets": {"names": list(NODES)}, "profile": "aggressive", "plan": {"together": parts}}
    return documents.write(standing.folder, made)


def kind_of(operation: str) -> str:
    return operation.partition("@")[0].rpartition(".")[2]


def moments(run: Any) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """Return what was told of each simulator on each node when it began, held, and had ended, with what was counted then."""
    found = defaultdict(list)
    events = run.events.select(["time", "kind", "node", "worker", "data"]).to_pylist()
    for event in sorted(events, key=lambda one: one["time"]):
        if event["kind"] in {"allocate", "hold", "release"}:
            found[kind_of(event["worker"]), event["node"]].append((event["kind"], json.loads(event["data"])["counted"]))
    return found


def doses(run: Any, name: str, between: tuple[float, float]) -> dict[str, list[float]]:
    """Return a figure of each simulator's windows that begin in a time (s of UTC)."""
    found = defaultdict(list)
    for row in run.metrics.select(["metric", "worker", "time", "last"]).to_pylist():
        if row["metric"] == f"dose.{name}" and between[0] <= row["time"].timestamp() <= between[1]:
            found[kind_of(row["worker"])].append(row["last"])
    return found


COUNTED: dict[str, tuple[Any, range]] = {  # how an outsider counts it, and what is at target
    "descriptors": (lambda pid: held.links_to(pid, "/dev/null") - 2, range(198, 204)),  # beside standard input and output
    "maps": (lambda pid: held.maps_of(pid, "/dev/zero (deleted)"), range(495, 506)),
    "sockets": (lambda pid: held.sockets(pid, "UDP"), range(99, 102)),
}


TARGETS: dict[str, Any] = {  # by simulator, what counts as at target
    "Descriptors": range(198, 203),
    "Mappings": range(495, 506),
    "Sockets": range(99, 102),
    "DiskFill": range(round(0.99 * DISK), round(1.01 * DISK)),
}


def holders(pids: list[int]) -> dict[str, list[int]]:
    """Return which loads are at target, by what they hold."""
    return {what: [pid for pid in pids if count(pid) in target] for what, (count, target) in COUNTED.items()}


def filled(standing: Terminal) -> int:
    """Return how many files of disk fills have all of their blocks."""
    return sum(0.99 * DISK <= allocated_bytes(path) <= 1.01 * DISK for path in standing.fills())


def test_four_are_held_together_on_two_nodes(standing: Terminal) -> None:
    """In each sample of ten seconds all four counts are at target at once on both nodes; the result says so, and nothing is left.

    What the run recorded in those seconds is what was counted outside of it, and so is what its story tells of each of them.
    """
    command = standing.start("run", write(standing, TOGETHER, FOR_S), "--yes", "--json")
    standing.await_load(2 * (len(TOGETHER) - 1), 120)  # a disk fill has no process of its own
    pids = standing.loads()
    two_each = dict.fromkeys(COUNTED, 2)
    until(
        lambda: {what: len(found) for what, found in holders(pids).items()} == two_each and filled(standing) == 2,
        60,
        lambda: f"all at target; {holders(pids)}; said {command.text()}",
    )
    them, begun_s, pause, samples = holders(pids), boot_s(), threading.Event(), []
    then_s = time.time()
    while boot_s() - begun_s < OVERLAP_S:
        seen = {what: [COUNTED[what][0](pid) for pid in found] for what, found in them.items()}
        missed = {what: counts for what, counts in seen.items() if not all(count in COUNTED[what][1] for count in counts)}
        samples.append((missed, filled(standing)))
        pause.wait(max(0.0, begun_s + 0.1 * len(samples) - boot_s()))
    assert [sample for sample in samples if sample != ({}, 2)] == []
    assert len(samples) >= 50  # 100, where others leave this machine the time for it
    ended = command.wait(120)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    summary = run.summary or {}
    assert summary["partial"] == []
    assert summary["overlap"]["operations"] == 2 * len(TOGETHER)
    assert summary["overlap"]["for_s"] >= OVERLAP_S
    HELD.assert_recorded(run)
    between = (then_s, then_s + OVERLAP_S - 1.0)
    seen, missing = doses(run, "achieved", between), doses(run, "remaining", between)
    for kind, target in TARGETS.items():
        assert len(seen[kind]) == len(missing[kind]) >= 2 * 5
        assert all(round(value) in target for value in seen[kind]), (kind, seen[kind])
        assert max(missing[kind]) <= 0.01 * target.stop
    told = moments(run)
    assert told.keys() == {(kind, node) for kind in TOGETHER for node in NODES}
    for (kind, node), story in told.items():
        assert [moment for moment, _ in story] == ["allocate", "hold", "release"], (kind, node, story)
        assert round(story[1][1]) in TARGETS[kind]
        assert story[2][1] == 0
    allocations = {(kind_of(one["operation"]), one["node"]): one for one in summary["allocations"]}
    assert {key: (one["hold"], one["release"]) for key, one in allocations.items()} == {
        key: (story[1][1], story[2][1]) for key, story in told.items()
    }
    assert all(one["held_for_s"] >= OVERLAP_S and one["peak"] in TARGETS[kind] for (kind, _), one in allocations.items()), allocations
    assert standing.loads() == []
    assert standing.fills() == []


def test_a_partial_allocation_is_the_result_of_a_run(standing: Terminal) -> None:
    """A run that asks for more ports and semaphores than there are is inconclusive (5) and says how many it got, and why."""
    if "CAP_SYS_ADMIN" not in effective_capabilities(Path("/proc/self/status").read_text()):
        pytest.skip("namespaces of network and IPC need CAP_SYS_ADMIN")
    assert {*TOGETHER, *OTHERS} >= {kind for kind, record in REGISTRY.items() if record.family == "exhaustion"}
    ended = standing.run("run", write(standing, OTHERS, 6.0), "--yes", "--json", within_s=150)
    assert ended.code == 5, str(ended)
    run = load(Path(ended.document["run_dir"]))
    partial = [[one[key] for key in ("operation", "node", "errno", "requested", "allocated")] for one in (run.summary or {})["partial"]]
    found = sorted((kind_of(operation), *rest) for operation, *rest in partial)
    assert found == sorted((kind, node, word, 60, 40) for kind, word in SHORT.items() for node in NODES)
    assert "partial" in run.events.column("kind").to_pylist()
    OF_OTHERS.assert_recorded(run)
    story = {key: [moment for moment, _ in told] for key, told in moments(run).items()}
    whole = {kind: ["allocate", "release"] for kind in SHORT}  # they never held all that was asked
    assert story == {
        (kind, node): whole.get(kind, ["allocate", "hold", "release"]) for kind in OTHERS if kind != "DiskIO" for node in NODES
    }
    assert {one["release"] for one in (run.summary or {})["allocations"]} == {0}
    assert standing.loads() == []
