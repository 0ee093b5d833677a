"""Cache thrashing: reads and writes one word of a line in random order, each line a step of its own, so that many misses overlap.

The area holds 64-bit words, a power of two of them: how large it is decides which level of cache it fits in. One round is one line.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGNATURE = "uint64(CPointer(uint64), uint64, uint64, uint64)"
OPTIONS = {"error_model": "numpy"}


def work(area: npt.NDArray[np.uint64], length: int, rounds: int, seed: int) -> int:
    """Add to so many words; return the random state to go on with (multiplier and increment: Knuth, MMIX)."""
    lines = np.uint64(length) >> np.uint64(3)
    state = np.uint64(seed)
    for _ in range(rounds):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        at = (state >> np.uint64(32)) & (lines - np.uint64(1))
        area[at << np.uint64(3)] += state
    return state  # type: ignore[return-value]  # compiled, it gives an int
