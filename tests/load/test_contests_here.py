"""Loads of concurrency run from their start to their end in this process, and contenders as its children: what a load process hides."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest
from support.contests import CAPACITY, driven, operation
from support.waiting import until

from actors.clock import SystemClock
from actors.concurrency import load as frame
from actors.concurrency.contest import ContestSettings
from actors.concurrency.contest_processes import HOLDS, LINES, OWN, SHARED, STOP, WAITS, ProcessContest, _Page
from actors.concurrency.locks import Task
from actors.concurrency.run_queue import HIGH, NICE, NiceMechanism
from actors.errors import HarnessError, RefusedError
from actors.messages import Operation
from actors.metrics.reporter import MemoryReporter
from actors.simulator import REGISTRY, peak_amounts, record_of

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Watch:
    """A lease that lasts for so many looks; keeps what is published."""

    def __init__(self, looks: int = 10_000) -> None:
        self.clock, self.looks = SystemClock(), looks
        self.asked: list[float] = []
        self.own: list[float] = []
        self.notes: list[int] = []
        self.begun = 0

    def may_go_on(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def ceiling(self) -> float:
        return 0.5

    def first_slice(self) -> None:
        self.begun += 1

    def note(self, bit: int) -> None:
        self.notes.append(bit)

    def report(self, *, asked: float, own: float, cpu_ns: int, operations: int) -> None:
        self.asked.append(asked)
        self.own.append(own)


def run(one: Operation, watch: Any, monkeypatch: pytest.MonkeyPatch) -> MemoryReporter:
    reporter = MemoryReporter()
    monkeypatch.setattr(frame, "open_reporter", lambda path, seed: (reporter, False))
    load = record_of(one.kind).make(one, CAPACITY, watch, "/nowhere")
    load.warm_up()
    load.run(watch.clock.boot_ns())
    return reporter


@pytest.mark.parametrize("kind", ["LockContention", "LockConvoy", "Deadlock", "Livelock", "PriorityInversion"])
def test_a_load_follows_its_shape_under_its_ceiling_and_leaves_in_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked is the shape times the ceiling, so many work, that nothing is kept is noted, and what it records is told to the end."""
    watch = Watch()
    reporter = run(operation(kind, 4, 0.5), watch, monkeypatch)
    assert (watch.begun, watch.notes, watch.asked[-1], watch.own[-1]) == (1, [4], 2.0, 2.0)
    assert reporter.closed
    assert {name for name, _ in ((one.name, 0) for one in reporter.series())} <= set(REGISTRY[kind].metrics)
    assert reporter.samples(
        "concurrency.lock.waiters", lock=next(iter(dict(one.labels)["lock"] for one in reporter.series() if one.labels))
    )


def test_a_load_ends_where_it_may_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the third look everybody leaves, long before the operation's end."""
    watch = Watch(looks=3)
    run(operation("LockContention", 4, 600.0), watch, monkeypatch)
    assert len(watch.own) == 4  # one of them from before the start


def settings(contention: float = 1.0, hold_s: float = 0.001) -> tuple[ContestSettings, list[float], list[float]]:
    waits: list[float] = []
    holds: list[float] = []
    return ContestSettings(contention, hold_s, 1, SystemClock(), waits.append, holds.append), waits, holds


def test_processes_count_what_threads_do() -> None:
    """Of children that contend, what the lock protects equals its acquisitions; waits and holds are all told, and resizing ends some."""
    with driven("LockContention", 3, contenders="processes", contention=0.7, hold_s=0.001) as one:
        one.until(lambda: one.contest.operations >= 200)
        assert len(one.contest.pids) == 3
        one.count = 1
        one.until(lambda: not one.contest._leaving and one.contest.size == 1)
        one.count = 3
        one.until(lambda: one.contest.size == 3)
    shared, own = one.contest.figures()
    assert one.contest.operations == shared.acquisitions + own.acquisitions == one.total("concurrency.lock.hold")
    assert one.total("concurrency.lock.wait") == shared.contended > 0
    assert (shared.holder, shared.waiters, one.contest.size, one.contest.counts()) == ("", 0, 0, {})


@pytest.mark.parametrize("how", ["killed", "broken", "stuck"])
def test_a_child_that_fails_is_told_by_name(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, ended by an error of its own, or stuck at the end: the contest raises it, and no child is left."""
    made, _, _ = settings(hold_s=0.01)
    contest = ProcessContest(made, 2)
    if how == "broken":
        monkeypatch.setattr(ProcessContest, "_contend", lambda self, number: [][number])
    if how == "stuck":
        monkeypatch.setattr(ProcessContest, "_contend", lambda self, number: signal.pause())
        monkeypatch.setattr("actors.concurrency.contest_processes.LEAVE_S", 0.05)
    contest.resize(2)
    pids = contest.pids
    if how == "killed":
        os.kill(pids[0], signal.SIGKILL)
    want = {
        "killed": "was killed by signal 9 while it should",
        "broken": "ended with code 1 while it should",
        "stuck": "killed by signal 9",
    }
    if how != "stuck":
        with pytest.raises(HarnessError, match=want[how]):
            until(contest.look, 10, "the error")
    with pytest.raises(HarnessError, match=want[how]):
        contest.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: PTH110  # reaped, not zombies


def test_contenders_take_turns_at_a_file_lock() -> None:
    """Two that contend, here as threads with an opening of the file each: waits and holds are in their slots, one at a time holds."""
    made, waits, holds = settings(contention=0.8, hold_s=0.002)
    contest = ProcessContest(made, 2)
    threads = [threading.Thread(target=contest._contend, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: contest.look() or contest.figures()[0].holder, 10, "one holds")
    until(lambda: contest.operations > 100, 20, "a hundred turns")
    for number in range(2):
        contest._page.put(number, STOP, 1)
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    contest.close()
    assert len(waits) == contest.figures()[0].contended > 0
    assert len(holds) == contest.operations
    assert min(contest._page.get(slot, word) for slot in range(2) for word in (SHARED, OWN)) > 0


def test_what_is_told_faster_than_it_is_read_is_told_as_the_newest() -> None:
    """Each wait counts once, also where the oldest were overwritten before anybody looked."""
    page = _Page(1)
    for at in range(3):
        page.tell(0, WAITS, float(at))
    page.tell(0, HOLDS, 9.0)
    assert page.told(0, WAITS, 0) == [0.0, 1.0, 2.0]
    assert page.told(0, WAITS, 2) == [2.0]
    for at in range(3, 2 * LINES):
        page.tell(0, WAITS, float(at))
    found = page.told(0, WAITS, 3)
    assert len(found) == 2 * LINES - 3
    assert found[-LINES:] == [float(at) for at in range(LINES, 2 * LINES)]
    assert min(found) >= LINES
    assert page.told(0, HOLDS, 0) == [9.0]


@pytest.mark.parametrize(
    ("contenders", "want"),
    [("threads", (5, 0, 6)), ("tasks", (1, 5, 6)), ("processes", (5, 0, 6))],
)
def test_what_contenders_reserve(contenders: str, want: tuple[int, int, int]) -> None:
    """Tasks of the kernel, descriptors, and a lock each beside the shared one."""
    found = peak_amounts(replace(operation("LockContention", 4.2, contenders=contenders)), CAPACITY)
    assert (found.tasks, found.descriptors, found.locks) == want
    assert found.memory_bytes > 0


def test_nice_values_follow_the_priority_that_counts() -> None:
    """A thread is pinned to one core at its nice value; one that must not be raised is refused with what would do."""
    told: list[Any] = []

    def adopt() -> None:
        task, mechanism = Task("one", 1, threading.get_native_id()), NiceMechanism(0)
        mechanism.adopt(task)
        with mechanism.ready(task), mechanism.turn(task):
            told.append((os.getpriority(os.PRIO_PROCESS, task.tid), len(os.sched_getaffinity(0))))
        mechanism.close()

    thread = threading.Thread(target=adopt)
    thread.start()
    thread.join()
    assert told == [(NICE[1], 1)]


def test_a_nice_value_that_is_not_permitted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names what is needed and the mechanism that needs nothing; it ends the load."""

    def refuse(which: int, who: int, nice: int) -> None:
        if nice == NICE[HIGH]:
            raise PermissionError(13, "no")

    monkeypatch.setattr(os, "setpriority", refuse)
    with pytest.raises(RefusedError, match="CAP_SYS_NICE; or mechanism='queue'"), driven("PriorityInversion", 1, mechanism="nice") as one:
        one.until(lambda: False)


def test_supported_says_what_a_node_lacks() -> None:
    """Without kernels inversions are unavailable; without the right to raise nice values they fall back to the run queue."""
    from types import SimpleNamespace

    supported = REGISTRY["PriorityInversion"].supported
    facts = [SimpleNamespace(has_numba=numba, may_raise_nice=nice) for numba, nice in ((False, True), (True, False), (True, True))]
    assert [supported(one).verdict for one in facts] == ["unavailable", "fallback", "available"]
    assert "mechanism=queue" in supported(facts[1]).reason
