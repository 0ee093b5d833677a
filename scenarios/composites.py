"""The words that combine parts further: by weight, by chance, on a condition, repeated, scaled, stretched, cut; and composites.

    weighted((w, a), ...)          all from the same instant, each with its share w / sum of its strength    duration = longest part
    choose((w, a), ...)            each node runs one of them, drawn by weight from the run's seed           duration = longest part
    where(targets, a, otherwise=b) a on the nodes that match, b (or nothing) on the others                   duration = longer part
    repeat(a, times)               a, times after each other: sequence(a, a, ...)                            duration = times * a
    scaled(a, by)                  a with every strength times `by`                                          duration = a
    stretched(a, by)               a with every time times `by`, of its holds and of their shapes            duration = by * a
    limited(a, for_s)              a, ended after `for_s` where it lasts longer                              duration = min(for_s, a)
    hold(Composite(name, a), t)    a, again from its start where it lasts less than t, ended after t         duration = t

They are pure values like the words of `combinators`. A word around one part keeps that part's path, so it moves no seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from actors.errors import InputError
from actors.messages import NodeSpec

from .combinators import PARTS_MAX, SPAN_MIN_S, Operator, Placed, Sieve, Spread, Tree, check_phase
from .targets import Targets, derive_seed, mismatch, narrow
from .units import DURATION_MAX_S, check_number, check_whole

FACTOR_MIN: Final = 0.001
FACTOR_MAX: Final = 1_000.0
WEIGHT_MAX: Final = 1e9
Kept = tuple[tuple[NodeSpec, ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Share:
    """A part with its weight: above 0, in any unit; what counts is its share of the sum."""

    weight: float
    part: Tree

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", float(check_number("Share.weight", self.weight, 0.0, WEIGHT_MAX)))
        if not self.weight:
            raise InputError("invalid_value", "Share.weight must be above 0, got 0", "leave the part out instead")
        _check_part("Share.part", self.part)


@dataclass(frozen=True, slots=True)
class Shared(Operator):
    """Parts that start at the same instant, each with its weight; a kind says what a weight is."""

    shares: tuple[Share, ...]
    phase: str = ""

    def __post_init__(self) -> None:
        kind = type(self).__name__
        object.__setattr__(self, "shares", _check_shares(f"{kind}.shares", self.shares))
        check_phase(f"{kind}.phase", self.phase)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the parts."""
        return tuple(share.part for share in self.shares)

    @property
    def duration_s(self) -> float:
        """Return the longest part's duration in seconds, whichever runs."""
        return max(part.duration_s for part in self.parts)


@dataclass(frozen=True, slots=True)
class Weighted(Shared):
    """Parts that start at the same instant and share one strength by their weights."""

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield each part's holds with its share of their strength."""
        total = math.fsum(share.weight for share in self.shares)
        for at, share in enumerate(self.shares):
            for part in spread(share.part, f"{path}.{at}", start_s, self.phase or phase):
                yield replace(part, strength=part.strength * (share.weight / total))


@dataclass(frozen=True, slots=True)
class Choose(Shared):
    """Parts of which each node runs one, drawn by weight from the run's seed, this part's path and the node's name."""

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield each part's holds, for the nodes that draw it."""
        weights = tuple(share.weight for share in self.shares)
        for at, share in enumerate(self.shares):
            for part in spread(share.part, f"{path}.{at}", start_s, self.phase or phase):
                yield replace(part, sieves=(Drawn(path, weights, at), *part.sieves))


@dataclass(frozen=True, slots=True)
class Where(Operator):
    """A part on the nodes that match selectors, another one or nothing on the rest. No match is no error: it is in the plan."""

    targets: Targets
    part: Tree
    otherwise: Tree | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.targets, Targets):
            raise InputError("invalid_value", f"Where.targets must be Targets, got {self.targets!r}")
        if self.targets.count is not None or self.targets.fraction is not None or self.targets.choice != "first":
            message = "Where.targets must say what a node is: role, names, addresses or labels"
            raise InputError("invalid_value", message, "how many nodes a load takes stands in the load's own targets")
        _check_part("Where.part", self.part)
        if self.otherwise is not None:
            _check_part("Where.otherwise", self.otherwise)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the part and the other."""
        return (self.part,) if self.otherwise is None else (self.part, self.otherwise)

    @property
    def duration_s(self) -> float:
        """Return the longer part's duration in seconds, whichever nodes match."""
        return max(part.duration_s for part in self.parts)

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield the part's holds for the nodes that match, and the other's for those that do not."""
        for part in spread(self.part, path, start_s, phase):
            yield replace(part, sieves=(Matching(self.targets), *part.sieves))
        if self.otherwise is not None:
            for part in spread(self.otherwise, f"{path}.otherwise", start_s, phase):
                yield replace(part, sieves=(Matching(self.targets, negated=True), *part.sieves))


@dataclass(frozen=True, slots=True)
class Repeat(Operator):
    """A part, several times after each other; each time has a path, and so a seed, of its own."""

    count: int
    part: Tree

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", check_whole("Repeat.count", self.count, 1, PARTS_MAX))
        _check_part("Repeat.part", self.part)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the part."""
        return (self.part,)

    @property
    def times(self) -> int:
        """Return how many copies there are."""
        return self.count

    @property
    def duration_s(self) -> float:
        """Return the duration of all times in seconds."""
        return self.count * self.part.duration_s

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield the holds of each time."""
        for at in range(self.count):
            yield from spread(self.part, f"{path}.{at}", start_s + at * self.part.duration_s, phase)


@dataclass(frozen=True, slots=True)
class Scaled(Operator):
    """A part with every strength times a factor; whole bytes and counts are rounded down, once."""

    factor: float
    part: Tree

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", float(check_number("Scaled.factor", self.factor, 0.0, FACTOR_MAX)))
        _check_part("Scaled.part", self.part)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the part."""
        return (self.part,)

    @property
    def duration_s(self) -> float:
        """Return the part's duration in seconds."""
        return self.part.duration_s

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield the part's holds with their strength."""
        for part in spread(self.part, path, start_s, phase):
            yield replace(part, strength=part.strength * self.factor)


@dataclass(frozen=True, slots=True)
class Stretched(Operator):
    """A part with every time in it times a factor: 2 is half as fast and twice as long."""

    factor: float
    part: Tree

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", float(check_number("Stretched.factor", self.factor, FACTOR_MIN, FACTOR_MAX)))
        _check_part("Stretched.part", self.part)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the part."""
        return (self.part,)

    @property
    def duration_s(self) -> float:
        """Return the stretched duration in seconds."""
        return self.part.duration_s * self.factor

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield the part's holds with their starts, spans and paces stretched."""
        for part in spread(self.part, path, 0.0, phase):
            hold = replace(part.hold, for_s=part.hold.for_s * self.factor)
            yield replace(part, start_s=start_s + part.start_s * self.factor, hold=hold, pace=part.pace * self.factor)


@dataclass(frozen=True, slots=True)
class Limited(Operator):
    """A part that ends after a span at the latest. A rest shorter than the shortest hold is left out."""

    for_s: float
    part: Tree

    def __post_init__(self) -> None:
        object.__setattr__(self, "for_s", float(check_number("Limited.for_s", self.for_s, SPAN_MIN_S, DURATION_MAX_S)))
        _check_part("Limited.part", self.part)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the part."""
        return (self.part,)

    @property
    def duration_s(self) -> float:
        """Return the shorter of span and part in seconds."""
        return min(self.for_s, self.part.duration_s)

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield the part's holds as far as they lie within the span."""
        return _cut(spread(self.part, path, start_s, phase), start_s + self.for_s)


@dataclass(frozen=True, slots=True)
class Composite:
    """Parts under a name that are held like one simulator: `hold(composite, for_s, targets=...)`.

    A function that returns one gives it options of its own; `strength` scales all of it. Held for less than its parts last it is
    ended early, for more it begins again, as a periodic load shape does.
    """

    name: str
    part: Tree
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_phase("Composite.name", self.name)
        if not self.name:
            raise InputError("invalid_value", "Composite.name must not be empty")
        object.__setattr__(self, "strength", float(check_number("Composite.strength", self.strength, 0.0, 1.0)))
        _check_part("Composite.part", self.part)

    def held(self, for_s: float, phase: str = "", targets: Targets | None = None, tolerance: float | None = None) -> Held:
        """Return it held for a span of seconds."""
        return Held(self.name, self.part, for_s, self.strength, phase, targets, tolerance)


@dataclass(frozen=True, slots=True)
class Held(Operator):
    """A composite for a span. `targets` narrow those of all its holds, `tolerance` counts where a hold has none of its own."""

    name: str
    part: Tree
    for_s: float
    strength: float = 1.0
    phase: str = ""
    targets: Targets | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        strength = Composite(self.name, self.part, self.strength).strength
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "for_s", float(check_number("Held.for_s", self.for_s, SPAN_MIN_S, DURATION_MAX_S)))
        check_phase("Held.phase", self.phase)
        if self.targets is not None and not isinstance(self.targets, Targets):
            raise InputError("invalid_value", f"Held.targets must be Targets, got {self.targets!r}")
        if self.tolerance is not None:
            check_number("Held.tolerance", self.tolerance, 0.001, 1.0)

    @property
    def parts(self) -> tuple[Tree, ...]:
        """Return the part."""
        return (self.part,)

    @property
    def times(self) -> int:
        """Return how often it begins."""
        return max(1, math.ceil(self.for_s / self.part.duration_s - 1e-9))

    @property
    def duration_s(self) -> float:
        """Return the span in seconds."""
        return self.for_s

    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield its holds, round by round, as far as they lie within the span."""
        return _cut(self._rounds(spread, path, start_s, phase), start_s + self.for_s)

    def _rounds(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        within = () if self.targets is None else (Narrowed(self.targets, path),)
        inner = _inner(self.part)
        mark = f"of{inner}" if inner else ""  # composites within composites share a path: each has rounds of its own
        for at in range(self.times):
            begins_s, own = start_s + at * self.part.duration_s, f"{path}.again{at}{mark}" if at else path
            for part in spread(self.part, own, begins_s, self.phase or phase or self.name):
                tolerance = self.tolerance if part.hold.tolerance is None else part.hold.tolerance
                hold = replace(part.hold, tolerance=tolerance)
                yield replace(part, hold=hold, strength=part.strength * self.strength, sieves=(*within, *part.sieves))


def _inner(tree: object) -> int:
    """Return how many operators lie between a tree and what first has a place of its own."""
    found = 0
    while (tree := getattr(tree, "part", None)) is not None:
        found += 1
    return found


def weighted(*shares: tuple[float, Tree], phase: str = "") -> Weighted:
    """Return parts that start at the same instant, each with its weight's share of its strength."""
    return Weighted(_shares(shares), phase)


def choose(*shares: tuple[float, Tree], phase: str = "") -> Choose:
    """Return parts of which each node runs one, drawn by weight."""
    return Choose(_shares(shares), phase)


def where(targets: Targets, part: Tree, otherwise: Tree | None = None) -> Where:
    """Return a part that runs on the nodes that match, and what runs on the others."""
    return Where(targets, part, otherwise)


def repeat(part: Tree, times: int) -> Repeat:
    """Return a part, several times after each other."""
    return Repeat(times, part)


def scaled(part: Tree, by: float) -> Scaled:
    """Return a part with every strength times a factor of at least 0."""
    return Scaled(by, part)


def stretched(part: Tree, by: float) -> Stretched:
    """Return a part with every time in it times a factor."""
    return Stretched(by, part)


def limited(part: Tree, for_s: float) -> Limited:
    """Return a part that ends after a span of seconds at the latest."""
    return Limited(for_s, part)


# ---- which nodes


@dataclass(frozen=True, slots=True)
class Matching:
    """Takes the nodes that match selectors, or those that do not."""

    targets: Targets
    negated: bool = False

    def sift(self, nodes: tuple[NodeSpec, ...], run_seed: int) -> Kept:  # noqa: ARG002  # every sieve answers the same question
        """Return the nodes taken, and why each of the others is not."""
        taken, left = [], []
        for node in nodes:
            why = mismatch(node, self.targets)
            if bool(why) is self.negated:
                taken.append(node)
            else:
                left.append((node.name, why or "it is among those that the other part is for"))
        return tuple(taken), tuple(left)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Takes the nodes that draw one of several parts."""

    path: str
    weights: tuple[float, ...]
    at: int

    def sift(self, nodes: tuple[NodeSpec, ...], run_seed: int) -> Kept:
        """Return the nodes taken, and which part each of the others drew."""
        drawn = [(node, self._draw(derive_seed(run_seed, self.path, "choose", node.name))) for node in nodes]
        left = tuple((node.name, f"it drew part {self.path}.{at}") for node, at in drawn if at != self.at)
        return tuple(node for node, at in drawn if at == self.at), left

    def _draw(self, seed: int) -> int:
        """Return the index of the part whose stretch of the sum of weights holds the seed's share of it."""
        left = seed / float(1 << 63) * math.fsum(self.weights)
        for at, weight in enumerate(self.weights):
            left -= weight
            if left < 0:
                return at
        return len(self.weights) - 1


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Takes the nodes that a composite's own selectors take; too few are an error, as they are for a simulator."""

    targets: Targets
    path: str

    def sift(self, nodes: tuple[NodeSpec, ...], run_seed: int) -> Kept:
        """Return the nodes taken; raises `RefusedError` (`no_target`)."""
        return narrow(self.targets, nodes, derive_seed(run_seed, self.path, "targets")), ()


_: tuple[type[Sieve], ...] = (Matching, Drawn, Narrowed)  # a type checker compares


# ---- checks


def _cut(parts: Iterator[Placed], end_s: float) -> Iterator[Placed]:
    for part in parts:
        rest_s = end_s - part.start_s
        if rest_s >= SPAN_MIN_S - 1e-9:
            hold = part.hold if part.hold.for_s <= rest_s + 1e-9 else replace(part.hold, for_s=max(rest_s, SPAN_MIN_S))
            yield replace(part, hold=hold)


def _shares(shares: tuple[tuple[float, Tree], ...]) -> tuple[Share, ...]:
    for share in shares:
        if not isinstance(share, tuple) or len(share) != 2:
            raise InputError("invalid_value", f"each part must be a pair of weight and part, got {share!r}", "such as (2, hold(...))")
    return tuple(Share(*share) for share in shares)


def _check_shares(label: str, shares: object) -> tuple[Share, ...]:
    if not isinstance(shares, (list, tuple)) or not shares:
        raise InputError("invalid_value", f"{label} must be a list with at least one part, got {shares!r}")
    for at, share in enumerate(shares):
        if not isinstance(share, Share):
            raise InputError("invalid_value", f"{label}[{at}] must be a part with a weight, got {share!r}")
    return tuple(shares)


def _check_part(label: str, part: object) -> None:
    if not isinstance(part, Tree):
        raise InputError("invalid_value", f"{label} must be made of hold, pause, sequence, together and operators of them, got {part!r}")
