"""A run by command whose loads have lost their way to the metrics: what holds every run against its documented names finds it."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support import documents
from support.by_command import NODES, Runs, kind_of
from support.terminal import terminal

from cluster.analysis import load

LOADS: dict[str, dict[str, Any]] = {  # one of each way in which simulators record
    "CpuLoad": {"fraction": "5%"},
    "MemoryPressure": {"bytes": "32MiB"},
    "Threads": {"count": 10},
    "LockContention": {"count": 3},
    "DiskFill": {"bytes": "16MiB", "reserve": "64MiB"},
    "MailboxFlood": {"per_second": 50, "actors": 1},
    **({"StressNg": {"stressor": "cpu", "fraction": "5%"}} if shutil.which("stress-ng") else {}),
}
RECORD_NOTHING = """
from actors import meters
from actors.metrics.reporter import NullReporter
meters.open_reporter = lambda path, seed: (NullReporter(), True)
"""  # read by each Python process of the run as it starts: as if a load's recorder were connected to nothing


def test_a_run_whose_loads_are_not_wired_is_missed() -> None:
    """Each simulator's names are missed on each node, and are all that is missed: doses, seen from outside, are there as in any run."""
    with terminal() as here:
        site = here.folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(RECORD_NOTHING)
        here.settings["PYTHONPATH"] = f"{site}:{Path(__file__).parents[2]}"
        parts = [{kind: options, "for": "4s", "tolerance": "100%"} for kind, options in LOADS.items()]
        made = {"version": 1, "name": "unwired", "profile": "aggressive", "plan": {"together": parts}}
        ended = here.run("run", documents.write(here.folder, made), "--nodes", str(len(NODES)), "--json")
        assert ended.code == 0, str(ended)
        run = load(Path(ended.document["run_dir"]))
        found: dict[str, set[str]] = defaultdict(set)
        for row in run.metrics.select(["metric", "worker", "count"]).to_pylist():
            if row["count"]:
                found[kind_of(row["worker"])].add(row["metric"])
        for kind, options in LOADS.items():
            assert "dose.achieved" in found[kind]
            runs = Runs({kind: options}, never={kind: {"load.refused"}})
            with pytest.raises(AssertionError, match=kind) as missed:
                runs.assert_recorded(run)
            assert all(name in str(missed.value) for name in runs.recorded()[kind] - {"load.core.busy"}), kind
