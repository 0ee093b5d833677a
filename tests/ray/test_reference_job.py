"""`cluster.run` from Python: a value in, an outcome out, on a cluster that stands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.terminal import Terminal

SCRIPT = """
import sys
import cluster
from actors.shape import Constant
from scenarios import CpuLoad, DiskFill, MemoryPressure, Scenario, Threshold, hold, together

MIB = 1 << 20
scenario = Scenario(
    name="reference",
    hypotheses=(Threshold("host.memory.available", "min", ">=", 32 * MIB),),
    plan=together(
        hold(CpuLoad(0.05), for_s=5, tolerance=1.0),
        hold(MemoryPressure(bytes=Constant(32 * MIB)), for_s=5),
        hold(DiskFill(bytes=16 * MIB, reserve_bytes=64 * MIB), for_s=5),
    ),
)
outcome = cluster.run(scenario, out=sys.argv[1], settings={"lease_s": 20.0})
print(outcome.status, outcome.exit_code, outcome.run_dir, len(outcome.summary["dose"]))
raise SystemExit(outcome.exit_code)
"""


def test_cluster_run_from_python(standing: Terminal) -> None:
    """`cluster.run(scenario)` finds the cluster by RAY_ADDRESS, returns the outcome and leaves its run directory."""
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(standing.out)],
        env=standing.environ(),
        cwd=standing.folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.split() == ["passed", "0", str(standing.run_dir()), "9"]
    manifest = json.loads((standing.run_dir() / "manifest.json").read_text())
    assert manifest["status"] == "passed"
    assert manifest["scenario"]["name"] == "reference"
    assert not standing.loads()
    assert not standing.fills()


@pytest.mark.parametrize("option", ["nodes=1, address='auto'", "settings={'lease': 2}"])
def test_wrong_options_are_refused_before_anything_starts(standing: Terminal, option: str) -> None:
    """A setting that does not exist, or options that exclude each other, raise before a process starts."""
    script = SCRIPT.replace('out=sys.argv[1], settings={"lease_s": 20.0}', option)
    made = subprocess.run(
        [sys.executable, "-c", script],
        env=standing.environ(),
        cwd=standing.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "InputError" in made.stderr, made.stderr

    assert not list(standing.out.iterdir())
