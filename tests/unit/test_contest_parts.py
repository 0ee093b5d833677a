"""What loads of concurrency are made of, on virtual time and without waiting: their frame, what they reserve, need and tell."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.contests import CAPACITY, operation
from support.waiting import until

from actors.clock import SECOND_NS, SystemClock, VirtualClock
from actors.concurrency import contest_tasks, group, load
from actors.concurrency.contention import LockContention
from actors.concurrency.contest import LONGEST, ContestSettings
from actors.concurrency.contest_processes import (
    CONTENDED,
    COUNTER,
    HOLDS,
    LINES,
    OWN,
    SHARED,
    SINCE,
    SLOT_WORDS,
    STOP,
    WAITING,
    WAITS,
    ProcessContest,
    _Page,
)
from actors.concurrency.contest_tasks import TaskContest, _CountedLock
from actors.concurrency.contest_threads import ThreadContest, check_protected
from actors.concurrency.convoy import Convoy
from actors.concurrency.deadlock import Outcomes, Pairs, Rules
from actors.concurrency.figures import LockMeters
from actors.concurrency.group import Group, GroupContest, StoppedError
from actors.concurrency.inversion import InversionRules, Triples, _Episode
from actors.concurrency.livelock import Polite
from actors.concurrency.locks import ClosedError, LockFigures, LockTable, Task
from actors.concurrency.run_queue import HIGH, LOW, MEDIUM, NiceMechanism, RunQueue
from actors.errors import HarnessError
from actors.lease import NOTE_NO_RECORDING
from actors.metrics.reporter import MemoryReporter
from actors.simulator import REGISTRY, peak_amounts, record_of

# ---- the frame


class Contest:
    """What contends, as the frame sees it; breaks at one of its looks."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.size, self.operations, self.breaks_at = 0, 0, breaks_at
        self.told: list[str] = []
        self.sizes: list[int] = []

    def resize(self, count: int) -> None:
        self.size = count
        self.sizes.append(count)

    def look(self) -> None:
        self.operations += self.size
        self.told.append("look")
        if len(self.told) == self.breaks_at:
            raise OSError(5, "planted")

    def figures(self) -> tuple[LockFigures, ...]:
        return (LockFigures("one", self.operations, 1, 2, "x", 3, 0.5),)

    def counts(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self.told.append("close")


class Watch:
    """A lease on virtual time that lives for so many looks."""

    def __init__(self, looks: int = 1 << 30) -> None:
        self.clock, self.looks, self.level = VirtualClock(), looks, 0.5
        self.told: list[tuple[float, float, int]] = []
        self.notes: list[int] = []
        self.begun = 0

    def may_go_on(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def ceiling(self) -> float:
        return self.level

    def first_slice(self) -> None:
        self.begun += 1

    def note(self, bit: int) -> None:
        self.notes.append(bit)

    def report(self, *, asked: float, own: float, cpu_ns: int, operations: int) -> None:
        self.told.append((asked, own, operations))


class Frame(load.ContestLoad):
    """A load whose contest is given."""

    def contest(self, meters: LockMeters) -> Any:
        self.meters = meters
        return self.given


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> MemoryReporter:
    made = MemoryReporter()
    monkeypatch.setattr(load, "open_reporter", lambda path, seed: (made, path == "kept"))
    return made


def framed(watch: Watch, contest: Contest, path: str = "kept", **changes: Any) -> Frame:
    one = replace(operation("Deadlock", 7, 1.0), **changes)
    made = Frame(one, CAPACITY, watch, path)
    made.given = contest
    made.warm_up()
    return made


def test_the_frame_looks_twenty_times_a_second(reporter: MemoryReporter) -> None:
    """Under its ceiling so many units are asked, to the nearest; each look is told, and counts only what is new."""
    watch, contest = Watch(), Contest()
    framed(watch, contest).run(watch.clock.boot_ns())
    assert contest.told == [*["look"] * 20, "close"]
    assert set(contest.sizes) == {4}  # half of seven
    assert watch.told == [(0.0, 0.0, 0), *((3.5, 4.0, 4 * at) for at in range(1, 21))]
    assert watch.clock.boot_ns() == 1_001 * SECOND_NS
    assert [value for value, _ in reporter.samples("load.operations")] == [4.0] * 20 + [0.0]
    assert (watch.begun, watch.notes, reporter.closed) == (1, [], True)


def test_the_frame_ends_at_a_stop_and_at_an_error(reporter: MemoryReporter) -> None:
    """Nobody is looked at after it; all leave, and what was counted is told to the end."""
    watch, contest = Watch(looks=3), Contest()
    framed(watch, contest, "").run(watch.clock.boot_ns())
    assert contest.told == ["look"] * 3 + ["close"]
    assert watch.notes == []
    watch, contest = Watch(), Contest(breaks_at=2)
    with pytest.raises(OSError, match="planted"):
        framed(watch, contest, "gone").run(watch.clock.boot_ns())
    assert contest.told == ["look", "look", "close"]
    assert watch.notes == [NOTE_NO_RECORDING]
    assert reporter.closed
    assert sum(value for value, _ in reporter.samples("load.operations")) == 12 + 8


def test_a_shape_is_followed_from_the_start_that_was_agreed(reporter: MemoryReporter) -> None:
    """A load that begins late is where the shape is by then."""
    watch, contest = Watch(), Contest()
    watch.level = 1.0
    steps = {"kind": "steps", "levels": [2.0, 6.0], "each_s": 0.5}
    made = framed(watch, contest, shape=steps)
    begun_ns = watch.clock.boot_ns()
    watch.clock.advance(0.25)
    made.run(begun_ns)
    assert contest.sizes == [2] * 5 + [6] * 10
    with pytest.raises(AssertionError, match="does not say what contends"):
        load.ContestLoad(operation("Deadlock", 1), CAPACITY, Watch()).warm_up()


# ---- what each reserves, needs and is given

THREAD = 128 << 10
RESERVED = [
    ("LockContention", {}, (0.0, 4, 4 * THREAD, 5, 0)),
    ("LockContention", {"contenders": "tasks"}, (0.0, 1, 4 * THREAD, 5, 4)),
    ("LockContention", {"contenders": "processes"}, (0.0, 4, 4 * (8 << 20), 5, 0)),
    ("LockConvoy", {}, (0.0, 4, 4 * THREAD, 1, 0)),
    ("Deadlock", {}, (0.0, 8, 8 * THREAD, 8, 0)),
    ("Livelock", {}, (0.0, 8, 8 * THREAD, 8, 0)),
    ("PriorityInversion", {"hold_s": 0.1, "burst_s": 0.2}, (3.5 * 0.75, 12, 12 * THREAD, 4, 0)),
]


@pytest.mark.parametrize(("kind", "options", "want"), RESERVED)
def test_what_is_reserved_is_what_works(kind: str, options: dict[str, Any], want: tuple[float, int, int, int, int]) -> None:
    """Three and a half are four: their threads, tasks or processes, their locks, and the cores that those who compute take."""
    found = peak_amounts(operation(kind, 3.5, **options), CAPACITY)
    assert (pytest.approx(found.cpu_cores), found.tasks, found.memory_bytes, found.locks, found.descriptors) == want


@pytest.mark.parametrize("kind", ["LockContention", "LockConvoy", "Deadlock", "Livelock"])
def test_those_without_kernels_run_anywhere(kind: str) -> None:
    """They need nothing of a node."""
    assert REGISTRY[kind].supported(SimpleNamespace()).verdict == "available"


def contest_of(kind: str, **options: Any) -> tuple[Any, LockMeters, MemoryReporter]:
    reporter = MemoryReporter()
    meters = LockMeters(reporter)
    made = record_of(kind).make(operation(kind, 3, **options), CAPACITY, SimpleNamespace(clock=VirtualClock()))
    return made.contest(meters), meters, reporter


def test_options_become_rules() -> None:
    """Each option of a record is the rule of that name of what contends."""
    contest, _, reporter = contest_of("Deadlock", order="ordered", detect=False, on_deadlock="fail", hold_s=0.3, timeout_s=7.0)
    assert contest._rules == Rules(crossed=False, detects=False, fails=True, hold_s=0.3, timeout_s=7.0)
    contest, _, _ = contest_of("Deadlock")
    assert (contest._rules.crossed, contest._rules.detects, contest._rules.fails) == (True, True, False)
    contest._on_detected(0.25)
    contest, _, _ = contest_of("PriorityInversion", mechanism="nice", inheritance=True, hold_s=0.1, burst_s=0.2, bound_s=0.3)
    assert contest._rules == InversionRules(0.1, 0.2, 0.3, inheritance=True, by_nice=True)
    contest, _, _ = contest_of("PriorityInversion")
    assert (contest._rules.inheritance, contest._rules.by_nice) == (False, False)
    contest, _, _ = contest_of("Livelock", retry="at_random", backoff_s=0.5)
    assert (contest._in_step, contest._backoff_s, contest._seed) == (False, 0.5, 1)
    contest, _, _ = contest_of("Livelock")
    assert contest._in_step
    contest, _, _ = contest_of("LockConvoy", hold_s=0.1, work_s=0.2, stall_s=0.3, every_s=0.4)
    assert (contest._hold_s, contest._work_s, contest._stall_s, contest._every_s) == (0.1, 0.2, 0.3, 0.4)
    assert reporter.samples("concurrency.deadlock.detection") == []


@pytest.mark.parametrize(("contenders", "kind"), [("threads", ThreadContest), ("tasks", TaskContest), ("processes", ProcessContest)])
def test_contenders_are_of_the_kind_that_was_asked(contenders: str, kind: type) -> None:
    """With the options as their settings, and what waits and holds take recorded."""
    contest, meters, reporter = contest_of("LockContention", contenders=contenders, contention=0.25, hold_s=0.125)
    assert type(contest) is kind
    settings = contest._settings
    assert (settings.contention, settings.hold_s, settings.seed) == (0.25, 0.125, 1)
    settings.on_wait(1.0)
    settings.on_hold(2.0)
    assert [value for value, _ in reporter.samples("concurrency.lock.wait")] == [1.0]
    assert [value for value, _ in reporter.samples("concurrency.lock.hold")] == [2.0]
    assert getattr(contest, "_most", 3) == 3
    assert meters.reporter is reporter
    contest.close()
    assert LockContention is not kind


def test_draws_follow_the_seed_and_are_bounded() -> None:
    """The same for a seed and a number, others for another; their mean is as asked and none passes twenty means."""
    made = ContestSettings(0.3, 0.01, 7, VirtualClock(), print, print)
    first, again, other = ([made.draws(number).next() for _ in range(1)] for number in (1, 1, 2))
    assert first == again != other
    draws = made.draws(3)
    drawn = [draws.next() for _ in range(5000)]
    assert sum(is_shared for is_shared, _ in drawn) / 5000 == pytest.approx(0.3, abs=0.03)
    assert sum(hold_s for _, hold_s in drawn) / 5000 == pytest.approx(0.01, rel=0.06)
    draws.chance = SimpleNamespace(random=lambda: 0.3, expovariate=lambda rate: 1e9 / rate)
    assert draws.next() == (False, LONGEST * 0.01)


# ---- what is told


def test_what_is_told_is_what_is_new() -> None:
    """Counts are told as increases of all locks together, gauges of the first sixteen locks one by one."""
    reporter = MemoryReporter()
    meters = LockMeters(reporter)
    locks = [LockFigures(f"l{at}", 10 + at, at, 2 * at, "x", 100 + at, 0.5 * at) for at in range(20)]
    meters.take(locks, 7, {"concurrency.deadlock.planted": 3})
    meters.take(locks[:2], 9, {"concurrency.deadlock.planted": 3})
    for name, want in (
        ("load.operations", [7.0, 2.0]),
        ("concurrency.deadlock.planted", [3.0, 0.0]),
        ("concurrency.lock.acquisitions", [390.0, 21.0 - 390.0]),
        ("concurrency.lock.contended", [190.0, 1.0 - 190.0]),
    ):
        assert [value for value, _ in reporter.samples(name)] == want
    assert [value for value, _ in reporter.samples("concurrency.lock.waiters", lock="l1")] == [2.0, 2.0]
    assert [value for value, _ in reporter.samples("concurrency.lock.holder", lock="l15")] == [115.0]
    assert [value for value, _ in reporter.samples("concurrency.lock.held", lock="l3")] == [1.5]
    assert reporter.samples("concurrency.lock.held", lock="l16") == []


def test_what_a_lock_did_not_protect_is_an_error() -> None:
    """A counter that fell behind, or a lock still held, is named."""
    free, held = LockFigures("shared", 5, 0, 0, "", 0, 0.0), LockFigures("own-1", 5, 0, 0, "contender-1", 9, 1.0)
    check_protected(5, (free,))
    with pytest.raises(HarnessError, match="5 acquisitions of shared made its counter 4: it let two in"):
        check_protected(4, (free,))
    with pytest.raises(HarnessError, match="still held at the end: own-1"):
        check_protected(5, (free, held))


def test_outcomes_count_rounds_that_are_over() -> None:
    """Planted and cut are no rounds of their own."""
    outcomes = Outcomes(planted=9, detected=1, timeouts=2, completed=4, cut=5)
    outcomes.add("detected")
    assert (outcomes.rounds, outcomes.detected, outcomes.planted) == (8, 2, 9)


# ---- groups of threads


def test_a_group_that_is_to_stop_leaves_meetings_and_rests() -> None:
    """Whoever waits for the others, or rests, is told at once; in a group that goes on a rest ends by itself."""
    one = Group(3, (Task("a"), Task("b")))
    one.rest(0.0)
    one.stop.set()
    with pytest.raises(StoppedError):
        one.rest(60.0)
    one.barrier.abort()
    with pytest.raises(StoppedError):
        one.meet()
    assert one.barrier.parties == 2


def test_a_group_has_a_thread_for_each_place() -> None:
    """Each knows its place and its own thread; told to go, those that wait for a lock are refused it."""
    table, seen = LockTable(SystemClock()), {}

    def live(group: Group, place: int) -> None:
        seen[group.number, place] = (group.tasks[place].name, group.tasks[place].tid, threading.get_native_id())
        table.lock(f"{group.number}").acquire(group.tasks[place])

    contest = GroupContest(table, ("one", "two"), live)
    contest.resize(2)
    until(lambda: len(seen) == 4 and len(table.waits()) == 2, 10, "one of each group waits")
    assert (contest.size, [one.number for one in contest.groups]) == (2, [0, 1])
    assert {name for name, _, _ in seen.values()} == {"0.one", "0.two", "1.one", "1.two"}
    assert all(tid == own for _, tid, own in seen.values())
    assert len({own for _, _, own in seen.values()}) == 4
    contest.resize(1)
    until(lambda: len(table.waits()) == 1, 10, "the second group was refused")
    for lock in table.locks.values():
        while lock.holder:
            lock.release(lock.holder)
    contest.close()
    assert contest.size == 0
    with pytest.raises(ClosedError):
        table.lock("new").acquire(Task("late"))


# ---- contenders as asyncio tasks


def test_a_lock_of_tasks_counts_as_its_clock_says() -> None:
    """Who finds it held waits, and both times are told; as long as it is held its figures name its holder."""
    clock, waits, holds = VirtualClock(), [], []
    settings = ContestSettings(1.0, 0.01, 1, clock, waits.append, holds.append)

    async def life() -> list[LockFigures]:
        lock, seen, gate = _CountedLock("shared", settings), [], asyncio.Event()

        async def hold(name: str) -> None:
            async with lock.held_by(name):
                await gate.wait()
                clock.advance(0.25)

        first, second = asyncio.ensure_future(hold("a")), asyncio.ensure_future(hold("b"))
        for _ in range(3):
            await asyncio.sleep(0)
        clock.advance(0.5)
        seen.append(lock.figures(77))
        gate.set()
        await asyncio.gather(first, second)
        return [*seen, lock.figures(77)]

    held, free = asyncio.run(life())
    assert held == LockFigures("shared", 1, 1, 1, "a", 77, 0.5)
    assert free == LockFigures("shared", 2, 1, 0, "", 0, 0.0)
    assert (waits, holds) == ([0.75], [0.75, 0.25])


def test_tasks_come_and_go_with_what_is_asked() -> None:
    """Each holds an event descriptor while it works and none after; those that go are cancelled, and close waits for all."""
    waits: list[float] = []
    contest = TaskContest(ContestSettings(0.0, 0.001, 1, SystemClock(), waits.append, waits.append))

    def events() -> int:
        return sum("eventfd" in link for link in _links())

    before = events()
    contest.resize(3)
    until(lambda: contest.size == 3 and events() - before == 3, 10, "three")
    until(lambda: contest.operations >= 3, 10, "their work")
    contest.resize(1)
    until(lambda: contest.size == 1 and events() - before == 1, 10, "one")
    contest.close()
    assert (contest.size, events() - before, contest._thread.is_alive(), contest._loop.is_closed()) == (0, 0, False, True)
    assert [lock.name for lock in contest.figures()] == ["shared", "own-0", "own-1", "own-2"]
    assert contest.operations == sum(lock.acquisitions for lock in contest.figures()) > 0
    assert contest.counts() == {}
    contest.close()


def _links() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        except OSError:
            continue
    return found


def test_a_loop_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the harness says so instead of waiting for ever."""
    contest = TaskContest(ContestSettings(0.0, 0.001, 1, SystemClock(), print, print))
    monkeypatch.setattr(contest_tasks, "LEAVE_S", 0.2)
    monkeypatch.setattr(contest._loop, "stop", lambda: None)
    with pytest.raises(HarnessError, match=r"the event loop did not end within 0.2 s"):
        contest.close()
    monkeypatch.undo()
    contest.close()


# ---- contenders as processes, without processes


def settings(clock: Any) -> tuple[ContestSettings, list[float], list[float]]:
    waits: list[float] = []
    holds: list[float] = []
    return ContestSettings(0.5, 0.05, 1, clock, waits.append, holds.append), waits, holds


def test_slots_of_the_page_are_apart() -> None:
    """Each slot, and nobody's, has words of its own, with room for as many waits as holds."""
    page = _Page(3)
    words = [(slot, word) for slot in (-1, 0, 1, 2) for word in range(SLOT_WORDS)]
    for number, (slot, word) in enumerate(words):
        page.put(slot, word, number)
    assert [page.get(slot, word) for slot, word in words] == list(range(4 * SLOT_WORDS))
    assert SLOT_WORDS == 8 + 2 * LINES
    assert len({STOP, SHARED, OWN, CONTENDED, WAITING, SINCE, WAITS, HOLDS}) == 8
    assert len(page.words) == 4 * SLOT_WORDS


def test_what_processes_count_is_told() -> None:
    """Sums of all slots, the holder with its process and since when; what was told is told once."""
    clock = VirtualClock()
    made, waits, holds = settings(clock)
    contest = ProcessContest(made, 3)
    page = contest._page
    for slot in range(3):
        page.put(slot, SHARED, 10 + slot)
        page.put(slot, OWN, 20 + slot)
        page.put(slot, CONTENDED, slot)
        page.put(slot, WAITING, int(slot == 0))
        page.tell(slot, WAITS, 0.5 + slot)
        page.tell(slot, HOLDS, 10.5 + slot)
    page.put(1, SINCE, clock.boot_ns())
    clock.advance(0.25)
    contest._children = {1: 4711}
    assert contest.figures() == (
        LockFigures("shared", 33, 3, 1, "contender-1", 4711, 0.25),
        LockFigures("own", 63, 0, 0, "", 0, 0.0),
    )
    assert (contest.size, contest.pids, contest.operations) == (1, (4711,), 96)
    contest._children, contest._leaving = {}, {1: 4712}
    assert contest.figures()[0].holder_tid == 4712
    contest._leaving = {}
    contest.look()
    contest.look()
    assert (waits, holds) == ([0.5, 1.5, 2.5], [10.5, 11.5, 12.5])
    page.put(1, SINCE, 0)
    page.put(-1, COUNTER, 33)
    contest.close()
    assert contest.figures()[0] == LockFigures("shared", 33, 3, 1, "", 0, 0.0)


def test_contenders_are_made_and_told_to_stop_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many; the youngest go, and none comes back under its number before it has left."""
    contest = ProcessContest(settings(VirtualClock())[0], 3)
    monkeypatch.setattr(contest, "_fork", lambda number: 100 + number)
    contest.resize(2)
    assert contest._children == {0: 100, 1: 101}
    contest.resize(9)
    assert contest._children == {0: 100, 1: 101, 2: 102}
    contest.resize(1)
    assert (contest._children, contest._leaving) == ({0: 100}, {1: 101, 2: 102})
    assert [contest._page.get(slot, STOP) for slot in range(3)] == [0, 1, 1]
    contest.resize(3)
    assert contest._children == {0: 100}
    del contest._leaving[1]
    contest.resize(3)
    assert contest._children == {0: 100, 1: 101}


ENDED = [
    (0, False, ""),
    (0, True, "contender-2 ended with code 0 while it should contend"),
    (3, False, "contender-2 ended with code 3"),
    (-9, False, "contender-2 was killed by signal 9"),
    (-9, True, "contender-2 was killed by signal 9 while it should contend"),
]


@pytest.mark.parametrize(("code", "is_early", "want"), ENDED)
def test_how_a_contender_ended_is_judged(code: int, is_early: bool, want: str) -> None:
    """One that left as told is no error; the first error counts."""
    contest = ProcessContest(settings(VirtualClock())[0], 3)
    contest._judge(2, code, is_early=is_early)
    assert (str(contest._trouble) if contest._trouble else "") == want
    contest._judge(1, 5, is_early=False)
    assert str(contest._trouble) == (want or "contender-1 ended with code 5")


def test_a_contender_holds_in_pieces_and_tells_it() -> None:
    """It looks whether it should stop every 20 ms, and holds no longer than it was drawn; how long is told."""
    clock = VirtualClock()
    contest = ProcessContest(settings(clock)[0], 1)
    looks: list[float] = []
    wrapped = SimpleNamespace(boot_ns=clock.boot_ns, sleep=lambda for_s: (looks.append(for_s), clock.advance(for_s)))
    contest._settings = replace(contest._settings, clock=wrapped)
    contest._hold(0, 0.05)
    assert looks == pytest.approx([0.02, 0.02, 0.01])
    contest._page.put(0, STOP, 1)
    contest._hold(0, 10.0)
    assert contest._page.told(0, HOLDS, 0) == pytest.approx([0.05, 0.0])


def test_a_shared_turn_counts_what_it_protects() -> None:
    """The counter goes up by one in each turn; a turn that finds nobody is not contended, one that finds a waiter is, and is told."""
    clock = VirtualClock()
    contest = ProcessContest(settings(clock)[0], 2)
    fd = os.open(f"/proc/self/fd/{contest._file}", os.O_RDWR)
    contest._hold_shared(fd, 0, 0.01)
    page = contest._page
    assert [page.get(0, word) for word in (SHARED, CONTENDED, WAITING, SINCE, WAITS, HOLDS)] == [1, 0, 0, 0, 0, 1]
    page.put(1, WAITING, 1)
    contest._hold_shared(fd, 0, 0.01)
    assert [page.get(0, word) for word in (SHARED, CONTENDED, WAITING, SINCE, WAITS, HOLDS)] == [2, 1, 0, 0, 1, 2]
    assert page.get(-1, COUNTER) == 2
    assert contest._page.told(0, WAITS, 0) == [0.0]
    page.put(1, WAITING, 0)
    other = os.open(f"/proc/self/fd/{contest._file}", os.O_RDWR)
    assert contest._try(other)
    assert not contest._try(fd)
    os.close(other)
    assert contest._try(fd)
    os.close(fd)


# ---- convoys, livelocks and inversions


def test_a_convoy_is_at_least_half_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a stall with half of the threads waiting one has formed, with fewer none; it has cleared when fewer wait."""
    clock, lengths, cleared = VirtualClock(), [], []
    convoy = Convoy(LockTable(clock), (0.001, 0.02, 0.1, 1.0), lengths.append, cleared.append)
    monkeypatch.setattr(Convoy, "size", 5)
    resting = SimpleNamespace(rest=clock.advance)
    for waiting in (2, 3, 5):
        convoy._lock.waiters = [None] * waiting
        convoy._stall(resting)
    assert (lengths, convoy.stalls, convoy.formed) == ([2.0, 3.0, 5.0], 3, 2)
    assert convoy.counts() == {"concurrency.convoy.stalls": 3, "concurrency.convoy.formed": 2}
    clock.advance(0.5)
    convoy._see_cleared()
    convoy._lock.waiters = [None] * 2
    convoy._see_cleared()
    convoy._see_cleared()
    assert cleared == [0.5]
    monkeypatch.setattr(Convoy, "size", 1)
    assert (convoy._is_convoy(0), convoy._is_convoy(1)) == (False, True)


def test_a_wait_for_a_file_lock_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """From when it was asked for to when it was given, on the load's clock; while it waits its slot says so."""
    clock = VirtualClock()
    contest = ProcessContest(settings(clock)[0], 2)
    seen: list[int] = []

    def given(_: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            seen.append(contest._page.get(0, WAITING))
            clock.advance(0.75)

    monkeypatch.setattr(fcntl, "flock", given)
    contest._page.put(1, WAITING, 1)
    contest._hold_shared(9, 0, 0.0)
    assert (contest._page.told(0, WAITS, 0), seen, contest._page.get(0, WAITING)) == ([0.75], [1], 0)


@pytest.mark.parametrize("kind", ["LockConvoy", "Deadlock", "Livelock", "PriorityInversion"])
def test_a_look_raises_what_went_wrong(kind: str) -> None:
    """The first error of any thread is raised where the load looks."""
    contest, _, _ = contest_of(kind)
    crew = contest._crew._crew if hasattr(contest._crew, "_crew") else contest._crew
    crew._trouble = OSError(5, "planted")
    with pytest.raises(OSError, match="planted"):
        contest.look()


def test_a_stall_is_asked_for_at_its_interval() -> None:
    """Not before, and once each time."""
    clock = VirtualClock()
    convoy = Convoy(LockTable(clock), (0.001, 0.02, 0.1, 1.0), print, print)
    seen = []
    for _ in range(25):
        clock.advance(0.1)
        convoy.look()
        seen.append(convoy._stall_due.is_set())
        convoy._stall_due.clear()
    assert [at for at, is_due in enumerate(seen, 1) if is_due] == [10, 20]


def test_pairs_that_were_taken_back_are_looked_at_no_more() -> None:
    """A livelock is judged of those pairs that are asked for; each found is counted once."""
    clock = VirtualClock()
    polite = Polite(LockTable(clock), in_step=True, backoff_s=0.01, seed=1)
    polite._sides = {number: (SimpleNamespace(tries=0, progress=0), SimpleNamespace(tries=0, progress=1)) for number in range(2)}
    polite._crew = SimpleNamespace(size=1, check=lambda: None)
    for _ in range(30):
        clock.advance(0.1)
        for sides in polite._sides.values():
            sides[0].tries += 5
        polite.look()
    assert polite.counts() == {
        "concurrency.livelock.tries": 300,
        "concurrency.livelock.progress": 2,
        "concurrency.livelock.detected": 1,
    }
    assert (polite.operations, sorted(polite._watches)) == (2, [0])


def test_slices_use_the_time_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices of about a millisecond, each in the task's turn and each noted, until so much CPU time is used; a stop ends it."""
    used, clock, turns = [0.0], VirtualClock(), []
    rates: list[int] = []

    def work(rounds: int, _: int) -> int:
        rates.append(rounds)
        used[0] += rounds * 1e-7
        return 0

    from contextlib import contextmanager

    from actors.concurrency import inversion

    @contextmanager
    def turn(task: Task) -> Any:
        turns.append(task.name)
        yield

    monkeypatch.setattr(inversion, "thread_cpu_ns", lambda: round(used[0] * SECOND_NS))
    rules = InversionRules(0.1, 0.2, 0.3, inheritance=False, by_nice=False)
    triples = Triples(LockTable(clock), rules, work)
    one, episode = Group(0, (Task("a"),)), _Episode(SimpleNamespace(turn=turn))
    triples._compute(one, Task("a", MEDIUM), episode, 0.05)
    assert 0.05 <= used[0] < 0.06
    assert rates[0] == inversion.ROUNDS
    assert 5_000 <= rates[-1] <= 20_000
    assert len(turns) == len(episode.log) == len(rates)
    assert {(event.kind, event.task, event.priority) for event in episode.log} == {("ran", "a", MEDIUM)}
    one.stop.set()
    with pytest.raises(StoppedError):
        triples._compute(one, Task("a", MEDIUM), episode, 0.05)


def test_an_episode_is_judged_by_what_was_logged_and_begins_anew() -> None:
    """One that waited longer than the bound while the medium one ran is found; the log and its marks are cleared."""
    clock = VirtualClock()
    for bound_s, want in ((0.1, 1), (5.0, 0)):
        rules = InversionRules(0.1, 0.2, bound_s, inheritance=False, by_nice=False)
        triples, episode = Triples(LockTable(clock), rules, print), _Episode(RunQueue())
        for step, (kind, name, priority) in enumerate(
            (("got", "low", LOW), ("asked", "high", HIGH), ("ran", "medium", MEDIUM), ("released", "low", LOW), ("got", "high", HIGH))
        ):
            clock.advance(0.5 * bool(step))
            triples._note(episode, kind, Task(name, priority))
        episode.asked.set()
        episode.begun.set()
        episode.log.reverse()  # threads note in any order
        triples._judge(episode)
        assert triples.counts() == {"concurrency.inversion.planted": 1, "concurrency.inversion.detected": want}
        assert (triples.operations, episode.log, episode.asked.is_set(), episode.begun.is_set()) == (1, [], False, False)


def test_groups_are_spread_over_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has one core, the next group the next, around."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 1, 3})
    assert [NiceMechanism(number)._core for number in range(5)] == [1, 3, 5, 1, 3]


def test_a_cycle_that_is_refused_is_told_with_its_age() -> None:
    """Its time counts from the last wait that closed it; with detection off nobody looks."""
    for detects, want in ((True, [0.25]), (False, [])):
        clock, told = VirtualClock(), []
        table = LockTable(clock)
        pairs = Pairs(table, Rules(detects=detects), told.append)
        locks = [table.lock(name) for name in "ab"]
        tasks = [Task("left"), Task("right")]
        for lock, task in zip(locks, tasks, strict=True):
            lock.acquire(task)
        locks[1]._queue(tasks[0], clock.boot_ns())
        clock.advance(1.0)
        locks[0]._queue(tasks[1], clock.boot_ns())
        clock.advance(0.25)
        pairs.look()
        assert told == want
        assert pairs.named == (("left", "right") if detects else ())
        assert len(table.waits()) == (1 if detects else 2)


def test_a_group_waits_no_longer_than_asked() -> None:
    """The time that a thread may take to leave is in the words of the error."""
    assert group.StoppedError is StoppedError
    table = LockTable(SystemClock())
    gate = threading.Event()
    from actors.concurrency import crew

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "LEAVE_S", 0.05)
        contest = GroupContest(table, ("one",), lambda *_: gate.wait(30) and None)
        contest.resize(1)
        with pytest.raises(HarnessError, match=r"unit-0-0 did not leave within 0.05 s"):
            contest.close()
    gate.set()
    contest.close()
