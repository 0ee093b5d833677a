"""Waiting for memory as a dose: when to read on, a limit that is our own, and what the kernel says is read as it is written."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import VirtualClock
from actors.control import ControlPage, ControlWriter, StatsPage
from actors.dose import OutsideMeter
from actors.errors import InputError, RefusedError
from actors.lease import LeaseWatch
from actors.limits import MemoryLevel, memory_stalled_s
from actors.memory_stall import FOLDER, Demand, MemoryStall, StallFile, own_stalled_s, room_bytes
from actors.messages import Capacity, Operation
from actors.simulator import memory_limit_bytes, peak_amounts, whole_of

MIB = 1 << 20
CAPACITY = Capacity(4.0, 1 << 30, 1 << 30)
OPERATION = Operation("0.MemoryStall@n", "MemoryStall", "n", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.2})
PRESSURE = "some avg10=20.10 avg60=1.06 avg300=12.49 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


@given(st.floats(0.02, 0.9), st.floats(0.3, 1.0), st.floats(0.05, 1.0), st.integers(0, 1 << 30))
def test_readers_go_on_until_enough_was_waited(asked: float, waits: float, cpu: float, seed: int) -> None:
    """Whatever a read's wait is worth, and however unlike reads are: within 2 points over 20 s where it can be reached, never above."""
    demand, is_due, waited, chance = Demand(cores=4.0), False, 0.0, random.Random(seed)
    for _ in range(4000):
        share = waits * chance.uniform(0.8, 1.2) if is_due else 0.0
        waited += min(0.005, 0.005 * share)
        is_due = demand.settle(asked, 0.005, min(0.005, 0.005 * share), 0.005 * cpu * is_due)
    assert waited / 20.0 <= asked + 0.001
    if asked < 0.75 * waits:
        assert abs(waited / 20.0 - asked) <= 0.02


@given(st.floats(0.1, 1.0), st.floats(0.05, 2.0))
def test_readers_use_no_more_cpu_than_is_reserved(asked: float, cores: float) -> None:
    """Where nobody waits however much is read, the reserved cores are the bound; where nothing is asked, nothing is read."""
    demand, is_due, used = Demand(cores), False, 0.0
    for _ in range(4000):
        used += 0.01 * is_due  # two cores while it reads
        is_due = demand.settle(asked, 0.005, 0.0, 0.01 * is_due)
    assert used / 20.0 <= cores * 1.01 + 0.001
    assert not demand.settle(0.0, 0.005, 0.0, 0.0)


def test_what_it_reserves_is_what_its_group_may_use() -> None:
    """The limit, a file of somewhat more on the disk, and cores for three times the share and for its looks; a fraction is of time."""
    assert memory_limit_bytes(OPERATION) == 64 * MIB
    found = peak_amounts(OPERATION, CAPACITY)
    assert (found.memory_bytes, found.cpu_cores) == (64 * MIB, pytest.approx(0.7))
    assert found.disk_bytes == pytest.approx(1.3 * 64 * MIB, abs=1)
    assert peak_amounts(OPERATION, replace(CAPACITY, cpu_cores=0.3)).cpu_cores == 0.3
    assert whole_of(OPERATION, CAPACITY) == 1.0


def test_a_limit_that_is_not_our_own_is_refused(tmp_path: Path) -> None:
    """The room is what the limit leaves; in a group of others it would be they who run short."""
    usage = tmp_path / "usage"
    usage.write_text(f"{20 * MIB}\n")
    levels = (MemoryLevel(900 * MIB, usage, usage), MemoryLevel(64 * MIB, usage, usage))
    assert room_bytes(levels, 64 * MIB) == 44 * MIB
    usage.write_text(f"{64 * MIB}\n")
    assert room_bytes(levels, 64 * MIB) == 4 * MIB
    for other in ((), levels[:1], (MemoryLevel(64 * MIB, tmp_path / "gone", usage),)):
        with pytest.raises(RefusedError, match="no control group of memory") as caught:
            room_bytes(other, 64 * MIB)
        assert caught.value.code == "unsupported"


def test_what_the_kernel_says_is_read_as_it_is_written(tmp_path: Path) -> None:
    """The total of `some` of our own group, in seconds; nothing where the kernel does not tell."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "g/a").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    assert own_stalled_s(tmp_path / "proc") is None
    (tmp_path / "proc/self/mountinfo").write_text(f"1 2 0:3 / {tmp_path}/g rw - cgroup2 cgroup2 rw\n")
    assert own_stalled_s(tmp_path / "proc") is None
    (tmp_path / "g/a/memory.pressure").write_text(PRESSURE)
    assert own_stalled_s(tmp_path / "proc") == memory_stalled_s(tmp_path / "g/a") == 2.5


def test_the_dose_is_read_from_outside(tmp_path: Path) -> None:
    """Seconds of waiting of the operation's own group since the start, while its process lives; the machine's do not count."""
    (tmp_path / "memory.pressure").write_text(PRESSURE)
    meter = OutsideMeter(OPERATION, [os.getpid()], cgroup=tmp_path)
    assert (meter.set_baseline(), meter.read()) == (2.5, 0.0)
    (tmp_path / "memory.pressure").write_text(PRESSURE.replace("2500000", "3500000"))
    assert meter.read() == 1.0
    meter.close()
    assert OutsideMeter(OPERATION, [os.getpid()]).read() is None
    assert OutsideMeter(OPERATION, [2**22 + 1], cgroup=tmp_path).read() is None


def test_its_file_is_read_whole_and_has_no_name() -> None:
    """All of its pages can be read, and none of them is a hole."""
    file = StallFile(FOLDER, 2 * MIB)
    chance, into = random.Random(1), bytearray(4096)
    file.fill(chance)
    for _ in range(20):
        file.read(chance, into)
        assert any(into)
    file.close()


def test_without_pressure_information_or_a_limit_it_is_refused() -> None:
    """Said before any load, not guessed."""
    writer, control_fd = ControlWriter.create()
    stats, stats_fd = StatsPage.create()
    stats.begin(3, 7, 1)
    writer.reset_slot(3, 7, epoch=1, sharers=1)
    watch = LeaseWatch(ControlPage.from_fd(control_fd), stats, 3, 7, VirtualClock())
    for stalled_s, word in ((None, "does not tell"), (0.0, "no control group of memory")):
        with pytest.raises(RefusedError, match=word) as caught:
            MemoryStall(OPERATION, CAPACITY, watch, stalled_s=lambda found=stalled_s: found).warm_up()
        assert caught.value.code == "unsupported"
    with pytest.raises(InputError, match="'limit' must be a whole number of bytes from"):
        MemoryStall(replace(OPERATION, options={"limit": MIB}), CAPACITY, watch).warm_up()
    writer.close()
    for fd in (control_fd, stats_fd):
        os.close(fd)
