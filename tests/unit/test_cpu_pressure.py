"""Waiting for a CPU as a dose: a loop that finds how much has to be worked for it, and what the kernel says is read as it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import SECOND_NS, VirtualClock
from actors.control import ControlPage, ControlWriter, StatsPage
from actors.cpu_pressure import CpuPressure
from actors.dose import OutsideMeter
from actors.errors import RefusedError
from actors.heat import Reading
from actors.lease import LeaseWatch
from actors.limits import cpu_stalled_s
from actors.messages import Amounts, Capacity, Operation
from actors.pacing import PressureLoop
from actors.simulator import absolute, peak_amounts, whole_of

CAPACITY = Capacity(4.0, 1 << 30, 1 << 30, sharers=2)
OPERATION = Operation("0.CpuPressure@n", "CpuPressure", "n", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.2})


@given(st.floats(0.02, 0.9), st.floats(0.6, 2.0), st.floats(0.0, 0.6))
def test_the_loop_finds_what_makes_them_wait(asked: float, slope: float, others: float) -> None:
    """Whatever a thread's work is worth, waiting is within 2 points after 12 s; beside others who make wait for more, it rests."""
    loop, seen = PressureLoop(), [0.0] * 5
    for _ in range(120):
        seen.append(min(1.0, others + slope * loop.share))
        loop.settle(asked, sum(seen[-5:]) / 5, 0.1)  # half a second is what is seen
        assert 0.0 <= loop.share <= 1.0
    if others >= asked:
        assert loop.share <= 0.02 or seen[-1] <= asked + 0.02
    elif others + slope >= asked:
        assert abs(seen[-1] - asked) <= 0.02
    else:
        assert loop.share == 1.0
    limited = PressureLoop(limit=0.1)
    limited.settle(asked, 0.0, 1e3)
    assert limited.share == 0.1


def test_what_the_kernel_says_is_read_as_it_is_written(tmp_path: Path) -> None:
    """The total of `some`, in seconds; nothing where the kernel does not tell."""
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/cpu").write_text(
        "some avg10=1.19 avg60=1.06 avg300=12.49 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    )
    assert cpu_stalled_s(tmp_path) == 2.5
    assert cpu_stalled_s(tmp_path / "nowhere") is None


def test_a_fraction_is_of_time_and_not_of_cores() -> None:
    """Asked as a share of time on any node; two threads a core work no more than that share each."""
    assert absolute(OPERATION, CAPACITY).value(0.0) == 0.2
    assert whole_of(OPERATION, CAPACITY) == 1.0
    assert peak_amounts(OPERATION, CAPACITY) == Amounts(cpu_cores=1.6)


@pytest.mark.skipif(cpu_stalled_s() is None, reason="this kernel does not tell for how long processes wait")
def test_the_dose_is_read_from_outside() -> None:
    """Seconds of waiting so far, while the load's process lives."""
    meter = OutsideMeter(OPERATION, [os.getpid()])
    first, second = meter.read(), meter.read()
    assert first is not None
    assert second is not None
    assert second >= first > 0.0
    meter.close()
    assert OutsideMeter(OPERATION, [2**22 + 1]).read() is None


@pytest.fixture
def watch() -> Iterator[LeaseWatch]:
    writer, control_fd = ControlWriter.create()
    stats, stats_fd = StatsPage.create()
    clock = VirtualClock()
    stats.begin(3, 7, 1)
    writer.reset_slot(3, 7, epoch=1, sharers=1)
    yield LeaseWatch(ControlPage.from_fd(control_fd), stats, 3, 7, clock)
    writer.close()
    for fd in (control_fd, stats_fd):
        os.close(fd)


def test_the_load_follows_what_it_sees(watch: LeaseWatch) -> None:
    """Before its start it only looks; then each thread works more while too few wait, and nothing once nothing is asked."""
    waited = [10.0]
    load = CpuPressure(OPERATION, CAPACITY, watch, sensors=lambda: Reading({"core": 50.0}), stalled_s=lambda: waited[0])
    clock = watch.clock
    assert isinstance(clock, VirtualClock)
    for _ in range(8):
        clock.advance(0.1)
        load.idle()
    assert load._share(0.0) == 0.0
    for step in range(1, 150):
        clock.advance(0.1)
        waited[0] += 0.1 * min(1.0, 0.05 + 1.3 * load._share(step / 10))
        load._sample(step / 10)
    assert 0.05 + 1.3 * load._share(15.0) == pytest.approx(0.2, abs=0.01)
    load._publish(15.0, 0.0, SECOND_NS)
    assert watch.stats.read(3).asked == pytest.approx(0.2)
    assert watch.stats.read(3).own == pytest.approx(0.2, abs=0.01)
    load._heat = load._heat.judge(Reading({"core": 99.0}), 16.0)
    assert load._share(16.0) == 0.0


def test_without_pressure_information_it_is_refused(watch: LeaseWatch) -> None:
    """Said, not guessed."""
    load = CpuPressure(OPERATION, CAPACITY, watch, stalled_s=lambda: None)
    with pytest.raises(RefusedError, match="/proc/pressure/cpu"):
        load.idle()
