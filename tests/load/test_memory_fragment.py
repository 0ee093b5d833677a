"""A fragmented load: what the kernel says of its process stays while what is live halves, and it ends with nothing held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from load_bench import CAPACITY, Bench, Told
from support.observe import anonymous_bytes
from support.waiting import never, until

from actors.lifecycle import Event
from actors.memory_fragment import METRICS
from actors.messages import Operation

MIB = 1 << 20
HELD = 100 * MIB + 64 * 1024
SHAPE = {"kind": "constant", "level": HELD}
OPERATION = Operation("f", "MemoryFragment", "n1", 0.0, 60.0, "bytes", SHAPE, {"fragmentation": 0.95})


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@pytest.fixture
def bench(tmp_path: Path, told: Told) -> Iterator[Bench]:
    made = Bench(tmp_path, OPERATION, CAPACITY, str(told.segment.path))
    yield made
    made.close()


def test_resident_bytes_stay_while_live_ones_halve(bench: Bench, told: Told) -> None:
    """Seen from outside it holds what was asked; of that half is freed, in holes of which each is too small for more than a block."""
    bench.ready()
    pid = bench.load.pids[0]
    bench.go()
    until(lambda: told.sum("memory.freed"), 10, "the split")
    until(lambda: told.last("memory.live") <= 0.51 * HELD, 5, lambda: f"{told.last('memory.live')} bytes are live")
    assert told.last("memory.live") == pytest.approx(HELD / 2, rel=0.01)
    assert told.last("memory.free") == HELD - told.last("memory.live")
    never(lambda: abs(bench.meter.read() - HELD) > 0.02 * HELD, 1.5, "what is resident moved")
    assert told.last("memory.hole") == 64 * 1024
    assert told.last("memory.fragmentation") == pytest.approx(1 - 64 * 1024 / told.last("memory.free"), abs=0.01)
    assert told.last("memory.fragmentation") >= 0.95
    assert told.sum("memory.refused") >= 1
    assert told.last("memory.overhead", source="rss_anon") == pytest.approx(2.0, rel=0.05)
    assert told.names() == set(METRICS)
    bench.load.drain()
    assert bench.end() == (Event.FINISHED, "")
    assert anonymous_bytes(pid) == 0


def test_it_follows_its_shape_and_stays_split(bench: Bench, told: Told) -> None:
    """Up, down and up again: the dose is held at each level, and each level is fragmented."""
    levels = [40 * MIB, 72 * MIB, 20 * MIB]
    bench.load._operation = replace(OPERATION, shape={"kind": "steps", "levels": levels, "each_s": 1.0})
    bench.ready()
    bench.go()
    for level in levels:
        until(lambda want=level: bench.stats.asked == want and abs(bench.meter.read() - want) <= 0.02 * want, 3, f"{level} bytes")
        until(lambda want=level: told.last("memory.live") == pytest.approx(want / 2, rel=0.01), 2, lambda: str(told.last("memory.live")))
        assert told.last("memory.fragmentation") >= 0.95
    assert told.sum("memory.allocated") > told.sum("memory.freed") > 0


def test_a_level_that_cannot_be_split_is_refused_with_the_reason(bench: Bench) -> None:
    """Nothing is held, and the reason says how much it takes."""
    bench.load._operation = replace(OPERATION, shape={"kind": "constant", "level": 256 * 1024})
    bench.load.start()
    event, reason = bench.end()
    assert event is Event.BROKE
    assert "cannot be split to 95.0%" in reason
