"""Transcendental functions: sine, cosine, exponential, logarithm and square root a round, of the C library."""

from __future__ import annotations

import math

import numpy as np

OPTIONS = {"error_model": "numpy"}


def work(rounds: int, seed: int) -> int:
    """Return a digest of the chain's value after so many rounds; the value stays within 0 and 4."""
    x = float(seed % np.uint64(1000)) * 0.001 + 0.5
    for _ in range(rounds):
        x = math.sqrt(math.log(math.exp(math.sin(x)) + math.cos(x) * math.cos(x) + 1.0) + 0.5)
    return np.uint64(x * 1e9)  # type: ignore[return-value]  # compiled, it gives an int
