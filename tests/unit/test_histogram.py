from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
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


def test_samples_that_do_not_lie_next_to_each_other_count_alike() -> None:
    """A slice with gaps is what its copy is, in the usual range and past it."""
    for values in (np.linspace(0.1, 9.0, 1_000), np.linspace(-9.0, 1e12, 1_000)):
        assert Histogram.of(values[::3]) == Histogram.of(values[::3].copy())


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
        assert len(made.encode()) < 4_600
        assert len(pa.Codec("zstd", 1).compress(made.encode(), asbytes=True)) < 2_500  # as a run's files have it


@pytest.mark.parametrize("broken", [b"", b"SH", b"XX" + bytes(60), Histogram.of([1.0]).encode()[:-1], Histogram.of([1.0]).encode() + b"x"])
def test_a_broken_digest_is_refused(broken: bytes) -> None:
    """What is no digest of this version is a ValueError, never a wrong histogram."""
    with pytest.raises(ValueError, match="digest"):
        decode(broken)


@pytest.mark.parametrize("keys", [[], [-OVERFLOW], [-3, 0, 252, 253], [-OVERFLOW, 1, OVERFLOW]], ids=["none", "one", "near", "far"])
def test_a_digest_of_version_1_is_read(keys: list[int]) -> None:
    """Files of before have every key as an int16; what is read of them is written in the form of now, with steps of one byte or of two."""
    size = len(keys)
    head = struct.pack("<2sBBIQddd", b"SH", 1, 1, size, 7, 2.5, -1.0, 4.0)
    old = head + np.array(keys, "<i2").tobytes() + np.arange(300, 300 + size, dtype="<u2").tobytes()
    read = decode(old)
    assert (read.keys.tolist(), read.counts.tolist()) == (keys, list(range(300, 300 + size)))
    assert (read.nan, read.sum, read.min, read.max) == (7, 2.5, -1.0, 4.0)
    assert decode(read.encode()) == read
    with pytest.raises(ValueError, match="digest"):
        decode(old[:3] + bytes([1 + 4]) + old[4:])  # version 1 has no steps, so no width of theirs
    with pytest.raises(ValueError, match="digest"):
        decode(old[:2] + b"\x03" + old[3:])


def test_counts_past_32_bits_survive() -> None:
    """A bucket may hold more than 2^32 samples in a digest."""
    big = Histogram(np.array([5], np.int16), np.array([2**40], np.int64), 1.0, 0.5, 0.5)
    assert decode(big.encode()).count == 2**40


def digest_of(version: int, keys: bytes, counts: list[int]) -> bytes:
    """Return a digest by its fields; counts have one byte each."""
    return struct.pack("<2sBBIQddd", b"SH", version, 0, len(counts), 0, 1.0, 0.5, 0.5) + keys + bytes(counts)


@pytest.mark.parametrize(
    ("digest", "is_good"),
    [
        pytest.param(digest_of(1, struct.pack("<2h", 5, 7), [1, 1]), True, id="version-1"),
        pytest.param(digest_of(1, struct.pack("<2h", 7, 5), [1, 1]), False, id="version-1-keys-out-of-order"),
        pytest.param(digest_of(1, struct.pack("<2h", 5, 5), [1, 1]), False, id="version-1-a-key-twice"),
        pytest.param(digest_of(2, struct.pack("<hB", 5, 2), [1, 1]), True, id="version-2"),
        pytest.param(digest_of(2, struct.pack("<hB", 5, 0), [1, 1]), False, id="a-key-twice"),
        pytest.param(digest_of(2, struct.pack("<hB", 5, 2), [1, 0]), False, id="a-count-of-zero"),
        pytest.param(digest_of(2, struct.pack("<hB", OVERFLOW - 1, 1), [1, 1]), True, id="up-to-the-last-key"),
        pytest.param(digest_of(2, struct.pack("<hB", OVERFLOW - 1, 2), [1, 1]), False, id="past-the-last-key"),
        pytest.param(digest_of(2, struct.pack("<h", -OVERFLOW), [1]), True, id="from-the-first-key"),
        pytest.param(digest_of(2, struct.pack("<h", -OVERFLOW - 1), [1]), False, id="before-the-first-key"),
    ],
)
def test_a_digest_that_would_lose_counts_is_refused(digest: bytes, is_good: bool) -> None:
    """Keys that are out of order, doubled or no keys would be dropped in a merge, so such a digest is none."""
    if is_good:
        assert decode(digest).count == len(decode(digest).keys)
        return
    with pytest.raises(ValueError, match="digest"):
        decode(digest)


def test_a_count_past_63_bits_is_refused() -> None:
    """A count that no int64 holds is no digest, never a negative number of samples."""
    data = Histogram(np.array([5], np.int16), np.array([2**40], np.int64), 1.0, 0.5, 0.5).encode()
    with pytest.raises(ValueError, match="digest"):
        decode(data[:-8] + b"\xff" * 8)
