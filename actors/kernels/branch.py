"""A branch that depends on data: taken where the top bit of a word is set. Sorted data make it easy to foresee, random data impossible.

The area holds 64-bit words, a power of two of them, and one word more: there the taken side stores, which no processor does before it
knows the branch, so that no compiler may turn it into a conditional move. One round is one word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGNATURE = "uint64(CPointer(uint64), uint64, uint64, uint64)"
OPTIONS = {"error_model": "numpy"}


def work(area: npt.NDArray[np.uint64], length: int, rounds: int, seed: int) -> int:
    """Look at so many words from word `seed` on; return the word to go on with."""
    words = np.uint64(length) - np.uint64(1)
    at = np.uint64(seed)
    for _ in range(rounds):
        word = area[at & (words - np.uint64(1))]
        if word >> np.uint64(63):
            area[words] = word
        at += np.uint64(1)
    return at  # type: ignore[return-value]  # compiled, it gives an int
