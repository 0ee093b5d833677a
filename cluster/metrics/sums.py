"""A sum of floats that is the same in whatever order its parts come: what is merged from several sides must not tell who was first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction


def total_of(values: Iterable[float]) -> float:
    """Return the sum, rounded once; past the largest float it is infinite, with infinities of both signs NaN."""
    parts = list(values)
    try:
        return math.fsum(parts)
    except ValueError:  # infinities of both signs
        return math.nan
    except OverflowError:  # perhaps on the way only, as the order has it: once more exactly, and slowly
        endless = {part for part in parts if not math.isfinite(part)}
        return sum(endless) if endless else _as_float(sum(map(Fraction, parts), Fraction()))


def _as_float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
