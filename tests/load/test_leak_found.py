"""A planted leak in a real process, found by what the kernel says of it; loads beside it that warm up or fall back are not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from load_bench import CAPACITY, Bench
from support.observe import promised

from actors.clock import SECOND_NS, SystemClock
from actors.messages import Operation
from actors.shape import Leak, Ramp, Sawtooth, Shape
from cluster.metrics.leaks import LeakSlope

MB = 1_000_000
SCALES = [10.0, pytest.param(1.0, marks=pytest.mark.soak)]  # how much faster than the requirement: 1 MB/s, found within 30 s


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("scale", SCALES)
def test_a_planted_leak_is_found_in_time_with_its_rate_and_owner(tmp_path: Path, benches: list[Bench], scale: float) -> None:
    """1 MB/s within 30 s, within 10 % of its slope, and by name; or ten times as much in a tenth of the time."""
    tries = iter(range(2))
    promised(lambda: find(tmp_path / f"state-{next(tries)}", benches, scale))()


def find(state: Path, benches: list[Bench], scale: float) -> None:
    state.mkdir()
    shapes: dict[str, Shape] = {
        "leak": Leak(8 * MB, MB * scale),
        "warm-up": Ramp(0.0, 60 * MB, 8.0 / scale),
        "sawtooth": Sawtooth(4 * MB, 40 * MB, 7.0 / scale),
    }
    made = {name: Bench(state, operation(name, shape), CAPACITY) for name, shape in shapes.items()}
    benches += made.values()
    for one in made.values():
        one.ready()
    starts = {name: one.go(60.0) for name, one in made.items()}
    watches = {name: LeakSlope(span_s=20.0 / scale) for name in made}
    found: list[tuple[str, float, float]] = []
    last_ns = max(starts.values()) + round(30.0 / scale * SECOND_NS)
    while (now_ns := SystemClock().boot_ns()) < last_ns:
        for name, watch in watches.items():
            elapsed_s = (now_ns - starts[name]) / SECOND_NS
            leak = watch.take(elapsed_s, made[name].meter.read() or 0.0)
            if leak is not None:
                found.append((name, elapsed_s, leak.rate))
        time.sleep(1.0 / scale)
    assert {name for name, _, _ in found} == {"leak"}, found
    assert found[0][1] <= 30.0 / scale
    assert found[0][2] == pytest.approx(MB * scale, rel=0.1)


def operation(name: str, shape: Shape) -> Operation:
    return Operation(f"0.{name}@n1", "MemoryPressure", "n1", 0.0, 60.0, "bytes", shape.to_spec())
