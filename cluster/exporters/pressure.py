"""How much of its bounds a pipeline may use while memory is short. Pure: what is available is told, nothing is read here.

    available share of memory   1 ........ easy ........ short ....... 0
    share of the bounds         1          1      falls to 1/16       1/16

Down at once, up again only when the memory has been easier for `hold_s`, by doubling: a queue that empties must not fill again in the
same breath.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from actors.clock import SECOND_NS
from actors.errors import InputError

LEAST: Final = 1.0 / 16.0


@dataclass(frozen=True, slots=True)
class PressurePolicy:
    """Shares of memory: at `easy` and above the bounds are whole, at `short` and below they are least."""

    easy: float = 0.20
    short: float = 0.05
    hold_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.short < self.easy <= 1 or not 0 <= self.hold_s < float("inf"):
            raise InputError("invalid_value", f"memory is short at {self.short} and easy at {self.easy}", "expected 0 <= short < easy <= 1")

    def wanted(self, available: float) -> float:
        """Return the share of the bounds for this share of memory: falls steadily, 1 at `easy`, 1/16 at `short`; NaN is the least."""
        if not available > self.short:
            return LEAST
        return min(1.0, LEAST + (1.0 - LEAST) * (available - self.short) / (self.easy - self.short))


@dataclass(frozen=True, slots=True)
class Pressure:
    """The share in force, and since when a larger one was due."""

    share: float = 1.0
    easier_since_ns: int | None = None

    def look(self, available: float, now_ns: int, policy: PressurePolicy) -> Pressure:
        """Return the pressure after a look at the memory."""
        wanted = policy.wanted(available)
        if wanted < self.share:
            return Pressure(wanted)
        if wanted == self.share:
            return replace(self, easier_since_ns=None)
        since_ns = now_ns if self.easier_since_ns is None else self.easier_since_ns
        if now_ns - since_ns < round(policy.hold_s * SECOND_NS):
            return replace(self, easier_since_ns=since_ns)
        return Pressure(min(wanted, self.share * 2), now_ns)
