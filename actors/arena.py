"""An allocator over a range of bytes, and how split its free space is. Pure: it counts offsets and touches no memory.

    fragmentation = 1 - largest hole / all free bytes      0: one hole, or nothing free; towards 1: many small ones

That is external fragmentation as Johnstone and Wilson ("The memory fragmentation problem: solved?", 1998) have it among others: which
share of the free bytes one request cannot get. Holes are kept in order of their addresses; the first that fits is taken (first fit), and
a hole joins its neighbours as soon as it is made.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from .errors import InputError

ALIGN_BYTES: Final = 16  # as malloc aligns: two words


def fragmentation(free_bytes: float, largest_bytes: float) -> float:
    """Return 1 - largest / free, 0.0 where nothing is free."""
    return 1.0 - largest_bytes / free_bytes if free_bytes > 0 else 0.0


class Arena:
    """Blocks within [0, size_bytes). It never grows: what finds no hole is refused."""

    def __init__(self, size_bytes: int) -> None:
        """Make it with one hole. Raises `InputError` (`invalid_value`) for a size that is not a multiple of 16 above 0."""
        if size_bytes <= 0 or size_bytes % ALIGN_BYTES:
            raise InputError("invalid_value", f"an arena's size must be a multiple of {ALIGN_BYTES} above 0, got {size_bytes}")
        self.size_bytes = size_bytes
        self._starts: list[int] = [0]  # of holes, ascending
        self._ends: list[int] = [size_bytes]
        self._blocks: dict[int, int] = {}  # offset -> bytes
        self.live_bytes = 0

    @property
    def free_bytes(self) -> int:
        """All bytes in holes."""
        return self.size_bytes - self.live_bytes

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The holes as (offset, bytes), by address."""
        return [(start, end - start) for start, end in zip(self._starts, self._ends, strict=True)]

    @property
    def largest_hole_bytes(self) -> int:
        """The most that one request can get."""
        return max((end - start for start, end in zip(self._starts, self._ends, strict=True)), default=0)

    @property
    def fragmentation(self) -> float:
        """Which share of the free bytes one request cannot get, 0..1."""
        return fragmentation(self.free_bytes, self.largest_hole_bytes)

    @property
    def blocks(self) -> dict[int, int]:
        """The live blocks: offset -> bytes."""
        return dict(self._blocks)

    def allocate(self, size_bytes: int) -> int | None:
        """Return the offset of a new block, rounded up to 16 bytes; None where no hole is large enough.

        Raises `InputError` (`invalid_value`) for a size that is not above 0.
        """
        if size_bytes <= 0:
            raise InputError("invalid_value", f"a block must have at least 1 byte, got {size_bytes}")
        wanted = -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
        for index, start in enumerate(self._starts):
            if self._ends[index] - start >= wanted:
                self._cut(index, wanted)
                self._blocks[start] = wanted
                self.live_bytes += wanted
                return start
        return None

    def _cut(self, index: int, size_bytes: int) -> None:
        """Take bytes from a hole's front."""
        self._starts[index] += size_bytes
        if self._starts[index] == self._ends[index]:
            del self._starts[index], self._ends[index]

    def free(self, offset: int) -> int:
        """Give a block back, join it with the holes beside it, and return its bytes.

        Raises `InputError` (`invalid_value`) for an offset that no live block begins at: freed twice, or never given.
        """
        size_bytes = self._blocks.pop(offset, 0)
        if not size_bytes:
            raise InputError("invalid_value", f"no live block begins at {offset}")
        self.live_bytes -= size_bytes
        self._add_hole(offset, offset + size_bytes)
        return size_bytes

    def _add_hole(self, start: int, end: int) -> None:
        after = bisect_left(self._starts, start)  # the first hole behind it
        if after < len(self._starts) and self._starts[after] == end:
            end = self._ends[after]
            del self._starts[after], self._ends[after]
        if after and self._ends[after - 1] == start:
            self._ends[after - 1] = end
            return
        self._starts.insert(after, start)
        self._ends.insert(after, end)
