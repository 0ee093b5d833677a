"""An aggregator in a process of its own, killed with SIGKILL at seeded moments: what it acknowledged is there, once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import read_run
from tests.support.killing import last_words
from tests.support.windows import START_S, end, record

RECORDS = 120
KILLS = 8

CHILD = """
import json, sys
from pathlib import Path
from actors.clock import SystemClock
from cluster.metrics.aggregator import Aggregator
from tests.death.test_aggregator_kill import answers
from tests.support.windows import record

directory, records, settle_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
aggregator = Aggregator("run", directory, SystemClock(), settle_bytes=settle_bytes)
print("ready", flush=True)
at = aggregator.push("n1", "a", [])
while at < records:
    at = aggregator.push("n1", "a", [record("n1", number, events=2) for number in range(max(1, at - 1), min(at + 4, records + 1))])
    print(json.dumps([at, answers(aggregator, at)]), flush=True)
    if at % 20 < 4:
        aggregator.finish({"status": "passed"}, {"status": "passed"})
"""


def answers(aggregator: Aggregator, last: int) -> list[float | None]:
    """Return figures over the windows up to a record: a total, a rate, extremes, a mean, quantiles."""
    asked = {
        "probe.requests": ("count", "sum", "rate", "last"),
        "probe.response": ("count", "mean", "min", "max", "p50", "p99"),
        "host.cpu.busy": ("mean", "max", "p90"),
    }
    between = (float(START_S), START_S + last + 0.5)
    return [aggregator.evaluate(metric, stat, between=between) for metric, stats in asked.items() for stat in stats]


@pytest.mark.parametrize("settle_bytes", [20_000, 1 << 30], ids=["settles-often", "settles-at-the-end"])
def test_what_a_killed_aggregator_acknowledged_is_there_once(tmp_path: Path, settle_bytes: int) -> None:
    """After each of several SIGKILLs every acknowledged record is read once with its events, and answers are what they were before.

    Each push is synced before it is acknowledged: that is the sync interval, so nothing of what was acknowledged may be lost.
    """
    seed = settle_bytes
    chance = random.Random(seed)
    acknowledged = 0
    for _ in range(KILLS):
        said = [json.loads(line) for line in last_words(CHILD, tmp_path / "run", RECORDS, settle_bytes, after_s=chance.uniform(0.0, 0.12))]
        last, before = said[-1] if said else (0, [])
        acknowledged = max(acknowledged, last)
        contents = read_run(tmp_path / "run")
        numbers = [int(row["sum"]) for row in contents.metrics.to_pylist() if row["metric"] == "probe.requests"]
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), f"lost or doubled, seed {seed}"
        assert len(numbers) >= acknowledged, f"acknowledged {acknowledged}, seed {seed}"
        messages = contents.events["message"].to_pylist()
        assert sorted(messages) == sorted(f"n1/{number}.{at}" for number in numbers for at in range(2)), f"seed {seed}"
        successor = Aggregator("run", tmp_path / "run", SystemClock())
        assert not last or answers(successor, last) == before, f"seed {seed}"
        assert (successor.losses()["lost_records"], successor.losses()["damaged_files"]) == (0, [])
        successor.close()
    assert acknowledged > 0, "no child lived long enough to acknowledge anything"
    aggregator = Aggregator("run", tmp_path / "run", SystemClock())
    held = aggregator.push("n1", "a", [])
    assert aggregator.push("n1", "a", [*(record("n1", at) for at in range(held + 1, RECORDS + 1)), end(RECORDS + 1)]) == RECORDS + 1
    aggregator.finish({"status": "passed"})
    assert aggregator.evaluate("probe.requests", "sum") == sum(range(1, RECORDS + 1))
    aggregator.close()
