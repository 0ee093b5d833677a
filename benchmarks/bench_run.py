"""What does a run of `burst` on an embedded Ray add to its scenario and to Ray's own start? Several runs, one after the other.

Run: python benchmarks/bench_run.py. Goal: at most 10 s in the median run. What it is made of: docs/decisions/0008.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import at_most, store

RUNS = 5
ADDED_S = 10.0
ROOT = Path(__file__).parents[1]


def added_s(folder: Path) -> tuple[float, float]:
    """Run once; return what it added and what Ray's start took, in seconds. Raises `RuntimeError` when the run does not pass."""
    begun = time.monotonic()
    argv = [sys.executable, "-m", "cluster.cli", "run", "burst", "--nodes", "3", "--out", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    took = time.monotonic() - begun
    started = re.search(r"Ray is up after ([\d.]+) s", done.stderr + done.stdout)
    if done.returncode or started is None:
        raise RuntimeError(f"code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    plan = json.loads((max(folder.iterdir()) / "plan.json").read_text())
    ray_s = float(started[1])
    return took - plan["duration_s"] - ray_s, ray_s


def main() -> int:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as out:
        seen = [added_s(Path(out)) for _ in range(count)]
    added, ray = ([round(one[at], 2) for one in seen] for at in (0, 1))
    figures = {"runs": count, "added_s": added, "ray_start_s": ray, "added_median_s": statistics.median(added)}
    return store("run", figures, {}, ("ray",), reported={"added, median, s": at_most(ADDED_S, statistics.median(added))})


if __name__ == "__main__":
    raise SystemExit(main())
