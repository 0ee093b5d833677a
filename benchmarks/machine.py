"""What a figure was measured on, and where it is stored."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def facts(*packages: str) -> dict[str, Any]:
    """Return processor, cores, load, kernel and versions: a figure without them says nothing."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def at_commit() -> str:
    """Return the commit that was measured, with a mark where the tree had changes of its own beside stored results."""
    git = ["git", "-C", str(RESULTS.parent)]
    name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    status = subprocess.run([*git, "status", "--porcelain", "--", ":/", ":!results"], capture_output=True, text=True, check=False)
    return f"{name or 'unknown'}{' with changes' if status.stdout.strip() else ''}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


Goal = tuple[float, bool]  # limit, reached
Seen = tuple[float, float, bool]  # goal, found, reached


def at_most(goal: float, found: float) -> Seen:
    """Return an absolute goal that is met from above, and what was found."""
    return goal, found, found <= goal


def at_least(goal: float, found: float) -> Seen:
    """Return an absolute goal that is met from below, and what was found."""
    return goal, found, found >= goal


def store(
    name: str,
    figures: dict[str, Any],
    goals: dict[str, Goal],
    packages: tuple[str, ...] = (),
    *,
    reported: dict[str, Seen] | None = None,
) -> int:
    """Print and store figures as results/<name>.json; return 1 when a goal was missed, else 0.

    What is only `reported` is an absolute figure: whether it is reached hangs on the machine and on what else runs there, so it decides
    nothing.
    """
    document = {
        "benchmark": name,
        "machine": facts(*packages),
        "figures": figures,
        "goals": {goal: {"limit": limit, "reached": reached} for goal, (limit, reached) in goals.items()},
    }
    if reported:
        document["reported"] = {one: {"goal": goal, "found": found, "reached": reached} for one, (goal, found, reached) in reported.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    json.dump(document, sys.stdout, indent=2)
    print()
    return 0 if all(reached for _, reached in goals.values()) else 1
