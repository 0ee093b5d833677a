"""A load on the kernel's virtual memory: major faults and memory stall as the kernel counts them, and nothing left on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from load_bench import CAPACITY, Bench, Told
from support.observe import promised
from support.waiting import until

from actors.lifecycle import Event
from actors.messages import Operation
from actors.vm_pressure import METRICS

MIB = 1 << 20
RATE = 400.0
OPERATION = Operation("v", "VmPressure", "n1", 0.0, 60.0, "per_second", {"kind": "constant", "level": RATE}, {"file": 2 * MIB})

Make = Callable[..., tuple[Bench, Told]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[tuple[Bench, Told]] = []

    def one(operation: Operation = OPERATION) -> tuple[Bench, Told]:
        told = Told()
        made.append((Bench(tmp_path, operation, CAPACITY, str(told.segment.path)), told))
        return made[-1]

    yield one
    for bench, told in made:
        bench.close()
        told.close()


def majors(pid: int) -> int:
    """Return majflt of a process (proc(5)); 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])
    except OSError:
        return 0


def stall_us() -> int:
    """Return the machine's memory stall so far in microseconds (Documentation/accounting/psi)."""
    line = Path("/proc/pressure/memory").read_text().splitlines()[0]
    return int(line.rpartition("total=")[2])


def rate_of(count: Callable[[], int], over_s: float) -> float:
    """Return how fast a count rises."""
    before, begun = count(), time.monotonic()
    time.sleep(over_s)
    return (count() - before) / (time.monotonic() - begun)


@promised
def test_major_faults_are_what_was_asked(make: Make) -> None:
    """At least ten times as many as before, within 5 % of the rate over two seconds; the ceiling throttles them; the stall rises."""
    bench, told = make()
    bench.ready()
    pid = bench.load.pids[0]
    before, still = rate_of(lambda: majors(pid), 0.5), stall_us() if Path("/proc/pressure/memory").exists() else None
    bench.go()
    rate_of(lambda: majors(pid), 0.3)
    found = rate_of(lambda: majors(pid), 2.0)
    assert found == pytest.approx(RATE, rel=0.05)
    assert found >= 10 * max(before, 1.0)
    if still is not None:
        assert stall_us() > still
    bench.guardian.control.write_ceiling(3, 0.25)
    rate_of(lambda: majors(pid), 0.3)
    assert rate_of(lambda: majors(pid), 1.0) == pytest.approx(RATE / 4, rel=0.1)
    assert bench.stats.asked == RATE / 4
    until(lambda: told.sum("memory.reclaimed") >= 2 * MIB, 5, "a way through the file")
    bench.load.drain()
    assert bench.end() == (Event.FINISHED, "")
    assert told.names() == set(METRICS)


def test_its_file_has_no_name_and_goes_with_it(make: Make, tmp_path: Path) -> None:
    """Killed at any moment it leaves no file and gives its blocks back."""
    folder = tmp_path / "paged"
    folder.mkdir()
    bench, _ = make(replace(OPERATION, options={"file": 64 * MIB, "dir": str(folder)}))
    free = os.statvfs(folder).f_bfree * os.statvfs(folder).f_frsize
    bench.ready()
    bench.go()
    held = free - os.statvfs(folder).f_bfree * os.statvfs(folder).f_frsize
    os.kill(bench.load.pids[0], 9)
    assert bench.end()[0] is Event.BROKE
    assert list(folder.iterdir()) == []
    until(lambda: free - os.statvfs(folder).f_bfree * os.statvfs(folder).f_frsize < held - 32 * MIB, 10, "its blocks are free")


def test_a_folder_in_memory_is_refused(make: Make) -> None:
    """Pages of such a file cannot be given up: the reason says so before the start; so for a folder that is not there."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm")
    for folder, word in (("/dev/shm", "in memory"), ("/nowhere/at/all", "no file can be made")):
        bench, _ = make(replace(OPERATION, options={"dir": folder}))
        bench.load.start()
        event, reason = bench.end()
        assert event is Event.BROKE
        assert word in reason
