"""Integer arithmetic: rounds of xorshift64* (Marsaglia 2003, Vigna 2016), each depending on the one before."""

from __future__ import annotations

import numpy as np


def work(rounds: int, seed: int) -> int:
    """Return the generator's state after so many rounds."""
    state = np.uint64(seed) | np.uint64(1)
    for _ in range(rounds):
        state ^= state >> np.uint64(12)
        state ^= state << np.uint64(25)
        state ^= state >> np.uint64(27)
        state *= np.uint64(2685821657736338717)
    return state  # type: ignore[return-value]  # compiled, it gives an int
