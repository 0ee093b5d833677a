"""Pointer chase: each load gives the place of the next, so that nothing overlaps and nothing can be fetched ahead.

The area holds 64-bit words; the words on the way form one closed walk of indices (see `areas`). One round is one load.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGNATURE = "uint64(CPointer(uint64), uint64, uint64, uint64)"
OPTIONS = {"error_model": "numpy"}


def work(area: npt.NDArray[np.uint64], length: int, rounds: int, seed: int) -> int:
    """Follow the walk from the word at `seed`; return where it has come to. A seed outside of the area begins at word 0."""
    at = np.uint64(seed)
    if at >= np.uint64(length):
        at = np.uint64(0)
    for _ in range(rounds):
        at = area[at]
    return at  # type: ignore[return-value]  # compiled, it gives an int
