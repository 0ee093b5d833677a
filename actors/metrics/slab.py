"""A slab: equal blocks of float64 in one piece of memory, given out and taken back in a few steps.

For buffers of one size that come and go at the rate of batches: a block costs a list step whatever came before, so there is nothing to
fragment, and its memory is touched once. A block that is given back twice, or was never given out, is refused. Safe from any thread: each
step on the list of free blocks is one call of the interpreter's, and a block belongs to one user until it is back.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Block = npt.NDArray[np.float64]


class Slab:
    """`blocks` arrays of `size` float64. `take` gives a block's number, `give` takes it back, `block(number)` is its memory."""

    def __init__(self, blocks: int, size: int) -> None:
        if blocks < 1 or size < 1:
            raise InputError("invalid_value", f"a slab has 1 block or more of 1 word or more, got {blocks} of {size}")
        self._map = mmap.mmap(-1, blocks * size * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a forked child gets its own
        whole = np.frombuffer(self._map, np.float64).reshape(blocks, size)
        self._blocks = list(whole)
        self._free = list(range(blocks - 1, -1, -1))
        self._taken = bytearray(blocks)

    def take(self) -> int | None:
        """Return the number of a free block, or None when all are in use; it holds what its last user left."""
        try:
            number = self._free.pop()
        except IndexError:
            return None
        self._taken[number] = 1
        return number

    def give(self, number: int) -> None:
        """Take a block back. Raises `InputError` when it is free already, or there is no such block."""
        if not 0 <= number < len(self._blocks) or not self._taken[number]:
            raise InputError("invalid_value", f"block {number} is not in use: given back twice, or never taken")
        self._taken[number] = 0
        self._free.append(number)

    def block(self, number: int) -> Block:
        """Return the memory of a block; use it only between `take` and `give`."""
        return self._blocks[number]

    @property
    def in_use(self) -> int:
        """Blocks that are given out."""
        return len(self._blocks) - len(self._free)
