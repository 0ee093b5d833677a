"""Real load processes without Ray, on real pages whose leases the test sets. Doses are read from outside the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_bench import CAPACITY, GENERATION, SLOT, Bench
from support.observe import anonymous_bytes, promised
from support.waiting import until

from actors.carrier import load_environment
from actors.clock import SECOND_NS, SystemClock
from actors.dose import OutsideMeter
from actors.errors import HarnessError
from actors.host import BusyMeter
from actors.lifecycle import EXIT_LEASE, EXIT_ORPHAN, Event
from actors.limits import find_container
from actors.load import LoadSpec
from actors.messages import Capacity, Operation, SlotTicket

MIB = 1 << 20
CPU = Operation("cpu", "CpuLoad", "n1", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.3})
MEMORY = Operation("memory", "MemoryPressure", "n1", 0.0, 60.0, "bytes", {"kind": "constant", "level": 100 * MIB})


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def bench(state_dir: Path) -> Iterator[Any]:
    made: list[Bench] = []

    def make(operation: Operation, capacity: Capacity = CAPACITY) -> Bench:
        made.append(Bench(state_dir, operation, capacity))
        return made[-1]

    yield make
    for one in made:
        one.close()


def settled(one: Bench, want: float) -> float:
    """Return the first second's reading within 3 points, of at most four: this machine may be busy with others."""
    for _ in range(4):
        found = one.cores()
        if abs(found - want) <= 0.03:
            break
    return found


@pytest.mark.parametrize(("level", "kernel"), [(0.1, "integer"), (0.3, "float"), (0.6, "integer")])
def test_cpu_is_what_was_asked(bench: Any, level: float, kernel: str) -> None:
    """Seen from outside, the load uses the asked share of a core within 5 points, with either kernel."""
    one = bench(replace(CPU, shape={"kind": "constant", "level": level}, options={"kernel": kernel}))
    one.ready()
    one.go_first()
    one.go()
    one.cores(0.3)
    assert settled(one, level) == pytest.approx(level, abs=0.05)
    assert one.stats.asked == pytest.approx(level)
    assert one.stats.operations > 0


@promised
def test_what_its_process_uses_aside_is_a_part_of_the_load(bench: Any) -> None:
    """The thread that publishes uses a hundredth of a core: a load of a tenth is a tenth with it, as an observer sees the process."""
    one = bench(replace(CPU, shape={"kind": "constant", "level": 0.1}))
    one.ready()
    one.go_first()
    one.go()
    one.cores(0.5)
    assert one.cores(4.0) == pytest.approx(0.1, abs=0.002)


def test_less_than_one_core_is_spread_over_time(bench: Any) -> None:
    """A share of half a core of half a core is no second of rest and a second of load: tenths of a second show it too."""
    one = bench(CPU, replace(CAPACITY, cpu_cores=0.5))
    one.ready()
    one.go_first()
    one.go()
    one.cores(0.3)
    readings = [one.cores(0.1) for _ in range(8)]
    assert sum(abs(found - 0.15) <= 0.08 for found in readings) >= 6, readings


def test_the_ceiling_throttles_within_a_moment(bench: Any) -> None:
    """A lower ceiling is less load at once, and the asked figure says so."""
    one = bench(replace(CPU, shape={"kind": "constant", "level": 0.6}))
    one.ready()
    one.go_first()
    one.go()
    one.cores(0.3)
    one.guardian.control.write_ceiling(SLOT, 0.25)
    one.cores(0.1)
    assert settled(one, 0.15) == pytest.approx(0.15, abs=0.05)
    assert one.stats.asked == pytest.approx(0.15)


@promised
def test_cpu_threads_end_at_the_lease_and_the_load_says_so(bench: Any) -> None:
    """A load whose lease runs out ends by itself within a moment, without anybody's signal."""
    one = bench(CPU)
    one.ready()
    one.go(lease_s=0.5)
    deadline_ns = one.guardian.control.lease(SLOT)[1]
    event, _ = until(one.load.poll, 5, "the end of the load", every_s=0.001)
    late_ms = (SystemClock().boot_ns() - deadline_ns) / 1e6
    assert (event, one.load.exit_code) == (Event.LEASE_ENDED, EXIT_LEASE)
    assert late_ms < 150


@pytest.mark.parametrize("operation", [CPU, MEMORY], ids=["cpu", "memory"])
def test_a_drain_ends_it_and_frees_it(bench: Any, operation: Operation) -> None:
    """Asked to end, a load ends with code 0 in a moment."""
    one = bench(operation)
    one.ready()
    one.go()
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    assert one.load.exit_code == 0


@pytest.mark.parametrize("operation", [CPU, MEMORY], ids=["cpu", "memory"])
@promised
def test_it_ends_by_itself_when_its_time_is_over(bench: Any, operation: Operation) -> None:
    """A load runs for its duration from the start, not longer, under a lease that would allow more."""
    one = bench(replace(operation, duration_s=0.4))
    one.ready()
    start_ns = one.go()
    assert one.end() == (Event.FINISHED, "")
    lasted_s = (SystemClock().boot_ns() - start_ns) / SECOND_NS
    assert 0.4 <= lasted_s < 1.5


@promised
def test_it_starts_when_it_is_told(bench: Any) -> None:
    """The first slice comes within milliseconds of the start."""
    one = bench(CPU)
    one.ready()
    start_ns = one.go()
    assert 0 <= one.stats.first_slice_ns - start_ns < 50_000_000


def test_memory_follows_its_shape_up_and_down(bench: Any) -> None:
    """Anonymous bytes less the baseline are what is asked within 2 %, on every step, and memory is given back."""
    levels = [40 * MIB, 150 * MIB, 97 * MIB, 17 * MIB]
    one = bench(replace(MEMORY, shape={"kind": "steps", "levels": levels, "each_s": 0.7}))
    one.ready()
    one.go()
    found = []
    for level in levels:
        until(lambda want=level: one.stats.asked == want and abs(one.meter.read() - want) <= 0.02 * want, 3, f"{level} bytes; {found}")
        found.append(one.meter.read())
    assert found == pytest.approx(levels, rel=0.02)


def test_held_memory_costs_almost_no_cpu(bench: Any) -> None:
    """Once held, memory is held by looking, not by working."""
    one = bench(MEMORY)
    one.ready()
    one.go()
    until(lambda: one.meter.read() >= 99 * MIB, 5, "the ramp")
    outside = OutsideMeter(CPU, one.load.pids)
    before = outside.read()
    one.cores(2.0)
    assert (outside.read() - before) / 2.0 < 0.01


def test_memory_and_its_process_die_with_the_lease(bench: Any) -> None:
    """A holder ends within its look of 50 ms after the deadline and holds nothing then."""
    one = bench(MEMORY)
    one.ready()
    one.go(lease_s=0.6)
    assert one.end()[0] is Event.LEASE_ENDED
    assert anonymous_bytes(one.load.pids[0]) == 0


def test_nothing_runs_before_the_gate_and_the_lease(bench: Any) -> None:
    """A load that is not registered does not even warm up, and one without a lease does not load."""
    one = bench(CPU)
    one.guardian.call = lambda op, **fields: {}
    one.load.start()
    until(lambda: one.stats.state == 1, 10, "the gate")
    meter = OutsideMeter(CPU, one.load.pids)
    one.meter = meter
    assert one.cores(0.5) < 0.05
    one.guardian.control.write(SLOT, 4, GENERATION)
    until(lambda: one.stats.state == 2, 60, "ready")
    one.guardian.start(SLOT, 0.0)
    one.cores(0.2)
    assert one.cores(0.5) < 0.08
    assert one.stats.first_slice_ns == 0


def test_a_load_killed_from_outside_says_so(bench: Any) -> None:
    """A live load that a signal ended is broken, with the signal in the reason."""
    one = bench(CPU)
    one.ready()
    one.go()
    os.kill(one.load.pids[0], signal.SIGKILL)
    event, reason = one.end()
    assert event is Event.BROKE
    assert "signal 9" in reason


def test_a_failing_load_carries_its_reason(bench: Any) -> None:
    """What broke inside the load is in the reason, in its own words."""
    one = bench(replace(CPU, shape={"kind": "constant", "level": 1.0}, options={"cores": 1}), replace(CAPACITY, cpu_cores=2.0))
    one.load.start()
    event, reason = one.end()
    assert event is Event.BROKE
    assert "names 1" in reason


def test_a_refused_registration_leaves_no_process(bench: Any) -> None:
    """A load that the guardian does not hold is gone before the error is raised."""
    one = bench(CPU)

    def refuse(op: str, **fields: Any) -> dict[str, Any]:
        if op != "register":
            return {}
        raise HarnessError("stale_slot", "no")

    one.guardian.call = refuse
    with pytest.raises(HarnessError, match="no"):
        one.load.start()
    assert one.load.exit_code == -signal.SIGKILL


def test_a_load_never_outlives_the_thread_that_made_it(bench: Any) -> None:
    """The kernel ends a load with its shell: here with the thread that started it."""
    one = bench(CPU)
    maker = threading.Thread(target=one.ready)
    maker.start()
    maker.join()
    until(lambda: one.load.poll() is not None, 5, "the end with its maker")
    assert one.load.exit_code == -signal.SIGKILL


def test_an_orphan_ends_before_it_begins(state_dir: Path) -> None:
    """A load whose parent is another process than the one that meant it does nothing."""
    fd = os.memfd_create("spec")
    os.write(fd, LoadSpec(CPU, CAPACITY, SlotTicket(0, 1), parent_pid=1, control_fd=0, stats_fd=0).to_bytes())
    command = [sys.executable, "-P", "-m", "actors.load", str(fd)]
    found = subprocess.run(command, pass_fds=[fd], env=load_environment(os.environ, state_dir), check=False, capture_output=True, text=True)
    os.close(fd)
    assert found.returncode == EXIT_ORPHAN, found.stderr


def test_the_load_runs_our_code_whatever_lies_around(tmp_path: Path) -> None:
    """A user's own `actors.py` in the working folder or on the path does not become the load, and nothing is preloaded."""
    found = load_environment({"PYTHONPATH": "/other", "LD_PRELOAD": "x.so", "A": "b"}, tmp_path)
    code, other = found["PYTHONPATH"].split(os.pathsep)
    assert (other, found["A"], "LD_PRELOAD" in found) == ("/other", "b", False)
    assert (Path(code) / "actors" / "load.py").is_file()
    assert found["NUMBA_CACHE_DIR"] == str(tmp_path / "kernels")


BUSY_FOR_40_PERCENT = """
import time
while True:
    begun = time.monotonic()
    while time.monotonic() - begun < 0.004:
        pass
    time.sleep(0.006)
"""


def busy_cores(over_s: float) -> float:
    """Return the busy cores of this machine over a while."""
    meter, pause = BusyMeter(), threading.Event()
    then_ns, before = meter.read()
    pause.wait(over_s)
    now_ns, after = meter.read()
    meter.close()
    return (after - before) / ((now_ns - then_ns) / SECOND_NS)


def test_host_total_fills_up_what_others_leave(bench: Any) -> None:
    """In host-total mode load and others together use what was asked, and the load gives way when others use more."""
    cores = find_container().cpu_cores
    level = (busy_cores(1.0) + 0.6) / cores
    if level > 0.9:
        pytest.skip(f"others use {level * cores - 0.6:.1f} of {cores:g} cores: no room to fill up")
    one = bench(
        replace(CPU, shape={"kind": "constant", "level": level}, options={"mode": "host_total"}), replace(CAPACITY, cpu_cores=cores)
    )
    one.ready()
    one.go()
    one.cores(1.0)
    totals = [busy_cores(1.0) for _ in range(3)]
    alone = one.cores(1.0)
    other = subprocess.Popen([sys.executable, "-c", BUSY_FOR_40_PERCENT])
    try:
        one.cores(1.5)
        totals += [busy_cores(1.0) for _ in range(3)]
        beside = one.cores(1.0)
    finally:
        other.kill()
        other.wait()
    if min(totals) > (level + 0.05) * cores:
        pytest.skip(f"others began to use more than was asked in all: {totals}")
    assert min(abs(total - level * cores) for total in totals) <= 0.05 * cores, totals
    assert beside < alone - 0.15 or beside < 0.1, (alone, beside)
