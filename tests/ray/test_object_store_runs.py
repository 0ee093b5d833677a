"""Pressure on the object stores of two nodes by command, below and beyond their size, and what is left when what holds the objects dies."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raylets import OBJECT_STORE_BYTES, Raylets
from support import documents
from support.by_command import Runs
from support.leasing import Leasing, marked
from support.terminal import Terminal
from support.waiting import until
from test_floods import begin, creator

from actors.dose import OutsideMeter
from actors.lease import read_shortfall
from actors.messages import Operation
from actors.raylet import read_store
from cluster.analysis import load

MIB = 1 << 20
BEYOND_BYTES = 128 * MIB  # the store has 76
OPTIONS = {"spill": True, "reads_per_second": 4.0}
HOLD = Operation(
    "o@n1",
    "ObjectStorePressure",
    "n1",
    0.0,
    60.0,
    "bytes",
    {"kind": "constant", "level": BEYOND_BYTES},
    OPTIONS,
)


@pytest.fixture
def agent(driver: Raylets, tmp_path: Path) -> Iterator[Leasing]:
    with Leasing(tmp_path, creator(driver)) as made:
        yield made
    until(lambda: not marked(), 10, lambda: f"left behind: {marked()}")


def spill_files(raylets: Raylets) -> dict[str, int]:
    """Return the files of all spill folders of these raylets, with their sizes."""
    found = {}
    for path in raylets.folder.rglob("ray_spilled_objects_*/*"):
        try:
            found[path.name] = _payload(path.stat().st_size)
        except FileNotFoundError:
            continue
    return found


@functools.cache
def address_of(raylets: Raylets, name: str) -> tuple[str, int]:
    import ray

    node = next(node for node in ray.nodes() if node["NodeID"] == raylets.node_id(name))
    return node["NodeManagerAddress"], node["NodeManagerPort"]


def store_of(raylets: Raylets, name: str) -> tuple[int, int]:
    """Return the bytes of primary copies and of everything in a node's store, as its raylet counts them; asked by this process."""
    from ray._private.internal_api import node_stats

    stats = node_stats(*address_of(raylets, name), include_memory_info=False).store_stats
    return _payload(stats.object_store_bytes_primary_copy), _payload(stats.object_store_bytes_used)


def _payload(count: float) -> int:
    """Return bytes without the few that Ray adds to each object."""
    return int(count) // 1024 * 1024


def part(for_s: int, **more: Any) -> dict[str, Any]:
    return {"ObjectStorePressure": {"reads_per_second": 4, **more}, "for": f"{for_s}s"}


PLAN = {
    "sequence": [
        {"phase": "half", **part(5, fraction="50%")},
        {"pause": "1s"},
        {"phase": "beyond", **part(7, bytes="128MiB", spill=True), "targets": {"names": ["n1"]}, "tolerance": "100%"},
    ]
}
RUNS = Runs(PLAN, maybe={"ObjectStorePressure": {"store.restored", "store.spilled"}})


def test_stores_of_two_nodes_hold_what_is_asked_and_spill_only_when_told(standing: Terminal, raylets: Raylets) -> None:
    """Half of each store, then more than all of it on one: doses, latencies and spilled bytes are told; without a spill it is partial."""
    made = {"version": 1, "name": "store", "limits": {"stale": "20s"}, "targets": {"names": ["n1", "n2"]}, "plan": PLAN}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=200)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    assert run.summary is not None
    doses = {(one["operation"].partition(".Obj")[0], one["node"]): one for one in run.summary["dose"]}
    assert [one["reached"] for one in doses.values()] == [True] * 3, run.summary["dose"]
    assert doses["0.0", "n2"]["achieved"] == pytest.approx(0.5, abs=0.06)
    figures: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for row in run.metrics.to_pylist():
        if row["metric"].startswith("store."):
            seen = figures[row["phase"], row["node"]].setdefault(row["metric"], {"sum": 0.0, "max": 0.0, "count": 0})
            seen["sum"] += row["sum"] or 0.0
            seen["count"] += row["count"] or 0
            seen["max"] = max(seen["max"], row["max"] or 0.0)
    for node in ("n1", "n2"):
        half = figures["half", node]
        assert half["store.spilled"]["sum"] == half["store.files"]["max"] == 0
        assert 0.45 * OBJECT_STORE_BYTES < half["store.held"]["max"] < 0.55 * OBJECT_STORE_BYTES
        assert half["store.put"]["count"] == round(half["store.held"]["max"] / (8 * MIB))
        assert half["store.get"]["count"] > 8
    beyond = figures["beyond", "n1"]
    assert beyond["store.held"]["max"] == BEYOND_BYTES
    assert beyond["store.spilled"]["sum"] >= BEYOND_BYTES - OBJECT_STORE_BYTES
    assert beyond["store.files"]["max"] >= BEYOND_BYTES - OBJECT_STORE_BYTES
    assert beyond["store.used"]["max"] <= OBJECT_STORE_BYTES
    assert beyond["store.restored"]["sum"] > 0
    RUNS.assert_recorded(run)
    assert [node["clean"] for node in ended.document["nodes"]] == [True, True]
    assert spill_files(raylets) == {}
    assert marked() == []


def test_a_store_that_may_not_spill_is_left_room(agent: Leasing, driver: Raylets) -> None:
    """Asked for more than fits without a spill, what fits is held, nothing is spilled, and the rest is told; then nothing is held."""
    (one,) = begin(agent, replace(HOLD, options={"spill": False}))
    until(lambda: store_of(driver, "n1")[0] >= 7 * 8 * MIB, 20, lambda: f"{store_of(driver, 'n1')}")
    time.sleep(0.5)
    assert store_of(driver, "n1")[0] == 7 * 8 * MIB  # an eighth would pass four fifths of it
    assert spill_files(driver) == {}
    short = read_shortfall(agent.client.stats, one.ticket.slot, one.ticket.generation)
    assert short is not None
    assert (short.errno, short.requested, short.allocated) == ("ENOMEM", BEYOND_BYTES, 7 * 8 * MIB)
    assert one.call("stop", 1.0).phase == "done"
    until(lambda: store_of(driver, "n1")[0] == 0, 5, lambda: f"{store_of(driver, 'n1')}")


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_objects_and_their_files_end_with_what_holds_them(agent: Leasing, driver: Raylets, how: str) -> None:
    """The dose that a meter reads from outside is what this process sees of raylet and folder; afterwards neither has anything of it."""
    (one,) = begin(agent, HOLD)

    def held() -> int:
        return store_of(driver, "n1")[0] + sum(spill_files(driver).values())

    until(
        lambda: held() == BEYOND_BYTES and len(spill_files(driver)) > 0,
        20,
        lambda: f"{store_of(driver, 'n1')} {spill_files(driver)} {one.status()}",
        every_s=0.1,
    )
    meter = OutsideMeter(one.operation, one.status().pids)
    until(lambda: meter.read() == pytest.approx(BEYOND_BYTES, abs=1 << 14), 5, lambda: f"{meter.read()}")
    meter.close()
    store = read_store(one.raylet)
    assert store is not None
    assert (store.size_bytes, store.spill_folder is not None and store.spill_folder.is_dir()) == (OBJECT_STORE_BYTES, True)
    holder = one.status().pids[0]
    os.kill(holder, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    agent.let_go(one)
    until(
        lambda: store_of(driver, "n1") == (0, 0) and not spill_files(driver), 15, lambda: f"{store_of(driver, 'n1')} {spill_files(driver)}"
    )
    if how == "frozen":
        with contextlib.suppress(ProcessLookupError):  # the guardian has ended it
            os.kill(holder, signal.SIGKILL)
