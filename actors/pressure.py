"""How full a node's memory is, as a level and in a word. Pure.

low < 50 %    moderate < 70 %    high < 85 %    critical from there on, of the limit: the container's, or the machine's
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Pressure(IntEnum):
    """A category, in order."""

    LOW = 0
    MODERATE = 1
    HIGH = 2
    CRITICAL = 3


BOUNDS: Final = ((0.5, Pressure.LOW), (0.7, Pressure.MODERATE), (0.85, Pressure.HIGH))


def level(used_bytes: float, limit_bytes: float) -> float:
    """Return which share of the limit is used; 1.0 where the limit is nothing."""
    return used_bytes / limit_bytes if limit_bytes > 0 else 1.0


def category(share: float) -> Pressure:
    """Return the category of a used share; what is no number is critical."""
    return next((word for bound, word in BOUNDS if share < bound), Pressure.CRITICAL)
