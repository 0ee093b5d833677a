"""What floods are made of: what serves, who contends, how processes of Ray are found and ended, what is reserved and told."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_ray import FakeRayWork
from support.waiting import until
from test_ray_load import CALLS, CAPACITY, GENERATION, SLOT, TASKS, Carried, Page, flood, fresh_board, run, values

from actors import control, proc
from actors.clock import SECOND_NS, VirtualClock
from actors.concurrency.contest import Draws
from actors.disk import LeaseOverError
from actors.errors import HarnessError, RefusedError
from actors.lease import NOTE_NO_RECORDING
from actors.lifecycle import Event
from actors.metrics.reporter import MemoryReporter
from actors.ray_loads import board, calls, figures, lock_actors, ray_load, victims
from actors.ray_loads.calls import bounds_of
from actors.ray_loads.flow import Bounds, Flow, Outcome, Strategy
from actors.ray_loads.lock_actors import Contender, Held, Turn
from actors.ray_loads.mailbox_flood import RECORD as MAILBOX
from actors.ray_loads.ray_load import Processes, RayLoad, mark_of
from actors.ray_loads.ray_work import MARK, StoreUse
from actors.ray_loads.victims import Mailbox, burn, serve
from actors.simulator import REGISTRY, peak_amounts
from tests.support.held import own_descriptors


@pytest.fixture(autouse=True)
def _no_board_left() -> Iterator[None]:
    """Close the descriptors of boards that were claimed here: a process that serves keeps them, and a meter would find them."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    for name in set(os.listdir("/proc/self/fd")) - before:  # noqa: PTH208
        if Path(f"/proc/self/fd/{name}").is_symlink() and os.readlink(f"/proc/self/fd/{name}").startswith(board.LINK):  # noqa: PTH115
            os.close(int(name))
    board.claim.cache_clear()


SERVES = "import sys; from actors.ray_loads.board import claim; claim(sys.argv[1]).add(); print('has', flush=True); input()"

# ---- what serves


def test_work_is_so_much_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work ends at the first look after so much CPU time of the process, and no work looks at no clock."""
    seen: list[int] = []

    def used_ns() -> int:
        seen.append(1_000_000 * len(seen))
        return seen[-1]

    monkeypatch.setattr(victims, "process_cpu_ns", used_ns)
    burn(0.005)
    assert seen == [1_000_000 * at for at in range(6)]
    seen.clear()
    burn(0.0)
    assert seen == []


def test_a_mailbox_counts_each_call_that_it_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its word on the board from its making on; each call works first and counts once, whatever it carries."""
    made, worked = fresh_board(), []
    monkeypatch.setattr(victims, "burn", lambda work_s: worked.append((work_s, made.served())))
    one = Mailbox(made.path)
    assert (one.pid(), board.claim.cache_info().currsize) == (os.getpid(), 1)
    one.serve(b"x" * 100, 0.5)
    one.serve(b"", 0.25)
    serve(made.path, b"", 0.125)
    assert (made.served(), worked) == (3, [(0.5, 0), (0.25, 1), (0.125, 2)])
    made.close()


def test_a_board_that_is_full_refuses_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all words in others' hands a process is told so, and keeps no descriptor; the first free word is taken."""
    made = fresh_board()
    holder = subprocess.Popen(
        [sys.executable, "-c", SERVES, made.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"has\n"
    monkeypatch.setattr(board, "WORDS", 1)
    before = own_descriptors()
    with pytest.raises(OSError, match="more than 1 processes serve at once"):
        board.claim(made.path)
    assert own_descriptors() == before
    monkeypatch.setattr(board, "WORDS", 2)
    board.claim(made.path).add()
    assert memoryview(open(made.path, "rb").read()).cast("Q")[:3].tolist() == [1, 1, 0]  # noqa: PTH123, SIM115
    holder.communicate(b"\n")
    made.close()


def test_a_board_is_a_link_that_the_meter_knows() -> None:
    """Its descriptor shows by its name, has room for all words and the ceiling, and is not inherited."""
    made = board.Board()
    fd = int(made.path.rpartition("/")[2])
    assert os.readlink(made.path).startswith(board.LINK)  # noqa: PTH115
    assert (os.fstat(fd).st_size, os.get_inheritable(fd), board.total(fd)) == (
        board.WORDS * 8 + 8,
        False,
        0,
    )
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        made.served()


# ---- who contends


# ---- processes that Ray started


@pytest.fixture
def child() -> Iterator[Any]:
    made: list[subprocess.Popen[bytes]] = []

    def make(mark: str) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: mark}))
        until(lambda: f"{MARK}={mark}".encode() in open(f"/proc/{made[-1].pid}/environ", "rb").read(), 10)  # noqa: PTH123, SIM115
        return made[-1]

    yield make
    for one in made:
        one.kill()
        one.wait()


def test_only_what_carries_the_mark_is_found_and_ended(child: Any) -> None:
    """Of a raylet's children those with this very mark are killed, others live on; what is of another parent is not found."""
    ours, other = child(mark_of("0@n1", 3, 5)), child(mark_of("0@n1", 3, 6))
    some = Processes(mark_of("0@n1", 3, 5), os.getpid())
    assert some.find() == [ours.pid]
    before = own_descriptors()
    some.end()
    assert ours.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    assert (some.find(), own_descriptors()) == ([], before)
    assert Processes(mark_of("0@n1", 3, 6)).find() == []  # its parent is this process, and not this one's


def test_what_ended_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is gone before it is identified, before it is opened, or before it is killed, is gone."""
    some, killed = Processes("mark", 1), []
    monkeypatch.setattr(some, "find", lambda: [1, 2, 3])
    monkeypatch.setattr(proc, "identify", lambda pid: None if pid == 1 else pid)
    fds = [os.open(os.devnull, os.O_RDONLY)]

    def kill(fd: int) -> None:
        killed.append(fd)
        raise ProcessLookupError

    monkeypatch.setattr(proc, "open_pidfd", lambda pid: None if pid == 2 else fds[0])
    monkeypatch.setattr(proc, "kill_pidfd", kill)
    some.end()
    assert killed == fds
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(fds[0])


def test_a_mark_is_of_one_operation_in_one_slot() -> None:
    """Another operation, slot or generation has another one, and none tells the operation's name."""
    marks = {mark_of(one, slot, generation) for one in ("0@n1", "1@n1") for slot in (1, 2) for generation in (1, 2)}
    assert len(marks) == 8
    assert all(mark.count("-") == 2 and len(mark.partition("-")[0]) == 12 and "@" not in mark for mark in marks)


# ---- the carrier


class Still(RayLoad):
    """A carrier whose thread is not started."""

    def __init__(self, page: Any, guardian: Any = None, segment: str = "") -> None:
        super().__init__(CALLS, CAPACITY, page.watch, guardian or page, FakeRayWork(page.clock, 0.001), segment)


class Guardian:
    """Refuses some processes with a code, and notes whom it holds."""

    def __init__(self, code: str = "") -> None:
        self.code, self.held = code, []

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        assert op == "register"
        if self.code and fields["pid"] == 11:
            raise (RefusedError if self.code == "halted" else HarnessError)(self.code, "planted")
        self.held.append((fields["slot"], fields["generation"], fields["pid"]))
        return {}


@pytest.mark.parametrize("code", ["", "lost", "stale_slot", "stale_epoch", "halted"])
def test_each_new_process_is_held_once_by_the_guardian(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for each quarter of a second; what ended meanwhile, or with the slot, is asked for again and no error."""
    page, guardian = Page(), Guardian(code)
    one = Still(page, guardian)
    found, looks = [12, 11], []
    monkeypatch.setattr(one._processes, "find", lambda: looks.append(page.clock.boot_ns()) or list(found))
    assert one.poll() is None
    first = [(SLOT, GENERATION, pid) for pid in ((12,) if code else (11, 12))]
    assert guardian.held == first
    assert one.poll() is None
    assert len(looks) == 1
    page.clock.advance(ray_load.FIND_S)
    found.append(13)
    guardian.code = ""
    assert one.poll() is None
    assert guardian.held == [*first, *([(SLOT, GENERATION, 11)] if code else []), (SLOT, GENERATION, 13)]
    assert one.pids == (os.getpid(), 11, 12, 13)
    assert (one.exit_code, one.records) == (None, ())
    one._end = (Event.FINISHED, "")
    page.clock.advance(10)
    assert one.poll() == (Event.FINISHED, "")
    assert len(looks) == 2
    one.close()


def test_what_the_guardian_refuses_for_another_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a process that ended."""
    one = Still(Page(), Guardian("internal"))
    monkeypatch.setattr(one._processes, "find", lambda: [11])
    with pytest.raises(HarnessError, match="planted"):
        one.poll()
    one._end = (Event.FINISHED, "")
    one.close()


def test_a_board_stays_open_until_the_end() -> None:
    """Closed before its end a carrier keeps the board, which is read; after it, it is gone."""
    one = Still(Page())
    kept = one._board
    assert kept is not None
    one.close()
    assert kept.served() == 0
    one._end = (Event.FINISHED, "")
    one.close()
    with pytest.raises(OSError, match="Bad file"):
        kept.served()


def test_a_carrier_that_records_into_nothing_says_so() -> None:
    """The note is in its slot; without a segment there is none."""
    for segment, want in (("/nowhere", NOTE_NO_RECORDING), ("", 0)):
        page = Page()
        page.stats.begin(SLOT, GENERATION, os.getpid())
        one = Still(page, segment=segment)
        assert one._watch._notes == want
        one._end = (Event.FINISHED, "")
        one.close()


ENDS = [
    pytest.param(HarnessError("stale_slot", "planted"), Event.LEASE_ENDED, "planted", id="the-slot-ended"),
    pytest.param(HarnessError("lost", "planted"), Event.BROKE, "planted", id="an-error-of-ours"),
    pytest.param(ZeroDivisionError("planted"), Event.BROKE, "ZeroDivisionError: planted", id="any-other-error"),
]


@pytest.mark.parametrize(("error", "event", "reason"), ENDS)
def test_how_a_carrier_ends_says_why(error: Exception, event: Event, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the work is the reason, the slot says that it failed, and what Ray runs is ended first."""
    closed: list[str] = []

    def warm_up(self: Any) -> None:
        raise error

    monkeypatch.setattr(calls.CallFlood, "warm_up", warm_up)
    monkeypatch.setattr(calls.CallFlood, "close", lambda self: closed.append("closed"))
    one = Carried()
    found, why = one.end()
    assert (found, reason in why, closed) == (event, True, ["closed"])
    assert one.page.stats.read(SLOT).state == control.LOAD_FAILED


def test_processes_that_do_not_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The carrier tries again and again, and after five seconds names those that stay."""
    ends: list[int] = []
    monkeypatch.setattr(Processes, "find", lambda self: [77])
    monkeypatch.setattr(Processes, "end", lambda self: ends.append(1))
    page = Page()
    one = Still(page)
    with pytest.raises(HarnessError, match=r"m@n1: processes \[77\] of Ray do not end"):
        one._clear()
    assert 1005.0 <= page.clock.boot_ns() / SECOND_NS < 1005.1
    assert len(ends) > 100
    one._end = (Event.FINISHED, "")
    one.close()


def test_an_error_of_the_end_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks while Ray's processes are ended is told, also after a load that finished."""
    one = Still(Page())
    monkeypatch.setattr(one, "_load", lambda: (Event.FINISHED, ""))
    monkeypatch.setattr(one, "_clear", lambda: 1 / 0)
    one._live()
    assert one.poll() == (Event.BROKE, "ZeroDivisionError: division by zero")
    one.close()


def test_a_stop_before_the_warm_up_is_done_starts_nothing() -> None:
    """Told to end while Ray starts its actors, a flood creates no more of them and never becomes ready."""
    page = Page()
    work = FakeRayWork(page.clock, 0.001)
    made = flood(replace(CALLS, options={"actors": 5}), work, page)
    spawn = work.spawn

    def stopping(*args: Any, **kinds: Any) -> Any:
        made.stop()
        return spawn(*args, **kinds)

    work.spawn = stopping
    made.warm_up()
    assert len(work.servers) == 1


def test_a_kill_ends_what_ray_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and from outside; a drain only asks."""
    ended: list[str] = []
    one = Still(Page())
    monkeypatch.setattr(one._processes, "end", lambda: ended.append("ended"))
    monkeypatch.setattr(one._pattern, "stop", lambda: ended.append("stop"))
    one.drain()
    assert (ended, one._stopping.is_set()) == (["stop"], True)
    one.kill()
    assert ended == ["stop", "stop", "ended"]
    one._end = (Event.FINISHED, "")
    one.close()


def test_a_carrier_says_in_its_slot_that_it_is_there() -> None:
    """From its start on the slot has its generation, and no process: a worker of Ray's counts as others. Its lock carries no payload."""
    one = Carried(replace(CALLS, kind="ClusterLock"))
    until(lambda: one.page.stats.read(SLOT).state == control.LOAD_READY, 10)
    found = one.page.stats.read(SLOT)
    assert (found.pid, found.generation) == (0, GENERATION)
    one.load.drain()
    assert one.end()[0] is Event.FINISHED
    assert set(values(run(replace(CALLS, kind="ClusterLock", duration_s=0.2), 0.01)[2], "flood.payload")) == {0.0}


# ---- the flood


def test_a_lease_that_ends_while_actors_start_ends_the_flood() -> None:
    """It is looked at while it waits for Ray."""
    page = Page(lease_s=1.0)
    work = FakeRayWork(page.clock, 0.001)
    spawn = work.spawn

    def slow(*args: Any, **kinds: Any) -> Any:
        server = spawn(*args, **kinds)
        server.free_ns = page.clock.boot_ns() + 30 * SECOND_NS
        return server

    work.spawn = slow
    with pytest.raises(LeaseOverError):
        flood(CALLS, work, page).warm_up()
    assert page.clock.boot_ns() / SECOND_NS < 1001.1


def test_what_a_flood_publishes_is_what_it_did() -> None:
    """Its slot and its series say the rate, the calls and their time; the first sign of life says nothing yet."""
    page = Page()
    page.stats.begin(SLOT, GENERATION, os.getpid())
    page.control.write_ceiling(SLOT, 0.5)
    seen: list[tuple[float, float, int, float]] = []
    report = page.watch.report

    def keep(*, asked: float, own: float, cpu_ns: int, operations: int) -> None:
        seen.append((asked, own, operations, page.clock.boot_ns() / SECOND_NS - 1000.0))
        report(asked=asked, own=own, cpu_ns=cpu_ns, operations=operations)

    page.watch.report = keep
    made, _, reporter = run(CALLS, work_s=0.001, page=page)
    made.idle()
    assert seen.pop()[:3] == (0.0, 0.0, 0)
    assert {asked for asked, *_ in seen} == {250.0}
    assert seen[0][1] == 0.0
    settled = [own for _, own, _, at_s in seen if at_s > 1.0]
    assert all(own == pytest.approx(250.0, abs=25.0) for own in settled)
    gaps = [later[3] - sooner[3] for sooner, later in itertools.pairwise(seen)]
    assert all(0.0499 <= gap < 0.07 for gap in gaps), gaps
    assert [operations for _, _, operations, _ in seen] == sorted(operations for _, _, operations, _ in seen)
    assert seen[-1][2] == pytest.approx(1000, abs=20)
    assert sum(values(reporter, "load.operations")) == made.flow.counts.finished
    assert all(0.0 < value <= 0.011 for value in values(reporter, "flood.response"))
    assert reporter.closed


def test_calls_of_a_dead_actor_at_the_end_are_cancelled_and_no_error() -> None:
    """What ran when the flood ended, and was ended with its actor, counts as cancelled; and all actors are ended."""
    page = Page()
    made, work, reporter = run(replace(CALLS, options={"outstanding": 3}), work_s=3.9, page=page)
    counts = made.flow.counts
    assert (counts.failed, counts.finished, made.flow.outstanding) == (0, 2, 0)
    assert counts.cancelled == counts.accepted - 2 > 0
    assert not any(server.alive for server in work.servers)
    assert page.clock.boot_ns() / SECOND_NS - 1004.0 == pytest.approx(calls.GRACE_S, abs=0.1)
    assert values(reporter, "flood.outstanding")[-1] == 0


def test_what_the_store_spills_is_looked_at_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of floods whose payloads go through the store."""
    for payload, want in ((calls.INLINE_BYTES, 1), (calls.INLINE_BYTES + 1, 1 + 8)):
        page = Page()
        work = FakeRayWork(page.clock, 0.01)
        looks: list[int] = []
        work.store_use = lambda looks=looks: looks.append(1) or StoreUse()
        made = flood(replace(CALLS, options={"payload_bytes": payload}), work, page)
        made.warm_up()
        made.run(page.clock.boot_ns())
        made.close()
        assert len(looks) == pytest.approx(want, abs=1 if want > 1 else 0)


def test_lanes_take_turns() -> None:
    """Each call goes to the next actor, so that none has more than one call more than another."""
    _, work, _ = run(replace(CALLS, options={"actors": 3}), work_s=0.0001)
    sent = work.sent - 3
    assert work.outstanding_max <= 3 + 3
    assert sent == pytest.approx(2000, abs=5)


class Keeper:
    """A keeper's handle that gives token 41 and the number 7 after half a second; the release says what it is told to."""

    def __init__(self, kept: bool) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.acquire = self._method("acquire", Held(41, 7, 0.5))
        self.release = self._method("release", (kept, 0.125))

    def _method(self, name: str, answer: Any) -> Any:
        def remote(*args: Any) -> Any:
            self.asked.append((name, *args))
            return SimpleNamespace(future=lambda: SimpleNamespace(result=lambda: answer))

        return SimpleNamespace(remote=remote)


@pytest.mark.parametrize("kept", [True, False])
def test_a_contender_raises_what_the_lock_guards(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives its own token back with the number one higher, counts, and tells of a turn what the keeper measured."""
    monkeypatch.setattr(lock_actors, "SystemClock", VirtualClock)
    made, keeper = fresh_board(), Keeper(kept)
    one = Contender(made.path, "n1", Draws(Random(1), 1.0, 0.25))
    one.use(keeper, 2)
    assert one.contend() == Turn(0.5, 0.125, kept, 7, term=2)
    assert keeper.asked == [("acquire", "n1"), ("release", 41, 8)]
    assert made.served() == 1
    made.close()


def test_a_turn_of_an_own_lock_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without contention the keeper is left alone; the turn counts all the same, as long as it was held, and guards nothing."""
    monkeypatch.setattr(lock_actors, "SystemClock", VirtualClock)
    made, keeper = fresh_board(), Keeper(kept=True)
    one = Contender(made.path, "n1", Draws(Random(1), 0.0, 0.25))
    one.use(keeper, 0)
    turn = one.contend()
    assert (turn.waited_s, turn.kept, turn.guarded, keeper.asked) == (0.0, True, None, [])
    assert turn.held_s == pytest.approx(Draws(Random(1), 0.0, 0.25).next()[1], abs=1e-6)
    assert made.served() == 1
    made.close()


BOUNDS = [
    ({}, Bounds(200, Strategy.BLOCK, 100, 1000.0, 100)),
    (
        {"outstanding": 7, "backpressure": "drop_oldest", "waiting": 5, "tokens_per_s": 9.0, "burst": 3},
        Bounds(14, Strategy.DROP_OLDEST, 5, 9.0, 3),
    ),
    ({"payload_bytes": 102_401, "in_flight_bytes": 1_024_010}, Bounds(10 - 4, Strategy.BLOCK, 100, 1000.0, 100)),
]


@pytest.mark.parametrize(("options", "want"), BOUNDS)
def test_options_become_bounds(options: dict[str, Any], want: Bounds) -> None:
    """Each option is one bound of the flow."""
    assert bounds_of(MAILBOX.resolve_options(options), 2) == want


MIB = 1 << 20
RESERVED = [
    (CALLS, {}, 100.0, (0.06, 2 * 160 * MIB + 300 * 4096 + 300 * 1024, 300 * 1024, 80)),
    (CALLS, {"work": 0.01}, 100.0, (1.06, 2 * 160 * MIB + 300 * 4096 + 300 * 1024, 300 * 1024, 80)),
    (CALLS, {"work": 0.01, "actors": 3}, 1e6, (5.0, 3 * 160 * MIB + 400 * 4096 + 400 * 1024, 400 * 1024, 120)),
    (CALLS, {"work": 1.0, "actors": 40}, 1e6, (8.0, 40 * 160 * MIB + 4100 * 4096 + 4100 * 1024, 4100 * 1024, 1600)),
    (CALLS, {"payload_bytes": MIB, "in_flight_bytes": 7 * MIB}, 10.0, (0.006, 2 * 160 * MIB + 300 * 4096 + 7 * MIB, 7 * MIB, 80)),
    (TASKS, {"workers": 3, "waiting": 0}, 100.0, (0.06, 3 * 160 * MIB + 1000 * 4096, 0, 120)),
    (replace(CALLS, kind="ClusterLock"), {"contenders": 3, "hold": 1.0}, 100.0, (0.06, 4 * 160 * MIB + 3 * 4096, 0, 160)),
]


@pytest.mark.parametrize(("operation", "options", "per_s", "want"), RESERVED)
def test_what_is_reserved_of_a_node(operation: Any, options: dict[str, Any], per_s: float, want: tuple[float, int, int, int]) -> None:
    """Cores of both sides and of the work, at most the node's; memory of processes, calls and payloads; disk to spill these; threads."""
    found = peak_amounts(replace(operation, options=options, shape={"kind": "constant", "level": per_s}), CAPACITY)
    assert (pytest.approx(found.cpu_cores), found.memory_bytes, found.disk_bytes, found.tasks) == want
    assert REGISTRY[operation.kind].supported(SimpleNamespace()).verdict == "available"


# ---- what is told


def test_figures_tell_what_changed() -> None:
    """Each fate by what was added since the last time, gauges as they are, time stood still by what was added; a rate needs two looks."""
    reporter, flow = MemoryReporter(), Flow(Bounds(2, Strategy.BLOCK), 1)
    told = figures.Figures(reporter)
    for now_s in (0.0, 1.0, 2.0):
        flow.step(now_s, 10.0, 64)
        told.record(flow, 123)
    flow.end(Outcome.FINISHED, 2)
    told.record(flow, 7)
    assert [value for value, _ in reporter.samples("flood.calls", fate="accepted")] == [2.0]
    assert [value for value, _ in reporter.samples("flood.calls", fate="finished")] == [2.0]
    assert reporter.samples("flood.calls", fate="dropped") == []
    assert values(reporter, "load.operations") == [2.0]
    assert values(reporter, "flood.outstanding") == [0.0, 2.0, 2.0, 0.0]
    assert values(reporter, "flood.payload") == [123.0, 123.0, 123.0, 7.0]
    assert sum(values(reporter, "flood.blocked")) == pytest.approx(flow.blocked_s) != 0.0
    assert values(reporter, "flood.blocked")[-1] == 0.0
    assert [told.rate(*look) for look in ((5, 0), (5, SECOND_NS), (15, 3 * SECOND_NS), (15, 3 * SECOND_NS))] == [0.0, 0.0, 5.0, 0.0]


def test_an_end_that_comes_late_counts_from_when_it_fell_due() -> None:
    """A call that waited before it was sent has that wait in its response time; never less than nothing."""
    page, reporter = Page(), MemoryReporter()
    work = FakeRayWork(page.clock, 0.001)
    made = flood(CALLS, work, page, reporter)
    made.warm_up()
    made.flow.step(0.0, 500.0, 64)
    made.flow.step(0.01, 500.0, 64)
    for due_s in (0.004, 5.0):
        made._send(due_s)
    page.clock.advance(1.0)
    made._settle(2.0)
    assert values(reporter, "flood.response") == [1.996, 0.0]
    assert [len(lane) for lane in made._lanes] == [0, 0]
    made.close()


def test_a_carriers_thread_ends_with_the_process() -> None:
    """A process that is to end does not wait for it."""
    one = Still(Page())
    assert (one._thread.daemon, one._thread.name) == (True, "ray-load")
    one._end = (Event.FINISHED, "")
    one.close()
