"""Load shapes: pure functions of the seconds since an operation's start. Never reads a clock, never keeps state.

A shape's values are in its operation's unit (a fraction of the node's capacity, or bytes). They are finite and not
negative; a time before the start counts as the start. `from_spec(shape.to_spec()) == shape` for every shape.
`Custom` takes its values from a function that an installed package offers (`plugin_shapes`). Standard library only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from . import plugin_shapes
from .errors import InputError


def _number(label: str, value: object, low: float, high: float, *, above: bool) -> float:
    """Return `value` as a float within [low, high] (above `low` if so asked) or raise `InputError` (`invalid_value`)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError("invalid_value", f"{label} must be a number, got {value!r}")
    number = _finite(label, value)
    if number < low or number > high or (above and number == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise InputError("invalid_value", f"{label} must be {bound}{upper}, got {value!r}")
    return number + 0.0  # -0.0 becomes 0.0, so that equal shapes have equal specs


def _finite(label: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError("invalid_value", f"{label} must be finite, got {value!r}")
    return number


def _check(owner: object, name: str, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> None:
    """Check one field of a frozen shape and keep it as a float, so that 1 and 1.0 give equal specs."""
    label = f"{type(owner).__name__}.{name}"
    object.__setattr__(owner, name, _number(label, getattr(owner, name), low, high, above=above))


def _check_scale(factor: float) -> float:
    return _number("factor", factor, 0.0, math.inf, above=False)


def _position(elapsed_s: float, period_s: float) -> float:
    """Return how far into its period an instant lies, in [0, period_s)."""
    return math.fmod(max(elapsed_s, 0.0), period_s)


@dataclass(frozen=True, slots=True)
class Constant:
    """One level all the time: f(t) = level."""

    level: float

    def __post_init__(self) -> None:
        _check(self, "level")

    def value(self, elapsed_s: float) -> float:  # noqa: ARG002  # every shape answers the same question
        """Return f(elapsed_s)."""
        return self.level

    def peak(self, duration_s: float) -> float:  # noqa: ARG002  # every shape answers the same question
        """Return the highest value within [0, duration_s]."""
        return self.level

    def scaled(self, factor: float) -> Constant:
        """Return the shape with all values times a factor of at least 0."""
        return Constant(self.level * _check_scale(factor))

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Ramp:
    """A straight line, then flat: f(t) = start + (end - start) * min(t / over_s, 1)."""

    start: float
    end: float
    over_s: float

    def __post_init__(self) -> None:
        _check(self, "start")
        _check(self, "end")
        _check(self, "over_s", above=True)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        share = min(max(elapsed_s, 0.0) / self.over_s, 1.0)
        return self.start * (1.0 - share) + self.end * share

    def peak(self, duration_s: float) -> float:
        """Return the highest value within [0, duration_s]: a line is highest at one of its ends."""
        return max(self.value(0.0), self.value(duration_s))

    def scaled(self, factor: float) -> Ramp:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Ramp(self.start * scale, self.end * scale, self.over_s)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Steps:
    """A staircase that stays on its last step: f(t) = levels[min(floor(t / each_s), n - 1)]."""

    levels: tuple[float, ...]
    each_s: float

    def __post_init__(self) -> None:
        if isinstance(self.levels, (str, bytes, Mapping)) or not hasattr(self.levels, "__iter__"):
            raise InputError("invalid_value", f"Steps.levels must be a list of numbers, got {self.levels!r}")
        levels = tuple(_number(f"Steps.levels[{at}]", level, 0.0, math.inf, above=False) for at, level in enumerate(self.levels))
        if not levels:
            raise InputError("invalid_value", "Steps.levels must hold at least one level")
        object.__setattr__(self, "levels", levels)
        _check(self, "each_s", above=True)

    def _index(self, elapsed_s: float) -> int:
        return min(math.floor(min(max(elapsed_s, 0.0) / self.each_s, len(self.levels))), len(self.levels) - 1)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        return self.levels[self._index(elapsed_s)]

    def peak(self, duration_s: float) -> float:
        """Return the highest value within [0, duration_s]."""
        return max(self.levels[: self._index(duration_s) + 1])

    def scaled(self, factor: float) -> Steps:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Steps(tuple(level * scale for level in self.levels), self.each_s)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Sine:
    """A wave that begins at its low: f(t) = low + (high - low) * (1 - cos(2 pi t / period_s)) / 2."""

    low: float
    high: float
    period_s: float

    def __post_init__(self) -> None:
        _check(self, "low")
        _check(self, "high", self.low)
        _check(self, "period_s", above=True)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        share = (1.0 - math.cos(2.0 * math.pi * _position(elapsed_s, self.period_s) / self.period_s)) / 2.0
        return self.low * (1.0 - share) + self.high * share

    def peak(self, duration_s: float) -> float:
        """Return the highest value within [0, duration_s]: the crest lies at half a period."""
        return self.high if duration_s >= self.period_s / 2.0 else self.value(duration_s)

    def scaled(self, factor: float) -> Sine:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Sine(self.low * scale, self.high * scale, self.period_s)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Square:
    """High first, then low: f(t) = high if (t mod period_s) < duty * period_s else low."""

    low: float
    high: float
    period_s: float
    duty: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "low")
        _check(self, "high", self.low)
        _check(self, "period_s", above=True)
        _check(self, "duty", 0.0, 1.0)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        return self.high if _position(elapsed_s, self.period_s) < self.duty * self.period_s else self.low

    def peak(self, duration_s: float) -> float:  # noqa: ARG002  # the high comes first, so any span holds it
        """Return the highest value within [0, duration_s]."""
        return self.high if self.duty > 0.0 else self.low

    def scaled(self, factor: float) -> Square:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Square(self.low * scale, self.high * scale, self.period_s, self.duty)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Burst:
    """A short peak at the start of every period: f(t) = peak_level if (t mod period_s) < length_s else base."""

    base: float
    peak_level: float
    period_s: float
    length_s: float

    def __post_init__(self) -> None:
        _check(self, "base")
        _check(self, "peak_level", self.base)
        _check(self, "period_s", above=True)
        _check(self, "length_s", 0.0, self.period_s, above=True)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        return self.peak_level if _position(elapsed_s, self.period_s) < self.length_s else self.base

    def peak(self, duration_s: float) -> float:  # noqa: ARG002  # the peak comes first, so any span holds it
        """Return the highest value within [0, duration_s]."""
        return self.peak_level

    def scaled(self, factor: float) -> Burst:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Burst(self.base * scale, self.peak_level * scale, self.period_s, self.length_s)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Sawtooth:
    """A line up from low to high in every period, then back at once: f(t) = low + (high - low) * (t mod period_s) / period_s."""

    low: float
    high: float
    period_s: float

    def __post_init__(self) -> None:
        _check(self, "low")
        _check(self, "high", self.low)
        _check(self, "period_s", above=True)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        share = _position(elapsed_s, self.period_s) / self.period_s
        return self.low * (1.0 - share) + self.high * share

    def peak(self, duration_s: float) -> float:
        """Return the highest value within [0, duration_s]; over a whole period it is high, which is approached and never met."""
        return self.high if duration_s >= self.period_s else self.value(duration_s)

    def scaled(self, factor: float) -> Sawtooth:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Sawtooth(self.low * scale, self.high * scale, self.period_s)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Leak:
    """A constant rate without end: f(t) = start + rate * t. What is reserved is its value at the operation's end."""

    start: float
    rate: float

    def __post_init__(self) -> None:
        _check(self, "start")
        _check(self, "rate")

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s)."""
        return self.start + self.rate * max(elapsed_s, 0.0)

    def peak(self, duration_s: float) -> float:
        """Return the highest value within [0, duration_s]: the last one."""
        return self.value(duration_s)

    def scaled(self, factor: float) -> Leak:
        """Return the shape with all values times a factor of at least 0."""
        scale = _check_scale(factor)
        return Leak(self.start * scale, self.rate * scale)

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


@dataclass(frozen=True, slots=True)
class Custom:
    """A function of an installed package, held within its limit, which is reserved: f(t) = min(max(function(t), 0), limit)."""

    function: str
    limit: float
    factor: float = 1.0  # what `scaled` multiplies every value by; a plan needs no package, `check` and `value` do

    def __post_init__(self) -> None:
        if not isinstance(self.function, str) or not self.function.strip():
            raise InputError("invalid_value", f"Custom.function must be the name of an installed shape, got {self.function!r}")
        _check(self, "limit")
        _check(self, "factor")

    def check(self, duration_s: float) -> None:
        """Raise `InputError` where the function is not installed, or is not what a shape must be within [0, duration_s]."""
        plugin_shapes.check(self.function, self.limit, duration_s)

    def value(self, elapsed_s: float) -> float:
        """Return f(elapsed_s). Raises `InputError` where the function is not installed."""
        return plugin_shapes.value(self.function, max(elapsed_s, 0.0), self.limit) * self.factor

    def peak(self, duration_s: float) -> float:  # noqa: ARG002  # it holds for any span
        """Return the limit: no value is above it."""
        return self.limit * self.factor

    def scaled(self, factor: float) -> Custom:
        """Return the shape with all values times a factor of at least 0."""
        return Custom(self.function, self.limit, self.factor * _check_scale(factor))

    def to_spec(self) -> dict[str, Any]:
        """Return the shape as JSON-ready data."""
        return _spec(self)


Shape = Constant | Ramp | Steps | Sine | Square | Burst | Sawtooth | Leak | Custom

KINDS: Final[dict[str, type[Shape]]] = {
    "constant": Constant,
    "ramp": Ramp,
    "steps": Steps,
    "sine": Sine,
    "square": Square,
    "burst": Burst,
    "sawtooth": Sawtooth,
    "leak": Leak,
    "custom": Custom,
}


def _spec(shape: Shape) -> dict[str, Any]:
    values = {field.name: getattr(shape, field.name) for field in fields(shape)}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"kind": type(shape).__name__.lower(), **listed}


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def from_spec(spec: Mapping[str, Any]) -> Shape:
    """Return the shape that a spec such as `{"kind": "ramp", "start": 0, "end": 0.5, "over_s": 10}` describes.

    Raises `InputError`: `unknown_name` for a kind and `unknown_key` for a key that is not known (with the nearest),
    `invalid_value` for a missing key or a value out of its range.
    """
    if not isinstance(spec, Mapping):
        raise InputError("invalid_value", f"a shape must be a mapping with a `kind`, got {spec!r}")
    kind = str(spec.get("kind", ""))
    if kind not in KINDS:
        raise InputError("unknown_name", f"unknown shape {kind!r}", _near(kind, list(KINDS)))
    known = [field.name for field in fields(KINDS[kind])]
    given = {name: value for name, value in spec.items() if name != "kind"}
    for name in given:
        if name not in known:
            raise InputError("unknown_key", f"shape {kind!r} has no key {name!r}", _near(str(name), known))
    try:
        return KINDS[kind](**given)
    except TypeError as error:
        raise InputError("invalid_value", f"shape {kind!r} needs {', '.join(known)}; got {', '.join(given) or 'nothing'}") from error
