"""The memory load's steps: each one is a sign of life."""

from __future__ import annotations

from actors import memory
from actors.clock import VirtualClock
from actors.limits import find_container
from actors.memory import SEGMENT_BYTES, MemoryPressure
from actors.messages import Capacity, Operation

SEGMENTS = 4
MIB = 1 << 20


class Watch:
    """A lease that holds for some looks, and counts the signs of life."""

    def __init__(self, looks: int) -> None:
        self.clock, self.looks, self.signs = VirtualClock(), looks, 0

    def first_slice(self) -> None:
        """The load begins."""

    def baseline(self, held_bytes: int) -> None:
        """What it holds before."""

    def note(self, bit: int) -> None:
        """What is so here."""

    def may_go_on(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def ceiling(self) -> float:
        return 1.0

    def report(self, **_: float) -> None:
        self.signs += 1


def test_each_step_of_a_ramp_is_a_sign_of_life() -> None:
    """Populating a segment may take long on a starved machine: a load that says nothing for several looks hung."""
    watch = Watch(SEGMENTS)
    shape = {"kind": "constant", "level": float(SEGMENTS * SEGMENT_BYTES)}
    operation = Operation("memory", "MemoryPressure", "n1", 0.0, 60.0, "bytes", shape)
    load = MemoryPressure(operation, Capacity(1.0, 1 << 30, 1 << 30), watch)
    load.warm_up()
    watch.signs = 0
    load.run(watch.clock.boot_ns())
    assert watch.signs == SEGMENTS


def test_a_reserve_stays_available_whatever_is_asked() -> None:
    """What others take is given back at once, what they leave is taken again, and the shape's own value is never passed."""
    others = iter([0, 0, 30, 30, 80, 80, 200, 200, 0, 0, 0])  # MiB, look by look
    held: list[int] = []
    shape = {"kind": "constant", "level": 100.0 * MIB}
    operation = Operation("memory", "MemoryPressure", "n1", 0.0, 60.0, "bytes", shape, {"reserve": 64 * MIB})
    load = MemoryPressure(operation, Capacity(1.0, 1 << 30, 1 << 30), Watch(0))

    def available() -> int:
        return 180 * MIB - load._reservoir.held_bytes - next(others) * MIB

    load._available = available
    for _ in range(11):
        target = load._within_reserve(100.0 * MIB, load._reservoir.held_bytes)
        while not load._reservoir.step_towards(target):
            pass
        held.append(load._reservoir.held_bytes // MIB)
    load._reservoir.release()
    assert held == [100, 100, 86, 86, 36, 36, 0, 0, 100, 100, 100]


def test_the_kernels_figure_is_what_is_available() -> None:
    """It is read under the limits of this process, and moves within a tenth of the machine while nothing happens."""
    first, second = memory.available_bytes(), memory.available_bytes()
    assert 0 < first <= find_container().memory_limit_bytes
    assert abs(first - second) < find_container().memory_limit_bytes / 10
