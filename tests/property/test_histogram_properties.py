from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.metrics.histogram import ERROR, Histogram, decode, keys_of, merge, quantiles_of

anything = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=60)
in_range = st.floats(2.0**-30, 2.0**33) | st.floats(-(2.0**33), -(2.0**-30)) | st.just(0.0)


def _same(one: Histogram, other: Histogram) -> bool:
    return (one.keys.tolist(), one.counts.tolist(), one.min, one.max, one.nan) == (
        other.keys.tolist(),
        other.counts.tolist(),
        other.min,
        other.max,
        other.nan,
    )


@given(anything, anything)
def test_merge_commutes(a: list[float], b: list[float]) -> None:
    """merge(a, b) == merge(b, a)."""
    one, other = Histogram.of(a), Histogram.of(b)
    assert _same(merge([one, other]), merge([other, one]))


@given(anything, anything, anything)
def test_merge_is_associative(a: list[float], b: list[float], c: list[float]) -> None:
    """Merging in any grouping gives the same counts, extremes and NaNs."""
    x, y, z = map(Histogram.of, (a, b, c))
    assert _same(merge([merge([x, y]), z]), merge([x, merge([y, z])]))


@given(anything, anything)
def test_merge_is_the_histogram_of_all_samples(a: list[float], b: list[float]) -> None:
    """Merging parts loses and invents nothing."""
    assert _same(merge([Histogram.of(a), Histogram.of(b)]), Histogram.of(a + b))


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.lists(st.floats(-1e6, 1e6), max_size=60))
def test_sums_add(a: list[float], b: list[float]) -> None:
    """The sum of a merged histogram is that of all samples, to rounding."""
    assert merge([Histogram.of(a), Histogram.of(b)]).sum == pytest.approx(sum(a) + sum(b), rel=1e-9, abs=1e-6)


@given(anything)
def test_digest_round_trip(values: list[float]) -> None:
    """decode(encode(h)) == h, to the byte."""
    made = Histogram.of(values)
    assert decode(made.encode()) == made


@given(st.lists(in_range, min_size=1, max_size=80), st.floats(0, 1))
def test_quantile_error_is_bounded(values: list[float], q: float) -> None:
    """A quantile is within 2^-8 of the sample at its rank."""
    want = sorted(values)[int(np.floor(q * (len(values) - 1)))]
    assert Histogram.of(values).quantile(q) == pytest.approx(want, rel=ERROR * (1 + 1e-9))


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=80), st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_quantiles_are_monotone_within_extremes(values: list[float], qs: list[float]) -> None:
    """A higher rank never gives a lower value, and all lie in [min, max]."""
    answers = Histogram.of(values).quantiles(sorted(qs))
    assert answers == sorted(answers)
    assert all(min(values) <= answer <= max(values) for answer in answers)


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=50))
def test_keys_are_ordered_as_values(values: list[float]) -> None:
    """A larger value never has a smaller key."""
    keys = keys_of(np.array(sorted(values))).tolist()
    assert keys == sorted(keys)


@given(st.lists(anything, max_size=8), st.lists(st.floats(0, 1), max_size=6))
def test_quantiles_of_many_are_those_of_each(parts: list[list[float]], qs: list[float]) -> None:
    """Many histograms at once answer as each would by itself, to the bit; empty ones answer NaN."""
    made = [Histogram.of(part) for part in parts]
    got = quantiles_of(made, qs)
    assert got.shape == (len(made), len(qs))
    assert np.array_equal(got, np.array([one.quantiles(qs) for one in made]).reshape(got.shape), equal_nan=True)
