"""A recording process killed with SIGKILL: what it had drained is read by its agent, and nothing is torn."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from actors.clock import SystemClock
from actors.metrics import Segment
from actors.metrics.histogram import decode
from actors.metrics.policy import Mode, RecordingPolicy
from actors.metrics.ring import Consumer, Ring
from cluster.metrics.raw_samples import SampleReader
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal, unseal_samples
from cluster.outbox import Kind, Outbox, parse

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


NUMBERED = """
import sys
from actors.metrics import Recorder, Segment

recorder = Recorder(Segment.open(sys.argv[1]))
slices, given = recorder.histogram("load.slice"), 0
while True:
    for at in range(int(sys.argv[2])):
        slices.record(float(given + at))
    recorder.tick()
    given += int(sys.argv[2])
    print(given, flush=True)
"""


@pytest.mark.parametrize("round_", range(4))
def test_whole_samples_of_a_killed_load_are_read(tmp_path: Path, round_: int) -> None:
    """In detailed mode: in order, each once, none torn; what the load pushed past a slow agent is counted: given away = read + dropped."""
    segment, ring = Segment.create(), Ring.create(1 << 16, 3)
    segment.publish(RecordingPolicy(mode=Mode.DETAILED).to_json(), ring.path)
    stream = MetricStream("n1", "a", "r", Outbox(tmp_path / "r" / "b.box", node="n1", incarnation="a", run="r"), SystemClock())
    stream.attach(segment, "op", "", SampleReader(segment, Consumer(ring), "op", ""))
    child = subprocess.Popen([sys.executable, "-c", NUMBERED, segment.path, str(BATCH)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = []
    for _ in range(random.Random(round_).randint(1, 60)):
        told.append(int(child.stdout.readline()))
        stream.close_window(SystemClock().wall_ns())
    child.kill()
    told += [int(line) for line in child.stdout.read().split()]
    child.stdout.close()
    child.wait(10)
    stream.detach(segment)
    stream.finish()
    records = [parse(data) for _, data in stream.unacked(1 << 30)]
    batches = [unseal_samples(record.payload) for record in records if record.kind is Kind.SAMPLES]
    rows = [row for record in records if record.kind is Kind.WINDOW for row in unseal(record.payload)[0].to_pylist()]
    values = [value for batch in batches for value in batch["value"].to_pylist()]
    assert all(value == int(value) for value in values)
    assert all(before < after for before, after in pairwise(values))
    counted = {metric: sum(row["sum"] for row in rows if row["metric"] == metric) for metric in ("samples.produced", "samples.dropped")}
    assert counted["samples.produced"] == len(values) + counted["samples.dropped"]
    assert told[-1] <= counted["samples.produced"] <= told[-1] + BATCH
    assert values[0] == 0.0
    assert sum(row["count"] for row in rows if row["metric"] == "load.slice") >= len(values)
    assert [row["worker"] for row in rows if row["metric"] == "metrics.unflushed"] == ["op"]
