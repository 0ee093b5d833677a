"""Thinning: which samples are kept, and how many each of them stands for.

One rule makes every policy unbiased. Samples are gathered in groups that end by counts or by time, never by values; of each group one
sample is kept, chosen evenly, and its weight is the group's size. So the weights of what is kept add up to what was offered, exactly, and
sum(weight * f(value)) is an unbiased estimate of sum(f(value)) for every f: of a sum, of a bucket of a histogram. The policies differ
only in where a group ends:

    Always          after each sample
    Probability(p)  after 1/p samples on average: sizes are floor and ceiling of 1/p
    RateLimit(r)    when 1/r seconds have passed since the last one was kept
    FirstN(n)       after each of the first n samples of a window; the rest of the window is one group
    Adaptive(b)     after each sample while fewer than b a second arrive, else after (rate / b) samples

Choosing evenly from a group of unknown size: the k-th sample replaces the choice with probability 1/k; the next one that does is drawn at
once as floor(k / U) + 1, so a group of n costs about ln(n) draws (reservoir sampling with skips, Vitter 1985). Pure; time and chance are
arguments. Not thread-safe: a `Recorder` drains one thread at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from ..clock import SECOND_NS
from ..errors import InputError

Kept = tuple[float, int]  # value, weight

STEPS: Final = 10  # `Adaptive` looks at its rate this often a second


class Rule(Protocol):
    """Where a group ends. One for each series; told of every sample and of every window."""

    def ends(self, size: int, now_ns: int) -> bool:
        """Tell whether the group that the sample of `now_ns` made `size` samples long ends with it."""
        ...

    def begin_window(self) -> bool:
        """Note that a window begins; tell whether the open group ends with the old one."""
        ...


class Policy(Protocol):
    """The value from which each series gets a rule of its own."""

    def rule(self) -> Rule:
        """Return a new rule."""
        ...


class Thinner:
    """Keeps some of the samples of one series. `offered` = sum of the weights kept + `waiting`, at any time."""

    __slots__ = ("_choice", "_random", "_rule", "_take", "kept", "offered", "waiting")

    def __init__(self, policy: Policy, chance: Random) -> None:
        self._rule = policy.rule()
        self._random = chance.random
        self._take = 1  # the sample of the open group that becomes the choice
        self._choice = 0.0
        self.waiting = 0  # samples in the open group
        self.offered = 0
        self.kept = 0

    @property
    def dropped(self) -> int:
        """Samples for which another one of their group was kept."""
        return self.offered - self.waiting - self.kept

    def offer(self, value: float, now_ns: int) -> Kept | None:
        """Take a sample; return what is kept of its group when that ends with it."""
        self.offered += 1
        self.waiting = size = self.waiting + 1
        chosen = size == self._take
        if chosen:
            self._choice = value
        if self._rule.ends(size, now_ns):
            return self.flush()
        if chosen:
            self._take = int(size / (1.0 - self._random())) + 1
        return None

    def begin_window(self) -> Kept | None:
        """Begin a window; return what is kept of a group that must not reach into it."""
        return self.flush() if self._rule.begin_window() else None

    def flush(self) -> Kept | None:
        """End the open group now, as at the end of a run; None when it is empty."""
        size, self.waiting, self._take = self.waiting, 0, 1
        self.kept += size > 0
        return (self._choice, size) if size else None


def spread(before_ns: int, now_ns: int, count: int) -> list[int]:
    """Return when the samples of a batch count as having come: evenly after `before_ns`, the last one at `now_ns`.

    Under one stamp for all, a rule that goes by time would keep one sample of a batch, whatever its limit.
    """
    gap_ns = max(0, now_ns - before_ns)
    return [now_ns - gap_ns + gap_ns * number // count for number in range(1, count + 1)]


class _Each:
    """Every sample is its own group."""

    def ends(self, size: int, now_ns: int) -> bool:
        del size, now_ns
        return True

    def begin_window(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Always:
    """Keep every sample, with weight 1."""

    def rule(self) -> Rule:
        """Return a new rule."""
        return _Each()


class _Counted:
    """Groups whose sizes add up to k / p, rounded, after k of them."""

    def __init__(self, probability: float) -> None:
        self._probability = probability
        self._groups = self._before = 0
        self._next()

    def _next(self) -> None:
        self._groups += 1
        end = math.floor(self._groups / self._probability)
        self._size, self._before = end - self._before, end

    def ends(self, size: int, now_ns: int) -> bool:
        del now_ns
        if size < self._size:
            return False
        self._next()
        return True

    def begin_window(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Probability:
    """Keep each sample with this probability, in (0, 1]: one of every 1/p, so the share kept has no spread of its own."""

    probability: float

    def __post_init__(self) -> None:
        if not 1e-9 <= self.probability <= 1.0:
            raise InputError("invalid_value", f"a sampling probability lies in 1e-9..1, got {self.probability}")

    def rule(self) -> Rule:
        """Return a new rule."""
        return _Counted(self.probability)


class _Spaced:
    """Groups at least `gap_ns` apart."""

    def __init__(self, gap_ns: int) -> None:
        self._gap_ns = gap_ns
        self._next_ns: int | None = None

    def ends(self, size: int, now_ns: int) -> bool:
        del size
        if self._next_ns is not None and now_ns < self._next_ns:
            return False
        self._next_ns = now_ns + self._gap_ns
        return True

    def begin_window(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Keep at most this many samples in any second [t, t + 1 s), evenly spaced; only the last group of a run is kept without a gap."""

    per_second: float

    def __post_init__(self) -> None:
        _check_rate("RateLimit.per_second", self.per_second)

    def rule(self) -> Rule:
        """Return a new rule."""
        return _Spaced(math.ceil(SECOND_NS / self.per_second))


class _First:
    """The first n of a window one by one, the rest together."""

    def __init__(self, count: int) -> None:
        self._count = self._left = count

    def ends(self, size: int, now_ns: int) -> bool:
        del size, now_ns
        self._left -= 1
        return self._left >= 0

    def begin_window(self) -> bool:
        self._left = self._count
        return True


@dataclass(frozen=True, slots=True)
class FirstN:
    """Keep the first `count` samples of each window, and one for all the rest of it."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError("invalid_value", f"FirstN.count is 0 or more, got {self.count}")

    def rule(self) -> Rule:
        """Return a new rule."""
        return _First(self.count)


class _Stepped:
    """Groups sized by the arrivals of the last two steps, and never more of them in a step than its budget."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._allowed = self._allowance(0)
        self._step = 0
        self._step_ns = SECOND_NS // STEPS
        self._end_ns: int | None = None
        self._arrived = self._before = self._kept = 0
        self._size = 1

    def ends(self, size: int, now_ns: int) -> bool:
        self._turn(now_ns)
        self._arrived += 1
        if size < self._size or self._kept >= self._allowed:
            return False
        self._kept += 1
        return True

    def _allowance(self, step: int) -> int:
        """Return how many a step may keep: the fraction of the budget that it cannot use goes to the ones after it."""
        return int((step + 1) * self._per_second // STEPS) - int(step * self._per_second // STEPS)

    def _turn(self, now_ns: int) -> None:
        if self._end_ns is None:
            self._end_ns = now_ns + self._step_ns
        if now_ns < self._end_ns:
            return
        steps = (now_ns - self._end_ns) // self._step_ns + 1
        self._end_ns += steps * self._step_ns
        recent = (self._arrived, self._before) if steps == 1 else (0, 0)  # more than a step without samples: no burst
        self._size = max(1, math.ceil(max(recent) / math.ceil(self._per_second / STEPS)))
        self._step += steps
        self._allowed = self._allowance(self._step)
        self._before = recent[0]
        self._arrived = self._kept = 0

    def begin_window(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Keep everything while at most this many a second arrive; thin a burst down to it. At least 10 a second.

    The group's size follows the arrivals of the last two tenths of a second, and a tenth of a second never keeps more than a tenth of the
    budget, so the first moments of a burst are held down as well. A budget that is no multiple of ten is kept over the second: 19 are one
    in one tenth and two in each of the others, so of 19 that arrive unevenly a few may be gathered into groups.
    """

    per_second: float

    def __post_init__(self) -> None:
        _check_rate("Adaptive.per_second", self.per_second)
        if self.per_second < STEPS:
            raise InputError("invalid_value", f"Adaptive.per_second is at least {STEPS}, got {self.per_second}", "use RateLimit below that")

    def rule(self) -> Rule:
        """Return a new rule."""
        return _Stepped(self.per_second)


def _check_rate(name: str, per_second: float) -> None:
    if not 1e-6 <= per_second <= 1e9:
        raise InputError("invalid_value", f"{name} lies in 1e-6..1e9, got {per_second}")
