"""What a simulator can be told beside its strength: options with kinds, ranges and help. The schema and the reference come from them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .errors import InputError

OptionKind = Literal["text", "path", "choice", "flag", "integer", "number", "fraction", "bytes", "duration", "cores"]
Value = str | int | float | bool

LARGEST: Final = 1 << 53  # beyond it a float no longer holds every whole number
_TEXT_MAX: Final = 1_000
_WHOLE: Final = ("integer", "bytes", "cores")
_TOP: Final[Mapping[str, float]] = {"fraction": 1.0, "duration": 30 * 86_400.0}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a simulator.

    `kind`: "path" is an absolute path or "" for none, "cores" is "all" or a whole number from 1, "bytes" a whole number, "duration" is in
    seconds, "fraction" from 0 to 1. `low` and `high` bound numbers; without `high` the kind's own bound counts. `examples` are texts
    that a rule of the simulator takes.
    """

    name: str
    kind: OptionKind
    default: Value
    help: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float | None = None
    choice_help: Mapping[str, str] = field(default_factory=dict)  # where `help` does not say what each choice is
    examples: tuple[str, ...] = ()

    @property
    def top(self) -> float:
        """Return the largest number that is taken."""
        return self.high if self.high is not None else _TOP.get(self.kind, LARGEST)

    def check(self, value: Any, label: str = "") -> Value:
        """Return the value, or raise `InputError` (`invalid_value`) that says what was expected. `label` names the option in it."""
        name = label or f"option {self.name!r}"
        if self.kind == "choice":
            return self._require(name, value, value in self.choices, f"one of {', '.join(self.choices)}")
        if self.kind == "flag":
            return self._require(name, value, isinstance(value, bool), "true or false")
        if self.kind in ("text", "path"):
            return self._text(name, value)
        if self.kind == "cores" and value == "all":
            return "all"
        return self._number(name, value)

    def _text(self, name: str, value: Any) -> Value:
        fits = isinstance(value, str) and len(value) <= _TEXT_MAX and value.isprintable()
        if self.kind == "path":
            return self._require(name, value, fits and (not value or value.startswith("/")), "an absolute path")
        return self._require(name, value, fits, f"a printable text of at most {_TEXT_MAX:,} characters")

    def _number(self, name: str, value: Any) -> Value:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        whole = self.kind in _WHOLE
        fits = is_number and self.low <= value <= self.top and (not whole or value == int(value))
        self._require(name, value, fits, self.expected)
        return int(value) if whole else float(value)

    @property
    def expected(self) -> str:
        """Return which values are taken, in words."""
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "flag":
            return "true or false"
        if self.kind in ("text", "path"):
            return "an absolute path" if self.kind == "path" else "a text"
        what = {"integer": "a whole number", "bytes": "a whole number of bytes", "cores": '"all" or a whole number', "duration": "seconds"}
        bounds = f"from {self.low:g}" if self.top == LARGEST else f"from {self.low:g} to {self.top:.15g}"
        return f"{what.get(self.kind, 'a number')} {bounds}"

    def _require(self, name: str, value: Any, fits: bool, expected: str) -> Value:
        if not fits:
            raise InputError("invalid_value", f"{name} must be {expected}, got {value!r}")
        found: Value = value
        return found

    def to_schema(self) -> dict[str, Any]:
        """Return the option's JSON Schema."""
        about: dict[str, Any] = {"description": self.help, "default": self.default}
        if self.kind == "choice" and self.choice_help:
            return {"oneOf": [{"const": choice, "description": self.choice_help[choice]} for choice in self.choices], **about}
        if self.kind == "choice":
            return {"enum": list(self.choices), **about}
        if self.kind == "flag":
            return {"type": "boolean", **about}
        if self.kind in ("text", "path"):
            return {"type": "string", **about, **({"examples": list(self.examples)} if self.examples else {})}
        bounds = {"minimum": self.low, **({} if self.top == LARGEST else {"maximum": self.top})}
        number = {"type": "integer" if self.kind in _WHOLE else "number", **bounds}
        return {"oneOf": [{"const": "all"}, number], **about} if self.kind == "cores" else {**number, **about}


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """Return a hint that offers the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
