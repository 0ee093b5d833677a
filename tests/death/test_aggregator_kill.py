"""An aggregator in a process of its own, killed with SIGKILL at seeded moments: what it acknowledged is there, once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import read_run
from tests.support.killing import killed
from tests.support.windows import end, record

RECORDS = 120
KILLS = 8

CHILD = """
import sys
from pathlib import Path
from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from tests.support.windows import record

directory, records, settle_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
aggregator = Aggregator("run", directory, SystemClock(), settle_bytes=settle_bytes)
print("ready", flush=True)
at = aggregator.push("n1", "a", [])
while at < records:
    at = aggregator.push("n1", "a", [record("n1", number, events=2) for number in range(max(1, at - 1), min(at + 4, records + 1))])
    print(at, flush=True)
    if at % 20 < 4:
        aggregator.finish({"status": "passed"}, {"status": "passed"})
"""


@pytest.mark.parametrize("settle_bytes", [20_000, 1 << 30], ids=["settles-often", "settles-at-the-end"])
def test_what_a_killed_aggregator_acknowledged_is_there_once(tmp_path: Path, settle_bytes: int) -> None:
    """After each of several SIGKILLs every acknowledged record is read once with its events, and the next life goes on."""
    seed = settle_bytes
    chance = random.Random(seed)
    acknowledged = 0
    for _ in range(KILLS):
        after_s = chance.uniform(0.0, 0.12)
        acknowledged = max(acknowledged, killed(CHILD, tmp_path / "run", RECORDS, settle_bytes, after_s=after_s))
        contents = read_run(tmp_path / "run")
        numbers = [int(row["sum"]) for row in contents.metrics.to_pylist() if row["metric"] == "probe.requests"]
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), f"lost or doubled, seed {seed}"
        assert len(numbers) >= acknowledged, f"acknowledged {acknowledged}, seed {seed}"
        messages = contents.events["message"].to_pylist()
        assert sorted(messages) == sorted(f"n1/{number}.{at}" for number in numbers for at in range(2)), f"seed {seed}"
    assert acknowledged > 0, "no child lived long enough to acknowledge anything"
    aggregator = Aggregator("run", tmp_path / "run", SystemClock())
    held = aggregator.push("n1", "a", [])
    assert aggregator.push("n1", "a", [*(record("n1", at) for at in range(held + 1, RECORDS + 1)), end(RECORDS + 1)]) == RECORDS + 1
    aggregator.finish({"status": "passed"})
    assert aggregator.evaluate("probe.requests", "sum") == sum(range(1, RECORDS + 1))
    aggregator.close()
