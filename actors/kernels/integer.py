"""Integer arithmetic: rounds of xorshift64* (Marsaglia 2003, Vigna 2016), each depending on the one before."""

from __future__ import annotations

import numpy as np

from . import compile_kernel


def _work(rounds: int, seed: int) -> int:
    state = np.uint64(seed) | np.uint64(1)
    for _ in range(rounds):
        state ^= state >> np.uint64(12)
        state ^= state << np.uint64(25)
        state ^= state >> np.uint64(27)
        state *= np.uint64(2685821657736338717)
    return state  # type: ignore[return-value]  # numba gives an int to the caller


work = compile_kernel(_work)
