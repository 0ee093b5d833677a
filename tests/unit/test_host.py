from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors.clock import SECOND_NS, VirtualClock
from actors.host import BusyMeter, HostSampler, idle_seconds, inactive_file_bytes, level_available_bytes, usage_seconds
from actors.limits import Container, MemoryLevel, find_container
from actors.procfs import USER_HZ

STAT = "cpu  100 0 50 800 40 5 5 10 0 0\ncpu0 50 0 25 300 10 0 0 4 0 0\ncpu1 50 0 25 500 30 5 5 6 0 0\nintr 1\ncpu9 no\n"
CPUS = frozenset(range(os.cpu_count() or 1))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    (tmp_path / "sys/fs/file-nr").write_text("1234\t0\t99999\n")
    (tmp_path / "loadavg").write_text("1.50 1.00 0.50 1/100 7\n")
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    return tmp_path


def test_idle_is_idle_waiting_and_stolen() -> None:
    """What did not work for us is idle, I/O wait and stolen time, of all CPUs or of those named; lines after them are not read."""
    assert idle_seconds(STAT, None) == (800 + 40 + 10) / USER_HZ
    assert idle_seconds(STAT, frozenset({1})) == (500 + 30 + 6) / USER_HZ


def test_usage_of_both_versions() -> None:
    """A group's usage is in seconds, from microseconds (v2) and nanoseconds (v1)."""
    assert usage_seconds("usage_usec 2500000\nuser_usec 1\n") == 2.5
    assert usage_seconds("2500000000\n") == 2.5


def test_busy_fraction_is_over_the_window(proc: Path) -> None:
    """Busy is what was not idle in the last window, and forgets what lies before it."""
    clock, container = VirtualClock(), Container(CPUS, None, None, 1_024_000, ())
    sampler = HostSampler("n1", proc, clock=clock, container=container, window_s=1.0, proc=proc)
    found = []
    for idle_share in (0.0, 0.75, 0.75):
        clock.advance(1.0)
        idle = int((proc / "stat").read_text().split()[4]) + round(idle_share * len(CPUS) * USER_HZ)
        (proc / "stat").write_text(f"cpu  0 0 0 {idle} 0 0 0 0 0 0\n")
        found.append(sampler.snapshot().cpu_busy_fraction)
    sampler.close()
    assert found == pytest.approx([1.0, 0.25, 0.25])


def test_the_snapshot_takes_the_container_as_denominator(proc: Path) -> None:
    """Under a quota, busy cores count against the quota, and memory is what the group has left."""
    usage, current = proc / "cpu.stat", proc / "memory.current"
    usage.write_text("usage_usec 1000000\n")
    current.write_text("300000")
    (proc / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    level = MemoryLevel(400_000, current, proc / "memory.stat")
    clock, container = VirtualClock(), Container(CPUS, 0.5, usage, 1_024_000, (level,))
    sampler = HostSampler("n1", proc, clock=clock, container=container, proc=proc)
    clock.advance(1.0)
    usage.write_text("usage_usec 1250000\n")
    found = sampler.snapshot()
    sampler.close()
    assert (found.cpu_cores, found.cpu_busy_fraction) == (0.5, pytest.approx(0.5))
    assert (found.memory_limit_bytes, found.memory_available_bytes) == (400_000, 200_000)
    assert (found.descriptors_used, found.descriptors_limit, found.load_average_1m) == (1234, 99999, 1.5)
    assert found.boot_ns == clock.boot_ns()
    assert 0 < found.disk_free_bytes <= found.disk_total_bytes


def test_a_level_that_cannot_be_read_gives_its_limit(tmp_path: Path) -> None:
    """A group whose usage is not readable does not stop the sampling."""
    level = MemoryLevel(5_000, tmp_path / "none", tmp_path / "none")
    assert level_available_bytes(level) == 5_000
    assert inactive_file_bytes("total_inactive_file 7\ninactive_file 3\n") == 7


def test_the_real_host_is_sane() -> None:
    """On this machine a snapshot holds what its parts promise, and busy seconds never run backwards by more than a tick."""
    container = find_container()
    sampler, meter = HostSampler("me", Path("/"), container=container), BusyMeter(container)
    first, found, second = meter.read(), sampler.snapshot(), meter.read()
    sampler.close()
    meter.close()
    assert 0.0 <= found.cpu_busy_fraction <= 1.0
    assert 0 < found.memory_available_bytes <= found.memory_limit_bytes
    assert 0 < found.descriptors_used < found.descriptors_limit
    assert second[0] - first[0] < 60 * SECOND_NS
    assert second[1] >= first[1] - len(container.cpus) / USER_HZ
    assert replace(found, node="other").node == "other"
