"""A log-linear histogram on the bits of float64: 128 buckets an octave over 64 octaves, mirrored for negative values.

A value's bucket is its exponent and the top 7 bits of its mantissa, so bucketing is a shift and a subtraction. A bucket is
2^-7 of its lower edge wide; a quantile is answered with the middle of its bucket, so its error is at most 2^-8 = 0.39 %.
Merging adds counts and is exact.

One integer, the key, orders all buckets as their values are ordered:

    -8193        -8192 ... -1        0        1 ... 8192        8193
    <= -2^34     (-2^34, -2^-30]     zero     [2^-30, 2^34)     >= 2^34, +inf

Zero also holds what is nearer to it than 2^-30 (0.93 ns, where the unit is seconds). NaN has a counter of its own and is no sample. Pure.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from .encoded import Encoded

Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.int16]
Counts = npt.NDArray[np.int64]
Cells = npt.NDArray[np.int64]

K: Final = 7
SUB: Final = 1 << K
OCTAVES: Final = 64
LOWEST_EXPONENT: Final = -30
BUCKETS: Final = SUB * OCTAVES
OVERFLOW: Final = BUCKETS + 1  # key of the bucket past the last
ERROR: Final = 2.0 ** -(K + 1)  # relative, of a quantile of values within the range

_SHIFT: Final = np.int64(52 - K)
_BIAS: Final = np.int64((1023 + LOWEST_EXPONENT) << K)
_WIDTHS: Final = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))
_HEAD: Final = struct.Struct("<2sBBIQddd")  # magic, version, widths, buckets, NaNs, sum, min, max; see docs/reference/files.md
_MAGIC: Final = b"SH"
_VERSION: Final = 2


def _edges() -> Floats:
    steps = np.arange(BUCKETS + 1)
    return np.ldexp(1.0 + (steps % SUB) / SUB, LOWEST_EXPONENT + steps // SUB)


EDGES: Final[Floats] = _edges()  # EDGES[i] is the lower edge of key i + 1; the last one is 2^34
LEAST, MOST = float(EDGES[0]), float(EDGES[-1])  # what lies in [LEAST, MOST) has a bucket of its own among the positive ones


def _middles() -> Floats:
    positive = np.concatenate([(EDGES[:-1] + EDGES[1:]) / 2.0, [np.inf]])
    return np.concatenate([-positive[::-1], [0.0], positive])


_MIDDLES: Final[Floats] = _middles()  # by key + OVERFLOW


def keys_of(values: Floats) -> Keys:
    """Return the key of each value. NaN must have been taken out."""
    bits = np.abs(values).view(np.int64)
    keys = np.clip((bits >> _SHIFT) - _BIAS + 1, 0, OVERFLOW)
    signed: Keys = np.where(values < 0.0, -keys, keys).astype(np.int16)
    return signed


def cells_of(values: Floats) -> Cells:
    """Return key - 1 of each value. All must lie in [LEAST, MOST), one after the other in memory: four steps fewer than `keys_of`."""
    cells: Cells = (values.view(np.int64) >> _SHIFT) - _BIAS
    return cells


def bounds(key: int) -> tuple[float, float]:
    """Return the lowest and highest value that a key may stand for."""
    size = abs(key)
    if size == 0:
        return (-float(EDGES[0]), float(EDGES[0]))
    low, high = (float(EDGES[size - 1]), float(EDGES[size])) if size <= BUCKETS else (float(EDGES[-1]), float("inf"))
    return (low, high) if key > 0 else (-high, -low)


@dataclass(frozen=True, slots=True, eq=False)
class Histogram(Encoded):
    """Counts by key, ascending and without zeros; sum of the finite samples, min and max of all. An empty one has min > max."""

    keys: Keys
    counts: Counts
    sum: float = 0.0
    min: float = float("inf")
    max: float = float("-inf")
    nan: int = 0

    @classmethod
    def of(cls, values: Iterable[float] | Floats, weights: Counts | None = None) -> Histogram:
        """Return the histogram of these values; `weights` (int64, from 0) says how many samples each stands for."""
        array = values if isinstance(values, np.ndarray) else np.fromiter(values, np.float64)
        if weights is not None:
            return cls._weighted(array, weights)
        if not array.size:
            return Histogram(np.empty(0, np.int16), np.empty(0, np.int64))
        low, high = float(array.min()), float(array.max())
        if math.isnan(low):  # as it is where one sample is
            good = array[~np.isnan(array)]
            return replace(cls.of(good), nan=array.size - good.size)
        keys, counts = _counted(array, low, high)
        finite = array if -np.inf < low and high < np.inf else array[np.isfinite(array)]
        with np.errstate(over="ignore", invalid="ignore"):  # a sum past 1.8e308 is infinite, as IEEE has it
            return Histogram(keys, counts, float(finite.sum()), low, high)

    @classmethod
    def _weighted(cls, values: Floats, weights: Counts) -> Histogram:
        held = ~np.isnan(values) & (weights > 0)
        nan = int(weights[np.isnan(values)].sum())
        good, counts = values[held], weights[held].astype(np.int64)
        if not good.size:
            return Histogram(np.empty(0, np.int16), np.empty(0, np.int64), nan=nan)
        dense = np.zeros(2 * OVERFLOW + 1, np.int64)
        np.add.at(dense, keys_of(good).astype(np.intp) + OVERFLOW, counts)
        found = np.flatnonzero(dense)
        finite = np.isfinite(good)
        with np.errstate(over="ignore", invalid="ignore"):
            total = float((good[finite] * counts[finite]).sum())
        return Histogram((found - OVERFLOW).astype(np.int16), dense[found], total, float(good.min()), float(good.max()), nan)

    @property
    def count(self) -> int:
        """Number of samples, without NaNs."""
        return int(self.counts.sum())

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Return the values at rank floor(q * (count - 1)); NaN when empty. Monotone in q, within [min, max]. Each q lies in 0..1."""
        if not self.counts.size:
            return [float("nan")] * len(qs)
        below = self.counts.cumsum()
        last = below[-1] - 1
        ranks = np.floor(np.asarray(qs) * last)
        found = self.keys[np.searchsorted(below, ranks, side="right")]
        answers = np.clip(_MIDDLES[found.astype(np.intp) + OVERFLOW], self.min, self.max)
        answers[ranks <= 0] = self.min
        answers[ranks >= last] = self.max
        return [float(answer) for answer in answers]

    def middles(self) -> Floats:
        """Return the value that each key stands for, within [min, max]: the middle of its bucket."""
        return np.clip(_MIDDLES[self.keys.astype(np.intp) + OVERFLOW], self.min, self.max)

    def cumulative(self, keys: Keys) -> Counts:
        """Return for each key how many samples lie below the bucket of that key. `keys` ascend."""
        below = np.concatenate([np.zeros(1, np.int64), self.counts.cumsum()])
        return below[np.searchsorted(self.keys, keys, side="left")]

    def encode(self) -> bytes:
        """Return the digest: a 40-byte head, the first key (int16), the steps to the others, the counts; little-endian.

        Steps and counts each have the narrowest unsigned type. Most steps are 1, which is what makes a compressed digest small.
        """
        highest = int(self.counts.max()) if self.counts.size else 0
        width = (highest > 0xFF) + (highest > 0xFFFF) + (highest > 0xFFFFFFFF)
        steps = np.diff(self.keys)
        wide = int(steps.size > 0 and int(steps.max()) > 0xFF)
        head = _HEAD.pack(_MAGIC, _VERSION, len(_WIDTHS) * wide + width, self.keys.size, self.nan, self.sum, self.min, self.max)
        first = self.keys[:1].astype("<i2", copy=False)
        return b"".join((head, first.tobytes(), steps.astype(_WIDTHS[wide]).tobytes(), self.counts.astype(_WIDTHS[width]).tobytes()))


def _counted(values: Floats, low: float, high: float) -> tuple[Keys, Counts]:
    """Return the keys of these values, ascending, and how many each has; `low` and `high` are the extremes. Counts, and sorts nothing."""
    cells = cells_of(values) if low >= LEAST and high < MOST else keys_of(values).astype(np.int64) - 1
    first = int(cells.min())
    dense = np.bincount(cells - first)
    found = np.flatnonzero(dense)
    return (found + (first + 1)).astype(np.int16), dense[found]


def decode(digest: bytes) -> Histogram:
    """Return the histogram of a digest, also of version 1. Raises `ValueError` when it is none or of an unknown version."""
    if len(digest) < _HEAD.size:
        raise ValueError(f"a digest has at least {_HEAD.size} bytes, got {len(digest)}")
    magic, version, widths, size, nan, total, low, high = _HEAD.unpack_from(digest)
    wide, width = divmod(widths, len(_WIDTHS))
    if magic != _MAGIC or not 1 <= version <= _VERSION or wide >= version:  # a step of version 2 has up to two bytes
        raise ValueError(f"not a digest of version {_VERSION}: starts with {digest[:4]!r}")
    firsts = size if version == 1 else min(size, 1)  # version 1 has every key as it is
    steps_at = _HEAD.size + 2 * firsts
    counts_at = steps_at + (size - firsts) * _WIDTHS[wide].itemsize
    if len(digest) != counts_at + size * _WIDTHS[width].itemsize:
        raise ValueError(f"a digest of {size} buckets cannot have {len(digest)} bytes")
    keys = np.frombuffer(digest, "<i2", firsts, _HEAD.size).astype(np.int64)
    if version > 1:
        keys = np.concatenate([keys, np.frombuffer(digest, _WIDTHS[wide], size - firsts, steps_at)]).cumsum()
    if size and (not -OVERFLOW <= int(keys[0]) <= int(keys[-1]) <= OVERFLOW or (keys[1:] <= keys[:-1]).any()):
        raise ValueError("a digest's keys are out of their range or order")
    counts = np.frombuffer(digest, _WIDTHS[width], size, counts_at).astype(np.int64)
    if size and int(counts.min()) < 1:
        raise ValueError("a digest's counts are not whole numbers from 1 to 2^63 - 1")
    return Histogram(keys.astype(np.int16), counts, total, low, high, nan)


def quantiles_of(histograms: Sequence[Histogram], qs: Sequence[float]) -> Floats:
    """Return the quantiles of many, a row each, as `Histogram.quantiles` gives them; NaN for an empty one. One pass over all."""
    answers = np.full((len(histograms), len(qs)), np.nan)
    full = [at for at, one in enumerate(histograms) if one.counts.size]
    if not full:
        return answers
    held = [histograms[at] for at in full]
    keys = np.concatenate([one.keys for one in held]).astype(np.intp)
    below = np.concatenate([one.counts for one in held]).cumsum()
    upto = below[np.cumsum([one.counts.size for one in held]) - 1]
    before = np.concatenate([np.zeros(1, np.int64), upto[:-1]])
    last = (upto - before - 1)[:, np.newaxis]
    ranks = np.floor(np.asarray(qs) * last)
    lowest, highest = np.array([[one.min, one.max] for one in held]).T[:, :, np.newaxis]
    found = np.searchsorted(below, ranks.astype(np.int64) + before[:, np.newaxis], side="right")
    middles = np.clip(_MIDDLES[keys[found] + OVERFLOW], lowest, highest)
    answers[full] = np.where(ranks <= 0, lowest, np.where(ranks >= last, highest, middles))
    return answers


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """Return the histogram of all samples together: counts are exact, the sum is right to rounding."""
    dense = np.zeros(2 * OVERFLOW + 1, np.int64)
    total, low, high, nan = 0.0, float("inf"), float("-inf"), 0
    for one in histograms:
        dense[one.keys.astype(np.intp) + OVERFLOW] += one.counts
        total, low, high, nan = total + one.sum, min(low, one.min), max(high, one.max), nan + one.nan
    found = np.flatnonzero(dense)
    return Histogram((found - OVERFLOW).astype(np.int16), dense[found], total, low, high, nan)
