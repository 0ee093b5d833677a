"""An aggregator in a process of its own that rolls old windows up without end, killed with SIGKILL at seeded moments; a reader watches."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import IO

from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.parts import part_files, present_parts
from cluster.metrics.store import read_run
from tests.support.killing import killed
from tests.support.windows import START_S, record

KILLS = 12
RECORDS = 4000

CHILD = """
import sys
from pathlib import Path
from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.retention import Retention
from tests.support.windows import START_S, record

aggregator = Aggregator("run", Path(sys.argv[1]), SystemClock(), settle_bytes=20_000)
at = aggregator.push("n1", "a", [])
print("ready", flush=True)
while at < int(sys.argv[2]):
    at = aggregator.push("n1", "a", [record("n1", number, events=1) for number in range(at + 1, at + 31)])
    print(at, flush=True)
    newest_us = (START_S + at) * 1_000_000
    aggregator.roll(Retention(120.0, 120.0).target(newest_us, (float(START_S),)))
"""


def live_and_be_killed(directory: Path, chance: random.Random) -> int:
    """Run a child that pushes and rolls up, read its files while it lives, kill it; return the last record that it acknowledged."""

    def watch(said: IO[str]) -> int:
        acknowledged = 0
        for _ in range(chance.randint(1, 4)):
            acknowledged = int(said.readline() or acknowledged)
            check(directory, acknowledged)
        return acknowledged

    return killed(CHILD, directory, RECORDS, after_s=chance.uniform(0.0, 0.1), watch=watch)


def check(directory: Path, acknowledged: int) -> Counter[float]:
    """Assert that every record is there once, in a window of some length, and return how many windows of each length there are."""
    metrics = read_run(directory).metrics
    rows = [row for row in metrics.to_pylist() if row["metric"] == "probe.requests"]
    held = sum(row["count"] for row in rows)
    assert held >= acknowledged, "what was acknowledged is lost"
    assert sum(row["sum"] for row in rows) == held * (held + 1) / 2, "a record is lost or doubled"
    spans = sorted((row["time"].timestamp(), row["window_s"]) for row in rows)
    assert all(start_s + length_s <= after_s for (start_s, length_s), (after_s, _) in itertools.pairwise(spans))
    for start_s, length_s in spans:
        assert length_s == 1.0 or start_s % length_s == 0
    return Counter(length_s for _, length_s in spans)


def test_a_pass_that_is_killed_loses_and_doubles_no_window(tmp_path: Path) -> None:
    """While it lives, and after each of several SIGKILLs, each acknowledged record is in exactly one window; the next life goes on."""
    chance = random.Random(7)
    acknowledged = 0
    lengths: Counter[float] = Counter()
    for _ in range(KILLS):
        acknowledged = max(acknowledged, live_and_be_killed(tmp_path / "run", chance))
        lengths = check(tmp_path / "run", acknowledged)
    assert lengths.keys() == {1.0, 10.0, 60.0}, "too few records: nothing was rolled up"
    aggregator = Aggregator("run", tmp_path / "run", SystemClock())
    held = aggregator.push("n1", "a", [])
    assert aggregator.push("n1", "a", [record("n1", held + 1)]) == held + 1
    aggregator.finish({"status": "passed"})
    assert aggregator.evaluate("probe.requests", "sum") == (held + 1) * (held + 2) / 2
    assert aggregator.evaluate("probe.response", "count", between=(START_S, START_S + 10.0**6)) == held + 1
    assert present_parts(aggregator.directory) == part_files(aggregator.directory)
    aggregator.close()
