"""What sketches of a distribution share: equal is what encodes to the same bytes, and one quantile is the first of several. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Encoded(Protocol):
    """A sketch; who inherits brings `encode` and `quantiles`."""

    __slots__ = ()

    def encode(self) -> bytes:
        """Return the bytes."""
        ...

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Return several quantiles."""
        ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def quantile(self, q: float) -> float:
        """Return one quantile, by the rule of `quantiles`."""
        return self.quantiles((q,))[0]
