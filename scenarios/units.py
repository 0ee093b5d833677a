"""Durations, sizes and fractions as people write them: `1h30m`, `512MiB`, `60%`. Pure; never guesses a missing unit.

Reading and writing are exact inverses: `parse_x(format_x(value)) == value` for every value that a scenario may hold. Sums are
kept in decimal until the last step, so that `0.1s` is the same float in Python and in YAML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from actors.errors import InputError

DURATION_MAX_S: Final = 30 * 86_400.0
SIZE_MAX_BYTES: Final = 1 << 53  # beyond it a float no longer holds every whole number of bytes

DURATION_UNITS: Final[Mapping[str, Decimal]] = {
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
}
SIZE_UNITS: Final[Mapping[str, int]] = {
    "TiB": 1 << 40,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "kB": 10**3,
    "B": 1,
}
NUMBER: Final = r"[0-9]{1,30}(?:\.[0-9]{1,30})?"
DURATION_PATTERN: Final = rf"^(?:{NUMBER}d)?(?:{NUMBER}h)?(?:{NUMBER}m)?(?:{NUMBER}s)?(?:{NUMBER}ms)?(?:{NUMBER}us)?$"
SIZE_PATTERN: Final = rf"^{NUMBER} ?(?:{'|'.join(SIZE_UNITS)})$"
FRACTION_PATTERN: Final = rf"^{NUMBER}%$"

_DURATION: Final = re.compile(DURATION_PATTERN)
_DURATION_PART: Final = re.compile(rf"({NUMBER})(ms|us|d|h|m|s)")
_SIZE: Final = re.compile(rf"^({NUMBER}) ?({'|'.join(SIZE_UNITS)})$")
_FRACTION: Final = re.compile(rf"^({NUMBER})%$")
_SMALL: Final = 1e-6  # what is less is written as a plain number: with a unit it would be a row of zeros


def parse_duration(text: str) -> float:
    """Return seconds of `250ms`, `30s`, `2m`, `1h30m`, `1d`; units go from large to small, each at most once.

    Raises `InputError` (`invalid_value`) for anything else, and beyond 30 days.
    """
    if not text or not text.isascii() or not _DURATION.fullmatch(text):
        raise _unreadable(text, "a duration such as 250ms, 30s, 2m or 1h30m")
    parts = _DURATION_PART.findall(text)
    seconds = sum((Decimal(number) * DURATION_UNITS[unit] for number, unit in parts), Decimal(0))
    return check_number("duration", float(seconds), 0.0, DURATION_MAX_S)


def format_duration(duration_s: float) -> str | float:
    """Return the shortest exact text of a duration in seconds, or a plain number where that would be a row of zeros."""
    if duration_s and duration_s < _SMALL:
        return duration_s
    if duration_s == int(duration_s):
        return _whole_duration(int(duration_s))
    exact = Decimal(repr(duration_s))
    milliseconds = exact * 1000
    if duration_s < 1 and milliseconds == milliseconds.to_integral_value():
        return f"{int(milliseconds)}ms"
    return f"{exact:f}s"


def _whole_duration(seconds: int) -> str:
    hours, minutes, rest = seconds // 3600, seconds % 3600 // 60, seconds % 60
    text = "".join(f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if count)
    return text or "0s"


def parse_size(text: str) -> int:
    """Return bytes of `64KiB`, `512MiB`, `1.5GiB`, `1GB`, `0B`; raises `InputError` (`invalid_value`) for anything else."""
    found = _SIZE.fullmatch(text) if text.isascii() else None
    if not found:
        raise _unreadable(text, "a size such as 512MiB, 1.5GiB or 1GB")
    exact = Decimal(found[1]) * SIZE_UNITS[found[2]]
    if exact != exact.to_integral_value():
        raise InputError("invalid_value", f"{text!r} is not a whole number of bytes")
    return int(check_number("size", int(exact), 0, SIZE_MAX_BYTES))


def format_size(size_bytes: int) -> str:
    """Return a size in the largest binary unit that divides it."""
    if size_bytes:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if size_bytes % SIZE_UNITS[unit] == 0:
                return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def parse_fraction(text: str) -> float:
    """Return the fraction of `60%` within 0 to 1; raises `InputError` (`invalid_value`) for anything else."""
    found = _FRACTION.fullmatch(text) if text.isascii() else None
    if not found:
        raise _unreadable(text, "a share such as 60%")
    share = float(Decimal(found[1]) / 100)
    if share > 1:
        raise InputError("invalid_value", f"{text} is more than 100%", "a share goes from 0% to 100%")
    return share


def format_fraction(fraction: float) -> str | float:
    """Return a fraction as an exact percentage, or as a plain number where that would be a row of zeros."""
    if fraction and fraction < _SMALL:
        return fraction
    percent = f"{Decimal(repr(fraction)) * 100:f}"
    return f"{percent.rstrip('0').rstrip('.') if '.' in percent else percent}%"


def check_number(label: str, value: object, low: float = 0.0, high: float = math.inf) -> float:
    """Return `value` as it is when it is a finite number within [low, high].

    `label` names the field in the message, such as `Budget.nodes_max`. Raises `InputError` (`invalid_value`).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError("invalid_value", f"{label} must be a number, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError("invalid_value", f"{label} must be finite, got {value!r}")
    if value < low or value > high:
        upper = "" if math.isinf(high) else f" and at most {high:.15g}"
        raise InputError("invalid_value", f"{label} must be at least {low:.15g}{upper}, got {value!r}")
    return value or abs(value)  # -0.0 becomes 0.0, so that equal values have equal texts


def check_whole(label: str, value: object, low: int = 0, high: int = SIZE_MAX_BYTES) -> int:
    """Return `value` as an int when it is a whole number within [low, high]; raises `InputError` (`invalid_value`)."""
    number = check_number(label, value, low, high)
    if number != int(number):
        raise InputError("invalid_value", f"{label} must be a whole number, got {value!r}")
    return int(number)


def check_choice(label: str, value: object, known: tuple[str, ...]) -> str:
    """Return `value` when it is one of the known words; raises `InputError` (`invalid_value`)."""
    if not isinstance(value, str) or value not in known:
        raise InputError("invalid_value", f"{label} must be one of {', '.join(known)}, got {value!r}")
    return value


def check_text(label: str, value: object, length_max: int = 200) -> str:
    """Return `value` when it is printable text without control characters; raises `InputError` (`invalid_value`)."""
    if not isinstance(value, str):
        raise InputError("invalid_value", f"{label} must be text, got {value!r}")
    if len(value) > length_max:
        raise InputError("invalid_value", f"{label} must have at most {length_max} characters, got {len(value)}")
    strange = next((char for char in value if not (char.isprintable() or char == "\n")), None)
    if strange is not None:
        raise InputError("invalid_value", f"{label} must be printable text, got the character {strange!a}")
    return value


def _unreadable(text: str, wanted: str) -> InputError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return InputError("invalid_value", f"expected {wanted}, found {shown!r}")
