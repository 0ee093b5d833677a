"""A recording process killed with SIGKILL: what it had drained is read by its agent, and nothing is torn."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from actors.clock import SystemClock
from actors.metrics import Segment
from actors.metrics.histogram import decode
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal
from cluster.outbox import Outbox, parse

ROOT = Path(__file__).parents[2]
BATCH = 500

CHILD = """
import sys
from actors.metrics import Recorder, Segment

recorder = Recorder(Segment.open(sys.argv[1]))
slices, operations = recorder.histogram("load.slice"), recorder.counter("load.operations")
drained = 0
while True:
    for at in range(int(sys.argv[2])):
        slices.record(at * 1e-4)
        operations.record(1)
    recorder.tick()
    drained += int(sys.argv[2])
    print(drained, flush=True)
"""


@pytest.mark.parametrize("round_", range(4))
def test_only_what_was_not_drained_is_lost(tmp_path: Path, round_: int) -> None:
    """The agent finds at least what was drained and at most one batch more, counts and buckets agree, and the loss is marked."""
    segment = Segment.create()
    stream = MetricStream("n1", "a", "r", Outbox(tmp_path / "r" / "b.box", node="n1", incarnation="a", run="r"), SystemClock())
    stream.attach(segment, "op", "")
    child = subprocess.Popen([sys.executable, "-c", CHILD, segment.path, str(BATCH)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(random.Random(round_).randint(1, 200))]
    stream.close_window(SystemClock().wall_ns())  # a window closes while the child records
    child.kill()
    told += [int(line) for line in child.stdout.read().split()]
    child.stdout.close()
    child.wait(10)
    stream.detach(segment)
    stream.finish()
    rows = [row for _, data in stream.unacked()[:-1] for row in unseal(parse(data).payload)[0].to_pylist()]
    slices = sum(row["count"] for row in rows if row["metric"] == "load.slice")
    digests = sum(decode(row["digest"]).count for row in rows if row["metric"] == "load.slice")
    operations = sum(row["sum"] for row in rows if row["metric"] == "load.operations")
    assert told[-1] <= slices == digests <= told[-1] + BATCH, f"round {round_}"
    assert told[-1] <= operations <= told[-1] + BATCH
    assert [row["worker"] for row in rows if row["metric"] == "metrics.unflushed"] == ["op"]
