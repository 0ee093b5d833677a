"""What others use, as a host-total load sees it: followed within a moment where it jumps, smooth where it does not, ours never in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from actors import control
from actors.clock import SECOND_NS, VirtualClock
from actors.control import ControlPage, ControlWriter, StatsPage
from actors.lease import LeaseWatch
from actors.others import JUMP_CORES, OthersMeter

SLOT, OTHER = 3, 5


@dataclass
class Host:
    """A host whose busy seconds grow by what the test says, read at a virtual time."""

    clock: VirtualClock
    meter: OthersMeter | None = None
    busy_s: float = 0.0
    error_s: float = 0.0

    def read(self) -> tuple[int, float]:
        return self.clock.boot_ns(), self.busy_s + self.error_s

    def after(self, cores: float, span_s: float = 0.1, error_s: float = 0.0) -> float:
        """Let others use so many cores for a while; return what the meter says then. `error_s` is in this reading only."""
        assert self.meter is not None
        self.clock.advance(span_s)
        self.busy_s += cores * span_s
        self.error_s = error_s
        return self.meter.sample()


@pytest.fixture
def host() -> Iterator[tuple[Host, StatsPage]]:
    writer, control_fd = ControlWriter.create()
    stats, stats_fd = StatsPage.create()
    clock = VirtualClock()
    made = Host(clock)
    made.meter = OthersMeter(LeaseWatch(ControlPage.from_fd(control_fd), stats, SLOT, 7, clock), made)
    stats.begin(SLOT, 7, 1)
    yield made, stats
    writer.close()
    for fd in (control_fd, stats_fd):
        os.close(fd)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.8), (0.8, 0.0), (0.2, 1.9)])
def test_a_jump_is_followed_within_three_tenths_of_a_second(host: tuple[Host, StatsPage], before: float, after: float) -> None:
    """Others begin or end: what they use is known at the third reading after it, and stays so."""
    one, _ = host
    assert [one.after(before) for _ in range(12)][-1] == pytest.approx(before, abs=0.02)
    found = [one.after(after) for _ in range(12)]
    assert found[2:] == pytest.approx([after] * 10, abs=0.02), found


def test_single_ticks_are_smoothed(host: tuple[Host, StatsPage]) -> None:
    """A reading that is a tick of each of two CPUs off moves it by no more than that tick over the whole window."""
    one, _ = host
    found = [one.after(0.5, error_s=0.01 if at % 5 == 0 else 0.0) for at in range(30)]
    assert found[6:] == pytest.approx([0.5] * 24, abs=0.01 / 0.5 + 0.01), found
    assert JUMP_CORES > 2 * 0.01 / 0.2


def test_loads_of_ours_are_not_others(host: tuple[Host, StatsPage]) -> None:
    """What another slot's load reports as its CPU time is taken off, from when it was first seen."""
    one, stats = host
    stats.begin(OTHER, 2, 9)
    for at in range(1, 12):
        stats.put(OTHER, control.CPU, round(at * 0.06 * SECOND_NS))
        found = one.after(0.9)
    assert found == pytest.approx(0.3, abs=0.02)
