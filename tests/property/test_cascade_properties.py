"""A cascade without Ray: its graph, what a service keeps for a dependency, how it is told, and all of it on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.breaker import BreakerPolicy
from actors.clock import SECOND_NS, VirtualClock
from actors.ray_loads.cascade import rooms
from actors.ray_loads.service_graph import Failure, ServiceGraph, Spread, grow, tell
from actors.ray_loads.service_lane import Fate, Lane
from actors.ray_loads.services import Service
from tests.support import virtual_loop

GRAPHS = st.tuples(st.integers(0, 1 << 64), st.integers(2, 32), st.integers(2, 8), st.integers(1, 8)).filter(lambda one: one[1] >= one[2])
PER_S = 40.0


def reached(graph: ServiceGraph) -> set[str]:
    """Return the services that depend on the first one, itself included."""
    found = {graph.first}
    for name in graph.services:
        if found & set(graph.dependencies[name]):
            found.add(name)
    return found


@given(shape=GRAPHS)
def test_a_graph_is_that_of_its_seed(shape: tuple[int, int, int, int]) -> None:
    """It has all services once, each calls `fan_out` of the level below or all, each below is called, and a failure can reach the top."""
    seed, services, levels, fan_out = shape
    graph = grow(seed, services, levels, fan_out)
    assert graph == grow(seed, services, levels, fan_out)
    assert (len(graph.services), len(set(graph.services)), len(graph.levels)) == (services, services, levels)
    for below, tier in zip(graph.levels, graph.levels[1:], strict=False):
        called = [other for name in tier for other in graph.dependencies[name]]
        assert set(called) == set(below)
        assert all(len(set(graph.dependencies[name])) == len(graph.dependencies[name]) >= min(fan_out, len(below)) for name in tier)
    assert all(set(tier) & reached(graph) for tier in graph.levels)
    rates = graph.traffic(PER_S)
    assert sum(rates[name] for name in graph.levels[-1]) == pytest.approx(PER_S)
    assert all(rates[name] > 0 for name in graph.services)


def test_other_seeds_are_other_graphs() -> None:
    """The seed decides who depends on whom and who fails first."""
    graphs = [grow(seed, 12, 3, 2) for seed in range(20)]
    assert len({str(graph.dependencies) for graph in graphs}) > 15
    assert len({graph.first for graph in graphs}) == 4


class Model:
    """The breaker's state machine as its documentation says it, apart from its code."""

    def __init__(self, failures: int, reset_ns: int) -> None:
        self.failures, self.reset_ns = failures, reset_ns
        self.row, self.opened_ns = 0, -1  # failures in a row; when it opened, -1 while it is closed

    def calls(self, now_ns: int) -> bool:
        return self.opened_ns < 0 or now_ns >= self.opened_ns + self.reset_ns

    def end(self, fate: Fate, now_ns: int) -> None:
        if fate is Fate.TAKEN:
            self.row, self.opened_ns = 0, -1
        else:
            self.row += 1
            if self.opened_ns >= 0 or self.row >= self.failures:
                self.opened_ns = now_ns


@given(
    failures=st.integers(1, 5),
    room=st.integers(1, 10),
    steps=st.lists(st.tuples(st.booleans(), st.sampled_from([Fate.TAKEN, Fate.REFUSED, Fate.TIMED_OUT, Fate.DIED]), st.integers(0, 900))),
)
def test_a_lane_keeps_its_bound_and_its_breaker_its_table(failures: int, room: int, steps: list[tuple[bool, Fate, int]]) -> None:
    """Whatever comes: at most `room` wait, every request has one end, and calls are tried when the breaker's model says so."""
    lane, bare = Lane(room, BreakerPolicy(failures, 1.0)), Lane(room)
    model, now_ns, put = Model(failures, SECOND_NS), SECOND_NS, 0  # a machine is up when it is looked at: 0 says never
    for is_offer, fate, wait_ms in steps:
        now_ns += wait_ms * 1_000_000
        if is_offer and not lane.is_full:
            lane.put()
            put += 1
        if is_offer and not bare.is_full:
            bare.put()
        if lane.waiting:
            may = lane.may_call(now_ns)
            assert may is model.calls(now_ns)
            lane.end(fate if may else Fate.DEGRADED, now_ns)
            if may:
                model.end(fate, now_ns)
        if bare.waiting:
            assert bare.may_call(now_ns)
            bare.end(fate, now_ns)
        assert 0 <= lane.waiting <= room
        assert put == lane.counts.taken + lane.counts.degraded + lane.waiting
        assert bare.counts.degraded == 0
        assert (lane.failed_ns > 0) is (lane.counts.refused + lane.counts.timed_out + lane.counts.died > 0)


def test_failures_are_told_by_rounds_and_causes() -> None:
    """Those less than half a second apart are one round, by name; depth follows causes; the order in which they are given is no matter."""
    ms = 1_000_000
    failures = [
        Failure("s00", "", 100 * ms),
        Failure("s04", "s00", 1200 * ms),
        Failure("s03", "s00", 1300 * ms),
        Failure("s05", "s03", 2350 * ms),
    ]
    want = Spread((("s00",), ("s03", "s04"), ("s05",)), 2, 2.25, 4, 0.5)
    for seed in range(10):
        assert tell(Random(seed).sample(failures, 4), 8, 0.5) == want
    assert tell(failures[1:], 8, 0.5).depth == 1  # what they failed for is not known: each begins a chain
    assert tell([], 8, 0.5) == Spread()


@dataclass(slots=True)
class Offer:
    """A handle's method."""

    service: Service
    hung: set[str]
    name: str

    def remote(self) -> Awaitable[bool]:
        return asyncio.ensure_future(self._answer())

    async def _answer(self) -> bool:
        if self.name in self.hung:
            await virtual_loop.pass_time(1e6)
        await virtual_loop.pass_time(0.001)
        return await self.service.offer()


@dataclass(slots=True)
class Handle:
    """What a service has of another one."""

    offer: Offer


def cascade(graph: ServiceGraph, policy: BreakerPolicy | None, for_s: float = 15.0) -> tuple[Spread, dict[str, int]]:
    """Return how far the first service's hang spread, and the calls by fate: real services, a virtual clock, no Ray."""
    clock, hung = VirtualClock(), set[str]()
    size = rooms(graph, PER_S, 1.0)

    async def live() -> tuple[Spread, dict[str, int]]:
        services: dict[str, Service] = {}
        for name in graph.services:
            others = {other: Handle(Offer(services[other], hung, other)) for other in graph.dependencies[name]}
            services[name] = Service(name, "", size[name], 0.1, policy, others, clock)
            await services[name].pid()
        entries = graph.levels[-1]
        for number in range(round(for_s * PER_S)):
            if number == round(2 * PER_S):
                hung.add(graph.first)
            await services[entries[number % len(entries)]].offer()
            await virtual_loop.pass_time(1 / PER_S)
        figures = [(name, *await services[name].figures()) for name in graph.services]
        failures = [failure for _, failure, _, _ in figures if failure is not None]
        first_ns = min(seen for _, _, firsts, _ in figures if (seen := firsts.get(graph.first, 0)))
        fates = dict.fromkeys(map(str, Fate), 0)
        for *_, lanes in figures:
            for counts in lanes.values():
                fates = {fate: fates[fate] + counts[fate] for fate in fates}
        return tell([Failure(graph.first, "", first_ns), *failures], len(graph.services), 0.5), fates

    return virtual_loop.run(clock, live())


@given(seed=st.integers(0, 1 << 32), services=st.integers(4, 12), levels=st.integers(2, 4), fan_out=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_a_failure_spreads_level_by_level_and_a_breaker_stops_it(seed: int, services: int, levels: int, fan_out: int) -> None:
    """Without a breaker all that depend on the first one fail, a level a second, in the same order again; with one nobody else does."""
    graph = grow(seed, services, levels, fan_out)
    spread, fates = cascade(graph, None)
    expected = [tuple(sorted(set(tier) & reached(graph))) for tier in graph.levels]
    assert list(spread.rounds) == expected
    assert spread.depth == levels - 1
    assert 0.8 * (levels - 1) < spread.span_s < 1.4 * (levels - 1)
    assert spread.share == len(reached(graph)) / services
    assert fates["timed_out"] > 0
    assert fates["degraded"] == 0
    assert (fates["refused"] > 0) is (levels > 2)
    assert cascade(grow(seed, services, levels, fan_out), None)[0] == spread
    stopped, fates = cascade(graph, BreakerPolicy(3, 2.0))
    assert (stopped.rounds, stopped.depth) == (((graph.first,),), 0)
    assert fates["degraded"] > fates["timed_out"] > 0
    assert fates["refused"] == 0


def test_a_breaker_that_opens_too_late_stops_nothing_at_once() -> None:
    """Where it bears more failures than the line has time for, the callers of the first fail before it opens."""
    graph = grow(7, 6, 3, 2)
    spread, _ = cascade(graph, BreakerPolicy(20, 2.0))
    assert 1 <= spread.depth <= 2
