"""The memory simulators by the command line on two nodes at once: their curves as agents read them of the kernel, and what they record."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import documents
from support.by_command import NODES, Runs, lives_of
from support.observe import Meter
from support.terminal import Terminal

from actors.limits import find_container
from cluster.analysis import load
from scenarios.units import SIZE_UNITS

MIB = documents.MIB
LASTS = "10s"
CURVES: dict[str, dict[str, Any]] = {
    "gradual": {"ramp": {"start": "16MiB", "end": "64MiB", "over": "8s"}},
    "burst": {"burst": {"base": "32MiB", "peak": "96MiB", "period": "6s", "length": "2s"}},
    "oscillating": {"sine": {"low": "32MiB", "high": "64MiB", "period": "6s"}},
}
STEPPED = {"steps": {"levels": ["32MiB", "64MiB", "48MiB"], "each": "3s"}}
PHASES = (*CURVES, "stepped")
JUMPS = 2  # readings that may fall into the moment of a jump, as the start is one
LOADS: list[dict[str, Any]] = [
    *({"MemoryPressure": {"bytes": curve}, "phase": name} for name, curve in CURVES.items()),
    {"MemoryFragment": {"bytes": STEPPED, "fragmentation": "95%"}, "phase": "stepped"},
    {"MemoryAccess": {"fraction": "10%", "working_set": "32MiB"}, "phase": "access", "tolerance": "100%"},
    {"VmPressure": {"per_second": 100, "file": "1MiB"}, "phase": "faults", "tolerance": "100%"},
]
RUNS = Runs(LOADS, never={"MemoryPressure": {"load.refused"}})
TOO_MUCH: tuple[Any, ...] = (
    "80%",
    {"ramp": {"start": "0%", "end": "80%", "over": "5s"}},
    {"burst": {"base": "10%", "peak": "80%", "period": "5s", "length": "1s"}},
    {"sine": {"low": "10%", "high": "80%", "period": "5s"}},
    {"steps": {"levels": ["10%", "80%"], "each": "2s"}},
    {"square": {"low": "10%", "high": "80%", "period": "5s"}},
    {"sawtooth": {"low": "10%", "high": "80%", "period": "4s"}},
    {"leak": {"start": "0%", "rate": "16%"}},
)


def test_memory_simulators_follow_their_curves_on_two_nodes(standing: Terminal) -> None:
    """Mean absolute error of a reading a second within 5 % of the target in every curve on each node, but for two in the moment of a jump;
    nothing is left held, the documented metrics alone are recorded, and each life of a pattern has a begin and an end."""
    plan = {"together": [{**one, "for": LASTS} for one in LOADS]}
    targets = {"names": ["n1", "n2"]}
    made = {"version": 1, "name": "memory", "targets": targets, "profile": "aggressive", "plan": plan}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=150)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    doses: dict[tuple[str, str], dict[str, dict[Any, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in run.metrics.select(["time", "metric", "node", "worker", "phase", "last"]).to_pylist():
        if row["metric"].startswith("dose.") and row["phase"] in PHASES:
            doses[row["node"], row["phase"]][row["metric"]][row["time"]] = row["last"]
    assert doses.keys() == {(node, phase) for node in ("n1", "n2") for phase in PHASES}
    errors = {}
    for key, seen in doses.items():
        asked, achieved = seen["dose.requested"], seen["dose.achieved"]
        both = asked.keys() & achieved.keys()
        assert len(both) >= 7, (key, len(both))
        off = sorted(abs(achieved[at] - asked[at]) for at in both)[:-JUMPS]
        errors[key] = sum(off) / len(off) / (sum(asked[at] for at in both) / len(both))
    assert {key: error for key, error in errors.items() if error > 0.05} == {}, errors
    RUNS.assert_recorded(run)
    lives = lives_of(run)
    assert lives["completed"] == Counter((node, *pattern(one)) for node in NODES for one in LOADS)
    assert_hosts(run)
    hashes = {row["last"] for row in run.metrics.to_pylist() if row["metric"] == "memory.sequence"}
    assert len(hashes) == 1, "the same order on both nodes"
    assert standing.loads() == []


def pattern(made: dict[str, Any]) -> tuple[str, str]:
    """Return simulator and shape of a load of a document."""
    kind, strengths = next(iter(made.items()))
    strength = next(iter(strengths.values()))
    return kind, next(iter(strength)) if isinstance(strength, Mapping) else "constant"


def size_bytes(words: str) -> float:
    """Return what a size for people says: 6.4 GiB, 4GiB."""
    return float(words[:-3]) * SIZE_UNITS[words[-3:]]


def assert_hosts(run: Any) -> None:
    """Assert what each node says of its host in each window: the limit is what may be used here, and the category is that of the share."""
    told: dict[tuple[str, Any], dict[str, float]] = defaultdict(dict)
    for row in run.metrics.select(["time", "metric", "node", "last"]).to_pylist():
        if row["metric"].startswith("host."):
            told[row["node"], row["time"]][row["metric"].removeprefix("host.")] = row["last"]
    for node in NODES:
        windows = [one for (name, _), one in told.items() if name == node]
        assert len(windows) >= 8
        for one in windows:
            assert one["memory.limit"] == find_container().memory_limit_bytes
            assert one["memory.used"] + one["memory.available"] == one["memory.limit"]
            assert one["memory.pressure"] == sum(one["memory.used"] >= bound * one["memory.limit"] for bound in (0.5, 0.7, 0.85))
            assert 0 < one["descriptors.used"] < 1 << 30


def test_more_than_the_limit_is_refused_before_anything_is_held(standing: Terminal) -> None:
    """A plan of all patterns that need no package at 80 %, where 50 % is the limit: a typed error with both figures, and never a load.

    Each pattern by itself: tests/unit/test_admission.py, and tests/load/test_memory_limits.py at the nodes.
    """
    plan = {"sequence": [{"MemoryPressure": {"fraction": curve}, "for": "5s"} for curve in TOO_MUCH]}
    made = {"version": 1, "name": "greedy", "targets": {"names": ["n1", "n2"]}, "limits": {"memory_fraction": "50%"}, "plan": plan}
    with Meter(standing.loads, 0.1) as meter:
        ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=90)
    assert ended.code == 6, str(ended)
    told = re.search(r"asks (.*) of memory on n[12], its limit is (.*) \(limits\.memory_fraction\)", ended.document["error"]["message"])
    assert told is not None, str(ended)
    asked, limit = (size_bytes(words) for words in told.groups())
    assert asked / limit == pytest.approx(0.8 / 0.5, abs=0.01)
    assert max((reading.memory_bytes for reading in meter.readings), default=0) == 0
