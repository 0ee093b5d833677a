"""StressNg by the command line on two nodes at once: its dose as an outsider counts it, what it records, and nothing left."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support import documents, samples
from support.by_command import NODES, Runs
from support.observe import boot_s
from support.terminal import Terminal
from support.waiting import never, until

from cluster.analysis import load

LOADS: list[dict[str, Any]] = [
    {"StressNg": {"fraction": "10%", "stressor": "cpu"}, "for": "7s", "phase": "share"},
    {"StressNg": {"count": 1, "stressor": "nanosleep", "cores": 0.5}, "for": "7s", "phase": "instances"},
]
RUNS = Runs(LOADS)


@pytest.mark.skipif(not shutil.which("stress-ng"), reason="stress-ng is not installed on this machine")
def test_stress_ng_loads_two_nodes(standing: Terminal) -> None:
    """Both forms reach their dose on each node, processes of stress-ng work below their loads meanwhile, and none is left."""
    made = {
        "version": 1,
        "name": "stressors",
        "limits": {"stale": "20s"},
        "targets": {"names": list(NODES)},
        "profile": "aggressive",
        "plan": {"together": [{**one, "tolerance": "100%"} if one["phase"] == "share" else one for one in LOADS]},
    }
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    command.await_text("run is running", 90)
    begun_s, before = boot_s(), {pid: samples.workers_of(pid) for pid in standing.loads()}
    assert len(before) == len(LOADS) * len(NODES)
    never(lambda: False, 3.0)
    used = {pid: (samples.workers_of(pid) - then_s) / (boot_s() - begun_s) for pid, then_s in before.items()}
    ended = command.wait(90)
    assert ended.code == 0, str(ended)
    assert sum(cores > 0.05 for cores in used.values()) >= len(NODES), used
    run = load(Path(ended.document["run_dir"]))
    assert {(one["node"], one["unit"], one["reached"]) for one in (run.summary or {})["dose"]} == {
        (node, unit, True) for node in NODES for unit in ("fraction", "count")
    }
    RUNS.assert_recorded(run)
    until(lambda: not [one for one in standing.belonging() if "stress-ng" in one.command.partition(" ")[0]], 5, "no stress-ng is left")
    assert standing.loads() == []
