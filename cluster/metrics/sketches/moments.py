"""Count, extremes, sum, mean and variance of batches, by numpy's vector loops, merged by formulae that stay exact. Immutable, pure.

Two passes a batch: the mean, then the squares of the distances from it, so that nothing cancels (the sum of squares less the square of the
sum loses all digits where the mean is large beside the spread). Merging is T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae
and a pairwise algorithm for computing sample variances", 1979. The sum carries what its additions rounded off (two-sum, D. Knuth).

Infinities and NaNs are counted and stay out of sum, mean and variance.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.metrics.histogram import Floats

from .tdigest import checked_weights

_HEAD: Final = struct.Struct("<2sBQQQQdddddd")
_MAGIC: Final = b"MO"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of a batch or of many.

    `finite` counts the samples that the figures are of; `rest` is what the additions of `high` rounded off; `squares` is the sum of squared
    distances from the mean. `lowest` and `highest` are of the finite ones; none has lowest > highest.
    """

    finite: int = 0
    nan: int = 0
    below: int = 0
    above: int = 0
    high: float = 0.0
    rest: float = 0.0
    mean: float = math.nan
    squares: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    @classmethod
    def of(cls, values: Floats, weights: npt.ArrayLike | None = None) -> Moments:
        """Return the statistics of a float64 array. Raises `InputError` for weights that are no whole numbers from 0."""
        counts = None if weights is None else checked_weights(weights, values.size)
        if counts is not None and not counts.all():
            values, counts = values[counts > 0], counts[counts > 0]
        nan = below = above = 0
        if not (finite := np.isfinite(values)).all():
            nan, below, above = (_held(found, counts) for found in (np.isnan(values), values == -np.inf, values == np.inf))
            values, counts = values[finite], None if counts is None else counts[finite]
        if not values.size:
            return cls(nan=nan, below=below, above=above)
        size = values.size if counts is None else int(counts.sum())
        lowest, highest = float(values.min()), float(values.max())
        with np.errstate(over="ignore", invalid="ignore"):  # past 1.8e308 a sum is infinite, as IEEE has it
            total = float(values.sum() if counts is None else (values * counts).sum())
            mean = min(max(total / size, lowest), highest)
            squares = np.square(values - mean)  # no dot product: its threads wait for each other, 10 ms where other load has the cores
            within = float(squares.sum() if counts is None else (squares * counts).sum())
        return cls(size, nan, below, above, total, 0.0, mean, within, lowest, highest)

    @property
    def count(self) -> int:
        """Number of samples, infinities with them and NaNs without."""
        return self.finite + self.below + self.above

    @property
    def sum(self) -> float:
        """Sum of the finite samples."""
        return self.high + self.rest if math.isfinite(self.high) else self.high

    @property
    def min(self) -> float:
        """The smallest sample; infinity when there is none."""
        return -math.inf if self.below else self.lowest if self.finite else math.inf

    @property
    def max(self) -> float:
        """The largest sample; minus infinity when there is none."""
        return math.inf if self.above else self.highest if self.finite else -math.inf

    @property
    def variance(self) -> float:
        """Variance of the finite samples as a population (divided by their number); NaN when there are none."""
        return self.squares / self.finite if self.finite else math.nan

    def encode(self) -> bytes:
        """Return the bytes of the statistics, little-endian."""
        counts = (self.finite, self.nan, self.below, self.above)
        return _HEAD.pack(_MAGIC, _VERSION, *counts, self.high, self.rest, self.mean, self.squares, self.lowest, self.highest)


def decode(data: bytes) -> Moments:
    """Return the statistics of these bytes. Raises `ValueError` when they are none or of an unknown version."""
    if len(data) != _HEAD.size:
        raise ValueError(f"moments have {_HEAD.size} bytes, got {len(data)}")
    magic, version, *fields = _HEAD.unpack(data)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"not moments of version {_VERSION}: starts with {data[:3]!r}")
    return Moments(*fields)


def merge(one: Moments, other: Moments) -> Moments:
    """Return the statistics of all samples together; the same both ways round."""
    counts = (one.finite + other.finite, one.nan + other.nan, one.below + other.below, one.above + other.above)
    if not one.finite or not other.finite:
        held = one if one.finite else other
        return Moments(*counts, held.high, held.rest, held.mean, held.squares, held.lowest, held.highest)
    high, rest = two_sum(one.high, other.high)
    first, second = sorted((one, other), key=lambda found: (found.finite, found.mean))  # one order, so that rounding is the same
    share = second.finite / counts[0]
    apart = second.mean - first.mean
    lowest, highest = min(one.lowest, other.lowest), max(one.highest, other.highest)
    mean = first.mean * (1.0 - share) + second.mean * share
    squares = one.squares + other.squares + apart * apart * (first.finite * share)
    return Moments(*counts, high, one.rest + other.rest + rest, min(max(mean, lowest), highest), squares, lowest, highest)


def two_sum(one: float, other: float) -> tuple[float, float]:
    """Return a sum and what its rounding left out; nothing is left out where it is infinite."""
    total = one + other
    if not math.isfinite(total):
        return total, 0.0
    back = total - one
    return total, (one - (total - back)) + (other - back)


def _held(found: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64] | None) -> int:
    return int(np.count_nonzero(found) if counts is None else counts[found].sum())
