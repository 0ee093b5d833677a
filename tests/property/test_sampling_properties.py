"""Sampling: weights add up to what was offered, estimates are unbiased, limits hold, and a burst is thinned and forgotten."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import SECOND_NS
from actors.errors import InputError
from actors.metrics.sampling import Adaptive, Always, FirstN, Policy, Probability, RateLimit, Thinner, spread

policies = st.one_of(
    st.just(Always()),
    st.floats(1e-3, 1.0).map(Probability),
    st.floats(0.1, 1e4).map(RateLimit),
    st.integers(0, 20).map(FirstN),
    st.floats(10, 1e4).map(Adaptive),
)
EACH = pytest.mark.parametrize(
    "policy", [Always(), Probability(0.1), Probability(0.37), RateLimit(300), FirstN(7), Adaptive(200)], ids=repr
)


def thinned(policy: Policy, values: list[float], seed: int, gap_ns: int = 1_000_000, window: int = 100) -> list[tuple[float, int]]:
    """Offer values at even times, with a window after each hundred; return all that is kept."""
    thinner = Thinner(policy, Random(seed))
    kept = []
    for index, value in enumerate(values):
        if index and index % window == 0:
            kept.append(thinner.begin_window())
        kept.append(thinner.offer(value, index * gap_ns))
    kept.append(thinner.flush())
    return [one for one in kept if one]


@given(policies, st.lists(st.one_of(st.integers(0, 10**8), st.none()), max_size=300), st.integers(0, 2**32))
def test_kept_and_dropped_are_what_was_offered(policy: Policy, gaps: list[int | None], seed: int) -> None:
    """At any moment, for any arrivals and windows: weights kept + waiting = offered = kept + dropped + waiting."""
    thinner, now_ns, offered, weights, count = Thinner(policy, Random(seed)), 0, 0, 0, 0
    for gap_ns in gaps:
        if gap_ns is None:
            kept = thinner.begin_window()
        else:
            now_ns += gap_ns
            offered += 1
            kept = thinner.offer(float(offered), now_ns)
        if kept:
            assert kept[1] >= 1
            assert offered - thinner.waiting - kept[1] < kept[0] <= offered - thinner.waiting, "it stands for its own group"
            weights, count = weights + kept[1], count + 1
        assert weights + thinner.waiting == thinner.offered == offered
        assert (thinner.kept, thinner.kept + thinner.dropped + thinner.waiting) == (count, offered)
    last = thinner.flush()
    assert weights + (last[1] if last else 0) == offered
    assert (thinner.waiting, thinner.kept + thinner.dropped) == (0, offered)


@EACH
def test_the_same_seed_keeps_the_same_samples(policy: Policy) -> None:
    """What is kept follows from the policy, the arrivals and the random source alone."""
    values = [float(value) for value in range(1000)]
    assert thinned(policy, values, 3) == thinned(policy, values, 3)


@EACH
def test_each_sample_of_a_group_is_kept_equally_often(policy: Policy) -> None:
    """Over 4,000 seeds the mean weight of each sample is 1 within five standard errors: so every weighted sum is unbiased."""
    seeds, values = 4000, [float(value) for value in range(250)]
    total: Counter[float] = Counter()
    square: Counter[float] = Counter()
    for seed in range(seeds):
        for value, weight in thinned(policy, values, seed):
            total[value] += weight
            square[value] += weight * weight
    for value in values:
        mean = total[value] / seeds
        error = math.sqrt(max(square[value] / seeds - mean * mean, 0.0) / seeds)
        assert abs(mean - 1.0) <= 5 * error + 1e-12, f"sample {value} has a mean weight of {mean}"


@pytest.mark.parametrize("seed", range(20))
def test_a_tenth_is_a_tenth_and_its_sum_is_right(seed: int) -> None:
    """p = 0.1 over 10^5: the share kept is within 3 sigma, the weighted count exact, the weighted sum within 1 % (3.6 sigma)."""
    chance = Random(seed)
    values = [chance.uniform(0.5, 1.5) for _ in range(100_000)]
    kept = thinned(Probability(0.1), values, seed)
    assert abs(len(kept) - 10_000) <= 3 * math.sqrt(100_000 * 0.1 * 0.9)
    assert sum(weight for _, weight in kept) == 100_000
    assert sum(value * weight for value, weight in kept) == pytest.approx(sum(values), rel=0.01)


@given(st.floats(0.5, 500), st.lists(st.integers(0, 5 * 10**8), min_size=1, max_size=400))
def test_a_rate_is_never_passed_in_any_second(per_second: float, gaps: list[int]) -> None:
    """In every sliding second [t, t + 1 s) at most the limit is kept, whatever the arrivals are."""
    thinner, now_ns, kept_ns = Thinner(RateLimit(per_second), Random(1)), 0, []
    for gap_ns in gaps:
        now_ns += gap_ns
        if thinner.offer(1.0, now_ns):
            kept_ns.append(now_ns)
    for index, begin_ns in enumerate(kept_ns):
        assert sum(begin_ns <= at_ns < begin_ns + SECOND_NS for at_ns in kept_ns[index:]) <= math.ceil(per_second)


def test_a_limit_of_a_hundred_a_second() -> None:
    """1,000 samples/s for 10 s under a limit of 100/s: 100 kept in each second, and their weights tell of all 10,000."""
    kept = thinned(RateLimit(100), [1.0] * 10_000, 1)
    assert 1000 <= len(kept) <= 1001
    assert sum(weight for _, weight in kept) == 10_000


def test_the_first_of_each_window_and_one_for_the_rest() -> None:
    """Of windows of 100, the first 3 have weight 1 and one of the other 97 has weight 97; a short window has no rest."""
    kept = thinned(FirstN(3), [float(value) for value in range(202)], 1)
    assert [weight for _, weight in kept] == [1, 1, 1, 97, 1, 1, 1, 97, 1, 1]
    assert [value for value, weight in kept if weight == 1] == [0, 1, 2, 100, 101, 102, 200, 201]


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_is_thinned_and_forgotten(seed: int) -> None:
    """At 100 times the rate for 5 s each tenth of a second keeps to the budget, the count is exact, the sum within 2 %; then all stay."""
    thinner, chance, budget = Thinner(Adaptive(1000), Random(seed)), Random(seed), 1000
    kept: list[tuple[int, float, int]] = []
    true_sum = 0.0
    count = 0

    def offer(begin_s: int, end_s: int, per_second: int) -> None:
        nonlocal true_sum, count
        for index in range((end_s - begin_s) * per_second):
            now_ns = begin_s * SECOND_NS + index * (SECOND_NS // per_second)
            value = chance.uniform(0.5, 1.5)
            true_sum, count = true_sum + value, count + 1
            if one := thinner.offer(value, now_ns):
                kept.append((now_ns, *one))

    offer(0, 2, 500)
    assert (len(kept), thinner.waiting) == (1000, 0)
    offer(2, 7, 50_000)
    burst = [one for one in kept if one[0] >= 2 * SECOND_NS]
    assert 0.9 * 5 * budget <= len(burst) <= 5 * budget
    assert max(Counter(at_ns // (SECOND_NS // 10) for at_ns, _, _ in burst).values()) <= budget // 10
    offer(7, 12, 500)
    if last := thinner.flush():
        kept.append((12 * SECOND_NS, *last))
    assert sum(weight for _, _, weight in kept) == count
    assert sum(value * weight for _, value, weight in kept) == pytest.approx(true_sum, rel=0.02)
    assert [weight for at_ns, _, weight in kept if 8 * SECOND_NS <= at_ns < 12 * SECOND_NS] == [1] * 2000


@pytest.mark.parametrize("budget", [10, 10.5, 19, 99, 101])
def test_a_fraction_of_a_budget_is_not_lost(budget: float) -> None:
    """1,000 samples/s for 20 s: at least 95 % of the budget is used over each whole second after the first, and never more than it."""
    thinner = Thinner(Adaptive(budget), Random(1))
    kept_ns = [at_ns for at_ns in range(0, 20 * SECOND_NS, 1_000_000) if thinner.offer(1.0, at_ns)]
    by_second = Counter(at_ns // SECOND_NS for at_ns in kept_ns)
    assert all(0.95 * budget - 1 <= by_second[second] <= math.ceil(budget) for second in range(1, 20))
    assert 0.95 * budget * 19 <= len(kept_ns) <= 20 * budget
    assert max(Counter(at_ns // (SECOND_NS // 10) for at_ns in kept_ns).values()) <= math.ceil(budget / 10)


@given(st.integers(0, 2**62), st.integers(-(10**9), 2**61), st.integers(1, 500))
def test_a_batch_is_spread_evenly(before_ns: int, gap_ns: int, count: int) -> None:
    """Stamps of a batch rise from after the last one to now, in steps that differ by 1 ns at most; a clock that stands gives now."""
    stamps = spread(before_ns, before_ns + gap_ns, count)
    steps = [later - earlier for earlier, later in zip([before_ns, *stamps], stamps, strict=False)]
    assert (len(stamps), stamps[-1]) == (count, before_ns + gap_ns)
    if gap_ns >= 0:
        assert min(steps) >= 0
        assert max(steps) - min(steps) <= 1
    else:
        assert set(stamps) == {before_ns + gap_ns}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Probability(0.0),
        lambda: Probability(1.1),
        lambda: Probability(float("nan")),
        lambda: RateLimit(0),
        lambda: RateLimit(float("inf")),
        lambda: FirstN(-1),
        lambda: Adaptive(9),
    ],
)
def test_impossible_policies_are_refused(make) -> None:
    """A probability out of (0, 1], a rate of nothing, a negative number: errors of the caller's, when the policy is made."""
    with pytest.raises(InputError):
        make()
