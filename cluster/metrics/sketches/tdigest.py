"""A t-digest: a distribution as a few hundred weighted means, small at the ends and wide in the middle. Numpy, immutable, pure.

Made by one sort and one pass (the merging digest of T. Dunning and O. Ertl, "Computing extremely accurate quantiles using
t-digests", 2019, with its scale function k_2). Sorted samples fall into the unit steps of

    k(q) = delta / Z * ln(q / (1 - q)),    Z = 4 ln(n / delta) + 24

by the rank of their middle. Samples that share a step span less than 2 in k, whatever was merged how often before: if the middles of the
first and the last are less than 1 apart, so is half of the two. So a mean near rank q stands for less than 2 Z/delta q(1 - q) of
all samples, and a quantile's rank is off by less than that: `rank_error`. Measured errors are some 20 times smaller.

k_1, which bounds q(1 - q) by its root, needs four times the size for the same error at p99.99.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.errors import InputError
from actors.metrics.encoded import Encoded
from actors.metrics.histogram import Counts, Floats, Histogram

from ..sums import total_of

DELTA: Final = 500
MAX_COUNT: Final = 1 << 53  # samples: what float64 counts exactly
_HEAD: Final = struct.Struct(
    "<2sBBHIQQQddd"
)  # magic, version, log2 of a weight's bytes, delta, means, NaN, -inf, +inf, sum, lowest, highest
_MAGIC: Final = b"TD"
_VERSION: Final = 1
_WIDTHS: Final = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))
_HUGE: Final = 1e280  # past this, products with weights could overflow: they are taken at 2^-64 of their size


@dataclass(frozen=True, slots=True, eq=False)
class TDigest(Encoded):
    """Means of finite samples, ascending, with how many samples each stands for; infinities and NaNs are counted apart.

    `sum`, `lowest` and `highest` are of the finite samples; an empty one has lowest > highest.
    """

    means: Floats
    weights: Counts
    sum: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    nan: int = 0
    below: int = 0  # samples of minus infinity
    above: int = 0  # samples of infinity
    delta: int = DELTA

    @classmethod
    def of(cls, values: Iterable[float] | Floats, weights: npt.ArrayLike | None = None, *, delta: int = DELTA) -> TDigest:
        """Return the digest of these values; `weights` says how many samples each stands for (whole numbers from 0).

        Raises `InputError` for a bad weight, a delta outside 50 to 10,000, or more than 2^53 samples.
        """
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.float64)
        counts = checked_weights(weights, array.size)
        if (counts == 0).any():
            array, counts = array[counts > 0], counts[counts > 0]
        nan, below, above = (int(counts[found].sum()) for found in (np.isnan(array), array == -np.inf, array == np.inf))
        finite = np.isfinite(array)
        array, counts = array[finite], counts[finite]
        with np.errstate(over="ignore", invalid="ignore"):  # a sum past 1.8e308 is infinite, as IEEE has it
            total = float(array.sum()) if (counts == 1).all() else float((array * counts).sum())
        array, counts = _sorted(array, counts)
        ends = (float(array[0]), float(array[-1])) if array.size else (math.inf, -math.inf)
        return _made(array, counts, total, ends, (nan, below, above), delta)

    @classmethod
    def of_histogram(cls, found: Histogram, *, delta: int = DELTA) -> TDigest:
        """Return the digest of a histogram: each bucket as its middle, the first and the last sample as what they were.

        Adds the histogram's error (0.4 % of the value) to the digest's own. Zero's bucket is zero. What lies past the histogram's
        range (2^34) stands at the histogram's extreme, or at infinity where that is the extreme.
        """
        if not found.counts.size:
            return _made(np.empty(0), np.empty(0, np.int64), found.sum, (math.inf, -math.inf), (found.nan, 0, 0), delta)
        values, counts = found.middles(), found.counts
        below, above = (int(counts[values == end].sum()) for end in (-math.inf, math.inf))
        finite = np.isfinite(values)
        values, counts = values[finite], counts[finite]
        lowest = found.min if math.isfinite(found.min) else float(values[0]) if values.size else math.inf
        highest = found.max if math.isfinite(found.max) else float(values[-1]) if values.size else -math.inf
        return _made(values, counts, found.sum, (lowest, highest), (found.nan, below, above), delta)

    @property
    def count(self) -> int:
        """Number of samples, exactly, infinities with them and NaNs without."""
        return int(self.weights.sum()) + self.below + self.above

    @property
    def min(self) -> float:
        """The smallest sample, exactly; infinity when there is none."""
        return -math.inf if self.below else self.lowest if self.weights.size else math.inf

    @property
    def max(self) -> float:
        """The largest sample, exactly; minus infinity when there is none."""
        return math.inf if self.above else self.highest if self.weights.size else -math.inf

    def quantiles(self, qs: Sequence[float] | Floats) -> list[float]:
        """Return the values at rank q * (count - 1), between ranks as `numpy.quantile` does; NaN when empty. Monotone in q.

        Raises `InputError` for a q outside 0..1.
        """
        wanted = np.asarray(qs, np.float64)
        if not ((wanted >= 0.0) & (wanted <= 1.0)).all():
            raise InputError("invalid_value", f"quantiles lie in 0..1, got {list(qs)}")
        if not self.count:
            return [math.nan] * wanted.size
        ranks = wanted * (self.count - 1) - self.below
        size = int(self.weights.sum())
        answers = np.where(ranks < 0.0, -math.inf, math.inf)
        inside = (ranks >= 0.0) & (ranks <= size - 1)
        answers[inside] = self._at(ranks[inside], size)
        return [float(answer) for answer in answers]

    def _at(self, ranks: Floats, size: int) -> Floats:
        """Return values at ranks among the finite samples, which are not none."""
        before = np.cumsum(self.weights) - self.weights
        at = np.concatenate([[0.0], before + (self.weights - 1) / 2.0, [size - 1.0]])
        values = np.concatenate([[self.lowest], self.means, [self.highest]])
        left = np.clip(np.searchsorted(at, ranks, side="right") - 1, 0, at.size - 2)
        gap = at[left + 1] - at[left]
        share = np.divide(ranks - at[left], gap, out=np.zeros_like(ranks), where=gap > 0.0)
        low, high = values[left], values[left + 1]
        half = (high / 2.0 - low / 2.0) * share  # halves: the whole difference may be past the largest float
        found: Floats = np.clip(low + half + half, low, high)
        found[ranks <= 0.0] = self.lowest
        found[ranks >= size - 1.0] = self.highest
        return found

    def cdf(self, value: float) -> float:
        """Return the share of samples that are <= value; NaN when empty or for NaN. Monotone in value, exact while no two were merged."""
        if not self.count or math.isnan(value):
            return math.nan
        if value >= self.max:
            return 1.0
        if value < self.min:
            return 0.0
        size = int(self.weights.sum())
        if not size or value < self.lowest:
            return self.below / self.count
        return (self.below + (size if value >= self.highest else self._held(value, size))) / self.count

    def _held(self, value: float, size: int) -> float:
        """Return how many of the finite samples are <= value, which lies between their ends.

        At a mean, half of its samples and one; just under the next mean, all of this and half of the next but one.
        """
        before = np.cumsum(self.weights) - self.weights
        values = np.concatenate([[self.lowest], self.means, [self.highest]])
        held = np.concatenate([[1.0], before + (self.weights + 1) / 2.0, [float(size)]])
        under = np.concatenate([before + (self.weights - 1) / 2.0, [size - 1.0]])
        left = min(int(np.searchsorted(values, value, side="right")) - 1, values.size - 2)
        first, last = float(held[left]), max(float(held[left]), float(under[left]))
        gap = float(values[left + 1] / 2.0 - values[left] / 2.0)
        share = float(value / 2.0 - values[left] / 2.0) / gap if gap > 0.0 else 0.0
        return min(first + (last - first) * min(share, 1.0), last, float(held[left + 1]))

    def rank_error(self, q: float) -> float:
        """Return the bound of a quantile's error in rank, as a share of all samples."""
        return rank_error(q, self.count, self.delta)

    def encode(self) -> bytes:
        """Return the bytes of the digest: a head of 60 bytes, the means (float64), the weights in the narrowest type; little-endian."""
        heaviest = int(self.weights.max()) if self.weights.size else 0
        width = (heaviest > 0xFF) + (heaviest > 0xFFFF) + (heaviest > 0xFFFFFFFF)
        counts = (self.nan, self.below, self.above)
        head = _HEAD.pack(_MAGIC, _VERSION, width, self.delta, self.means.size, *counts, self.sum, self.lowest, self.highest)
        return b"".join((head, self.means.astype("<f8", copy=False).tobytes(), self.weights.astype(_WIDTHS[width]).tobytes()))


def rank_error(q: float, count: int, delta: int = DELTA) -> float:
    """Return the bound of a quantile's error in rank for a digest of this many samples; at least one sample."""
    if count < 2:
        return 0.0
    return min(1.0, 2.0 * _normaliser(count, delta) / delta * q * (1.0 - q) + 1.0 / count)


def decode(data: bytes) -> TDigest:
    """Return the digest of these bytes. Raises `ValueError` when they are none or of an unknown version."""
    if len(data) < _HEAD.size:
        raise ValueError(f"a t-digest has at least {_HEAD.size} bytes, got {len(data)}")
    magic, version, width, delta, size, nan, below, above, total, lowest, highest = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or width >= len(_WIDTHS):
        raise ValueError(f"not a t-digest of version {_VERSION}: starts with {data[:4]!r}")
    if len(data) != _HEAD.size + size * (8 + _WIDTHS[width].itemsize):
        raise ValueError(f"a t-digest of {size} means cannot have {len(data)} bytes")
    means = np.frombuffer(data, "<f8", size, _HEAD.size).astype(np.float64)
    weights = np.frombuffer(data, _WIDTHS[width], size, _HEAD.size + 8 * size)
    if size and not (np.isfinite(means).all() and (means[1:] >= means[:-1]).all() and lowest <= means[0] and means[-1] <= highest):
        raise ValueError("a t-digest's means are not in order between its ends")
    if size and (int(weights.min()) < 1 or sum(weights.tolist()) > MAX_COUNT):
        raise ValueError("a t-digest's weights are not whole numbers from 1, 2^53 in all at most")
    return TDigest(means, weights.astype(np.int64), total, lowest, highest, nan, below, above, delta)


def merge(digests: Iterable[TDigest], *, delta: int | None = None) -> TDigest:
    """Return the digest of all samples together, the same in whatever order they are given. Counts and extremes are exact.

    `delta` is the smallest of theirs unless given; none at all gives an empty one. Raises `InputError` past 2^53 samples.
    """
    found = list(digests)
    chosen = min((one.delta for one in found), default=DELTA) if delta is None else delta
    means = np.concatenate([np.empty(0), *(one.means for one in found)])
    weights = np.concatenate([np.empty(0, np.int64), *(one.weights for one in found)])
    order = np.lexsort((weights, means))
    ends = min((one.lowest for one in found), default=math.inf), max((one.highest for one in found), default=-math.inf)
    apart = (sum(one.nan for one in found), sum(one.below for one in found), sum(one.above for one in found))
    return _made(means[order], weights[order], total_of(one.sum for one in found), ends, apart, chosen)


def checked_weights(weights: npt.ArrayLike | None, size: int) -> Counts:
    """Return weights as whole numbers, ones when there are none. Raises `InputError` for what is no count of samples."""
    if weights is None:
        return np.ones(size, np.int64)
    given = np.asarray(weights)
    if given.shape != (size,):
        raise InputError("invalid_value", f"{size} values need {size} weights, got an array of shape {given.shape}")
    if size and (given.dtype.kind not in "iuf" or not (given >= 0).all() or (given.dtype.kind == "f" and (given % 1 != 0).any())):
        hint = "a weight is how many samples a value stands for; round fractions at random, so that their mean stays right"
        raise InputError("invalid_value", "weights are whole numbers from 0", hint)
    if size and float(given.sum(dtype=np.float64)) > MAX_COUNT:
        raise InputError("invalid_value", "weights add up to more than 2^53 samples", "begin a new sketch")
    return given.astype(np.int64)


def _made(means: Floats, weights: Counts, total: float, ends: tuple[float, float], apart: tuple[int, int, int], delta: int) -> TDigest:
    if not 50 <= delta <= 10_000:
        raise InputError("invalid_value", f"a t-digest's delta lies in 50 to 10,000, got {delta}")
    if int(weights.sum()) > MAX_COUNT:
        raise InputError("invalid_value", "a t-digest holds at most 2^53 samples", "begin a new one")
    means, weights = _squeezed(means, weights, delta)
    return TDigest(means, weights, total, *ends, *apart, delta)


def _sorted(values: Floats, weights: Counts) -> tuple[Floats, Counts]:
    """Return values in order with their weights; of equal samples the first and the last stand alone, so that their ends stay sharp."""
    if (weights == 1).all():
        return np.sort(values), weights
    order = np.lexsort((weights, values))
    values, weights = values[order], weights[order]
    parts = np.minimum(weights, 3)
    made = np.ones(int(parts.sum()), np.int64)
    heavy = parts == 3
    made[(np.cumsum(parts) - 2)[heavy]] = weights[heavy] - 2
    return np.repeat(values, parts), made


def _normaliser(count: int, delta: int) -> float:
    return 4.0 * math.log(max(count / delta, 0.1)) + 24.0


def _squeezed(means: Floats, weights: Counts, delta: int) -> tuple[Floats, Counts]:
    """Return sorted means and their weights, those that fall into one step of k made one. Few stay as they are."""
    if means.size <= delta * 2 // 5:
        return means, weights
    size = int(weights.sum())
    step = _normaliser(size, delta) / delta
    last = math.ceil(math.log(2.0 * size) / step)
    edges = size / (1.0 + np.exp(-step * np.arange(-last, last + 1)))
    middles = np.cumsum(weights) - weights / 2.0
    starts = np.concatenate([[0], np.searchsorted(middles, edges)])
    starts = starts[:-1][starts[1:] > starts[:-1]] if starts[-1] == means.size else starts[np.append(True, starts[1:] > starts[:-1])]
    ends = np.append(starts[1:], means.size) - 1
    scale = 2.0**-64 if max(-means[0], means[-1]) > _HUGE else 1.0
    held = np.add.reduceat(weights, starts)
    made = np.add.reduceat(means * scale * weights, starts) / held / scale
    return np.clip(made, means[starts], means[ends]), held
