from __future__ import annotations

import math

import numpy as np
import pytest

from actors.errors import InputError
from actors.metrics.histogram import ERROR, Histogram
from cluster.metrics.sketches.tdigest import DELTA, MAX_COUNT, TDigest, decode, merge, rank_error

SIZE = 1_000_000
QS = [0.5, 0.9, 0.99, 0.999, 0.9999]
SHAPES = {
    "lognormal": lambda chance: chance.lognormal(size=SIZE),
    "uniform": lambda chance: chance.uniform(size=SIZE),
    "bimodal": lambda chance: np.where(chance.random(SIZE) < 0.85, chance.normal(10, 1, SIZE), chance.normal(100, 10, SIZE)),
    "constant": lambda chance: np.full(SIZE, 3.3),
    "sorted": lambda chance: np.arange(1.0, SIZE + 1),
    "pareto": lambda chance: chance.pareto(1.2, SIZE) + 1.0,
}
VALUE_ERROR = {"pareto": 0.006}  # heavy-tailed: the value moves 0.8 % where the rank moves 1 % of its tail


@pytest.fixture(scope="module", params=SHAPES)
def data(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray]:
    values = SHAPES[request.param](np.random.default_rng(7))
    return request.param, values, np.sort(values)


def rank_off(ordered: np.ndarray, q: float, got: float) -> float:
    """Return how far the answer is from rank q, as a share: 0 when samples equal to it span that rank."""
    first, last = (np.searchsorted(ordered, got, side) / ordered.size for side in ("left", "right"))
    return max(first - q, q - last, 0.0)


def check(data: tuple[str, np.ndarray, np.ndarray], digest: TDigest, value_error: float | None = None) -> None:
    name, values, ordered = data
    check_values(data, digest, VALUE_ERROR.get(name, value_error or 0.003))
    for q, got in zip(QS, digest.quantiles(QS), strict=True):
        assert rank_off(ordered, q, got) <= (0.005 if q < 0.9 else 0.001)
        assert rank_off(ordered, q, got) <= digest.rank_error(q)
    assert digest.sum == pytest.approx(math.fsum(values), rel=1e-12)


def check_values(data: tuple[str, np.ndarray, np.ndarray], digest: TDigest, value_error: float) -> None:
    _, values, _ = data
    assert (digest.count, digest.min, digest.max) == (SIZE, values.min(), values.max())
    assert len(digest.encode()) <= 4096
    assert digest.quantiles(QS) == pytest.approx(np.quantile(values, QS), rel=value_error)


def test_quantiles_of_a_million_samples(data: tuple[str, np.ndarray, np.ndarray]) -> None:
    """p50 to p99.99 are within 0.3 % of the value, 0.5 % of rank in the middle and 0.1 % at the end, in 4 KB."""
    check(data, TDigest.of(data[1]))


def test_quantiles_after_a_thousand_merges(data: tuple[str, np.ndarray, np.ndarray]) -> None:
    """A thousand digests merged at once, in any order, keep the same error."""
    parts = [TDigest.of(part) for part in np.array_split(data[1], 1000)]
    merged = merge(parts)
    check(data, merged)
    np.random.default_rng(1).shuffle(parts)
    assert merge(parts) == merged


def test_quantiles_after_a_thousand_merges_one_by_one(data: tuple[str, np.ndarray, np.ndarray]) -> None:
    """A thousand digests merged one after another keep the rank error; of the value, 1 % at the heavy tail's end."""
    merged = TDigest.of(())
    for part in np.array_split(data[1], 1000):
        merged = merge((merged, TDigest.of(part)))
    name, values, _ = data
    check((f"{name} one by one", *data[1:]), merged, 0.01 if name == "pareto" else 0.004)
    assert values.size == merged.count


def test_quantiles_from_a_histogram(data: tuple[str, np.ndarray, np.ndarray]) -> None:
    """A digest made of a histogram has the histogram's error beside its own, and its count, extremes and sum."""
    check_values(data, TDigest.of_histogram(Histogram.of(data[1])), VALUE_ERROR.get(data[0], 0.003) + ERROR)


def test_cdf_is_the_share_below(data: tuple[str, np.ndarray, np.ndarray]) -> None:
    """The share of samples up to a value is right to the error of ranks, and 0 and 1 outside the extremes."""
    _, values, ordered = data
    digest = TDigest.of(values)
    for at in np.unique(np.quantile(values, [0.0, 0.01, 0.3, 0.5, 0.8, 0.99, 0.9999])):
        share = np.searchsorted(ordered, at, "right") / SIZE
        assert digest.cdf(float(at)) == pytest.approx(share, abs=0.005)
    assert digest.cdf(float(np.nextafter(digest.min, -np.inf))) == 0.0
    assert digest.cdf(digest.max) == 1.0


@pytest.mark.parametrize("size", [1, 2, 3, 10, 200])
def test_few_samples_are_kept_as_they_are(size: int) -> None:
    """Up to 200 samples every quantile is numpy's own, and the distribution function is exact."""
    values = np.random.default_rng(size).normal(size=size)
    digest = merge([TDigest.of(values[: size // 2]), TDigest.of(values[size // 2 :])])
    qs = np.linspace(0, 1, 41)
    assert digest.quantiles(qs) == pytest.approx(np.quantile(values, qs), rel=1e-12, abs=1e-12)
    for at in [*values, 0.0, -5.0, 5.0]:
        assert digest.cdf(float(at)) == np.count_nonzero(values <= at) / size


def test_empty_answers_nothing() -> None:
    """An empty digest answers NaN, survives its bytes, and is the neutral element of merging."""
    empty, full = TDigest.of(()), TDigest.of([3.0, 1.0])
    assert math.isnan(empty.quantile(0.5))
    assert math.isnan(empty.cdf(0.0))
    assert (empty.count, empty.min, empty.max) == (0, math.inf, -math.inf)
    assert decode(empty.encode()) == empty
    assert merge([empty, full, empty]) == full
    assert merge([]) == empty
    assert TDigest.of_histogram(Histogram.of([])) == empty


def test_infinities_and_nan_are_counted_apart() -> None:
    """Infinities rank first and last, NaN is no sample, and neither moves the sum."""
    digest = TDigest.of([math.inf, -math.inf, math.nan, 1.0, 2.0, -math.inf])
    assert (digest.count, digest.nan, digest.min, digest.max, digest.sum) == (5, 1, -math.inf, math.inf, 3.0)
    assert digest.quantiles([0.0, 0.25, 0.3, 0.5, 0.75, 1.0]) == [-math.inf, -math.inf, -math.inf, 1.0, 2.0, math.inf]
    assert [digest.cdf(at) for at in (-math.inf, 0.0, 1.0, 5.0, math.inf)] == [0.4, 0.4, 0.6, 0.8, 1.0]
    assert decode(digest.encode()) == digest
    only = TDigest.of([math.inf])
    assert (only.quantile(0.0), only.cdf(0.0), only.min) == (math.inf, 0.0, math.inf)


def test_the_largest_floats_do_not_overflow() -> None:
    """Means and quantiles of values near the largest float are finite and in order."""
    values = np.concatenate([np.full(500, 1.7e308), np.full(500, -1.7e308), np.linspace(-1.7, 1.7, 500) * 1e308])
    digest = TDigest.of(values)
    answers = digest.quantiles(np.linspace(0, 1, 301))
    assert np.isfinite(answers).all()
    assert answers == sorted(answers)
    assert len(digest.means) < values.size


def test_a_histogram_past_its_range_keeps_extremes() -> None:
    """What lies past the histogram's range stands at the extreme; infinities are counted as such."""
    digest = TDigest.of_histogram(Histogram.of([1.0, 2.0**40, 2.0**40, -math.inf]))
    assert (digest.count, digest.min, digest.max, digest.below) == (4, -math.inf, 2.0**40, 1)
    endless = TDigest.of_histogram(Histogram.of([1.0, math.inf]))
    assert (endless.count, endless.above, endless.lowest, endless.quantile(1.0)) == (2, 1, 1.0, math.inf)


def test_equal_means_of_different_weight_merge_in_any_order() -> None:
    """Two nodes with the same value at different weights give the same bytes both ways round."""
    one, other = TDigest.of([1.0], [5]), TDigest.of([1.0], [9])
    assert merge([one, other]) == merge([other, one])
    assert merge([one, other]).quantiles([0.0, 0.5, 1.0]) == [1.0, 1.0, 1.0]


def test_the_ends_are_exact_whatever_stands_next_to_them() -> None:
    """Where the outermost mean is of one sample that is not the extreme, the extreme is answered all the same."""
    high = TDigest(np.array([50.0, 60.0]), np.array([2, 1]), 160.0, 0.0, 100.0)
    low = TDigest(np.array([40.0, 50.0]), np.array([1, 2]), 140.0, 0.0, 100.0)
    for digest in (high, low):
        assert (digest.quantile(0.0), digest.quantile(1.0)) == (0.0, 100.0)
        assert (digest.cdf(-0.1), digest.cdf(100.0)) == (0.0, 1.0)
        answers = digest.quantiles(np.linspace(0, 1, 101))
        assert answers == sorted(answers)


def test_the_size_is_bounded() -> None:
    """No number of samples makes more than 256 means."""
    chance = np.random.default_rng(1)
    for size in [*range(150, 2000, 61), 10_000, 300_000]:
        assert TDigest.of(chance.random(size)).means.size <= 256
    heavy = TDigest.of(chance.random(10_000), np.full(10_000, MAX_COUNT // 10_000))
    assert heavy.means.size <= 256
    assert heavy.count == MAX_COUNT // 10_000 * 10_000


def test_p999_against_a_reservoir() -> None:
    """The 5th to 95th percentile of 200 trials of p99.9 (true 22.0): the digest's are within 2 % of exact, a reservoir's span +-30 %."""
    chance = np.random.default_rng(11)
    digests, exact, reservoirs = [], [], []
    for _ in range(200):
        values = chance.lognormal(size=20_000)
        digests.append(TDigest.of(values).quantile(0.999))
        exact.append(np.quantile(values, 0.999))
        reservoirs.append(np.quantile(chance.choice(values, 1_000, replace=False), 0.999))
    off = np.abs(np.array(digests) / np.array(exact) - 1.0)
    assert np.quantile(off, 0.95) < 0.02
    assert np.quantile(np.abs(np.array(reservoirs) / np.array(exact) - 1.0), 0.95) > 0.2


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        pytest.param([1, -1], "whole numbers", id="negative"),
        pytest.param([0.5, 1.0], "whole numbers", id="fraction"),
        pytest.param([math.nan, 1.0], "whole numbers", id="nan"),
        pytest.param([1], "2 values need 2 weights", id="too-few"),
        pytest.param([MAX_COUNT, 1], "2\\^53", id="too-many-samples"),
    ],
)
def test_bad_weights_are_refused(weights: list[float], words: str) -> None:
    """A weight is a number of samples; anything else is said."""
    with pytest.raises(InputError, match=words):
        TDigest.of([1.0, 2.0], weights)


def test_bad_questions_are_refused() -> None:
    """A quantile outside 0..1, NaN, a wild delta and too many samples are errors."""
    digest = TDigest.of([1.0])
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"0\.\.1"):
            digest.quantile(q)
    with pytest.raises(InputError, match="delta"):
        TDigest.of([1.0], delta=5)
    full = TDigest.of([1.0], [MAX_COUNT])
    with pytest.raises(InputError, match="2\\^53"):
        merge([full, digest])


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"TD",
        b"XX" + bytes(60),
        TDigest.of([1.0]).encode()[:-1],
        TDigest.of([1.0]).encode() + b"x",
        TDigest(np.array([2.0, 1.0]), np.array([1, 1]), 3.0, 1.0, 2.0).encode(),
        TDigest(np.array([2.0, math.nan]), np.array([1, 1]), 3.0, 1.0, 2.0).encode(),
        TDigest(np.array([1.0, 2.0]), np.array([1, 0]), 3.0, 1.0, 2.0).encode(),
        TDigest(np.array([1.0, 2.0]), np.array([1, 1]), 3.0, 1.5, 2.0).encode(),
        TDigest(np.array([1.0]), np.array([MAX_COUNT + 1]), 3.0, 1.0, 1.0).encode(),
    ],
)
def test_broken_bytes_are_refused(broken: bytes) -> None:
    """What is no digest is a ValueError, never a wrong digest."""
    with pytest.raises(ValueError, match="t-digest"):
        decode(broken)


def test_the_bound_is_what_a_mean_may_span() -> None:
    """The stated error of ranks is largest in the middle, falls to the ends, and never passes one."""
    assert rank_error(0.5, SIZE) == pytest.approx(2 * (4 * math.log(SIZE / DELTA) + 24) / DELTA / 4, rel=1e-3)
    assert rank_error(0.5, SIZE) > rank_error(0.99, SIZE) > rank_error(0.9999, SIZE)
    assert rank_error(0.5, 1) == 0.0
    assert rank_error(0.5, 2) <= 1.0
