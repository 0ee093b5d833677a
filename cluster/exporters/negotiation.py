"""Which form and which coding a scraper wants, from its Accept and Accept-Encoding headers (RFC 9110, 12.5). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .exposition import Form

_QUALITY: Final = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
_TYPES: Final = {
    Form.TEXT: ("text/plain", "0.0.4"),
    Form.OPENMETRICS: ("application/openmetrics-text", "1.0.0"),
}


@dataclass(frozen=True, slots=True)
class _Range:
    name: str
    parameters: dict[str, str]
    quality: float


def form_of(accept: str | None) -> Form | None:
    """Return the form that is wanted most, or None when none is acceptable. Without a wish, or with `*/*` alone, it is 0.0.4."""
    if accept is None or not accept.strip():
        return Form.TEXT
    ranges = _ranges(accept)
    best = max(Form, key=lambda form: _rank(form, ranges))
    return best if _rank(best, ranges)[0] > 0 else None


def coding_of(accept_encoding: str | None) -> str | None:
    """Return `gzip`, `identity`, or None when neither is acceptable."""
    qualities = {one.name: one.quality for one in _ranges(accept_encoding or "")}
    rest = qualities.get("*")
    gzip = qualities.get("gzip", qualities.get("x-gzip", rest or 0.0))
    # identity is acceptable unless it, or all that is not named, is ruled out
    identity = qualities.get("identity", rest if rest == 0.0 else None)
    if gzip > 0 and gzip >= (identity or 0.0):
        return "gzip"
    if identity == 0.0:
        return "gzip" if gzip > 0 else None
    return "identity"


def _rank(form: Form, ranges: list[_Range]) -> tuple[float, int, bool]:
    """Return the quality by the most specific range that fits, how specific that is, and what wins at a tie."""
    found = max(((_fit(form, one), one.quality) for one in ranges), default=(0, 0.0))
    fit, quality = found
    if not fit:
        return 0.0, 0, False
    named = fit > 2
    return quality, fit, named == (form is Form.OPENMETRICS)


def _fit(form: Form, one: _Range) -> int:
    """Return 0 when a range does not cover a form, else how specific it is."""
    name, version = _TYPES[form]
    if one.name == "*/*":
        return 1
    if one.name == f"{name.partition('/')[0]}/*":
        return 2
    if one.name != name or one.parameters.get("charset", "utf-8").lower() != "utf-8":
        return 0
    asked = one.parameters.get("version")
    return 3 if asked is None else 4 if asked == version else 0


def _ranges(header: str) -> list[_Range]:
    """Return the ranges of a header; what has a quality that is none is left out."""
    found = []
    for part in header.split(","):
        name, *rest = (piece.strip() for piece in part.split(";"))
        pairs = (piece.partition("=") for piece in rest)
        parameters = {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}
        quality = parameters.pop("q", "1")
        if name and _QUALITY.fullmatch(quality):
            found.append(_Range(name.lower(), parameters, float(quality)))
    return found
