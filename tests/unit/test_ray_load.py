"""Floods without Ray: what they decide, count and end, on a virtual clock against servers of a fake Ray."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_ray import FakeRayWork
from support.waiting import until

from actors import control
from actors.clock import SECOND_NS, VirtualClock
from actors.control import ControlWriter, StatsPage
from actors.disk import LeaseOverError, leave_by_raising
from actors.dose import OutsideMeter
from actors.errors import HarnessError, RefusedError
from actors.lease import LeaseWatch
from actors.lifecycle import Event
from actors.messages import Capacity, NodeSpec, Operation
from actors.metrics.reporter import MemoryReporter
from actors.ray_loads.board import Board, claim, lower
from actors.ray_loads.calls import CallFlood, bounds_of
from actors.ray_loads.cluster_lock import ClusterLock
from actors.ray_loads.figures import LockFigures
from actors.ray_loads.flow import FATES, Strategy
from actors.ray_loads.lock_actors import Held, LockKeeper, Turn
from actors.ray_loads.lock_line import LockLine
from actors.ray_loads.mailbox_flood import RECORD as MAILBOX
from actors.ray_loads.mailbox_flood import MailboxFlood
from actors.ray_loads.ray_load import RayLoad
from actors.ray_loads.ray_work import StoreUse, logical_share
from actors.ray_loads.starting import READY_S
from actors.ray_loads.task_explosion import TaskExplosion
from actors.simulator import peak_amounts
from scenarios import kinds
from scenarios.combinators import hold, sequence
from scenarios.model import Scenario
from scenarios.plan import Plan, resolve
from scenarios.text import dump, load

CAPACITY = Capacity(8.0, 1 << 34, 1 << 34, tasks=10_000)
CALLS = Operation("m@n1", "MailboxFlood", "n1", 0.0, 4.0, "per_second", {"kind": "constant", "level": 500.0})
TASKS = replace(CALLS, id="t@n1", kind="TaskExplosion")
SLOT, GENERATION = 3, 5


class Page:
    """A slot with a lease, a watch of it on a virtual clock, and a guardian that writes down what it is asked."""

    def __init__(self, lease_s: float = 1000.0) -> None:
        self.clock = VirtualClock()
        self.control, _ = ControlWriter.create()
        self.stats, _ = StatsPage.create()
        self.control.reset_slot(SLOT, GENERATION, 1, 1)
        self.control.write_lease(SLOT, GENERATION, self.clock.boot_ns() + round(lease_s * SECOND_NS))
        self.watch = LeaseWatch(self.control, self.stats, SLOT, GENERATION, self.clock, leave=leave_by_raising)
        self.asked: list[str] = []

    def call(self, op: str, **fields: object) -> dict[str, object]:
        self.asked.append(op)
        return {}


def flood(operation: Operation, work: FakeRayWork, page: Page, reporter: MemoryReporter | None = None) -> CallFlood:
    factory = {"MailboxFlood": MailboxFlood, "TaskExplosion": TaskExplosion, "ClusterLock": ClusterLock}
    return factory[operation.kind](operation, CAPACITY, page.watch, work, reporter or MemoryReporter(), "/nowhere")


def run(operation: Operation, work_s: float, at_once: int = 1, page: Page | None = None) -> tuple[CallFlood, FakeRayWork, MemoryReporter]:
    page, reporter = page or Page(), MemoryReporter()
    work = FakeRayWork(page.clock, work_s, at_once)
    made = flood(operation, work, page, reporter)
    made.warm_up()
    made.run(page.clock.boot_ns())
    made.close()
    return made, work, reporter


def recorded(reporter: MemoryReporter) -> dict[str, float]:
    """Return the sum of what was counted of each fate, without those that never were."""
    sums = {fate: sum(value for value, _ in reporter.samples("flood.calls", fate=fate)) for fate in FATES}
    return {fate: count for fate, count in sums.items() if count}


def values(reporter: MemoryReporter, name: str) -> list[float]:
    return [value for value, _ in reporter.samples(name)]


@pytest.mark.parametrize("operation", [CALLS, TASKS], ids=["mailboxes", "tasks"])
def test_a_rate_that_can_be_served_is_served(operation: Operation) -> None:
    """Offered, accepted and finished are what was asked; nothing is lost, and nothing is left outstanding."""
    made, _, reporter = run(operation, work_s=0.001, at_once=2)
    counts = made.flow.counts
    assert counts.offered == counts.accepted == pytest.approx(2000, abs=5)
    assert counts.finished + counts.cancelled == counts.accepted
    assert counts.cancelled <= 8
    assert (made.flow.outstanding, counts.dropped, counts.rejected, counts.failed) == (0, 0, 0, 0)
    assert recorded(reporter)["finished"] == counts.finished


@pytest.mark.parametrize("strategy", list(Strategy))
def test_overload_is_bounded_by_each_strategy(strategy: Strategy) -> None:
    """Two actors that serve 250 a second between them are offered 500: the bound holds, and every count is recorded."""
    options = {"backpressure": str(strategy), "outstanding": 20, "waiting": 10, "tokens_per_s": 240.0, "burst": 5, "work": 0.008}
    made, work, reporter = run(replace(CALLS, options=options), work_s=0.008)
    counts = made.flow.counts
    assert work.outstanding_max <= 2 * 20
    assert counts.finished == pytest.approx(1000, rel=0.06)
    assert counts.accepted == counts.finished + counts.cancelled
    assert counts.offered == counts.accepted + counts.dropped + counts.rejected
    assert recorded(reporter) == {fate: count for fate in FATES if (count := getattr(counts, fate))}
    responses = values(reporter, "flood.response")
    assert len(responses) == counts.finished
    assert max(responses) <= (20 + 10 / 2 + 2) * 0.008 + 0.06


def test_what_has_not_begun_is_cancelled_at_the_end() -> None:
    """Of 100 outstanding calls that take a tenth of a second each, those that run end by themselves, and the end waits for no more."""
    page = Page()
    begun_ns = page.clock.boot_ns()
    made, _, _ = run(replace(CALLS, options={"outstanding": 50}), work_s=0.1, page=page)
    assert made.flow.counts.cancelled >= 98
    assert made.flow.counts.finished == pytest.approx(2 * 40, abs=4)
    assert page.clock.boot_ns() - begun_ns < 4.2 * SECOND_NS


def test_what_ray_refuses_is_rejected() -> None:
    """Where Ray's own bound is reached before ours, the call counts as rejected and not as accepted."""
    page = Page()
    work = FakeRayWork(page.clock, 0.1)
    made = flood(replace(CALLS, options={"outstanding": 50, "backpressure": "reject"}), work, page)
    made.warm_up()
    for server in work.servers:
        server.calls_max = 10
    made.run(page.clock.boot_ns())
    counts = made.flow.counts
    assert work.outstanding_max <= 2 * 10
    assert counts.rejected == counts.offered - counts.accepted > 1000
    assert counts.accepted == work.sent - 2  # of the sent, two asked for the actors' processes


@pytest.mark.parametrize("strategy", list(Strategy))
def test_only_a_flood_that_rejects_has_ray_refuse(strategy: Strategy) -> None:
    """Ray sees the end of a call a little later than we do: with any other strategy its bound would refuse what ours has room for."""
    _, work, _ = run(replace(CALLS, duration_s=0.1, options={"outstanding": 30, "backpressure": str(strategy)}), work_s=0.01)
    assert {server.calls_max for server in work.servers} == {30 if strategy is Strategy.REJECT else 0}


@pytest.mark.parametrize("figure", ["flood.outstanding", "flood.payload"])
def test_the_depth_that_is_told_is_the_depth(figure: str) -> None:
    """What is recorded as outstanding never passes the bound and reaches it under overload; in bytes it is that many payloads."""
    _, work, reporter = run(replace(CALLS, options={"outstanding": 30, "payload_bytes": 1000}), work_s=0.02)
    told = values(reporter, figure)
    unit = 1000 if figure == "flood.payload" else 1
    assert max(told) == work.outstanding_max * unit == 60 * unit
    assert told[-1] == 0


def test_large_payloads_keep_to_their_budget() -> None:
    """Of 10 MB payloads only so many are outstanding that they, and those that are freed late, fit; the same without a budget does not."""
    options = {"payload_bytes": 10_000_000, "outstanding": 100, "in_flight_bytes": 80_000_000, "actors": 2}
    _, work, _ = run(replace(CALLS, options=options), work_s=0.05)
    assert work.outstanding_max == 8 - 2 * 2
    _, free, _ = run(replace(CALLS, options={**options, "in_flight_bytes": 1 << 40}), work_s=0.05)
    assert free.outstanding_max == 200


def test_what_is_spilled_meanwhile_is_counted() -> None:
    """From the flood's beginning on, as the raylet counts it."""
    page, reporter = Page(), MemoryReporter()
    work = FakeRayWork(page.clock, 0.05)
    work.spilled = 7
    made = flood(replace(CALLS, options={"payload_bytes": 1 << 20}), work, page, reporter)
    made.warm_up()
    work.spilled = 12
    count = work.store_use

    def count_after_the_end() -> StoreUse:
        if made.flow.outstanding == 0 and page.clock.boot_ns() > begun_ns + 4 * SECOND_NS:
            work.spilled = 20
        return count()

    work.store_use = count_after_the_end
    begun_ns = page.clock.boot_ns()
    made.run(begun_ns)
    assert sum(values(reporter, "flood.spilled")) == 20 - 7


@pytest.mark.parametrize(("payload", "fits"), [(0, 200), (100 * 1024, 200), (1 << 20, 28), (30 << 20, 1)])
def test_the_bound_of_a_payload(payload: int, fits: int) -> None:
    """Small payloads travel within the call and are bounded by count; of large ones at least one goes."""
    options = MAILBOX.resolve_options({"payload_bytes": payload, "in_flight_bytes": 32 << 20})
    assert bounds_of(options, 2).outstanding == fits


def test_the_ceiling_and_the_shape_set_the_rate() -> None:
    """Half of the ceiling offers half; a shape is followed."""
    page = Page()
    page.control.write_ceiling(SLOT, 0.5)
    made, _, _ = run(CALLS, 0.0001, page=page)
    assert made.flow.counts.offered == pytest.approx(1000, abs=5)
    ramp = {"kind": "ramp", "start": 0.0, "end": 1000.0, "over_s": 4.0}
    made, _, _ = run(replace(CALLS, shape=ramp), 0.0001)
    assert made.flow.counts.offered == pytest.approx(2000, rel=0.02)


def test_a_lease_that_ends_ends_the_flood() -> None:
    """No call is sent past the lease's end, and what is outstanding then is cancelled with its actors."""
    page = Page(lease_s=1.0)
    begun_ns = page.clock.boot_ns()
    work = FakeRayWork(page.clock, 0.5)
    made = flood(CALLS, work, page)
    made.warm_up()
    with pytest.raises(LeaseOverError):
        made.run(begun_ns)
    assert page.clock.boot_ns() - begun_ns < 1.1 * SECOND_NS
    sent = work.sent
    made.close()
    assert not any(server.alive for server in work.servers)
    assert (made.flow.outstanding, work.sent) == (0, sent)
    assert made.flow.counts.cancelled > 0


def test_an_actor_that_dies_ends_the_load_with_its_reason() -> None:
    """A flood of the dead is no load."""
    page = Page()
    work = FakeRayWork(page.clock, 0.5)
    made = flood(CALLS, work, page)
    made.warm_up()
    work.kill(work.servers[1])
    with pytest.raises(HarnessError, match="a call failed: dead"):
        made.run(page.clock.boot_ns())


def test_what_does_not_start_is_told() -> None:
    """Tasks that Ray has no CPUs for, and actors that die at once, end the preparation with a reason."""
    page = Page()
    made = flood(TASKS, FakeRayWork(page.clock, READY_S + 1), page)
    with pytest.raises(HarnessError, match=r"Ray did not start 2 of 2 within 50 s"):
        made.warm_up()
    work = FakeRayWork(page.clock, 0.1)
    spawn = work.spawn
    work.spawn = lambda *args, **kinds: (actor := spawn(*args, **kinds), work.kill(actor))[0]
    with pytest.raises(HarnessError, match="did not start: dead"):
        flood(CALLS, work, page).warm_up()


def test_contenders_are_bounded_and_what_they_tell_is_recorded() -> None:
    """One question each at a time, one hold recorded for every turn, and what the lock guards counts them."""
    lock = replace(CALLS, kind="ClusterLock", options={"contenders": 3})
    made, work, reporter = run(lock, work_s=0.01)
    assert max(values(reporter, "flood.outstanding")) == 3
    assert len(work.servers) == 4
    finished = made.flow.counts.finished
    assert len(values(reporter, "flood.lock.hold")) == sum(values(reporter, "flood.lock.shared")) == finished > 500
    assert values(reporter, "flood.lock.wait") == []
    assert set(values(reporter, "flood.lock.lost")) == set(values(reporter, "flood.lock.contended")) == {0.0}
    assert values(reporter, "flood.lock.guarded")[-1] == finished
    assert not any(server.alive for server in work.servers)


@given(steps=st.lists(st.tuples(st.sampled_from(["enter", "leave", "expire"]), st.integers(0, 40)), max_size=80))
def test_a_lock_has_one_holder_and_a_fair_line(steps: list[tuple[str, int]]) -> None:
    """Whoever leaves or expires, in whatever order: one holds it, by the order of asking; who lost it can give nothing back."""
    line, model, expired = LockLine(), [], 0
    for what, token in steps:
        if what == "enter":
            model.append(line.enter())
        else:
            held = bool(model) and model[0] == token
            assert getattr(line, what)(token) is held
            expired += held and what == "expire"
            model = model[1:] if held else model
        assert line.holder == (model[0] if model else None)
        assert (line.waiting, line.expired) == (max(0, len(model) - 1), expired)
    assert model == sorted(model)


def test_a_keeper_gives_the_lock_on_when_a_holder_is_silent() -> None:
    """Asked by three of whom the first never gives it back: the next two get it in turn, and the first is told that it lost it."""

    async def life() -> tuple[list[Held], tuple[int, int, int], list[bool]]:
        keeper = LockKeeper(lease_s=0.05)
        waiting = [asyncio.ensure_future(keeper.acquire("n1")) for _ in range(3)]
        first = await waiting[0]
        assert not waiting[1].done()
        second = await waiting[1]
        ends = [await keeper.release(second.token, second.guarded + 1)]
        third = await waiting[2]
        ends += [await keeper.release(first.token, 99), await keeper.release(third.token, third.guarded + 1)]
        assert all(held_s >= 0.0 for _, held_s in ends)
        return [first, second, third], await keeper.figures(), [kept for kept, _ in ends]

    given, figures, kept = asyncio.run(life())
    tokens = [one.token for one in given]
    assert tokens == sorted(tokens)
    assert given[0].waited_s == 0.0
    assert min(given[1].waited_s, given[2].waited_s) > 0.045  # an event loop may wake a part of a millisecond early
    assert [one.guarded for one in given] == [0, 0, 1]
    assert (figures, kept) == ((0, 1, 2), [True, False, True])


def test_a_lock_that_lets_two_in_ends_the_load() -> None:
    """Whatever the order in which turns are told, each number may be read once; a lost turn and one of another lock do not count."""
    figures = LockFigures(MemoryReporter())
    for guarded, kept in ((1, True), (0, True), (2, False), (2, True), (None, True), (3, True)):
        figures.record(Turn(0.0, 0.1, kept, guarded))
    for again in (1, 3):
        with pytest.raises(HarnessError, match=f"two of its holders read {again}"):
            figures.record(Turn(0.0, 0.1, True, again))
    figures.record(Turn(0.0, 0.1, True, 5))
    with pytest.raises(HarnessError, match="did not exclude"):
        figures.record(Turn(0.0, 0.1, True, 5))


class Carried:
    """A carrier on a page of its own."""

    def __init__(self, operation: Operation = CALLS, lease_s: float = 1e7, work_s: float = 0.001) -> None:
        self.page = Page(lease_s)
        self.work = FakeRayWork(self.page.clock, work_s)
        self.load = RayLoad(operation, CAPACITY, self.page.watch, self.page, self.work)
        self.load.start()

    def end(self) -> tuple[Event, str]:
        found = until(self.load.poll, 10, "the end")
        self.load.close()
        return found


def test_a_carrier_goes_through_its_life() -> None:
    """Ready, then loading from the start on, then finished, with its actors gone and its board closed."""
    one = Carried()
    until(lambda: one.page.stats.read(SLOT).state == control.LOAD_READY, 10)
    assert one.load.poll() is None
    one.page.control.write(SLOT, control.START, one.page.clock.boot_ns() + SECOND_NS)
    assert one.end() == (Event.FINISHED, "")
    assert one.page.stats.read(SLOT).first_slice_ns
    assert one.page.stats.read(SLOT).state == control.LOAD_DONE
    assert one.page.stats.read(SLOT).operations == pytest.approx(2000, rel=0.05)
    assert not any(server.alive for server in one.work.servers)
    one.load.close()  # twice is once


@pytest.mark.parametrize("how", ["drain", "kill"])
def test_a_carrier_ends_when_told(how: str) -> None:
    """Before the start and whatever its duration."""
    one = Carried(replace(CALLS, duration_s=1e9))
    until(lambda: one.page.stats.read(SLOT).state == control.LOAD_READY, 10)
    if how == "kill":
        one.page.control.write(SLOT, control.START, one.page.clock.boot_ns())
        until(lambda: one.page.stats.read(SLOT).state == control.LOAD_RUNNING, 10)
    getattr(one.load, how)()
    assert one.end()[0] is Event.FINISHED
    assert not any(server.alive for server in one.work.servers)


def test_what_is_missed_after_a_kill_is_no_failure() -> None:
    """A look that fails because what it looks at was killed on demand ends the load as told; without a kill it breaks it."""
    for told in (True, False):
        one = Carried(replace(CALLS, duration_s=1e9))
        one.page.control.write(SLOT, control.START, one.page.clock.boot_ns())
        until(lambda one=one: one.page.stats.read(SLOT).state == control.LOAD_RUNNING, 10)
        if told:
            one.load._stopping.set()  # as `kill` does first, before its pattern has heard of it
        one.work.look = lambda _: (_ for _ in ()).throw(HarnessError("lost", "what was called died"))
        event, reason = one.end()
        assert (event, reason) == ((Event.FINISHED, "") if told else (Event.BROKE, "what was called died"))
        assert one.page.stats.read(SLOT).state == (control.LOAD_DONE if told else control.LOAD_FAILED)


def test_a_carrier_ends_with_its_lease() -> None:
    """Its end is that of the lease, also while it waits for its start."""
    one = Carried(lease_s=30.0)
    event, reason = one.end()
    assert (event, "lease ended" in reason) == (Event.LEASE_ENDED, True)
    assert not any(server.alive for server in one.work.servers)


def test_what_breaks_a_carrier_is_its_reason() -> None:
    """An error of its work ends it, and what was started is ended."""
    one = Carried(TASKS, work_s=1000.0)
    event, reason = one.end()
    assert (event, "did not start" in reason) == (Event.BROKE, True)
    assert one.page.stats.read(SLOT).state == control.LOAD_FAILED


def fresh_board() -> Board:
    """Return a board for a process that has served none: paths come back here, in a served process they do not."""
    claim.cache_clear()
    return Board()


def test_a_board_counts_what_processes_claim() -> None:
    """A process has one word; the meter reads it from outside by the process that holds the board."""
    board = fresh_board()
    meter = OutsideMeter(CALLS, [os.getpid()])
    assert claim(board.path) is claim(board.path)
    for _ in range(7):
        claim(board.path).add()
    assert (board.served(), meter.read()) == (7, 7.0)
    meter.close()
    board.close()


def test_a_word_of_a_board_is_taken_while_its_process_lives() -> None:
    """Another process gets another word, so that no count is lost between them."""
    board = fresh_board()
    claim(board.path).add()
    code = "import sys; from actors.ray_loads.board import claim; claim(sys.argv[1]).add(); claim(sys.argv[1]).add()"
    subprocess.run([sys.executable, "-c", code, board.path], check=True, timeout=60)
    words = memoryview(Path(board.path).read_bytes()).cast("Q")
    assert [word for word in words if word] == [1, 2]
    board.close()


def test_a_board_tells_the_ceiling_and_counts_it_not() -> None:
    """Until somebody lowers it, it is whole; what is told is no count, and a board that is gone is an error."""
    board = fresh_board()
    tally = claim(board.path)
    told = [tally.ceiling()]
    for ceiling in (0.25, 0.0, 1.0):
        lower(board.path, ceiling)
        told.append(tally.ceiling())
    assert (told, board.served()) == ([1.0, 0.25, 0.0, 1.0], 0)
    lower(board.path, 0.5)
    tally.add()
    assert (tally.ceiling(), board.served()) == (0.5, 1)
    path = board.path
    board.close()
    with pytest.raises(OSError, match="No such file"):
        lower(path, 1.0)


def test_words_of_a_board_belong_to_one_process_each() -> None:
    """Processes that serve at once lose no count; one that comes after another's death counts on."""
    board = fresh_board()
    code = "import sys; from actors.ray_loads.board import claim; t = claim(sys.argv[1]); [t.add() for _ in range(20_000)]"
    for _ in range(2):
        some = [subprocess.Popen([sys.executable, "-c", code, board.path]) for _ in range(3)]
        assert [one.wait(60) for one in some] == [0, 0, 0]
    assert board.served() == 2 * 3 * 20_000
    board.close()


@pytest.mark.parametrize(("cpus", "at_once", "want"), [(2, 2, 1.0), (8, 3, 3.0), (2, 3, 0.6667), (1, 64, 0.0157), (4, 1, 4.0)])
def test_a_share_of_logical_cpus(cpus: float, at_once: int, want: float) -> None:
    """As Ray counts them, at most so many fit."""
    assert logical_share(cpus, at_once) == want
    assert cpus // want <= at_once


def test_a_node_without_logical_cpus_is_refused() -> None:
    """Ray would wait for ever."""
    with pytest.raises(RefusedError, match="no logical CPUs"):
        logical_share(0.0, 2)


def test_floods_one_after_another_have_exact_times() -> None:
    """Flood 10 s, explode 5 s, lock 10 s: a plan has each at its instant, on each node, whatever the seed."""
    parts = [(kinds.MailboxFlood(per_second=100), 10), (kinds.TaskExplosion(per_second=100), 5), (kinds.ClusterLock(per_second=100), 10)]
    scenario = Scenario("chain", sequence(*(hold(simulator, for_s=seconds) for simulator, seconds in parts)))
    for seed in (1, 2):
        plan = resolve(scenario, (NodeSpec("n1"), NodeSpec("n2")), seed)
        found = [(one.kind, one.node, one.start_s, one.duration_s) for one in plan.operations]
        assert found == [
            (kind, node, start_s, duration_s)
            for kind, start_s, duration_s in (("MailboxFlood", 0.0, 10.0), ("TaskExplosion", 10.0, 5.0), ("ClusterLock", 15.0, 10.0))
            for node in ("n1", "n2")
        ]


CHAIN = (("MailboxFlood", 10.0), ("TaskExplosion", 5.0), ("ClusterLock", 10.0))


@pytest.mark.parametrize("carry", [False, True], ids=["released", "carried"])
@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_chain_runs_at_its_times(carry: bool, on_failure: str) -> None:
    """Flood 10 s, explode 5 s, lock 10 s on virtual clocks: each begins and ends at its instant, or is carried on to the chain's end."""
    parts = [hold(getattr(kinds, kind)(per_second=50), for_s=seconds) for kind, seconds in CHAIN]
    scenario = Scenario("chain", sequence(*parts, carry=carry, on_failure=on_failure))
    assert load(dump(scenario)) == scenario
    plan = resolve(scenario, (NodeSpec("n1"),), 1)
    assert Plan.from_json(plan.to_json()) == plan
    assert [one.on_failure for one in plan.operations] == [on_failure] * 3
    events = []
    for operation in plan.operations:  # each on a clock of its own, all of which begin at the same instant
        page = Page()
        begun_ns, work = page.clock.boot_ns(), FakeRayWork(page.clock, 0.001)
        made = flood(operation, work, page)
        made.warm_up()
        page.clock.sleep(operation.start_s)
        made.run(begun_ns + round(operation.start_s * SECOND_NS))
        made.close()
        first_s = (page.stats.read(SLOT).first_slice_ns - begun_ns) / SECOND_NS
        over_s = (page.clock.boot_ns() - begun_ns) / SECOND_NS
        events += [(round(first_s, 1), "begins", operation.kind), (round(over_s, 1), "ends", operation.kind)]
        assert made.flow.counts.offered == pytest.approx(50 * operation.duration_s, abs=3)
        assert not any(server.alive for server in work.servers)
    ends = (25.0, 25.0, 25.0) if carry else (10.0, 15.0, 25.0)
    times = [(begin_s, "begins", kind) for begin_s, (kind, _) in zip((0.0, 10.0, 15.0), CHAIN, strict=True)]
    times += [(end_s, "ends", kind) for end_s, (kind, _) in zip(ends, CHAIN, strict=True)]
    assert sorted(events) == sorted(times)


def test_what_is_carried_is_reserved_as_a_sum() -> None:
    """A part that is carried on stands beside the next ones; so do parts of a part, until the outer chain ends."""
    part = hold(kinds.MemoryPressure(bytes=100), for_s=10)
    apart, carried = (resolve(Scenario("sum", sequence(part, part, part, carry=carry)), (NodeSpec("n1"),), 1) for carry in (False, True))
    most = [plan.reservations({"n1": CAPACITY})["n1"].memory_bytes for plan in (apart, carried)]
    assert most[1] == 3 * most[0]
    inner = sequence(sequence(part, part, carry=True), part)
    assert [one.duration_s for one in resolve(Scenario("inner", inner), (NodeSpec("n1"),), 1).operations] == [20.0, 10.0, 10.0]
    outer = sequence(sequence(part, part), part, carry=True)
    assert [one.duration_s for one in resolve(Scenario("outer", outer), (NodeSpec("n1"),), 1).operations] == [30.0, 20.0, 10.0]
    half = hold(kinds.MemoryPressure(fraction=0.6), for_s=10)
    with pytest.raises(RefusedError, match="ask 120% of memory on n1 at 10 s"):
        resolve(Scenario("much", sequence(half, half, carry=True)), (NodeSpec("n1"),), 1)


@pytest.mark.parametrize("level", [10.0, 1e6])
@pytest.mark.parametrize("options", [{}, {"payload_bytes": 10_000_000, "in_flight_bytes": 50_000_000}])
def test_what_a_flood_reserves(level: float, options: dict[str, int]) -> None:
    """Processes and what is in flight in memory, what may be spilled on disk, and no more cores than the node has."""
    found = peak_amounts(replace(CALLS, shape={"kind": "constant", "level": level}, options=options), CAPACITY)
    assert 0.0 < found.cpu_cores <= 2.0
    assert found.disk_bytes == (50_000_000 if options else 1024 * 300)
    assert found.memory_bytes >= 2 * 100e6 + found.disk_bytes
    assert found.tasks == 80
