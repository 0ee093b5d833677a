"""Concurrency loads as real processes without Ray. What they do is read from /proc; figures of their own come from their segment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_bench import Bench, Told
from support.contests import operation
from support.observe import promised
from support.waiting import until

from actors import proc
from actors.concurrency.contest import contended_share
from actors.lifecycle import Event
from actors.messages import Capacity
from actors.simulator import record_of

CAPACITY = Capacity(cpu_cores=2.0, memory_bytes=1 << 30, disk_bytes=1 << 30, tasks=1000, locks=1000)
PAIR, LONG = 2, pytest.mark.soak
CASES = [  # kind, what it is told, threads or processes of a unit, and steps of its dose
    pytest.param("LockContention", {}, 1, (2, 5, 1), id="threads"),
    pytest.param("LockContention", {"contenders": "tasks"}, 0, (2, 5, 1), id="tasks", marks=LONG),
    pytest.param("LockContention", {"contenders": "processes"}, 1, (2, 5, 1), id="processes"),
    pytest.param("LockConvoy", {}, 1, (2, 5, 1), id="convoy", marks=LONG),
    pytest.param("Deadlock", {}, PAIR, (2, 5, 1), id="deadlock"),
    pytest.param("Livelock", {}, PAIR, (2, 5, 1), id="livelock", marks=LONG),
    pytest.param("PriorityInversion", {"burst_s": 0.02}, 3, (1, 2, 1), id="inversion", marks=LONG),
]


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@pytest.fixture
def bench(state_dir: Path, told: Told) -> Iterator[Any]:
    made: list[Bench] = []

    def make(one: Any, into: Told = told) -> Bench:
        made.append(Bench(state_dir, one, CAPACITY, into.segment.path))
        return made[-1]

    yield make
    for one in made:
        one.close()


def tasks_of(pid: int) -> int:
    """Return how many threads the kernel has of a process's session."""
    return sum(len(os.listdir(f"/proc/{one.pid}/task")) for one in proc.session_members(pid))  # noqa: PTH208  # /proc


def switches_of(pid: int) -> int:
    """Return how often the threads of a process gave up the processor by themselves."""
    rows = [line.split() for path in Path(f"/proc/{pid}/task").glob("*/status") for line in path.read_text().splitlines()]
    return sum(int(row[1]) for row in rows if row[0] == "voluntary_ctxt_switches:")


@pytest.mark.parametrize(("kind", "options", "threads", "levels"), CASES)
def test_the_dose_is_what_was_asked_on_each_step_and_nothing_is_left(
    bench: Any, kind: str, options: dict[str, Any], threads: int, levels: tuple[int, ...]
) -> None:
    """The kernel shows as many contenders, pairs or groups as each step asks, the load ends well, and its session is empty."""
    one = bench(replace(operation(kind, 1, 2.4, **options), shape={"kind": "steps", "levels": [*map(float, levels)], "each_s": 0.8}))
    one.ready()
    before = tasks_of(one.load.pids[0])
    one.go()
    for level in levels:
        until(lambda want=level: one.stats.asked == want and one.meter.read() == want, 3, lambda want=level: f"{want}: {one.meter.read()}")
        assert tasks_of(one.load.pids[0]) == before + level * threads
    assert one.end() == (Event.FINISHED, "")
    assert proc.session_members(one.load.pids[0]) == []


@pytest.mark.parametrize(("contenders", "count", "contention"), [("threads", 3, 0.5), ("tasks", 4, 0.8), ("processes", 4, 0.8)])
def test_the_share_of_contended_acquisitions_is_the_models(bench: Any, told: Told, contenders: str, count: int, contention: float) -> None:
    """Of thousands of acquisitions as many found their lock held as the model has it, within 5 %; each such wait is in the histogram."""
    one = bench(operation("LockContention", count, 120.0, contenders=contenders, contention=contention, hold_s=0.002))
    one.ready()
    one.go(lease_s=120.0)
    wanted = 6000 if contention < 0.6 else 3000
    until(lambda: told.sum("concurrency.lock.acquisitions") >= wanted, 60, lambda: str(told.sum("concurrency.lock.acquisitions")))
    switches = switches_of(one.load.pids[0])
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    acquisitions, contended = told.sum("concurrency.lock.acquisitions"), told.sum("concurrency.lock.contended")
    assert contended / acquisitions == pytest.approx(contended_share(count, contention), rel=0.05)
    assert told.count("concurrency.lock.wait") == pytest.approx(contended, abs=count)
    assert told.count("concurrency.lock.hold") == pytest.approx(acquisitions, abs=count)
    assert told.sum("concurrency.lock.wait") > 0
    if contenders == "threads":
        assert switches > contended * 0.9  # whoever waited, and whoever held, slept in the kernel
    assert (told.last("concurrency.lock.waiters", lock="shared"), told.last("concurrency.lock.holder", lock="shared")) == (0, 0)


def locks_of(pids: set[int]) -> tuple[set[int], set[int]]:
    """Return which of these processes hold a file lock and which wait for one, as the kernel has it."""
    holders, waiters = set(), set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words:
            (waiters if "->" in words else holders).add(int(words[words.index("WRITE") + 1]))
    return holders & pids, waiters & pids


def test_the_kernel_shows_who_holds_a_file_lock_and_who_waits(bench: Any, told: Told) -> None:
    """Of five processes at one lock /proc/locks has one holder and four waiters; killed with the load, none is left, nor the lock."""
    one = bench(operation("LockContention", 5, contenders="processes", contention=1.0, hold_s=5.0))
    one.ready()
    one.go()
    pid = one.load.pids[0]
    children = until(lambda: len(found := {one.pid for one in proc.session_members(pid)} - {pid}) == 5 and found, 5, "five processes")
    until(lambda: tuple(map(len, locks_of(children))) == (1, 4), 10, lambda: str(locks_of(children)))
    until(lambda: told.last("concurrency.lock.waiters", lock="shared") == 4, 5, "the gauge says so too")
    assert told.last("concurrency.lock.holder", lock="shared") in locks_of(children)[0]
    os.kill(pid, signal.SIGKILL)
    assert one.end()[0] is Event.BROKE
    until(lambda: not proc.session_members(pid), 5, "all die with the load")
    assert locks_of(children) == (set(), set())


def test_a_contender_that_is_killed_ends_the_load_with_its_reason(bench: Any) -> None:
    """A child process that dies is an error of the load that names it; the others leave, and no lock stays held."""
    one = bench(operation("LockContention", 4, contenders="processes", contention=1.0, hold_s=0.05))
    one.ready()
    one.go()
    pid = one.load.pids[0]
    children = until(lambda: len(found := {one.pid for one in proc.session_members(pid)} - {pid}) == 4 and found, 5, "four processes")
    os.kill(min(children), signal.SIGKILL)
    event, reason = one.end()
    assert event is Event.BROKE
    assert "was killed by signal 9 while it should contend" in reason
    assert locks_of(children) == (set(), set())
    assert proc.session_members(pid) == []


def test_a_deadlock_that_should_fail_ends_the_load_with_the_cycle_as_reason(bench: Any, told: Told) -> None:
    """The cycle is named in the reason of the load's end, and counted."""
    one = bench(operation("Deadlock", 1, on_deadlock="fail"))
    one.ready()
    one.go()
    event, reason = one.end()
    assert event is Event.BROKE
    assert "0.left waits for 0.b held by 0.right, 0.right waits for 0.a held by 0.left" in reason
    assert told.sum("concurrency.deadlock.detected") == 1


def test_a_deadlock_is_seen_as_threads_that_do_not_run(bench: Any, told: Told) -> None:
    """While pairs are deadlocked their threads use no processor; once the timeout has come, they go on."""
    one = bench(operation("Deadlock", 4, detect=False, timeout_s=2.0, hold_s=0.0))
    one.ready()
    one.go()
    until(lambda: told.sum("concurrency.deadlock.planted") == 4, 5, "four deadlocks")
    stuck = [
        Path(f"/proc/{one.load.pids[0]}/task/{int(told.last('concurrency.lock.holder', lock=f'{at}.{name}'))}")
        for at in range(4)
        for name in "ab"
    ]
    assert len({path.name for path in stuck}) == 8
    before = [(path / "schedstat").read_text() for path in stuck]
    assert told.sum("concurrency.deadlock.timeouts") == 0
    assert [proc.parse_stat((path / "stat").read_text()).state for path in stuck] == ["S"] * 8
    assert [(path / "schedstat").read_text() for path in stuck] == before
    until(lambda: told.sum("concurrency.deadlock.timeouts") >= 4, 10, "the timeouts")


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "options", "threads", "levels"), CASES)
def test_each_ends_with_its_lease(bench: Any, kind: str, options: dict[str, Any], threads: int, levels: tuple[int, ...]) -> None:
    """A load whose lease is over ends by itself with everything that is its, whoever waits for whatever."""
    one = bench(operation(kind, 3, **options))
    one.ready()
    one.go(lease_s=0.8)
    pid = one.load.pids[0]
    assert one.end()[0] is Event.LEASE_ENDED
    until(lambda: proc.session_members(pid) == [], 2, "its session is empty")


@promised
def test_a_drain_ends_a_load_in_a_moment_whatever_it_waits_for(bench: Any) -> None:
    """Deadlocked threads, and one that holds a lock for minutes, leave at once when asked to end."""
    for kind, options in (("Deadlock", {"detect": False, "timeout_s": 600.0}), ("LockContention", {"hold_s": 10.0, "contention": 1.0})):
        one = bench(operation(kind, 3, **options))
        one.ready()
        one.go()
        until(lambda one=one: one.meter.read() == 3, 5, "all are at work")
        one.load.drain()
        until(one.load.poll, 1.5, "the end", 0.01)
        assert one.load.poll() == (Event.FINISHED, "")


def test_what_is_recorded_is_what_the_record_says(bench: Any, told: Told) -> None:
    """The segment of a real load has the metrics of its record, all of them and no other."""
    one = bench(operation("Deadlock", 1, 1.0, hold_s=0.0))
    one.ready()
    one.go()
    assert one.end() == (Event.FINISHED, "")
    assert told.names() == set(record_of("Deadlock").metrics)
