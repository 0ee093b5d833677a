"""Memory bandwidth: the four loops of STREAM (McCalpin 1995) over arrays that no cache holds.

The area holds doubles: three arrays of equal length, a multiple of `LINE`. One round is one line of each array that a loop uses; `variant`
is 0 copy (c = a), 1 scale (b = 3 c), 2 add (c = a + b), 3 triad (a = b + 3 c).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGNATURE = "uint64(CPointer(float64), uint64, uint64, uint64, uint64)"
OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}
LINE = 8


def work(area: npt.NDArray[np.float64], length: int, rounds: int, seed: int, variant: int) -> int:
    """Take so many lines from line `seed` on through one loop; return the line to go on with."""
    lines = np.uint64(length) // np.uint64(3 * LINE)
    b = lines * np.uint64(LINE)
    c = b + b
    line = np.uint64(seed) % lines
    left = np.uint64(rounds)
    while left > np.uint64(0):
        run = min(left, lines - line)
        low, high = line * np.uint64(LINE), (line + run) * np.uint64(LINE)
        if variant == np.uint64(0):
            for at in range(low, high):
                area[c + at] = area[at]
        elif variant == np.uint64(1):
            for at in range(low, high):
                area[b + at] = 3.0 * area[c + at]
        elif variant == np.uint64(2):
            for at in range(low, high):
                area[c + at] = area[at] + area[b + at]
        else:
            for at in range(low, high):
                area[at] = area[b + at] + 3.0 * area[c + at]
        line = (line + run) % lines
        left -= run
    return line  # type: ignore[return-value]  # compiled, it gives an int
