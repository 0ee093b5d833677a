"""All simulators of exhaustion by the command line on two nodes at once: what an outside observer counts in every tenth of a second."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401  # mapped once, and not in the first test that reads a run, which the check would tell of
import pytest
from support import documents, held
from support.by_command import NODES, Runs
from support.observe import allocated_bytes, anonymous_bytes, boot_s
from support.tasks_limit import NO_GROUP, let_no_more_begin, tasks_limited
from support.terminal import Terminal
from support.together import EVERY_S, Sample, assert_together
from support.waiting import until

from actors.capability import effective_capabilities
from actors.simulator import REGISTRY
from cluster.analysis import load

FOR_S, OVERLAP_S = 16.0, 10.0
MIB = documents.MIB
DISK = 200 * MIB
TOGETHER: dict[str, dict[str, Any]] = {
    "Descriptors": {"count": 200},
    "Mappings": {"count": 500, "form": "shared"},
    "Sockets": {"count": 100, "protocol": "udp"},
    "DiskFill": {"bytes": "200MiB", "reserve": "64MiB"},
}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A load that asks for more each time, and what of its process is lowered meanwhile, so that the kernel refuses it more.

    `count` is how an outsider sees that a process holds the first level, which no other does; `limit` the resource (None: tasks, by a
    control group) and `most` what of it the process may have from then on.
    """

    word: str
    levels: tuple[int, ...]
    count: Callable[[int], int]
    limit: int | None = None
    most: Callable[[int], int] = lambda _: 0
    options: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "count"

    @property
    def document(self) -> dict[str, Any]:
        return {self.unit: {"steps": {"levels": list(self.levels), "each": f"{EACH_S:g}s"}}, **self.options}


def of_descriptors(levels: tuple[int, ...], count: Callable[[int], int], **options: Any) -> Lowered:
    """Return a load whose process may open hardly a descriptor above those that it has open: fewer than its next step takes."""
    return Lowered("EMFILE", levels, count, resource.RLIMIT_NOFILE, lambda pid: held.highest_descriptor(pid) + 4, options)


def of_addresses(word: str, levels: tuple[int, ...], count: Callable[[int], int], unit: str = "count", **options: Any) -> Lowered:
    """Return a load whose process may map hardly more than it has mapped: less than its next step takes, and enough to go on."""
    return Lowered(word, levels, count, resource.RLIMIT_AS, lambda pid: held.mapped_bytes(pid) + 8 * MIB, options, unit)


EACH_S, STEPS = 2.0, 5
FEW = (40, 40, 60, 80, 100)  # at first for longer, so that it is seen to be held
LOWERED: dict[str, Lowered] = {
    "Descriptors": of_descriptors(FEW, lambda pid: held.links_to(pid, "/dev/null") - 2),
    "Sockets": of_descriptors(FEW, lambda pid: held.sockets(pid, "UDP"), protocol="udp"),
    "Connections": of_descriptors(FEW, held.established),
    "Inodes": of_descriptors(FEW, held.nameless),
    "SharedMemory": of_descriptors(FEW, held.segments),
    "Mappings": of_addresses("ENOMEM", FEW, lambda pid: held.maps_of(pid, "/dev/zero (deleted)"), form="shared", size="1MiB", spare=8),
    "Threads": of_addresses("EAGAIN", FEW, held.threads, stack="1MiB"),
    "MemoryPressure": of_addresses("ENOMEM", tuple(32 * MIB * step for step in (1, 1, 2, 3, 4)), anonymous_bytes, "bytes"),
    "Processes": Lowered("EAGAIN", (4, 4, 6, 8, 10), held.living),
}
BEYOND = {"steps": {"levels": [30, 30, 60, 60, 60], "each": f"{EACH_S:g}s"}}  # where there are 40 of them
SHORT: dict[str, tuple[str, dict[str, Any]]] = {  # there is less than they come to ask
    "Ports": ("EADDRNOTAVAIL", {"count": BEYOND, "ports": 40}),
    "Semaphores": ("ENOSPC", {"count": BEYOND, "sets": 40}),
    "DiskFill": ("ENOSPC", {"bytes": "4GiB"}),  # from its start, and its reserve leaves 256 MiB of the file system to both nodes
}
# what each holds at first; of the disk, which holds all that is asked in the other run, that is never so
FIRST: dict[str, int] = {**{kind: one.levels[0] for kind, one in LOWERED.items()}, "Ports": 30, "Semaphores": 30}
ROOM = 256 * MIB
REFUSED = {**{kind: one.word for kind, one in LOWERED.items()}, **{kind: word for kind, (word, _) in SHORT.items()}}
OTHERS: dict[str, dict[str, Any]] = {
    **{kind: one.document for kind, one in LOWERED.items()},
    **{kind: options for kind, (_, options) in SHORT.items()},
    "DiskIO": {"per_second": 1 << 20, "file": "8MiB"},
}
HELD = Runs(TOGETHER, never={kind: {"load.refused"} for kind in TOGETHER})
# which node's fill gets what there is of the disk is not certain; where tasks cannot be bounded, the test says so and is skipped
OF_OTHERS = Runs(OTHERS, maybe={"DiskFill": {"load.operations", "load.slice"}, "Processes": {"load.refused"}})
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


def counted_refusals(run: Any) -> dict[tuple[str, str], set[str]]:
    """Return by simulator and node of which error numbers a run's windows have counted refusals."""
    found = defaultdict(set)
    for row in run.metrics.select(["metric", "node", "worker", "labels", "count"]).to_pylist():
        if row["metric"] == "load.refused" and row["count"]:
            found[kind_of(row["worker"]), row["node"]].add(dict(row["labels"])["errno"])
    return found


def assert_first_level(story: Mapping[tuple[str, str], list[tuple[str, float]]]) -> None:
    """Assert that each load's moment of hold tells as many as were asked at first, as its node counted them: within 1, or 2 %."""
    for (kind, node), moments_told in story.items():
        if (asked := FIRST.get(kind)) is not None:
            told = dict(moments_told)
            assert abs(told["hold"] - asked) <= max(1, 0.02 * asked), (kind, node, told)


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
    them, begun_s, pause, samples = holders(pids), boot_s(), threading.Event(), list[Sample]()
    then_s = time.time()
    while not samples or samples[-1].at_s < OVERLAP_S:
        at_s, blocks = boot_s() - begun_s, [allocated_bytes(path) for path in standing.fills()]
        samples.append(Sample(at_s, {"disk": blocks, **{what: [COUNTED[what][0](pid) for pid in found] for what, found in them.items()}}))
        pause.wait(max(0.0, begun_s + EVERY_S * len(samples) - boot_s()))
    targets = {"disk": TARGETS["DiskFill"], **{what: target for what, (_, target) in COUNTED.items()}}
    assert_together(samples, targets, len(NODES), OVERLAP_S)
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


def at_first_level(pids: list[int]) -> dict[str, list[int]]:
    """Return by kind the processes that hold what a load which can be lowered asks first; nothing until there is one on each node."""
    found = {kind: [pid for pid in pids if one.count(pid) >= one.levels[0]] for kind, one in LOWERED.items()}
    return found if {len(two) for two in found.values()} == {len(NODES)} else {}


def lower(found: dict[str, list[int]], group: Path | None) -> None:
    """Lower for each of these processes what it may have."""
    for kind, one in LOWERED.items():
        for pid in found[kind] if one.limit is not None else []:
            most = one.most(pid)
            resource.prlimit(pid, one.limit, (most, most))
    if group is not None:
        let_no_more_begin(group, found["Processes"])


def test_a_partial_allocation_is_the_result_of_a_run(standing: Terminal) -> None:
    """All that can be used up, each refused more by the kernel on each node: inconclusive (5), with how many it got, and why.

    Of ports, semaphores and disk there is less than they come to ask; of the other loads' processes the limits fall while they ask for
    more. Each tells how many it held before that, and counts its refusals by the kernel's error number.
    """
    if "CAP_SYS_ADMIN" not in effective_capabilities(Path("/proc/self/status").read_text()):
        pytest.skip("namespaces of network and IPC need CAP_SYS_ADMIN")
    assert set(REFUSED) == {kind for kind, record in REGISTRY.items() if "load.refused" in record.metrics}
    disk = os.statvfs(standing.state)
    fill = {**OTHERS["DiskFill"], "reserve": disk.f_bavail * disk.f_frsize - ROOM}
    with tasks_limited() as group:
        command = standing.start("run", write(standing, {**OTHERS, "DiskFill": fill}, STEPS * EACH_S), "--yes", "--json")
        standing.await_load(2 * (len(OTHERS) - 1), 120)  # a disk fill has no process of its own
        lower(until(lambda: at_first_level(standing.loads()), 60, lambda: f"all at their first level; said {command.text()}"), group)
        ended = command.wait(120)
    assert ended.code == 5, str(ended)
    refused = {kind: word for kind, word in REFUSED.items() if group is not None or kind != "Processes"}
    run = load(Path(ended.document["run_dir"]))
    partial = {(kind_of(one["operation"]), one["node"]): one for one in (run.summary or {})["partial"]}
    assert {key: one["errno"] for key, one in partial.items()} == {(kind, node): word for kind, word in refused.items() for node in NODES}
    for (kind, _), one in partial.items():
        asked = LOWERED[kind].levels[2:] if kind in LOWERED else (4 << 30 if kind == "DiskFill" else 60,)
        assert one["requested"] in asked, one
        assert (0 if kind == "DiskFill" else 1) <= one["allocated"] < one["requested"], one
    assert {one["allocated"] for (kind, _), one in partial.items() if kind in {"Ports", "Semaphores"}} == {40}
    assert "partial" in run.events.column("kind").to_pylist()
    OF_OTHERS.assert_recorded(run)
    assert counted_refusals(run) == {(kind, node): {word} for kind, word in refused.items() for node in NODES}
    story = moments(run)
    whole = {kind: ["allocate", *(["hold"] if kind in FIRST else []), "release"] for kind in OTHERS if kind != "DiskIO"}
    assert {key: [moment for moment, _ in told] for key, told in story.items()} == {
        (kind, node): whole[kind] for kind in whole for node in NODES
    }
    assert_first_level(story)
    assert {one["release"] for one in (run.summary or {})["allocations"]} == {0}
    assert standing.loads() == []
    assert standing.fills() == []
    if group is None:
        pytest.skip(f"of processes no refusal is shown: {NO_GROUP}")
