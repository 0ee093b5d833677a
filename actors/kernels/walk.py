"""Reads of a work area in an order: sequential, strided, random, along pointers, or mostly within a hot spot.

The area holds `length` 64-bit words and one more, which takes what was read: sum of word * (2 * k + 1) for the k-th read, so that it
depends on the order. The caller prepares it by FILL (each word is its own index), and by LINK for CHASE: the first word of each line of 8
then is the index of the next line's, all lines in one cycle (Sattolo 1986). `state` is where to go on, and what is returned is the state
after the last read: an index (SEQUENTIAL, STRIDED, CHASE), or a xorshift64* state above 0 (Vigna 2016).

Words up to 2^32 are reached. Whole numbers only: the same arguments read the same indexes on every machine.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .orders import CHASE, FILL, HOT_SPOT, LINK, SEQUENTIAL, STRIDED

SIGNATURE: Final = "uint64(CPointer(uint64), uint64, uint64, uint64, uint64, uint64)"


# One function is what is compiled, and each branch is one order: it is long.
def work(area: npt.NDArray[np.uint64], length: Any, rounds: Any, state: Any, pattern: Any, stride: Any) -> Any:
    """Read `rounds` words in the order of `pattern`, or prepare the area; return the state to go on from."""
    one, two, line = np.uint64(1), np.uint64(2), np.uint64(8)
    total = np.uint64(0)
    if pattern == np.uint64(SEQUENTIAL):
        for k in range(rounds):
            total += area[state] * (two * np.uint64(k) + one)
            state += one
            if state >= length:
                state = np.uint64(0)
    elif pattern == np.uint64(STRIDED):
        for k in range(rounds):
            total += area[state] * (two * np.uint64(k) + one)
            state += stride
            if state >= length:  # the next lane, so that each word has its turn
                state = (state % stride + one) % stride
    elif pattern == np.uint64(CHASE):
        for k in range(rounds):
            state = area[state]
            total += state * (two * np.uint64(k) + one)
    elif pattern == np.uint64(FILL):
        for at in range(length):
            area[at] = np.uint64(at)
    elif pattern == np.uint64(LINK):
        for below in range(length // line - one):
            last = length // line - one - np.uint64(below)
            state ^= state >> np.uint64(12)
            state ^= state << np.uint64(25)
            state ^= state >> np.uint64(27)
            other = ((state * np.uint64(2685821657736338717)) >> np.uint64(32)) * last >> np.uint64(32)
            kept = area[last * line]
            area[last * line] = area[other * line]
            area[other * line] = kept
    else:
        hot, often = max(length // np.uint64(10), one), np.uint64(3865470566)  # 90 % of 2^32
        for k in range(rounds):
            state ^= state >> np.uint64(12)
            state ^= state << np.uint64(25)
            state ^= state >> np.uint64(27)
            drawn = state * np.uint64(2685821657736338717)
            within = length
            if pattern == np.uint64(HOT_SPOT) and (drawn & np.uint64(0xFFFFFFFF)) < often:
                within = hot
            total += area[(drawn >> np.uint64(32)) * within >> np.uint64(32)] * (two * np.uint64(k) + one)
    area[length] = total
    return state
