"""How CpuLoad holds what it is asked, in real load processes: cores named and pinned, a clock rate simulated, patterns followed, heat.

What counts is what the kernel says from outside. This machine may be shared: a level that others leave no room for says nothing.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_bench import GENERATION, SLOT, Bench, Told
from load_pages import PageGuardian
from support.waiting import until

from actors import shape as shapes
from actors.clock import SECOND_NS, SystemClock
from actors.control import STOP_DRAIN
from actors.cpu import CpuLoad
from actors.heat import Reading
from actors.host import BusyMeter
from actors.lease import NOTE_SIMULATED_CLOCK, NOTES, LeaseWatch, read_heat
from actors.lifecycle import EXIT_LEASE, Event
from actors.limits import cpu_stalled_s, find_container
from actors.messages import Capacity, Operation
from actors.metrics.policy import RecordingPolicy
from actors.metrics.registry import Verbosity

CORES = len(find_container().cpus)
CAPACITY = Capacity(cpu_cores=float(CORES), memory_bytes=1 << 30, disk_bytes=1 << 30)
CPU = Operation("cpu", "CpuLoad", "n1", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.3})
may_raise = pytest.mark.skipif(os.geteuid() != 0, reason="real-time priority takes CAP_SYS_NICE")

# Answers each line with the seconds that a fixed piece of work took for each second of its CPU time. It runs before all normal work.
WORK = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
print("ready", flush=True)
for line in sys.stdin:
    begun, used, total = time.monotonic(), time.process_time(), 0
    for i in range(int(line)):
        total += i * i
    print((time.monotonic() - begun) / (time.process_time() - used), flush=True)
"""


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def bench(state_dir: Path) -> Iterator[Any]:
    made: list[Bench] = []

    def make(operation: Operation, capacity: Capacity = CAPACITY, segment_path: str = "") -> Bench:
        made.append(Bench(state_dir, operation, capacity, segment_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Seen:
    """CPU time of a load and of all of the machine over spans of time."""

    def __init__(self, one: Bench) -> None:
        self.bench, self._busy = one, BusyMeter()

    def over(self, span_s: float) -> tuple[float, float]:
        """Return the cores that the load used and that others used."""
        then_ns, before_s = self._busy.read()
        own = self.bench.cores(span_s)
        now_ns, after_s = self._busy.read()
        return own, (after_s - before_s) / ((now_ns - then_ns) / SECOND_NS) - own


def tasks_of(pid: int) -> dict[str, tuple[float, int]]:
    """Return, for each thread, the CPU seconds so far and the CPU on which it last ran (man 5 proc_pid_stat)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9, int(fields[36])
    return found


@pytest.mark.parametrize("cores", sorted({1, max(1, CORES // 2), CORES}))
def test_cpu_time_is_what_was_asked_of_so_many_cores(bench: Any, cores: int) -> None:
    """25, 50, 75 and 100 % of one core, half of them and all: CPU seconds a second within 5 %, each thread's part on a CPU of its own."""
    levels, each_s = (0.25, 0.5, 0.75, 1.0), 1.2
    shape = {"kind": "steps", "levels": [level * cores / CORES for level in levels], "each_s": each_s}
    told = Told()
    told.segment.publish(RecordingPolicy(level=Verbosity.VERBOSE).to_json(), "")
    one = bench(replace(CPU, shape=shape, options={"cores": cores, "affinity": "pinned"}), segment_path=told.segment.path)
    one.ready()
    is_first = one.go_first()
    start_ns, seen, judged = one.go(), Seen(one), 0
    for index, level in enumerate(levels):
        end_ns = start_ns + (index + 1) * each_s * SECOND_NS
        one.cores(0.2)
        spans, before, begun_s = [], tasks_of(one.load.pids[0]), time.monotonic()
        while SystemClock().boot_ns() < end_ns - 0.45 * SECOND_NS:
            spans.append(seen.over(0.4))
        after, want = tasks_of(one.load.pids[0]), level * cores
        own, others = min(spans, key=lambda span: abs(span[0] - want))
        if want + others > CORES - 0.1 and (not is_first or (want > CORES - 0.1 and others > 0.05)):
            continue  # others may have had it; of all there is they get a little also beside one who goes first
        judged += 1
        assert own == pytest.approx(want, rel=0.05), (level, spans)
        busiest = sorted(((used - before[task][0], cpu) for task, (used, cpu) in after.items()), reverse=True)[:cores]
        assert len({cpu for _, cpu in busiest}) == cores, busiest
        assert busiest[-1][0] >= 0.8 * busiest[0][0] or others > 0.2, busiest
        assert one.stats.own == pytest.approx(want / CORES, abs=0.1)
        recorded = {cpu: told.last("load.core.busy", core=str(cpu)) for cpu in find_container().cpus}
        assert sum(value >= 0.0 for value in recorded.values()) == cores, recorded
        assert recorded[busiest[0][1]] == pytest.approx(busiest[0][0] / (time.monotonic() - begun_s), abs=0.25), recorded
    told.close()
    if judged < 2:
        pytest.skip("others left no room for most of what was asked")


@may_raise
def test_a_lower_clock_rate_is_simulated(bench: Any) -> None:
    """While half or a quarter of each core is taken first, fixed work takes 1 / 0.5 or 1 / 0.75 of its time, within 10 %; after, all of it.

    Its time is taken for each second of its own CPU time: what else slows it down (caches, the machine's owner) is not this load's doing.
    """
    command = [sys.executable, "-S", "-c", WORK, str(min(find_container().cpus))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as work:
        assert work.stdin is not None
        assert work.stdout is not None
        assert work.stdout.readline() == "ready\n"

        def stretch() -> float:
            assert work.stdin is not None
            assert work.stdout is not None
            work.stdin.write("3000000\n")
            work.stdin.flush()
            return float(work.stdout.readline())

        found: dict[float, list[tuple[float, float, float]]] = {0.5: [], 0.75: []}
        for rate, seen in found.items():
            for _ in range(3):
                one = bench(replace(CPU, shape={"kind": "constant", "level": 1.0 - rate}, options={"mode": "slowdown"}))
                one.ready()
                before = stretch()
                one.go()
                one.cores(0.3)
                slowed = statistics.median(stretch() for _ in range(3))
                assert one.guardian.stats.word(SLOT, NOTES) & NOTE_SIMULATED_CLOCK
                one.load.drain()
                one.end()
                seen.append((before, slowed, statistics.median(stretch() for _ in range(3))))  # the first holds its end
                if is_shown(rate, *seen[-1]):
                    break
        work.kill()
    assert all(any(is_shown(rate, *one) for one in seen) for rate, seen in found.items()), found


def is_shown(rate: float, before: float, slowed: float, after: float) -> bool:
    """Tell whether work was slowed to a rate within 10 %, and that before and after nothing slowed it."""
    return abs(slowed / before * rate - 1.0) <= 0.1 and abs(after / before - 1.0) <= 0.1


@may_raise
def test_a_slowdown_ends_with_its_lease(bench: Any) -> None:
    """Whoever takes cores first gives them back by itself: the lease's end is seen between two pieces of work."""
    one = bench(replace(CPU, shape={"kind": "constant", "level": 0.9}, options={"mode": "slowdown"}))
    one.ready()
    one.go(lease_s=0.6)
    deadline_ns = one.guardian.control.lease(SLOT)[1]
    event, _ = until(one.load.poll, 5, "the end of the load", every_s=0.005)
    assert (event, one.load.exit_code) == (Event.LEASE_ENDED, EXIT_LEASE)
    assert SystemClock().boot_ns() - deadline_ns < SECOND_NS


PATTERNS = {
    "sustained": shapes.Constant(0.6),
    "burst": shapes.Burst(base=0.1, peak_level=0.9, period_s=2.5, length_s=1.0),
    "oscillating": shapes.Sine(low=0.1, high=0.9, period_s=4.0),
    "spike": shapes.Burst(base=0.0, peak_level=0.9, period_s=2.0, length_s=0.5),
    "realistic": shapes.Sine(low=0.2, high=0.7, period_s=6.0),
}


@pytest.mark.parametrize(
    ("name", "seconds"),
    [*((name, 4) for name in ("burst", "oscillating")), *(pytest.param(name, 30, marks=pytest.mark.soak) for name in PATTERNS)],
)
def test_a_pattern_is_followed(bench: Any, name: str, seconds: int) -> None:
    """Each second's CPU time is the curve's mean over that second: root of the mean square error at most 7 points of the core."""
    shape = PATTERNS[name]
    one = bench(replace(CPU, shape=shape.to_spec(), options={"cores": 1}), replace(CAPACITY, cpu_cores=1.0))
    one.ready()
    is_first = one.go_first()
    start_ns, seen, clock, errors = one.go(lease_s=seconds + 30.0), Seen(one), SystemClock(), []
    for _ in range(seconds):
        begun_ns = clock.boot_ns()
        own, others = seen.over(1.0)
        at_s, end_s = (begun_ns - start_ns) / SECOND_NS, (clock.boot_ns() - start_ns) / SECOND_NS
        ideal = statistics.fmean(shape.value(at_s + (end_s - at_s) * (step + 0.5) / 1000) for step in range(1000))
        if is_first or others <= CORES - 1:
            errors.append(own - ideal)
    if len(errors) < seconds * 0.6:
        pytest.skip("others left no room for a core's load")
    assert math.sqrt(statistics.fmean(error**2 for error in errors)) <= 0.07, errors


def test_the_edges_of_a_burst_are_sharp(bench: Any) -> None:
    """A burst begins and ends within half a second: seen in windows of 100 ms, at best of its edges."""
    shape = shapes.Burst(base=0.1, peak_level=0.8, period_s=1.2, length_s=0.6)
    one = bench(replace(CPU, shape=shape.to_spec(), options={"cores": 1}), replace(CAPACITY, cpu_cores=1.0))
    one.ready()
    one.go_first()
    start_ns, clock = one.go(), SystemClock()
    late: dict[bool, list[float]] = {True: [], False: []}
    settled = True  # the load begins with a burst
    edge_s = 0.0
    while (now_s := (clock.boot_ns() - start_ns) / SECOND_NS) < 3.2:
        high = shape.value(now_s) > 0.5
        if now_s - edge_s >= 0.6:
            settled, edge_s = False, math.floor(now_s / 0.6) * 0.6
        own = one.cores(0.1)
        if not settled and (own > 0.65) == high and (own < 0.25) != high:
            late[high].append((clock.boot_ns() - start_ns) / SECOND_NS - edge_s)
            settled = True
    assert min(late[True], default=9.0) <= 0.5, late
    assert min(late[False], default=9.0) <= 0.5, late


def test_a_load_yields_to_heat_within_a_second_and_returns() -> None:
    """An injected sensor above 85 °C: no CPU time within a second, sensor and value told; below the gap the load is back."""
    celsius = {"coretemp/Package id 0": 60.0}
    guardian = PageGuardian()
    guardian.open_slot(SLOT, GENERATION)
    guardian.grant(SLOT, GENERATION, 30.0)
    watch = LeaseWatch(guardian.control, guardian.stats, SLOT, GENERATION, SystemClock(), leave=lambda _: None)
    load = CpuLoad(replace(CPU, options={"cores": 1}), replace(CAPACITY, cpu_cores=1.0), watch, sensors=lambda: Reading(dict(celsius)))
    load.warm_up()
    thread = threading.Thread(target=load.run, args=(SystemClock().boot_ns(),))
    thread.start()
    pause = threading.Event()

    def cores(over_s: float) -> float:
        before = sum(used for used, _ in tasks_of(os.getpid()).values())
        pause.wait(over_s)
        return (sum(used for used, _ in tasks_of(os.getpid()).values()) - before) / over_s

    def hot(value: float) -> None:
        celsius["coretemp/Package id 0"] = value

    try:
        assert until(lambda: cores(0.2) > 0.2, 5, "the load")
        hot(86.5)
        pause.wait(0.9)
        assert cores(0.3) < 0.05
        assert read_heat(guardian.stats, SLOT) == (True, "coretemp/Package id 0", 86.5)
        assert guardian.stats.read(SLOT).asked == 0.0
        hot(80.5)
        assert cores(0.6) < 0.05  # not below the gap yet
        hot(79.0)
        assert until(lambda: cores(0.2) > 0.2, 5, "the load's return")
        assert read_heat(guardian.stats, SLOT) == (False, "coretemp/Package id 0", 79.0)
        assert until(lambda: guardian.stats.read(SLOT).asked == pytest.approx(0.3), 2, "the asked figure")
    finally:
        guardian.control.write_stop(SLOT, GENERATION, STOP_DRAIN)
        thread.join(10)
        guardian.close()
    assert not thread.is_alive()


@pytest.mark.skipif(cpu_stalled_s() is None, reason="this kernel does not tell for how long processes wait")
def test_processes_wait_for_the_share_of_time_that_was_asked(bench: Any) -> None:
    """The kernel's total of waiting grows by 0.2 s a second within 5 points, once the load has found how."""

    def waiting(span_s: float) -> float:
        then_s, before_s = time.monotonic(), cpu_stalled_s()
        threading.Event().wait(span_s)
        after_s = cpu_stalled_s()
        assert before_s is not None
        assert after_s is not None
        return (after_s - before_s) / (time.monotonic() - then_s)

    before = waiting(1.0)
    if before > 0.15:
        pytest.skip(f"others wait for {before:.0%} of the time already")
    one = bench(replace(CPU, kind="CpuPressure", shape={"kind": "constant", "level": 0.2}))
    one.ready()
    one.go()
    waiting(3.0)
    found = [waiting(1.5) for _ in range(3)]
    assert one.stats.asked == pytest.approx(0.2)
    one.load.drain()
    one.end()
    after = waiting(1.0)
    if after > 0.15:
        pytest.skip(f"others wait for {after:.0%} of the time by now")
    assert min(abs(share - 0.2) for share in found) <= 0.05, (before, found)
