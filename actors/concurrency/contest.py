"""What contenders of `LockContention` do: ask for the shared lock or for one of their own, by chance, and hold it. With the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from ..clock import Clock

LONGEST: Final = 20.0  # a hold takes at most so many means: one in five hundred million is cut


@dataclass(frozen=True, slots=True)
class ContestSettings:
    """How contenders ask: `contention` is the share of acquisitions that go to the shared lock, `hold_s` the mean hold of either."""

    contention: float
    hold_s: float
    seed: int
    clock: Clock
    on_wait: Callable[[float], object]
    on_hold: Callable[[float], object]

    def draws(self, contender: int) -> Draws:
        """Return one contender's chance: the same for the same seed and number."""
        return Draws(Random(f"{self.seed}/{contender}"), self.contention, self.hold_s)


@dataclass(slots=True)
class Draws:
    """One contender's choices."""

    chance: Random
    contention: float
    hold_s: float

    def next(self) -> tuple[bool, float]:
        """Return whether the next acquisition is of the shared lock, and how long it is held: exponentially, whichever it is."""
        is_shared = self.chance.random() < self.contention
        return is_shared, min(LONGEST * self.hold_s, self.chance.expovariate(1.0 / self.hold_s))


def contended_share(contenders: int, contention: float) -> float:
    """Return the share of all acquisitions that find their lock held, as the model has it.

    The contenders are a closed network of one server (the shared lock) and as many as there are contenders (their own), with routing by
    chance and exponential holds of one mean, so its distribution has product form (Gordon and Newell 1967) and an arrival sees the network
    without itself (Sevcik and Mitrani 1981). The shared lock is then free with probability 1 / q(N - 1), where

        q(0) = 1,  q(m) = 1 + m * f / (1 - f) * q(m - 1)

    and the share is f * (1 - 1 / q(N - 1)). It depends neither on the mean hold nor on the order in which waiters are served.
    """
    if contenders < 2:
        return 0.0
    if contention >= 1.0:
        return 1.0
    free, odds = 1.0, contention / (1.0 - contention)
    for others in range(1, contenders):
        free = 1.0 + others * odds * free
        if math.isinf(free):
            break
    return contention * (1.0 - 1.0 / free)
