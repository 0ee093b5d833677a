"""Division: an integer and a floating-point division a round, each divided by what the last one left, so that neither can be foreseen."""

from __future__ import annotations

import numpy as np

OPTIONS = {"error_model": "numpy"}


def work(rounds: int, seed: int) -> int:
    """Return the integer chain's state after so many rounds."""
    state = np.uint64(seed) | np.uint64(1)
    quotient = np.float64(1.0)
    for _ in range(rounds):
        state = np.uint64(0xFFFFFFFFFFFFFFC5) // ((state & np.uint64(0xFFFFFFFF)) | np.uint64(1)) ^ state << np.uint64(7)
        quotient = np.float64(3.0) / (quotient + np.float64(0.5))
    return state + np.uint64(quotient)  # type: ignore[return-value]  # compiled, it gives an int
