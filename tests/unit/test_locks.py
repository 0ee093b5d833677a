"""Locks that count, with real threads: who holds, who waits, how often and how long, and every way in which a wait can end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.clock import SystemClock, VirtualClock
from actors.concurrency.crew import Crew, Unit
from actors.concurrency.detection import LivelockWatch
from actors.concurrency.figures import GAUGES_MAX, LockMeters
from actors.concurrency.locks import ClosedError, CountedLock, DeadlockError, LockError, LockTable, LockTimeoutError, Task
from actors.concurrency.run_queue import HIGH, LOW, MEDIUM, RunQueue
from actors.metrics.reporter import MemoryReporter
from tests.support.waiting import until


class Waiters:
    """Threads that ask for a lock and give it back at once, in the order in which they were planted."""

    def __init__(self, lock: CountedLock, table: LockTable) -> None:
        self.lock, self.table = lock, table
        self.order: list[str] = []
        self.errors: dict[str, LockError] = {}
        self.threads: list[threading.Thread] = []

    def plant(self, name: str, priority: int = 0, timeout_s: float | None = None) -> Task:
        task, before = Task(name, priority), len(self.lock.waiters)

        def ask() -> None:
            task.tid = threading.get_native_id()
            try:
                self.lock.acquire(task, timeout_s)
            except LockError as error:
                self.errors[name] = error
                return
            self.order.append(name)
            self.lock.release(task)

        thread = threading.Thread(target=ask, daemon=True)
        self.threads.append(thread)
        thread.start()
        until(lambda: len(self.lock.waiters) > before, 10, f"{name} waits")
        return task

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def table() -> Iterator[LockTable]:
    made = LockTable(SystemClock())
    yield made
    made.close()


@pytest.mark.parametrize("count", [1, 5, 20])
def test_gauges_equal_the_waiters_that_were_planted_and_go_back_to_nothing(table: LockTable, count: int) -> None:
    """Waiters, holder (by the kernel's thread number) and hold time are gauges of a lock; all are 0 once it is free."""
    reporter, lock, holder = MemoryReporter(), table.lock("shared"), Task("holder", tid=threading.get_native_id())
    meters, waiters = LockMeters(reporter), Waiters(lock, table)

    def gauges() -> tuple[float, ...]:
        meters.take(table.figures(), 0, {})
        return tuple(reporter.samples(f"concurrency.lock.{name}", lock="shared")[-1][0] for name in ("waiters", "holder", "held"))

    assert gauges() == (0, 0, 0)
    lock.acquire(holder)
    for at in range(count):
        waiters.plant(f"w{at}")
    waiting, tid, held_s = gauges()
    assert (waiting, Path(f"/proc/self/task/{int(tid)}").exists(), tid) == (count, True, threading.get_native_id())
    assert held_s > 0
    assert gauges()[2] > held_s
    assert set(table.waits()) == {f"w{at}" for at in range(count)}
    lock.release(holder)
    waiters.join()
    assert gauges() == (0, 0, 0)
    assert waiters.order == [f"w{at}" for at in range(count)]
    (figures,) = table.figures()
    assert (figures.acquisitions, figures.contended) == (count + 1, count)
    assert sum(value for value, _ in reporter.samples("concurrency.lock.acquisitions")) == count + 1
    assert sum(value for value, _ in reporter.samples("concurrency.lock.contended")) == count


def test_each_wait_and_each_hold_is_told_once() -> None:
    """As many waits as contended acquisitions, whether given or refused, and as many holds as acquisitions."""
    waits: list[float] = []
    holds: list[float] = []
    table = LockTable(SystemClock(), waits.append, holds.append)
    lock, holder = table.lock("a"), Task("holder")
    assert lock.acquire(holder) == 0.0
    waiters = Waiters(lock, table)
    waiters.plant("given")
    waiters.plant("late", timeout_s=0.02)
    waiters.plant("refused")
    until(lambda: "late" in waiters.errors, 10, "the timeout")
    assert table.refuse("refused", DeadlockError("told", ("refused",)))
    assert not lock.try_acquire(Task("trier"))
    lock.release(holder)
    waiters.join()
    assert (len(waits), len(holds), lock.contended, lock.acquisitions) == (3, 2, 4, 2)
    assert max(holds) >= min(waits) > 0


def test_how_a_wait_can_end_in_vain(table: LockTable) -> None:
    """A timeout, a refusal and the end of the load each raise their own error in the waiter, which then waits no more."""
    lock, holder = table.lock("a"), Task("holder")
    lock.acquire(holder)
    waiters = Waiters(lock, table)
    waiters.plant("late", timeout_s=0.01)
    until(lambda: waiters.errors, 10, "the timeout")
    waiters.plant("refused")
    waiters.plant("closed")
    assert table.refuse("refused", DeadlockError("in a circle", ("refused", "other")))
    assert not table.refuse("refused", DeadlockError("again", ()))
    assert not table.refuse("nobody", DeadlockError("again", ()))
    table.close()
    waiters.join()
    assert {name: type(error) for name, error in waiters.errors.items()} == {
        "late": LockTimeoutError,
        "refused": DeadlockError,
        "closed": ClosedError,
    }
    assert "holder holds it" in str(waiters.errors["late"])
    assert str(waiters.errors["refused"]) == "in a circle"
    for ask in (lock.acquire, lock.try_acquire):
        with pytest.raises(ClosedError, match="as the load ended"):
            ask(Task("after"))
    lock.release(holder)
    assert table.figures()[0].holder == ""


def test_a_lock_by_priority_goes_to_the_most_urgent_and_lends_what_it_waits_with(table: LockTable) -> None:
    """Of equals the first is served; the holder has its most urgent waiter's priority until it releases, and each change is told."""
    told: list[tuple[str, int]] = []
    lock = table.lock("a", by_priority=True, lend=lambda task: told.append((task.name, task.urgency)))
    assert table.lock("a") is lock
    holder = Task("holder", LOW)
    lock.acquire(holder)
    waiters = Waiters(lock, table)
    for name, priority in (("m1", MEDIUM), ("m2", MEDIUM), ("h", HIGH), ("l", LOW)):
        waiters.plant(name, priority)
    assert holder.urgency == HIGH
    lock.release(holder)
    waiters.join()
    assert waiters.order == ["h", "m1", "m2", "l"]
    assert holder.urgency == LOW
    assert told == [("holder", MEDIUM), ("holder", HIGH), ("holder", LOW)]


def test_only_its_holder_releases(table: LockTable) -> None:
    """A release by another is a broken invariant, and so is one of a free lock."""
    lock = table.lock("a")
    lock.acquire(Task("one"))
    with pytest.raises(AssertionError, match="two releases a"):
        lock.release(Task("two"))


def test_only_the_first_locks_have_gauges() -> None:
    """Series stay few however many locks a load has, and all locks count."""
    table, reporter = LockTable(VirtualClock()), MemoryReporter()
    for at in range(GAUGES_MAX + 5):
        table.lock(f"l{at}").acquire(Task(f"t{at}"))
    LockMeters(reporter).take(table.figures(), 3, {"concurrency.livelock.tries": 2})
    assert len([one for one in reporter.series() if one.name == "concurrency.lock.waiters"]) == GAUGES_MAX
    assert reporter.samples("concurrency.lock.acquisitions") == [(GAUGES_MAX + 5, 1)]
    assert reporter.samples("load.operations") == [(3, 1)]
    assert reporter.samples("concurrency.livelock.tries") == [(2, 1)]


def test_a_run_queue_runs_the_most_urgent_that_is_ready() -> None:
    """While a more urgent task is ready no slice of another runs; lending changes the order at the next slice."""
    queue, order = RunQueue(), list[str]()
    low, high = Task("low", LOW), Task("high", HIGH)
    begun, may_end = threading.Event(), threading.Event()

    def run(task: Task) -> None:
        with queue.ready(task):
            begun.set()
            for _ in range(3):
                with queue.turn(task):
                    order.append(task.name)

    with queue.ready(high):
        thread = threading.Thread(target=run, args=(low,), daemon=True)
        thread.start()
        assert begun.wait(10)
        for _ in range(3):
            with queue.turn(high):
                order.append("high")
        assert not may_end.wait(0.05)
        assert order == ["high"] * 3
        low.inherited = HIGH
        queue.lend(low)
        until(lambda: len(order) == 6, 10, "the low one runs")
    thread.join(10)
    assert order == ["high"] * 3 + ["low"] * 3


def test_a_closed_run_queue_lets_everybody_run() -> None:
    """At the end a less urgent task runs although a more urgent one is ready."""
    queue = RunQueue()
    queue.close()
    with queue.ready(Task("high", HIGH)), queue.ready(low := Task("low", LOW)), queue.turn(low):
        pass


def test_a_crew_grows_shrinks_and_keeps_the_first_error() -> None:
    """Units are started and told to stop by number; a thread's error is raised where the load looks, once all have left."""
    stops: list[threading.Event] = []
    seen: list[int] = []

    def make(number: int) -> Unit:
        stop = threading.Event()
        stops.append(stop)
        seen.append(number)

        def body() -> None:
            stop.wait(30)
            if number == 1:
                raise OSError(5, "planted")

        return Unit((body, body), stop.set)

    crew = Crew(make)
    crew.resize(3)
    assert (crew.size, seen) == (3, [0, 1, 2])
    crew.check()
    crew.resize(2)
    assert (crew.size, [stop.is_set() for stop in stops]) == (2, [False, False, True])
    until(lambda: crew.resize(3) or crew.size == 3, 10, "the third is back")
    assert seen == [0, 1, 2, 2]
    crew.close()
    assert (crew.size, all(stop.is_set() for stop in stops)) == (0, True)
    with pytest.raises(OSError, match="planted"):
        crew.check()


@pytest.mark.parametrize(
    ("tries", "progress", "want"),
    [
        pytest.param(lambda at: 10 * at, lambda _: 0, 1, id="busy-and-nothing-done"),
        pytest.param(lambda at: 10 * at, lambda at: at, 0, id="gets-on"),
        pytest.param(lambda _: 0, lambda _: 0, 0, id="does-nothing"),
        pytest.param(lambda at: 10 * at, lambda at: at // 15, 2, id="once-in-a-while"),
        pytest.param(lambda at: at // 2, lambda _: 0, 0, id="few-tries"),
    ],
)
def test_a_livelock_is_many_tries_without_progress(tries, progress, want) -> None:
    """Ten tries and no progress within a second are one livelock, until there is progress again."""
    watch = LivelockWatch(1.0)
    for at in range(30):
        watch.look(at * 100_000_000, tries(at), progress(at))
    assert watch.found == want
