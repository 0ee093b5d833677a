"""Reading the fields of a request: each function returns a checked value or raises `InputError` with the field's name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ..clock import SECOND_NS
from ..errors import InputError
from ..messages import AMOUNTS, Amounts

PROTOCOL: Final = 1  # of requests and answers
TEXT_MAX: Final = 512
INTEGER_MAX: Final = 1 << 62
LIMITLESS: Final = Amounts(math.inf, *[INTEGER_MAX] * (len(AMOUNTS) - 1))


def text(request: Mapping[str, Any], name: str) -> str:
    """Return a text of at most `TEXT_MAX` characters."""
    value = request.get(name)
    if type(value) is str and value and len(value) <= TEXT_MAX:
        return value
    raise InputError("invalid_value", f"{name!r} must be a text of 1 to {TEXT_MAX} characters, got {value!r:.80}")


def integer(request: Mapping[str, Any], name: str, default: int | None = None, *, least: int = 0) -> int:
    """Return a whole number of at least `least`."""
    value = request.get(name, default)
    if type(value) is int and least <= value < INTEGER_MAX:
        return value
    raise InputError("invalid_value", f"{name!r} must be a whole number of at least {least}, got {value!r:.80}")


def boolean(request: Mapping[str, Any], name: str) -> bool:
    """Return a truth value."""
    value = request.get(name)
    if type(value) is bool:
        return value
    raise InputError("invalid_value", f"{name!r} must be true or false, got {value!r:.80}")


def span_ns(request: Mapping[str, Any], name: str, default_s: float, most_ns: int) -> int:
    """Return a span given in seconds as nanoseconds, 0 to `most_ns`."""
    value = request.get(name, default_s)
    if type(value) in {int, float} and 0 <= value * SECOND_NS <= most_ns:
        return round(float(value) * SECOND_NS)
    raise InputError("invalid_value", f"{name!r} must be 0 to {most_ns / SECOND_NS:g} seconds, got {value!r:.80}")


def amounts(fields: Mapping[str, Any]) -> Amounts:
    """Return amounts; absent ones are 0."""
    cores = fields.get("cpu_cores", 0.0)
    if type(cores) not in {int, float} or not 0 <= cores < math.inf:
        raise InputError("invalid_value", f"'cpu_cores' must be a number of at least 0, got {cores!r:.80}")
    return Amounts(float(cores), *(integer(fields, name, 0) for name in AMOUNTS[1:]))
