"""Every shape of a memory load on two nodes at once, beside its formula: the kernel's figure of each load process, never the load's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from load_bench import Bench, Told
from support.memory_limit import memory_limited
from support.observe import anonymous_bytes, promised
from support.waiting import never, until

from actors import plugin_shapes
from actors.clock import SECOND_NS, SystemClock
from actors.memory import RECORD
from actors.messages import Capacity, Operation
from actors.shape import KINDS, Burst, Constant, Custom, Leak, Ramp, Sawtooth, Shape, Sine, Square, Steps

HERE = Path(__file__).parent
MIB = 1 << 20
LIMIT = 400 * MIB
CAPACITY = Capacity(cpu_cores=1.0, memory_bytes=1 << 30, disk_bytes=1 << 30)
LASTS_S = 6.0
STAIRS = """
def stairs(elapsed_s):
    return (48 - 8 * (elapsed_s % 3.0)) * 1048576.0
"""
SHAPES = (
    Constant(40 * MIB),
    Ramp(8 * MIB, 56 * MIB, 5.0),
    Burst(16 * MIB, 56 * MIB, 4.0, 2.0),
    Sine(16 * MIB, 48 * MIB, 4.0),
    Steps((16 * MIB, 32 * MIB, 48 * MIB), 2.0),
    Square(24 * MIB, 48 * MIB, 3.0),
    Sawtooth(16 * MIB, 48 * MIB, 3.0),
    Leak(16 * MIB, 4 * MIB),
    Custom("stairs", 48 * MIB),
)


@pytest.fixture
def stairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else's offers a falling sawtooth, to this process and to the loads."""
    info = tmp_path / "site" / "stairs-1.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "stairs_of_theirs.py").write_text(STAIRS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stairs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{plugin_shapes.GROUP}]\nstairs = stairs_of_theirs:stairs\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])))
    plugin_shapes.function_of.cache_clear()


def operation(shape: Shape, node: str) -> Operation:
    return Operation(f"0.MemoryPressure@{node}", "MemoryPressure", node, 0.0, LASTS_S, "bytes", shape.to_spec())


class Followed:
    """One load with what was seen of it: bytes above its baseline, and what its shape asked at that instant."""

    def __init__(self, state_dir: Path, shape: Shape, node: str) -> None:
        self.shape, self.bench = shape, Bench(state_dir, operation(shape, node), CAPACITY)
        self.seen: list[tuple[float, float]] = []

    def look(self) -> None:
        held = anonymous_bytes(self.bench.load.pids[0])
        elapsed_s = (SystemClock().boot_ns() - self.start_ns) / SECOND_NS
        if 0.1 < elapsed_s < LASTS_S - 0.1:
            self.seen.append((held - self.baseline, self.shape.value(elapsed_s)))

    def begin(self) -> None:
        self.baseline = anonymous_bytes(self.bench.load.pids[0])
        self.start_ns = self.bench.go()

    def misses(self) -> list[str]:
        """Return what is off by more than 5 % of the target's mean, or of its peak."""
        mean = sum(asked for _, asked in self.seen) / len(self.seen)
        error = sum(abs(held - asked) for held, asked in self.seen) / len(self.seen)
        peaks = [max(column) for column in zip(*self.seen, strict=True)]
        told = f"{type(self.shape).__name__}: mean error {error / mean:.1%}, peak {peaks[0] / peaks[1] - 1.0:+.1%}, {len(self.seen)} looks"
        print(told)
        return [told] if error > 0.05 * mean or abs(peaks[0] - peaks[1]) > 0.05 * peaks[1] else []


def test_every_shape_is_followed_below() -> None:
    """The list has each shape that a scenario can name."""
    assert {type(shape) for shape in SHAPES} == set(KINDS.values())


@pytest.mark.usefixtures("stairs")
def test_held_memory_follows_every_shape_on_two_nodes_at_once(tmp_path: Path) -> None:
    """Mean absolute error and peak within 5 % of the target, for a load on each of two nodes; once over, nothing is held within 5 s."""
    tries = iter(range(2))
    promised(lambda: follow_all(tmp_path / f"state-{next(tries)}"))()


def test_a_load_records_its_steps_and_nothing_else(tmp_path: Path) -> None:
    """The documented set; populated less given back is what the kernel says that it holds."""
    told = Told()
    one = Bench(tmp_path, operation(Steps((40 * MIB, 16 * MIB), 1.0), "n1"), CAPACITY, str(told.segment.path))
    try:
        one.ready()
        one.go()
        until(lambda: told.sum("memory.released") >= 24 * MIB, 5, "the second step")
        assert told.sum("memory.populated") - told.sum("memory.released") == pytest.approx(one.meter.read(), rel=0.02)
        assert told.names() == set(RECORD.metrics) - {"load.refused"}  # the kernel refused nothing
    finally:
        one.close()
        told.close()


IN_GROUP = """
import json, sys
from pathlib import Path
from load_bench import Bench
from actors.capacity import read_capacity
from actors.messages import Operation

folder = Path(sys.argv[1])
capacity, shape = read_capacity(folder), {"kind": "constant", "level": 0.5}
one = Bench(folder, Operation("m", "MemoryPressure", "n1", 0.0, 60.0, "fraction", shape), capacity)
try:
    one.ready()
    print(json.dumps([capacity.memory_bytes, one.load.pids[0]]), flush=True)
    sys.stdin.readline()
    one.go()
    sys.stdin.readline()
finally:
    one.close()
"""


def test_in_a_limited_group_a_share_is_of_its_limit_and_held_within_two_percent_of_it(tmp_path: Path) -> None:
    """Whatever the machine has: the capacity is the group's limit, and half of that is reached and held, seen from outside of the group."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))}
    with memory_limited(LIMIT) as group:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", IN_GROUP, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            limit, pid = json.loads(child.stdout.readline())
            assert limit == LIMIT
            assert str(pid) in (group / "cgroup.procs").read_text().split()
            baseline = anonymous_bytes(pid)
            off = lambda: abs(anonymous_bytes(pid) - baseline - LIMIT / 2)
            child.stdin.write("go\n")
            child.stdin.flush()
            until(lambda: off() <= 0.02 * LIMIT, 5, lambda: f"the level is off by {off()} bytes")
            never(lambda: off() > 0.02 * LIMIT, 0.5, "the level moved")
            child.communicate("end\n", timeout=20)
        assert child.returncode == 0


def test_a_share_is_of_the_capacity_and_held_within_two_percent_of_it(tmp_path: Path) -> None:
    """Also where no group can be made: a fraction is of the capacity that the load is told of."""
    fraction = Operation("m", "MemoryPressure", "n1", 0.0, 60.0, "fraction", Constant(0.3).to_spec())
    one = Bench(tmp_path, fraction, Capacity(1.0, LIMIT, 1 << 30))
    try:
        one.ready()
        one.go()
        until(lambda: abs(anonymous_bytes(one.load.pids[0]) - one.meter._baseline - 0.3 * LIMIT) <= 0.02 * LIMIT, 5, "the level")
        never(lambda: abs((one.meter.read() or 0.0) - 0.3 * LIMIT) > 0.02 * LIMIT, 0.5, "the level moved")
    finally:
        one.close()


def test_nothing_is_taken_from_a_reserve(tmp_path: Path) -> None:
    """A load whose reserve is more than there is holds nothing, whatever it was asked."""
    greedy = Operation("m", "MemoryPressure", "n1", 0.0, 60.0, "bytes", Constant(64 * MIB).to_spec(), {"reserve": 1 << 50})
    one = Bench(tmp_path, greedy, CAPACITY)
    try:
        one.ready()
        one.go()
        until(lambda: one.stats.asked == 64 * MIB and one.stats.operations > 5, 5, "some looks")
        assert one.meter.read() < MIB
        assert one.stats.own == 0
    finally:
        one.close()


def follow_all(state_dir: Path) -> None:
    state_dir.mkdir()
    loads = [Followed(state_dir, shape, node) for shape in SHAPES for node in ("n1", "n2")]
    try:
        for one in loads:
            one.bench.ready()
        for one in loads:
            one.begin()
        last_ns = max(one.start_ns for one in loads) + round(LASTS_S * SECOND_NS)
        while SystemClock().boot_ns() < last_ns:
            for one in loads:
                one.look()
            time.sleep(0.02)
        until(lambda: not any(anonymous_bytes(one.bench.load.pids[0]) for one in loads), 5, "all memory is given back")
        assert [miss for one in loads for miss in one.misses()] == []
        assert all(len(one.seen) > 30 for one in loads)
    finally:
        for one in loads:
            one.bench.close()
