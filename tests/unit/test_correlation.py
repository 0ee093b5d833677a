"""Correlation with a lag: what was planted is found, noise is not, and too little says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from actors.errors import InputError
from cluster.metrics.correlation import LAGS_MAX, METHODS, correlate, ranks

SIZE = 300


def planted(seed: int, r: float, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two series of white noise, the second of which follows the first by `lag` steps with this coefficient."""
    chance = np.random.default_rng(seed)
    source = chance.standard_normal(SIZE + 2 * abs(lag))
    later = source[abs(lag) - lag : abs(lag) - lag + SIZE]
    return source[abs(lag) : abs(lag) + SIZE], r * later + np.sqrt(1 - r * r) * chance.standard_normal(SIZE)


@pytest.mark.parametrize("lag", [-7, 0, 3])
@pytest.mark.parametrize("seed", range(10))
def test_a_planted_pair_is_found(seed: int, lag: int) -> None:
    """r = 0.9 at a lag of 3 steps: the lag is right, r within 0.05, and it is notable; for ranks r is what a normal pair gives."""
    first, second = planted(seed, 0.9, lag)
    found = correlate(first, second, "pearson", 10)
    assert (found.lag_steps, found.notable, found.pairs) == (lag, True, SIZE - abs(lag))
    assert abs(found.r - 0.9) <= 0.05
    ranked = correlate(first, second, "spearman", 10)
    assert (ranked.lag_steps, ranked.notable) == (lag, True)
    assert abs(ranked.r - 6 / np.pi * np.arcsin(0.45)) <= 0.06


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("walk", [0.0, 0.9], ids=["white", "each-step-like-the-last"])
def test_independent_noise_is_not_notable(method: str, walk: float) -> None:
    """Over 200 seeds and 21 lags at most one pair in twenty is notable, also where each step is like the one before."""
    notable = 0
    for seed in range(200):
        shocks = np.random.default_rng(seed).standard_normal((2, SIZE))
        for at in range(1, SIZE):
            shocks[:, at] += walk * shocks[:, at - 1]
        notable += correlate(shocks[0], shocks[1], method, 10).notable
    assert notable <= 10


def test_the_effective_number_is_what_keeps_slow_series_apart() -> None:
    """Two slow waves without anything in common count as few steps; white noise counts as about as many as it has."""
    steps = np.arange(SIZE)
    slow = correlate(np.sin(steps / 40.0), np.cos(steps / 31.0))
    assert slow.effective < 10
    assert not slow.notable
    white = np.random.default_rng(1).standard_normal((2, SIZE))
    assert correlate(*white).effective > 0.95 * SIZE


@pytest.mark.parametrize("method", METHODS)
def test_opposites_and_gaps(method: str) -> None:
    """A series and its negative give -1; steps that one of them lacks are left out and counted."""
    first = np.random.default_rng(3).standard_normal(50)
    second = -first
    second[::5] = np.nan
    found = correlate(first, second, method)
    assert (round(found.r, 12), found.pairs, found.lag_steps) == (-1.0, 40, 0)


def test_infinities_are_ranked_and_never_multiplied() -> None:
    """Spearman ranks a probe without an answer last; Pearson leaves it out."""
    first = np.arange(20.0)
    second = first.copy()
    second[-3:] = np.inf
    assert correlate(first, second, "spearman").pairs == 20
    assert (correlate(first, second, "pearson").pairs, round(correlate(first, second, "pearson").r, 12)) == (17, 1.0)


def test_ranks_share() -> None:
    """Equal values have the mean of their ranks, and ranks add up as those of different values would."""
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


@pytest.mark.parametrize(
    ("size", "lag", "message"),
    [
        pytest.param(9, 0, "9 steps have both, at least 10", id="nine"),
        pytest.param(15, 6, "9 steps have both, at least 10", id="nine-at-the-longest-lag"),
        pytest.param(5, 9, "5 steps have both", id="a-lag-longer-than-the-series"),
        pytest.param(5000, LAGS_MAX + 1, "at most 600", id="too-many-lags"),
    ],
)
def test_too_few_steps_are_refused(size: int, lag: int, message: str) -> None:
    """Fewer than ten pairs at any of the lags is no answer, never a coefficient."""
    series = np.random.default_rng(0).standard_normal((2, size))
    with pytest.raises(InputError, match=message):
        correlate(*series, "pearson", lag)
    assert correlate(*np.random.default_rng(0).standard_normal((2, 10))).pairs == 10


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_series_is_refused(method: str) -> None:
    """What does not vary goes with nothing."""
    with pytest.raises(InputError, match="does not vary"):
        correlate(np.full(20, 0.1), np.arange(20.0), method, 3)
