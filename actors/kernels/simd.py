"""SIMD arithmetic: fused multiply-adds on packed doubles, as wide as the processor has them.

The area holds doubles, a multiple of 64 of them. One round takes one of its blocks of 64 through 16 multiply-adds each: 2048 floating-point
operations. Values converge, so none overflows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

SIGNATURE: Final = "uint64(CPointer(float64), uint64, uint64, uint64)"
OPTIONS: Final = {"fastmath": {"contract"}, "error_model": "numpy"}
BLOCK: Final = 64


def work(area: npt.NDArray[np.float64], length: int, rounds: int, seed: int) -> int:
    """Take so many blocks of the area, one after another from block `seed` on, through the chain; return the last value seen."""
    a, b = np.float64(0.9999999), np.float64(1.0000001)
    blocks = length // np.uint64(BLOCK)
    last = np.float64(0.0)
    for done in range(rounds):
        base = ((seed + done) % blocks) * np.uint64(BLOCK)
        for at in range(BLOCK):
            x = area[base + np.uint64(at)]
            for _ in range(16):
                x = x * a + b
            area[base + np.uint64(at)] = x
        last = area[base]
    return np.uint64(last)  # type: ignore[return-value]  # compiled, it gives an int
