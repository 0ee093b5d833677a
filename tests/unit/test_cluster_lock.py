"""One lock over several nodes, without Ray: who keeps it, what becomes of turns when the keeper dies, and who waits for whom at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_ray import FakeCall, FakeRayWork, FakeServer
from support.virtual_loop import pass_time, run
from test_ray_load import CALLS, CAPACITY, Page, recorded, values

from actors.clock import SECOND_NS, VirtualClock
from actors.disk import LeaseOverError
from actors.errors import HarnessError
from actors.metrics.reporter import MemoryReporter
from actors.ray_loads.cluster_lock import CLOSE_S, ClusterLock
from actors.ray_loads.figures import REMEMBERED, LockFigures
from actors.ray_loads.flow import Outcome
from actors.ray_loads.lock_actors import SILENT_S, LockKeeper, Turn
from actors.ray_loads.lock_seat import AGAIN_S, FIND_MAX_S, HERE_S, MADE_MAX, MAKE_S, OPEN_S, Seat
from actors.ray_loads.ray_work import Ended, name_over_nodes

NAME = "lock"
LOCK = replace(CALLS, id="0.ClusterLock@n1", kind="ClusterLock", options={"contenders": 2, "scope": "cluster"})


@dataclass(eq=False)
class Keeper(FakeServer):
    """An actor with a name, and who stays with it."""

    name: str = ""
    staying: dict[str, FakeCall] = field(default_factory=dict)


class Registry:
    """The names of a run's actors. `hidden` are those that nobody finds yet."""

    def __init__(self) -> None:
        self.keepers: list[Keeper] = []
        self.hidden: set[str] = set()

    def living(self) -> dict[str, Keeper]:
        return {one.name: one for one in self.keepers if one.alive}


class NamedWork(FakeRayWork):
    """`RayWork` of one node, with names that all nodes share."""

    def __init__(self, clock: VirtualClock, registry: Registry) -> None:
        super().__init__(clock, 0.01)
        self.registry = registry

    def spawn(self, factory: type, *args: Any, calls_max: int = 0, at_once: int = 0, name: str = "") -> Any:
        if not name:
            return super().spawn(factory, *args)
        if name in self.registry.living():
            return None
        self.registry.keepers.append(Keeper(0, name=name))
        return self.registry.keepers[-1]

    def find(self, prefix: str, known: Collection[str] = ()) -> dict[str, Any]:
        return {name: one for name, one in self.registry.living().items() if name.startswith(prefix) and name not in self.registry.hidden}

    def call(self, victim: FakeServer, method: str, *args: Any) -> Any:
        made = super().call(victim, method, *args)
        if isinstance(victim, Keeper):
            if method == "stay":
                made.ends_ns = 1 << 62
                victim.staying[args[0]] = made
            if method == "leave" and victim.alive:
                victim.staying.pop(args[0]).end = Ended(Outcome.FINISHED)
            if method == "users" and victim.alive:
                made.end = Ended(Outcome.FINISHED, tuple(victim.staying))
        return made


def opened(seat: Seat) -> Seat:
    for _ in seat.open():
        pass
    return seat


def seats(clock: VirtualClock, count: int) -> tuple[Registry, list[Seat]]:
    registry = Registry()
    return registry, [Seat(NamedWork(clock, registry), clock, 5.0, f"n{at}", f"0.l@n{at}", NAME) for at in range(count)]


def test_the_first_makes_the_keeper_and_the_others_find_it() -> None:
    """All have the same one, made once; it ends with who made it."""
    registry, made = seats(VirtualClock(), 3)
    for seat in made:
        opened(seat)
    assert [one.name for one in registry.keepers] == ["lock/0"]
    assert {seat.keeper for seat in made} == set(registry.keepers)
    made[1].close()
    assert registry.keepers[0].alive
    made[0].close()
    assert not registry.keepers[0].alive


def test_a_name_that_is_taken_and_not_found_is_looked_for_again() -> None:
    """Ray knows a name a moment before it lists the actor: nobody makes a second one, and one that never shows ends with an error."""
    clock = VirtualClock()
    registry, made = seats(clock, 2)
    opened(made[0])
    registry.hidden.add("lock/0")
    steps = made[1].open()
    next(steps)
    assert made[1].keeper is None
    registry.hidden.clear()
    opened(made[1])
    assert made[1].keeper is made[0].keeper
    registry.hidden.add("lock/0")
    late = Seat(NamedWork(clock, registry), clock, 5.0, "n9", "0.l@n9", NAME)
    with pytest.raises(HarnessError, match=rf"0\.l@n9: no keeper of the lock was found or made within {OPEN_S:g} s"):
        opened(late)
    assert len(registry.keepers) == 1


@given(
    steps=st.lists(st.tuples(st.sampled_from(["look", "look", "kill", "come", "go", "hide", "show"]), st.integers(0, 3)), max_size=60),
)
def test_all_come_to_the_same_keeper(steps: list[tuple[str, int]]) -> None:
    """Whoever looks, dies, comes late, goes or is not found for a time: once it is quiet, all have one keeper, and it alone lives."""
    clock = VirtualClock()
    registry, made = seats(clock, 4)
    here = {0, 1}
    for what, at in steps:
        clock.sleep(AGAIN_S)
        living = list(registry.living().values())
        if what == "look" and at in here:
            made[at].tend()
        elif what == "kill" and living:
            made[0]._work.kill(living[at % len(living)])
        elif what == "come":
            here.add(at)
        elif what == "go" and at in here and len(here) > 1:
            here.remove(at)
            made[at].close()
            made[at] = Seat(NamedWork(clock, registry), clock, 5.0, f"n{at}", f"0.l@n{at}", NAME)
        elif what == "hide":
            registry.hidden |= set(registry.living())
        elif what == "show":
            registry.hidden.clear()
    registry.hidden.clear()
    for _ in range(4):
        clock.sleep(FIND_MAX_S)
        for at in here:
            made[at].tend()
    assert len({id(made[at].keeper) for at in here}) == 1
    assert list(registry.living().values()) == [made[min(here)].keeper]


def test_ray_is_asked_seldom_while_the_keeper_lives_and_often_while_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up for a higher term twice as seldom each time; without a keeper until one shows itself."""
    clock = VirtualClock()
    registry, (first, second) = seats(clock, 2)
    opened(first)
    asked: list[int] = []
    find = NamedWork.find

    def counted(work: NamedWork, prefix: str, known: Collection[str] = ()) -> dict[str, Any]:
        asked.append(clock.boot_ns())
        return find(work, prefix, known)

    monkeypatch.setattr(NamedWork, "find", counted)

    def asked_in_a_second(seat: Seat) -> int:
        asked.clear()
        for _ in range(200):
            seat.tend()
            clock.sleep(0.005)
        return len(asked)

    assert sum(asked_in_a_second(first) for _ in range(100)) == 7  # after 1, 2, 4, 8, 16, 32 and 32 s
    registry.hidden.add("lock/0")
    assert asked_in_a_second(second) == pytest.approx(1.0 / AGAIN_S, abs=1)


def test_who_made_the_keeper_waits_for_the_others_to_leave() -> None:
    """Until the last has left, or the time is over; who found it waits for nobody, and neither does one whose keeper is gone."""
    clock = VirtualClock()
    registry, (first, second, third) = seats(clock, 3)
    for seat in (first, second, third):
        opened(seat)

    def spent(seat: Seat) -> float:
        begun_ns = clock.boot_ns()
        seat.leave(1.0)
        return (clock.boot_ns() - begun_ns) / SECOND_NS

    assert spent(second) < 0.1
    assert registry.keepers[0].staying.keys() == {"n0", "n2"}
    assert spent(first) == pytest.approx(1.0, abs=0.1)  # the third stays
    first.close()
    assert spent(third) < 0.1  # it is gone, and says so at once
    third.tend()
    assert third.term == 1
    assert spent(third) < 0.1  # it made this one, and nobody else stays
    alone = opened(Seat(NamedWork(clock, registry), clock, 5.0, "n1", "0.l@n1", ""))
    assert spent(alone) < 0.1


def locked(page: Page, registry: Registry, reporter: MemoryReporter | None = None, **fields: Any) -> ClusterLock:
    work = NamedWork(page.clock, registry)
    made = ClusterLock(replace(LOCK, **fields), CAPACITY, page.watch, work, reporter or MemoryReporter(), "/nowhere")
    made.warm_up()
    return made


def happen(lock: ClusterLock, *events: tuple[float, Callable[[], object]]) -> None:
    """Have each event happen once, at its time after the start."""
    left, attend = list(events), lock.attend

    def attend_then(elapsed_s: float) -> float:
        while left and elapsed_s >= left[0][0]:
            left.pop(0)[1]()
        return attend(elapsed_s)

    lock.attend = attend_then  # type: ignore[method-assign]


def fail_turns(lock: ClusterLock) -> None:
    """Have the contenders' turns of now fail, as they do when what they ask is gone."""
    for server in lock._work.servers:  # type: ignore[attr-defined]
        for call in server.calls:
            if call.end is None:
                call.end = Ended(Outcome.FAILED, reason="ActorDiedError")


def test_a_lock_goes_on_with_the_next_keeper() -> None:
    """Killed twice: what was under way failed, is told, and is no error; turns go on, and while there is no keeper none is begun."""
    page, registry, reporter = Page(), Registry(), MemoryReporter()
    lock = locked(page, registry, reporter)

    def kill() -> None:
        lock._work.kill(registry.keepers[-1])
        fail_turns(lock)

    happen(lock, (1.003, kill), (2.003, kill))
    lock.run(page.clock.boot_ns())
    lock.close()
    counts = lock.flow.counts
    assert [one.name for one in registry.keepers] == [f"{name_over_nodes(LOCK)}/{term}" for term in range(3)]
    assert not registry.living()
    assert 1 <= counts.failed <= 4
    assert counts.accepted == counts.finished + counts.failed + counts.cancelled
    assert counts.finished > 700
    assert recorded(reporter)["failed"] == counts.failed


@pytest.mark.parametrize("lives", [True, False], ids=["lives", "dies"])
def test_a_contender_that_dies_ends_the_load_and_one_that_lives_does_not(lives: bool) -> None:
    """A turn that failed while the keeper lives: its contender is asked, and what it does not answer ends the load with the reason."""
    page, registry = Page(), Registry()
    lock = locked(page, registry)
    happen(lock, (1.003, (lambda: fail_turns(lock)) if lives else lambda: lock._work.kill(lock._work.servers[0])))  # type: ignore[attr-defined]
    start_ns = page.clock.boot_ns()
    if lives:
        lock.run(start_ns)
        assert lock.flow.counts.failed == 2
        assert lock.flow.counts.finished > 700
    else:
        with pytest.raises(HarnessError, match=r"0\.ClusterLock@n1: a call failed: killed"):
            lock.run(start_ns)
        assert page.clock.boot_ns() - start_ns < 1.1 * SECOND_NS
    lock.close()
    assert not registry.living()


def test_a_keeper_that_dies_before_the_start_is_replaced_by_then() -> None:
    """Between ready and start it is looked after too."""
    page, registry = Page(), Registry()
    lock = locked(page, registry)
    lock._work.kill(registry.keepers[0])
    page.clock.sleep(MAKE_S)
    lock.idle()
    assert [one.name.rpartition("/")[2] for one in registry.keepers if one.alive] == ["1"]
    lock.close()


def test_keepers_that_keep_on_dying_are_made_at_a_pace_and_then_no_more() -> None:
    """Half a second apart, and an error at the last."""
    clock = VirtualClock()
    registry, (seat, _) = seats(clock, 2)
    opened(seat)
    begun_ns = clock.boot_ns()

    def go_on() -> None:
        while True:
            for keeper in registry.living().values():
                seat._work.kill(keeper)
            seat.tend()
            clock.sleep(0.005)

    with pytest.raises(HarnessError, match=f"the keeper of the lock has died {MADE_MAX} times"):
        go_on()
    assert len(registry.keepers) == MADE_MAX
    assert clock.boot_ns() - begun_ns >= (MADE_MAX - 1) * MAKE_S * SECOND_NS


def test_a_keeper_of_another_node_that_dies_while_it_is_found_is_looked_for_again() -> None:
    """It was listed, and gone before it answered: the next one is made here."""
    clock = VirtualClock()
    registry, (first, second) = seats(clock, 2)
    opened(first)
    steps = second.open()
    next(steps)
    assert second.keeper is first.keeper
    second._here.ends_ns = 1 << 62
    first._work.kill(first.keeper)
    for _ in steps:
        pass
    assert (second.term, [one.name for one in registry.living().values()]) == (1, ["lock/1"])


def test_a_lease_that_ends_while_the_keeper_is_looked_for_ends_the_load() -> None:
    """Looking takes up to forty seconds; a lease is looked at meanwhile."""
    page, registry = Page(lease_s=1.0), Registry()
    other = opened(Seat(NamedWork(page.clock, registry), page.clock, 5.0, "n2", "0.l@n2", name_over_nodes(LOCK)))
    registry.hidden |= set(registry.living())
    begun_ns = page.clock.boot_ns()
    with pytest.raises(LeaseOverError):
        locked(page, registry)
    assert page.clock.boot_ns() - begun_ns < 1.2 * SECOND_NS
    assert list(registry.living().values()) == [other.keeper]


@pytest.mark.parametrize(
    "end",
    [Ended(Outcome.FAILED, reason="ActorUnavailableError: the actor is temporarily unavailable"), Ended(Outcome.FINISHED)],
    ids=["out-of-reach", "taken-to-have-left"],
)
def test_a_keeper_that_lives_is_not_given_up(end: Ended) -> None:
    """Ray says that it is unavailable, or it took us for gone when we were silent: it is asked again, and nobody makes another."""
    clock = VirtualClock()
    registry, (first, second) = seats(clock, 2)
    opened(first)
    opened(second)
    second._stay.end = end
    clock.sleep(HERE_S)
    assert not second.tend()
    assert (second.keeper, len(registry.keepers)) == (first.keeper, 1)
    first._work.kill(first.keeper)
    clock.sleep(MAKE_S)
    assert second.tend()
    assert second.term == 1


def test_a_load_that_ends_without_a_run_leaves() -> None:
    """Who made the keeper does not wait for it."""
    clock = VirtualClock()
    registry, (first, second) = seats(clock, 2)
    opened(first)
    opened(second)
    second.close()
    assert registry.keepers[0].staying.keys() == {"n0"}
    begun_ns = clock.boot_ns()
    first.leave(1.6)
    assert clock.boot_ns() - begun_ns < 0.1 * SECOND_NS


def test_a_lock_that_ends_waits_no_longer_than_a_run_grants_it() -> None:
    """Another node's contenders stay: the keeper lives for them until `CLOSE_S` after the end, and then goes."""
    page, registry = Page(), Registry()
    lock = locked(page, registry)
    other = opened(Seat(NamedWork(page.clock, registry), page.clock, 5.0, "n2", "0.l@n2", name_over_nodes(LOCK)))
    assert other.keeper is lock.seat.keeper
    start_ns = page.clock.boot_ns()
    lock.run(start_ns)
    assert page.clock.boot_ns() - start_ns == pytest.approx((LOCK.duration_s + CLOSE_S) * SECOND_NS, rel=0.05)
    assert other.keeper.alive
    lock.close()
    assert not other.keeper.alive


def test_nodes_share_a_name_and_operations_do_not() -> None:
    """The same on every node that runs it, another for each operation."""
    assert name_over_nodes(LOCK) == name_over_nodes(replace(LOCK, id="0.ClusterLock@n2", node="n2"))
    assert name_over_nodes(LOCK) != name_over_nodes(replace(LOCK, id="1.ClusterLock@n1"))


def test_who_leaves_gives_back_what_it_holds_and_waits_for() -> None:
    """One user's contenders hold and wait; when it leaves the other's gets the lock at once, and the waiting ones are told."""

    async def life() -> tuple[list[str], tuple[str, ...], tuple[int, int, int]]:
        keeper = LockKeeper(lease_s=1000.0)
        stays = [asyncio.ensure_future(keeper.stay(user)) for user in ("n1", "n2")]
        asked = [asyncio.ensure_future(keeper.acquire(user)) for user in ("n1", "n1", "n2", "n1")]
        await asyncio.sleep(0)
        held = await asked[0]
        await keeper.leave("n1")
        ends = await asyncio.gather(*asked[1:], return_exceptions=True)
        await stays[0]
        assert not stays[1].done()
        assert await keeper.release(held.token, 1) == (False, pytest.approx(0.0, abs=1.0))
        told = [str(end) if isinstance(end, LookupError) else f"held {end.guarded}" for end in ends]
        stays[1].cancel()
        return told, await keeper.users(), await keeper.figures()

    assert asyncio.run(life()) == (["n1 has left", "held 0", "n1 has left"], ("n2",), (0, 0, 0))


def test_a_user_that_falls_silent_has_left() -> None:
    """Its simulator was killed: what its contenders hold and wait for is free at once for those whose simulator lives, not one by one."""
    clock = VirtualClock()

    async def life() -> tuple[float, tuple[str, ...]]:
        keeper = LockKeeper(lease_s=1.0)
        keeper._clock = clock  # type: ignore[assignment]
        stays = [asyncio.ensure_future(keeper.stay(user)) for user in ("n1", "n2")]
        asked = [asyncio.ensure_future(keeper.acquire(user)) for user in ("n2", "n2", "n2", "n2", "n1")]
        begun_ns = clock.boot_ns()
        while not asked[-1].done():
            await keeper.here("n1")
            await pass_time(0.5)
        stays[0].cancel()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(end, LookupError) for end in ends) <= 3
        with pytest.raises(LookupError, match="n2 has left"):
            await keeper.acquire("n2")
        return (clock.boot_ns() - begun_ns) / SECOND_NS, await keeper.users()

    took_s, users = run(clock, life())
    assert took_s <= SILENT_S + 1.0
    assert users == ("n1",)


def test_numbers_are_told_apart_by_keeper() -> None:
    """The next keeper guards a number from 0; a late turn of the last one says nothing any more. Within a term no number is read twice."""
    reporter = MemoryReporter()
    figures = LockFigures(reporter)
    for term, guarded in ((0, 0), (0, 7), (2, 0), (0, 7), (2, 3), (2, 1)):
        figures.record(Turn(0.0, 0.1, True, guarded, term))
    assert values(reporter, "flood.lock.guarded") == [1.0, 8.0, 1.0, 1.0, 4.0, 4.0]
    with pytest.raises(HarnessError, match="two of its holders read 3"):
        figures.record(Turn(0.0, 0.1, True, 3, 2))


def test_numbers_of_long_ago_are_forgotten() -> None:
    """With other nodes' numbers between them there is no end of gaps: what is remembered is bounded, and new ones are still seen twice."""
    figures = LockFigures(MemoryReporter())
    last = 10 * REMEMBERED
    for guarded in range(0, last, 2):
        figures.record(Turn(0.0, 0.1, True, guarded))
    assert len(figures._read) <= 2 * REMEMBERED
    figures.record(Turn(0.0, 0.1, True, 0))
    with pytest.raises(HarnessError, match="did not exclude"):
        figures.record(Turn(0.0, 0.1, True, last - 2 * REMEMBERED + 2))
