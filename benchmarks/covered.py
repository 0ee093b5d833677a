"""Line and branch coverage of concurrency, Ray loads and exhaustion by the tests that concern them, with their load processes.

    covered.py           run the tests under measurement, store results/coverage.json; 1 below the goal
    covered.py --told    only tell what the last measurement in build/coverage says

Whoever starts a Python process under measurement has it measured too (`patch` in pyproject.toml), and what ends by `os._exit` keeps its
data; what is killed does not. Tests of promised times take no part, since a load under measurement is slow, and none on Ray: what runs
in Ray's processes is run by these tests in their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import at_commit, store
from regions import measured

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/coverage"
GOAL = 90.0  # percent, of lines and of branches
PACKAGES = ("actors/concurrency", "actors/ray_loads", "actors/exhaustion")
TESTS = (
    "tests/unit/test_cascade.py",
    "tests/unit/test_cluster_lock.py",
    "tests/unit/test_contest_parts.py",
    "tests/unit/test_contests.py",
    "tests/unit/test_disk_fill.py",
    "tests/unit/test_exhaustion_disk_io.py",
    "tests/unit/test_exhaustion_refusals.py",
    "tests/unit/test_flood_parts.py",
    "tests/unit/test_flow.py",
    "tests/unit/test_holder.py",
    "tests/unit/test_locks.py",
    "tests/unit/test_ray_load.py",
    "tests/unit/test_links.py",
    "tests/unit/test_object_store.py",
    "tests/property/test_cascade_properties.py",
    "tests/property/test_mesh_model.py",
    "tests/property/test_holder_properties.py",
    "tests/property/test_wait_graph_properties.py",
    "tests/load/test_contests_here.py",
    "tests/load/test_exhaustion.py::test_it_holds_what_is_asked_until_it_is_stopped",
    "tests/load/test_exhaustion.py::test_a_limit_is_told_as_partial",
    "tests/load/test_exhaustion.py::test_ports_are_used_up_inside_and_free_outside",
    "tests/load/test_exhaustion.py::test_semaphores_are_used_up_inside_and_free_outside",
    "tests/load/test_disk_io.py::test_the_file_has_no_name_and_ends_with_the_load",
)


def measure() -> int:
    """Run the tests under measurement; return their exit code."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    coverage = [sys.executable, "-m", "coverage"]
    code = subprocess.run([*coverage, "run", "-m", "pytest", "-q", "-rfEs", *TESTS], cwd=ROOT, check=False).returncode
    subprocess.run([*coverage, "combine", "-q"], cwd=ROOT, check=True)
    subprocess.run([*coverage, "json", "-q", "-o", str(FOLDER / "report.json")], cwd=ROOT, check=True)
    return code


def figures_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the percent of lines and branches of each package and file, which lines were not run, and the pieces it was measured on."""
    found: dict[str, dict[str, Any]] = {}
    for package in PACKAGES:
        files = {name: one for name, one in report["files"].items() if name.startswith(f"{package}/")}
        found[package] = {
            **_percent([one["summary"] for one in files.values()]),
            "files": {
                name: {
                    **_percent([one["summary"]]),
                    "lines_not_run": one["missing_lines"],
                    "regions": measured((ROOT / name).read_text(), one),
                }
                for name, one in sorted(files.items())
                if one["summary"]["num_statements"]
            },
        }
    return found


def _percent(summaries: list[dict[str, Any]]) -> dict[str, float]:
    def share(part: str, whole: str) -> float:
        most = sum(one[whole] for one in summaries)
        return round(100.0 * sum(one[part] for one in summaries) / most, 2) if most else 100.0

    return {"lines": share("covered_lines", "num_statements"), "branches": share("covered_branches", "num_branches")}


def main(arguments: list[str]) -> int:
    """Measure and store, or only tell."""
    begun_s = time.monotonic()
    code = 0 if arguments == ["--told"] else measure()
    figures = figures_of(json.loads((FOLDER / "report.json").read_text()))
    for package, one in figures.items():
        print(f"{package}: {one['lines']} % of lines, {one['branches']} % of branches", file=sys.stderr)
    if arguments == ["--told"]:
        return 0
    if code:
        print("tests failed: nothing is stored", file=sys.stderr)
        return code
    goals = {f"{package} {what}": (GOAL, one[what] >= GOAL) for package, one in figures.items() for what in ("lines", "branches")}
    facts = {"commit": at_commit(), "as_root": os.geteuid() == 0, "seconds": round(time.monotonic() - begun_s), "tests": TESTS}
    return store("coverage", {**facts, "packages": figures}, goals, ("coverage", "pytest"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
