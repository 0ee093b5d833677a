"""How two series go together, and how much later one of them follows: Pearson's and Spearman's coefficient over a range of lags. Pure.

Steps of a series that follow each other are alike, so n of them say less than n independent ones would. The effective number goes by
the lag-1 autocorrelations a and b of both: n (1 - ab) / (1 + ab), never more than n (Bretherton et al. 1999, J. Climate 12, 1990-2009).
A coefficient is notable when chance alone would reach it once in a hundred times, over all lags that were tried: Fisher's z with the
effective number, and the level divided by the number of lags (Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from actors.errors import InputError

Floats = npt.NDArray[np.float64]
Method = Literal["pearson", "spearman"]

METHODS: Final[tuple[Method, ...]] = ("pearson", "spearman")
PAIRS_MIN: Final = 10
LAGS_MAX: Final = 600  # steps either way
CHANCE: Final = 0.01
_FREE: Final = 3  # effective pairs that Fisher's z takes up
_NEARLY_ONE: Final = 1 - 1e-12  # Fisher's z of 1 is infinite


@dataclass(frozen=True, slots=True)
class Correlation:
    """A coefficient and the lag that it was found at: above 0 the second series follows the first by so many steps.

    `pairs` steps were compared, which count as `effective`. Below `threshold` a coefficient says nothing.
    """

    method: Method
    r: float
    lag_steps: int
    pairs: int
    effective: float
    threshold: float

    @property
    def notable(self) -> bool:
        """Tell whether the coefficient is more than chance would give; of three effective pairs none is."""
        return self.effective > _FREE and abs(self.r) >= self.threshold


def correlate(first: Floats, second: Floats, method: Method = "pearson", lag_steps_max: int = 0) -> Correlation:
    """Return the clearest coefficient of two series on one grid of steps, over lags up to `lag_steps_max` either way.

    NaN is a step without a value. Pearson's leaves out infinities as well, Spearman's ranks them. The clearest is that with the largest z,
    so a long overlap beats a short one. Raises `InputError` when a lag leaves fewer than 10 pairs, and when a series does not vary.
    """
    if lag_steps_max > LAGS_MAX:
        raise InputError(
            "invalid_value", f"a lag of {lag_steps_max} steps is too many, at most {LAGS_MAX} are tried", "choose a larger --every"
        )
    tried = 2 * lag_steps_max + 1
    critical = NormalDist().inv_cdf(1 - CHANCE / (2 * tried))
    best: tuple[float, Correlation] | None = None
    for lag in sorted(range(-lag_steps_max, lag_steps_max + 1), key=abs):  # of equals the shortest lag
        one = _at(first, second, method, lag, critical)
        if one is not None:
            clearness = math.atanh(min(abs(one.r), _NEARLY_ONE)) * math.sqrt(max(one.effective - _FREE, 0.0))
            if best is None or clearness > best[0]:
                best = (clearness, one)
    if best is None:
        raise InputError(
            "invalid_value", "a series does not vary over these steps, so nothing goes with it", "choose another time or metric"
        )
    return best[1]


def _at(first: Floats, second: Floats, method: Method, lag: int, critical: float) -> Correlation | None:
    """Return the coefficient at one lag, or None when a series does not vary there."""
    one, other = _pairs(first, second, lag, method)
    if one.size < PAIRS_MIN:
        words = f"at a lag of {lag} steps {one.size} steps have both, at least {PAIRS_MIN} are needed"
        raise InputError("invalid_value", words, "choose a longer time, a shorter lag or larger steps")
    if method == "spearman":
        one, other = ranks(one), ranks(other)
    one, other = one - one.mean(), other - other.mean()
    sizes = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    if np.ptp(one) == 0 or np.ptp(other) == 0 or not sizes > 0:
        return None
    r = max(-1.0, min(1.0, float(one @ other) / sizes))
    effective = _effective(one, other)
    threshold = math.tanh(critical / math.sqrt(effective - _FREE)) if effective > _FREE else 1.0
    return Correlation(method, r, lag, one.size, effective, threshold)


def _pairs(first: Floats, second: Floats, lag: int, method: Method) -> tuple[Floats, Floats]:
    """Return the values at t of the first, and at t + lag of the second, where both have one."""
    size = max(0, first.size - abs(lag))
    one, other = (first[:size], second[lag:]) if lag >= 0 else (first[-lag:], second[:size])
    both = np.isfinite(one) & np.isfinite(other) if method == "pearson" else ~(np.isnan(one) | np.isnan(other))
    return one[both], other[both]


def ranks(values: Floats) -> Floats:
    """Return the rank of each value from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    shared: Floats = (last - (counts - 1) / 2.0)[group]
    return shared


def _effective(one: Floats, other: Floats) -> float:
    both = max(0.0, _autocorrelation(one) * _autocorrelation(other))
    return one.size * (1 - both) / (1 + both)


def _autocorrelation(centred: Floats) -> float:
    return float(centred[:-1] @ centred[1:]) / float(centred @ centred)
