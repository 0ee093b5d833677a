"""Float arithmetic: four independent chains of multiply and add, which keep the units busy and converge, so no value overflows."""

from __future__ import annotations

import numpy as np


def work(rounds: int, seed: int) -> int:
    """Return what the chains come to after so many rounds."""
    a = np.float64(seed % np.uint64(1000)) * 0.001
    b, c, d = a + 0.25, a + 0.5, a + 0.75
    for _ in range(rounds):
        a = a * 0.9999999 + 1.0000001
        b = b * 0.9999998 + 1.0000002
        c = c * 0.9999997 + 1.0000003
        d = d * 0.9999996 + 1.0000004
    return np.uint64(a + b + c + d)  # type: ignore[return-value]  # compiled, it gives an int
