"""Memory that cores write together: each round adds to a word in one locked step.

The area holds 64-bit words that all threads share. `variant` 0 adds to word 0, for every thread the same one; 1 to a word of the thread's
own in the same line (false sharing); 2 the same in lines of their own, for comparison. `seed` is the thread's number.

Locked in all of them: a plain load and store of a word of one's own is answered by the core's store buffer, and on an Intel Sapphire Rapids
two cores that share a line that way take 1.2 times as long as with a line each; with locked steps it is 3.9 times.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

SIGNATURE = "uint64(CPointer(uint64), uint64, uint64, uint64, uint64)"
OPTIONS = {"error_model": "numpy"}
_WORD = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def add_atomically(_context: object, area: object, at: object) -> object:
    """Return code for `area[at] += 1` as one locked step."""

    def generate(_context: object, builder: ir.IRBuilder, _signature: object, arguments: list[ir.Value]) -> ir.Value:
        pointer = builder.gep(arguments[0], [arguments[1]], source_etype=_WORD)
        return builder.atomic_rmw("add", pointer, ir.Constant(_WORD, 1), "monotonic")

    return types.uint64(area, at), generate


def work(area: npt.NDArray[np.uint64], length: int, rounds: int, seed: int, variant: int) -> int:
    """Raise a word so many times; return the thread's number."""
    step = np.uint64(0) if variant == np.uint64(0) else np.uint64(1) if variant == np.uint64(1) else np.uint64(16)
    at = (np.uint64(seed) * step) % np.uint64(length)
    for _ in range(rounds):
        add_atomically(area, at)
    return np.uint64(seed)  # type: ignore[return-value]  # compiled, it gives an int
