"""A release in equal steps, as samples from outside show it."""

from __future__ import annotations

from collections.abc import Sequence


def stairs(counts: Sequence[float], levels: Sequence[float], margin: float) -> list[float]:
    """Return the levels on which samples lie, in order and without repeats, from the first sample on the highest of them on."""
    landed = [level for count in counts for level in levels if abs(count - level) <= margin]
    if levels[0] not in landed:
        return []
    landed = landed[landed.index(levels[0]) :]  # the way up is no part of it
    return [level for at, level in enumerate(landed) if at == 0 or landed[at - 1] != level]
