from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.metrics.histogram import Histogram
from cluster.metrics.sketches import distinct, moments, tdigest, top
from cluster.metrics.sketches.distinct import Distinct
from cluster.metrics.sketches.hashing import hash_of, hashes
from cluster.metrics.sketches.moments import Moments
from cluster.metrics.sketches.tdigest import TDigest
from cluster.metrics.sketches.top import Top

anything = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=60)
usual = st.lists(st.floats(-1e9, 1e9), max_size=60)
pairs = st.lists(st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 9)), max_size=60)
words = st.lists(st.sampled_from("abcdefghij"), max_size=80)
qs = st.lists(st.floats(0, 1), min_size=2, max_size=20)
DELTA = 50  # the smallest: merges what the usual one would keep


# t-digest


@given(anything, anything)
def test_a_digest_counts_every_sample(a: list[float], b: list[float]) -> None:
    """Count, NaNs and extremes of merged digests are those of all samples."""
    merged = tdigest.merge([TDigest.of(a, delta=DELTA), TDigest.of(b, delta=DELTA)])
    good = [value for value in a + b if not math.isnan(value)]
    assert (merged.count, merged.nan) == (len(good), len(a + b) - len(good))
    assert (merged.min, merged.max) == (min(good, default=math.inf), max(good, default=-math.inf))


@given(anything, anything, anything)
def test_digests_merge_in_any_order(a: list[float], b: list[float], c: list[float]) -> None:
    """The digest of several is the same in whatever order they are given, to the byte."""
    parts = [TDigest.of(part, delta=DELTA) for part in (a, b, c)]
    assert tdigest.merge(parts) == tdigest.merge(parts[::-1]) == tdigest.merge([parts[1], parts[0], parts[2]])


@given(st.lists(anything, min_size=1, max_size=6), qs)
def test_digest_quantiles_are_monotone(parts: list[list[float]], wanted: list[float]) -> None:
    """A higher quantile is never a lower value, and all lie within the extremes; also merged, read back and huge."""
    digest = tdigest.merge(TDigest.of(part, delta=DELTA) for part in parts)
    assert tdigest.decode(digest.encode()) == digest
    answers = digest.quantiles(sorted(wanted))
    if digest.count:
        assert answers == sorted(answers)
        assert digest.min <= answers[0]
        assert answers[-1] <= digest.max


@given(st.lists(anything, min_size=1, max_size=6), st.lists(st.floats(allow_nan=False), min_size=2, max_size=10))
def test_digest_shares_are_monotone(parts: list[list[float]], at: list[float]) -> None:
    """The share up to a higher value is never smaller, and lies in 0..1."""
    digest = tdigest.merge(TDigest.of(part, delta=DELTA) for part in parts)
    if digest.count:
        shares = [digest.cdf(value) for value in sorted(at)]
        assert shares == sorted(shares)
        assert 0.0 <= shares[0] <= shares[-1] <= 1.0


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=80), min_size=1, max_size=8), st.floats(0, 1))
def test_digest_ranks_are_within_their_bound(parts: list[list[float]], q: float) -> None:
    """A quantile's rank is off by no more than the stated bound, however the parts were merged."""
    digest = TDigest.of((), delta=DELTA)
    for part in parts:
        digest = tdigest.merge([digest, TDigest.of(part, delta=DELTA)])
    ordered = np.sort(np.array([value for part in parts for value in part]))
    if digest.count > 1:
        got = digest.quantile(q)
        first, last = (np.searchsorted(ordered, got, side) / ordered.size for side in ("left", "right"))
        assert max(first - q, q - last, 0.0) <= digest.rank_error(q) + 1.0 / ordered.size


@given(pairs)
def test_a_weight_is_that_many_samples(found: list[tuple[float, int]]) -> None:
    """A weighted batch is the batch with each value repeated: for the digest while it keeps all, histogram and moments."""
    values, weights = np.array([value for value, _ in found]), np.array([weight for _, weight in found], np.int64)
    repeated = np.repeat(values, weights)
    one, other = TDigest.of(values, weights), TDigest.of(repeated)
    assert (one.count, one.nan, one.min, one.max) == (other.count, other.nan, other.min, other.max)
    held, plain = Histogram.of(values, weights), Histogram.of(repeated)
    assert (held.keys.tolist(), held.counts.tolist(), held.nan) == (plain.keys.tolist(), plain.counts.tolist(), plain.nan)
    assert (held.min, held.max) == (plain.min, plain.max)
    first, second = Moments.of(values, weights), Moments.of(repeated)
    assert (first.count, first.nan, first.min, first.max) == (second.count, second.nan, second.min, second.max)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 500)), max_size=60), qs)
def test_heavy_samples_keep_their_quantiles(found: list[tuple[float, int]], wanted: list[float]) -> None:
    """Of few values, however heavy, every quantile is numpy's own of the repeated values."""
    values, weights = np.array([value for value, _ in found]), np.array([weight for _, weight in found], np.int64)
    digest = TDigest.of(values, weights)
    if digest.count:
        want = np.quantile(np.repeat(values, weights), wanted)
        assert np.allclose(digest.quantiles(wanted), want, rtol=1e-9, atol=1e-6)


# moments


@given(usual, usual, usual)
def test_moments_are_those_of_all_samples(a: list[float], b: list[float], c: list[float]) -> None:
    """Mean, variance and sum of merged parts are those of all samples, to rounding, in any grouping."""
    x, y, z = (Moments.of(np.array(part)) for part in (a, b, c))
    whole = np.array(a + b + c)
    for merged in (moments.merge(moments.merge(x, y), z), moments.merge(x, moments.merge(y, z))):
        assert merged.finite == whole.size
        if whole.size:
            scale = max(float(np.abs(whole).max()), 1e-300)
            assert abs(merged.sum - math.fsum(whole)) <= 1e-12 * scale * whole.size
            assert abs(merged.mean - math.fsum(whole) / whole.size) <= 1e-12 * scale
            assert abs(merged.variance - float(np.var(whole))) <= 1e-11 * scale * scale
            assert merged.variance >= 0.0


@given(anything, anything)
def test_moments_merge_the_same_both_ways(a: list[float], b: list[float]) -> None:
    """merge(a, b) == merge(b, a), to the byte, and bytes bring it back."""
    x, y = Moments.of(np.array(a, np.float64)), Moments.of(np.array(b, np.float64))
    assert moments.merge(x, y).encode() == moments.merge(y, x).encode()
    assert moments.decode(x.encode()).encode() == x.encode()


# distinct


@given(words, words, words)
def test_distinct_counts_merge_like_sets(a: list[str], b: list[str], c: list[str]) -> None:
    """The union's sketch is the sketch of the union, in any grouping, and again with itself."""
    x, y, z = (Distinct.of(part) for part in (a, b, c))
    whole = Distinct.of(a + b + c)
    assert distinct.merge([distinct.merge([x, y]), z]) == distinct.merge([x, distinct.merge([z, y])]) == distinct.merge([whole, x]) == whole
    assert distinct.decode(whole.encode()) == whole
    assert round(whole.count) == len(set(a + b + c))


@given(st.integers() | st.floats(allow_nan=False), st.integers() | st.floats(allow_nan=False))
def test_equal_numbers_hash_equally(a: float, b: float) -> None:
    """Two numbers have one hash exactly when Python calls them equal."""
    assert (hash_of(a) == hash_of(b)) == (a == b)


@given(st.lists(st.floats(allow_nan=True), max_size=20))
def test_an_array_hashes_as_its_items(values: list[float]) -> None:
    """The hashes of an array are those of its items."""
    assert hashes(np.array(values, np.float64)).tolist() == [hash_of(value) for value in values]


# top


@given(st.lists(words, min_size=1, max_size=8), st.integers(1, 12))
def test_top_counts_are_within_their_bounds(parts: list[list[str]], size: int) -> None:
    """However parts are merged, a count lies within its bounds, what is not held is below the error, and the error within its own."""
    merged = top.merge([Top.of((), size=size)])
    for part in parts:
        merged = top.merge([merged, Top.of(part, size=size)])
    truth = Counter(word for part in parts for word in part)
    assert merged.count == truth.total()
    assert len(merged.counters) <= size
    assert merged.error * (size + 1) + sum(merged.counters.values()) <= merged.count
    for word, count in truth.items():
        held = merged.counters.get(word, 0)
        assert held <= count <= held + merged.error
    assert top.decode(merged.encode()) == merged


@given(words, words, st.integers(1, 12))
def test_top_merges_the_same_both_ways(a: list[str], b: list[str], size: int) -> None:
    """merge(a, b) == merge(b, a), to the byte."""
    x, y = Top.of(a, size=size), Top.of(b, size=size)
    assert top.merge([x, y]).encode() == top.merge([y, x]).encode()
