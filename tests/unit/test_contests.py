"""What contends, in this process: deadlocks are named, resolved and told; errors of threads and tasks reach who runs them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.clock import SECOND_NS, SystemClock
from actors.concurrency import contest_tasks
from actors.concurrency.deadlock import LOCKS_OF_A_PAIR, Pairs, Rules
from actors.concurrency.detection import LivelockWatch
from actors.concurrency.group import Group, GroupContest
from actors.concurrency.locks import DeadlockError, LockTable, LockTimeoutError
from actors.errors import HarnessError
from actors.messages import Amounts, Capacity
from actors.simulator import REGISTRY, peak_amounts
from cluster.safety.profiles import PROFILES, check_planned
from tests.support.contests import CAPACITY, driven, operation
from tests.support.waiting import until


def held(figures) -> int:
    return sum(bool(lock.holder) for lock in figures)


def test_a_deadlock_is_named_within_a_second_and_its_locks_are_free() -> None:
    """In each of ten rounds the cycle is closed for certain, named with both threads, and resolved; none waits for its timeout."""
    with driven("Deadlock", 1, hold_s=0.0, timeout_s=60.0) as one:
        one.until(lambda: one.contest.counts()["concurrency.deadlock.detected"] >= 10)
        assert one.contest.named == ("0.left", "0.right")
    counts = one.contest.counts()
    assert counts["concurrency.deadlock.planted"] == counts["concurrency.deadlock.detected"] + counts["concurrency.deadlock.cut"]
    assert counts["concurrency.deadlock.timeouts"] == counts["concurrency.deadlock.completed"] == 0
    assert counts["concurrency.deadlock.detected"] == one.contest.operations
    times_s = [value for value, _ in one.reporter.samples("concurrency.deadlock.detection")]
    assert len(times_s) >= 10
    assert sorted(times_s)[-2] <= 1.0  # one may fall into a stall of the machine
    assert held(one.contest.figures()) == 0


def test_without_detection_the_timeout_ends_it() -> None:
    """Where nobody looks for cycles each wait has an end of its own, and the outcome says so."""
    with driven("Deadlock", 1, hold_s=0.0, timeout_s=0.05, detect=False) as one:
        one.until(lambda: one.contest.counts()["concurrency.deadlock.timeouts"] >= 3)
    assert one.total("concurrency.deadlock.detected") == one.total("concurrency.deadlock.detection") == 0
    assert one.total("concurrency.deadlock.timeouts") == one.total("load.operations") == one.contest.operations >= 3
    assert held(one.contest.figures()) == 0


@pytest.mark.parametrize(("detect", "error"), [(True, DeadlockError), (False, LockTimeoutError)])
def test_the_error_of_a_deadlock_reaches_the_caller(detect: bool, error: type[Exception]) -> None:
    """Told to fail, the load raises the victim's own error, with the cycle in its words, and its locks are free."""
    options = {"on_deadlock": "fail", "detect": detect, "timeout_s": 60.0 if detect else 0.05}
    with pytest.raises(error) as caught, driven("Deadlock", 1, **options) as one:
        one.until(lambda: False)
    if detect:
        assert "0.left waits for 0.b held by 0.right, 0.right waits for 0.a held by 0.left" in str(caught.value)
        assert caught.value.circle == ("0.left", "0.right")
    assert held(one.contest.figures()) == 0
    assert one.total("concurrency.deadlock.planted") >= 1


def test_nothing_is_found_where_locks_are_taken_in_order() -> None:
    """100 rounds of the control, looked at all the time: no cycle, no timeout, all completed."""
    looks = 0
    pairs = Pairs(LockTable(SystemClock()), Rules(crossed=False, hold_s=0.0005, rest_s=0.0))
    pairs.resize(2)
    while pairs.operations < 100:
        pairs.look()
        looks += 1
    pairs.close()
    assert (pairs.outcomes.detected, pairs.outcomes.timeouts, pairs.outcomes.planted, pairs.named) == (0, 0, 0, ())
    assert pairs.outcomes.completed >= 100
    assert sum(lock.contended for lock in pairs.figures()) > 0
    assert looks > 100


def test_usage_is_two_locks_a_pair_while_deadlocked_and_none_after() -> None:
    """Three pairs in their deadlocks hold six locks and wait with six threads; all of it is gone after a stop in the middle."""
    table = LockTable(SystemClock())
    pairs = Pairs(table, Rules(detects=False, timeout_s=60.0))
    pairs.resize(3)
    until(lambda: len(table.waits()) == 6, 10, "all are deadlocked")
    assert held(pairs.figures()) == 3 * LOCKS_OF_A_PAIR
    assert sum(lock.waiters for lock in pairs.figures()) == 6
    reserved = peak_amounts(operation("Deadlock", 3), CAPACITY)
    assert (reserved.locks, reserved.tasks) == (held(pairs.figures()), 6)
    pairs.resize(1)
    until(lambda: held(pairs.figures()) == LOCKS_OF_A_PAIR, 10, "two pairs have left")
    pairs.close()
    assert (held(pairs.figures()), sum(lock.waiters for lock in pairs.figures())) == (0, 0)
    assert pairs.outcomes.cut == pairs.outcomes.planted == 3


def test_a_pair_is_refused_where_one_lock_is_allowed() -> None:
    """With room for one lock on a node a deadlock's two are a typed refusal that names them; with room for two they are not."""
    limits = PROFILES["aggressive"]
    wanted = {"n": Amounts(locks=peak_amounts(operation("Deadlock", 1), CAPACITY).locks)}
    for most, fits in ((1, False), (2, True)):
        capacity = Capacity(2.0, 1 << 30, 1 << 30, locks=round(most / limits.counts_fraction + 0.5))
        assert limits.planned(capacity).locks == most
        if fits:
            check_planned(wanted, {"n": capacity}, limits)
            continue
        with pytest.raises(Exception, match=r"asks 2 locks on n, its limit is 1 \(limits.counts_fraction\)") as caught:
            check_planned(wanted, {"n": capacity}, limits)
        assert caught.value.code == "budget"


PLACES = {  # place -> the call of a thread that fails there, and which one
    "before_the_first_lock": ("meet", 1),
    "with_one_lock": ("meet", 2),
    "with_both_locks": ("rest", 1),
    "while_it_rests": ("rest", 2),
    "in_the_look": ("", 0),
}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("side", [0, 1])
def test_an_error_in_any_place_reaches_the_caller_and_frees_the_locks(place: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks in a thread, wherever it was and whoever waited for it, is raised where the load looks; nobody is left waiting."""
    table = LockTable(SystemClock())
    pairs = Pairs(table, Rules(crossed=place != "with_both_locks", hold_s=0.001, timeout_s=60.0, rest_s=0.0))
    calls = {"rest": 0, "meet": 0}

    def fails(name: str, nth: int):
        real = getattr(Group, name)

        def call(self, *args):
            if threading.get_native_id() == self.tasks[side].tid:
                calls[name] += 1
                if calls[name] == nth:
                    raise OSError(5, f"planted {place}")
            return real(self, *args)

        monkeypatch.setattr(Group, name, call)

    if place == "in_the_look":
        monkeypatch.setattr(table, "waits", lambda: (_ for _ in ()).throw(OSError(5, f"planted {place}")))
    else:
        fails(*PLACES[place])
    pairs.resize(1)

    def look() -> bool:
        pairs.look()
        return False

    with pytest.raises(OSError, match=f"planted {place}"):
        until(look, 20, "the error")
    if place == "in_the_look":
        pairs.close()
    else:
        with pytest.raises(OSError, match=f"planted {place}"):
            pairs.close()
    assert (pairs.size, held(pairs.figures()), sum(lock.waiters for lock in pairs.figures())) == (0, 0, 0)


def test_a_lock_that_is_kept_is_told() -> None:
    """A group whose thread leaves with a lock in its hand is an error of the harness at the end."""
    table = LockTable(SystemClock())
    contest = GroupContest(table, ("one",), lambda group, place: table.lock("kept").acquire(group.tasks[place]) and None)
    contest.resize(1)
    until(lambda: held(contest.figures()), 10, "the lock is held")
    with pytest.raises(HarnessError, match="still held at the end: kept"):
        contest.close()


@pytest.mark.parametrize("contenders", ["threads", "tasks"])
def test_what_the_lock_protects_counts_its_acquisitions(contenders: str) -> None:
    """The unguarded counter equals the acquisitions of the shared lock, waits and holds are all told, and nothing is held at the end."""
    with driven("LockContention", 4, contenders=contenders, contention=0.7, hold_s=0.001) as one:
        one.until(lambda: one.contest.operations >= 300)
        assert one.contest.size == 4
    shared, *own = one.contest.figures()
    assert one.contest.counter == shared.acquisitions > 0
    assert shared.contended > 0
    assert sum(lock.contended for lock in own) == 0
    assert one.total("concurrency.lock.acquisitions") == one.total("load.operations") == one.contest.operations >= 300
    assert one.total("concurrency.lock.wait") == shared.contended
    assert one.total("concurrency.lock.hold") == one.contest.operations
    assert one.contest.size == held(one.contest.figures()) == 0


@pytest.mark.parametrize("contenders", ["threads", "tasks"])
def test_a_lock_that_lets_two_in_is_told(contenders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock does not exclude, the counter falls behind the acquisitions, and the load ends with that."""
    if contenders == "threads":
        from actors.concurrency.locks import CountedLock, Task

        def acquire(self: CountedLock, task: Task, timeout_s: float | None = None) -> float:
            self.acquisitions += 1
            return 0.0

        monkeypatch.setattr(CountedLock, "acquire", acquire)
        monkeypatch.setattr(CountedLock, "release", lambda self, task: None)
    else:

        class Open(asyncio.Lock):
            async def acquire(self) -> bool:
                return True

            def release(self) -> None:
                pass

        monkeypatch.setattr(contest_tasks.asyncio, "Lock", Open)
    options = {"contenders": contenders, "contention": 1.0, "hold_s": 0.001}
    with pytest.raises(HarnessError, match="it let two in"), driven("LockContention", 4, **options) as one:
        one.until(lambda: one.contest.operations >= 100)


def test_an_error_in_a_task_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks in an asyncio contender is raised where the load looks, and the event loop still ends."""

    def broken() -> int:
        raise OSError(24, "planted: no descriptor")

    monkeypatch.setattr(contest_tasks.os, "eventfd", lambda *_: broken())
    with pytest.raises(OSError, match="planted: no descriptor"), driven("LockContention", 2, contenders="tasks") as one:
        one.until(lambda: False)
    assert not one.contest._thread.is_alive()


def test_polite_threads_livelock_in_step_and_get_on_at_random() -> None:
    """In step many tries bring nothing and each pair is found once; with waits by chance tries succeed and nothing is found."""
    with driven("Livelock", 2, backoff_s=0.002) as one:
        one.until(lambda: one.contest.counts()["concurrency.livelock.detected"] >= 2)
    counts = one.contest.counts()
    assert counts["concurrency.livelock.progress"] == one.contest.operations == 0
    assert counts["concurrency.livelock.tries"] >= 20
    assert counts["concurrency.livelock.detected"] == 2
    with driven("Livelock", 2, retry="at_random", backoff_s=0.002) as one:
        begun_ns = SystemClock().boot_ns()
        one.until(lambda: SystemClock().boot_ns() - begun_ns > 1.3 * SECOND_NS and one.contest.operations > 20)
    counts = one.contest.counts()
    assert counts["concurrency.livelock.progress"] > counts["concurrency.livelock.tries"] / 4
    assert counts["concurrency.livelock.detected"] == 0
    assert isinstance(one.contest._watches[0], LivelockWatch)


def test_a_convoy_forms_behind_each_stall_and_clears() -> None:
    """Behind a holder that stalls most threads wait; how many, and how long until few do, is recorded once a stall."""
    with driven("LockConvoy", 8, work_s=0.005, stall_s=0.1, every_s=0.3) as one:
        one.until(lambda: len(one.reporter.samples("concurrency.convoy.clearing")) >= 2)
    counts = one.contest.counts()
    lengths = [value for value, _ in one.reporter.samples("concurrency.convoy.length")]
    assert counts["concurrency.convoy.formed"] <= counts["concurrency.convoy.stalls"] <= len(lengths) + 1
    assert sum(length >= 4 for length in lengths) == counts["concurrency.convoy.formed"] >= 2


@pytest.mark.parametrize("inheritance", [False, True])
def test_inversions_of_real_threads_are_found_and_end_with_inheritance(inheritance: bool) -> None:
    """On a run queue in user space N planted inversions give N findings; with inheritance none.

    Bursts are CPU time, so without inheritance a wait takes at least one; with it, a hold, a small part of that.
    """
    with driven("PriorityInversion", 1, inheritance=inheritance, hold_s=0.003, burst_s=0.2, bound_s=0.15) as one:
        one.until(lambda: one.contest.operations >= 3)
    counts = one.contest.counts()
    waits_s = sorted(value for value, _ in one.reporter.samples("concurrency.lock.wait"))
    assert counts["concurrency.inversion.planted"] >= 3
    assert counts["concurrency.inversion.detected"] == (0 if inheritance else counts["concurrency.inversion.planted"])
    assert (waits_s[len(waits_s) // 2] < 0.15) is inheritance


SPEAKS = {
    "LockContention": (2, {"hold_s": 0.001}, lambda one: one.contest.operations > 20),
    "LockConvoy": (4, {"every_s": 0.1, "stall_s": 0.05}, lambda one: one.reporter.samples("concurrency.convoy.clearing")),
    "Deadlock": (1, {"hold_s": 0.0}, lambda one: one.contest.operations >= 1),
    "Livelock": (1, {"retry": "at_random", "backoff_s": 0.001}, lambda one: one.reporter.samples("concurrency.lock.wait")),
    "PriorityInversion": (1, {"hold_s": 0.005, "burst_s": 0.01}, lambda one: one.contest.operations >= 1),
}


@pytest.mark.parametrize("kind", [name for name, record in REGISTRY.items() if record.entry.startswith("concurrency.")])
def test_each_records_what_its_record_says_and_nothing_else(kind: str) -> None:
    """The recorded set is the documented set of each simulator of the family whose code is here."""
    if kind not in SPEAKS:
        pytest.skip(f"{kind} has a test of its own")
    count, options, enough = SPEAKS[kind]
    with driven(kind, count, **options) as one:
        one.until(lambda: bool(enough(one)))
    assert {series.name for series in one.reporter.series()} == set(REGISTRY[kind].metrics)
