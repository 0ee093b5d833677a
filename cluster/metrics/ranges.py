"""A set of whole numbers as few ranges: which records of a stream are held. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class Ranges:
    """A set of sequence numbers, kept as few ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ranges: list[list[int]] = []
        for first, last in sorted(ranges):
            self._insert(first, last)

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(tuple(self.pairs()))

    def add(self, number: int) -> None:
        """Add one number; the usual case, the next one, costs nothing."""
        if self._ranges and self._ranges[-1][1] + 1 == number:
            self._ranges[-1][1] = number
        elif number not in self:
            pairs = sorted([*self.pairs(), (number, number)])
            self._ranges = []
            for first, last in pairs:
                self._insert(first, last)

    def union(self, other: Ranges) -> Ranges:
        """Return numbers of either."""
        return Ranges([*self.pairs(), *other.pairs()])

    @property
    def contiguous(self) -> int:
        """The last number of the unbroken range that begins at 1; 0 when 1 is missing."""
        return self._ranges[0][1] if self._ranges and self._ranges[0][0] == 1 else 0

    @property
    def last(self) -> int:
        """The highest number; 0 when there is none."""
        return self._ranges[-1][1] if self._ranges else 0

    @property
    def missing(self) -> int:
        """How many numbers from 1 to the highest are not in it."""
        return self.last - sum(last - first + 1 for first, last in self._ranges)

    def pairs(self) -> list[tuple[int, int]]:
        """Return the ranges as (first, last)."""
        return [(first, last) for first, last in self._ranges]

    def _insert(self, first: int, last: int) -> None:
        if self._ranges and first <= self._ranges[-1][1] + 1:
            self._ranges[-1][1] = max(self._ranges[-1][1], last)
        else:
            self._ranges.append([first, last])
