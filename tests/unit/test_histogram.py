from __future__ import annotations

import numpy as np
import pytest

from actors.metrics.histogram import BUCKETS, ERROR, OVERFLOW, Histogram, bounds, decode, keys_of, merge


@pytest.mark.parametrize(
    ("value", "key"),
    [
        pytest.param(0.0, 0, id="zero"),
        pytest.param(-0.0, 0, id="negative-zero"),
        pytest.param(5e-324, 0, id="subnormal"),
        pytest.param(np.nextafter(2.0**-30, 0), 0, id="just-under-the-range"),
        pytest.param(2.0**-30, 1, id="lowest-of-the-range"),
        pytest.param(1.0, 30 * 128 + 1, id="one"),
        pytest.param(np.nextafter(2.0**34, 0), BUCKETS, id="highest-of-the-range"),
        pytest.param(2.0**34, OVERFLOW, id="just-over-the-range"),
        pytest.param(np.inf, OVERFLOW, id="infinity"),
        pytest.param(-1.0, -(30 * 128 + 1), id="minus-one"),
        pytest.param(-np.inf, -OVERFLOW, id="minus-infinity"),
    ],
)
def test_key_of_a_value(value: float, key: int) -> None:
    """Every float64 but NaN has a key, and the edges of the range fall on the stated side."""
    assert keys_of(np.array([value])).tolist() == [key]
    low, high = bounds(key)
    assert low <= value <= high


def test_nan_is_counted_apart() -> None:
    """NaN is no sample: it has a counter of its own and moves no quantile."""
    made = Histogram.of([1.0, float("nan"), 1.0])
    assert (made.count, made.nan, made.sum) == (2, 1, 2.0)
    assert made.quantile(0.5) == 1.0


def test_infinities_rank_last_and_stay_out_of_the_sum() -> None:
    """A sample of infinity is the highest quantile and leaves sums finite."""
    made = Histogram.of([1.0, 2.0, float("inf")])
    assert made.quantile(1.0) == float("inf")
    assert made.quantile(0.5) == pytest.approx(2.0, rel=ERROR)
    assert made.sum == 3.0


def test_empty_has_no_quantile() -> None:
    """An empty histogram answers NaN, survives its digest, and is the neutral element of merging."""
    empty = Histogram.of([])
    full = Histogram.of([1.0, -2.0])
    assert np.isnan(empty.quantile(0.5))
    assert decode(empty.encode()) == empty
    assert merge([empty, full]) == full


@pytest.mark.parametrize("shape", ["lognormal", "uniform", "bimodal"])
def test_error_of_quantiles(shape: str) -> None:
    """p50 to p99.99 of a million samples lie within 2^-8 of the true ones, also after merging a thousand parts."""
    chance = np.random.default_rng(7)
    values = {
        "lognormal": lambda: chance.lognormal(size=1_000_000),
        "uniform": lambda: chance.uniform(1.0, 2.0, 1_000_000),
        "bimodal": lambda: np.where(chance.random(1_000_000) < 0.85, chance.normal(10, 1, 1_000_000), chance.normal(100, 10, 1_000_000)),
    }[shape]()
    qs = [0.5, 0.9, 0.99, 0.999, 0.9999]
    want = np.quantile(values, qs, method="lower")
    for made in (Histogram.of(values), merge(Histogram.of(part) for part in np.array_split(values, 1000))):
        assert made.quantiles(qs) == pytest.approx(want, rel=ERROR)
        assert len(made.encode()) < 6_000


@pytest.mark.parametrize("broken", [b"", b"SH", b"XX" + bytes(60), Histogram.of([1.0]).encode()[:-1], Histogram.of([1.0]).encode() + b"x"])
def test_a_broken_digest_is_refused(broken: bytes) -> None:
    """What is no digest of this version is a ValueError, never a wrong histogram."""
    with pytest.raises(ValueError, match="digest"):
        decode(broken)


def test_counts_past_32_bits_survive() -> None:
    """A bucket may hold more than 2^32 samples in a digest."""
    big = Histogram(np.array([5], np.int16), np.array([2**40], np.int64), 1.0, 0.5, 0.5)
    assert decode(big.encode()).count == 2**40


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        pytest.param([7, 5], [1, 1], id="keys-out-of-order"),
        pytest.param([5, 5], [1, 1], id="a-key-twice"),
        pytest.param([5, 7], [1, 0], id="a-count-of-zero"),
    ],
)
def test_a_digest_that_would_lose_counts_is_refused(keys: list[int], counts: list[int]) -> None:
    """Keys that are out of order or doubled would be dropped in a merge, so such a digest is none."""
    with pytest.raises(ValueError, match="digest"):
        decode(Histogram(np.array(keys, np.int16), np.array(counts, np.int64), 1.0, 0.5, 0.5).encode())


def test_a_count_past_63_bits_is_refused() -> None:
    """A count that no int64 holds is no digest, never a negative number of samples."""
    data = Histogram(np.array([5], np.int16), np.array([2**40], np.int64), 1.0, 0.5, 0.5).encode()
    with pytest.raises(ValueError, match="digest"):
        decode(data[:-8] + b"\xff" * 8)
