from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.ray_loads.flow import BLOCK_S, CATCH_UP_S, Bounds, Flow, Outcome, Strategy

STEP_S = 0.005


def balanced(flow: Flow) -> bool:
    """Both identities of the module, by figures that are never derived from one another."""
    counts = flow.counts
    offers = counts.offered == counts.accepted + counts.dropped + counts.rejected + flow.waiting
    ends = counts.accepted == counts.finished + counts.failed + counts.cancelled + flow.outstanding
    return offers and ends and min(flow.outstanding, flow.waiting, counts.accepted) >= 0


class Model:
    """A server that takes so long for each call, before a flow that offers at a rate: one step is 5 ms."""

    def __init__(self, bounds: Bounds, serve_s: float, seed: int = 1) -> None:
        self.flow = Flow(bounds, seed)
        self.serve_s, self.free_s, self.now_s = serve_s, 0.0, 0.0
        self.calls: deque[tuple[float, float]] = deque()
        self.responses: list[float] = []
        self.outstanding_max = self.waiting_max = 0

    def step(self, asked_per_s: float) -> None:
        self.now_s += STEP_S
        while self.calls and self.calls[0][1] <= self.now_s:
            due_s, end_s = self.calls.popleft()
            self.responses.append(end_s - due_s)
            self.flow.end(Outcome.FINISHED)
        for due_s in self.flow.step(self.now_s, asked_per_s, 64):
            self.free_s = max(self.free_s, self.now_s) + self.serve_s
            self.calls.append((due_s, self.free_s))
        self.outstanding_max = max(self.outstanding_max, self.flow.outstanding)
        self.waiting_max = max(self.waiting_max, self.flow.waiting)
        assert balanced(self.flow)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_each_strategy_at_twice_what_is_served(strategy: Strategy) -> None:
    """1,000 a second are offered to a server of 500: it is kept busy, memory is bounded, counts are exact, and what waits is as told."""
    model = Model(Bounds(50, strategy, waiting=20, tokens_per_s=490.0, burst=10), serve_s=0.002)
    for _ in range(2000):
        model.step(1000.0)
    counts = model.flow.counts
    assert model.outstanding_max <= 50
    assert model.waiting_max <= 20
    assert counts.finished == pytest.approx(5000, rel=0.04)
    assert (counts.failed, counts.cancelled, counts.missed) == (0, 0, 0)
    if strategy is Strategy.BLOCK:
        assert (counts.dropped, counts.rejected, counts.offered) == (0, 0, counts.accepted)
        assert model.flow.blocked_s == pytest.approx(5.0, rel=0.05)  # half of the time
    else:
        assert counts.offered == pytest.approx(10_000, abs=2)
        assert model.flow.blocked_s == 0.0
        lost = counts.rejected if strategy is Strategy.REJECT else counts.dropped
        assert lost == pytest.approx(5000, rel=0.05)


def test_what_the_strategies_do_to_response_times() -> None:
    """Dropping the oldest answers the newest; shedding and a bucket below what is served keep the mailbox emptier than the bound."""
    worst, typical = {}, {}
    for strategy in Strategy:
        model = Model(Bounds(50, strategy, waiting=200, tokens_per_s=450.0, burst=10), serve_s=0.002)
        for _ in range(2000):
            model.step(1000.0)
        late = sorted(model.responses[1000:])
        worst[strategy], typical[strategy] = late[-1], late[len(late) // 2]
    assert typical[Strategy.DROP_OLDEST] < 0.7 * typical[Strategy.DROP_NEWEST]  # 200 wait before 50: the newest of these against the oldest
    assert typical[Strategy.SHED] < 0.9 * typical[Strategy.REJECT]
    assert worst[Strategy.TOKEN_BUCKET] < 0.3 * typical[Strategy.REJECT]


@given(
    strategy=st.sampled_from(list(Strategy)),
    outstanding=st.integers(1, 30),
    waiting=st.integers(0, 10),
    tokens=st.floats(0, 2000),
    steps=st.lists(
        st.tuples(
            st.floats(0, 1.5),  # seconds since the last step
            st.floats(0, 3000),  # asked
            st.integers(0, 64),  # of what is sent, so many are refused
            st.sampled_from(list(Outcome)),
            st.integers(0, 64),  # and so many of the outstanding end
        ),
        max_size=40,
    ),
)
@settings(max_examples=300, deadline=None)
def test_every_offer_has_one_fate(strategy, outstanding, waiting, tokens, steps) -> None:
    """Whatever is asked, refused and ended, in whatever order: counts balance, bounds hold, due times rise and lie in the past."""
    flow, now_s, last_due_s = Flow(Bounds(outstanding, strategy, waiting, tokens, 5), 7), 0.0, -1.0
    for passed_s, asked, refused, outcome, ended in steps:
        now_s += passed_s
        sent = flow.step(now_s, asked, 64)
        assert sent == sorted(sent)
        assert all(due_s <= now_s + 1e-6 for due_s in sent)
        assert all(due_s >= last_due_s for due_s in sent)
        last_due_s = max([last_due_s, *sent])
        assert flow.outstanding <= outstanding
        assert flow.waiting <= waiting
        flow.refuse(min(refused, len(sent)))
        flow.end(outcome, min(ended, flow.outstanding))
        assert balanced(flow)
    flow.close()
    assert flow.waiting == 0
    assert balanced(flow)


@given(rates=st.lists(st.floats(0, 5000), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_an_open_schedule_offers_what_is_asked(rates) -> None:
    """With room for all, the offers are the integral of the asked rate, less what is not whole yet."""
    flow = Flow(Bounds(1 << 30, Strategy.REJECT), 1)
    for index, rate in enumerate(rates, 1):
        flow.step(index * STEP_S, rate, 1 << 30)
    assert flow.counts.offered == pytest.approx(sum(rates) * STEP_S, abs=1.001)


def test_a_slow_sender_misses_and_does_not_burst() -> None:
    """What fell due while the sender stood still is made up for within bounds only, and the rest is counted as missed."""
    flow = Flow(Bounds(1 << 20, Strategy.REJECT), 1)
    assert len(flow.step(10.0, 1000.0, 64)) == 64
    assert flow.counts.missed == pytest.approx(10_000 - 64 - 1000 * CATCH_UP_S, abs=1)


def test_a_blocked_source_goes_on_where_it_stands() -> None:
    """It keeps no more than a moment's offers: when there is room again, no burst of all that it did not make."""
    flow = Flow(Bounds(10, Strategy.BLOCK), 1)
    for index in range(1, 201):
        flow.step(index * STEP_S, 1000.0, 64)
    assert flow.outstanding == 10
    flow.end(Outcome.FINISHED, 10)
    flow.bounds = Bounds(1000, Strategy.BLOCK)
    assert len(flow.step(201 * STEP_S, 1000.0, 64)) <= 1000 * (BLOCK_S + STEP_S) + 1


def test_shedding_follows_its_seed() -> None:
    """The same seed sheds the same offers."""
    runs = []
    for seed in (1, 1, 2):
        flow = Flow(Bounds(20, Strategy.SHED), seed)
        runs.append([len(flow.step(index * STEP_S, 700.0, 64)) for index in range(60)])
    assert runs[0] == runs[1] != runs[2]
