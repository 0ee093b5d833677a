"""The memory load's steps: each one is a sign of life."""

from __future__ import annotations

from actors.clock import VirtualClock
from actors.memory import SEGMENT_BYTES, MemoryPressure
from actors.messages import Capacity, Operation

SEGMENTS = 4


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
