"""Primes: trial division of odd numbers from 1,000,001 on. One round is one division, so the next number waits for the next call."""

from __future__ import annotations

import numpy as np

OPTIONS = {"error_model": "numpy"}
START = 1_000_001


def work(rounds: int, seed: int) -> int:
    """Go on from state `seed` by so many divisions; return the new state: the number under test (below 2^32) and, above, its next divisor.

    A state of no use, such as a plain small seed, begins at `START`. The count of primes lies in the top 16 bits.
    """
    number = np.uint64(seed) & np.uint64(0xFFFFFFFF)
    divisor = np.uint64(seed) >> np.uint64(32) & np.uint64(0xFFFF)
    primes = np.uint64(seed) >> np.uint64(48)
    if number < np.uint64(START) or divisor < np.uint64(3):
        number, divisor, primes = np.uint64(START), np.uint64(3), np.uint64(0)
    for _ in range(rounds):
        if divisor * divisor > number:
            primes += np.uint64(1)
            number += np.uint64(2)
            divisor = np.uint64(3)
        elif number % divisor == np.uint64(0):
            number += np.uint64(2)
            divisor = np.uint64(3)
        else:
            divisor += np.uint64(2)
    return primes << np.uint64(48) | divisor << np.uint64(32) | number  # type: ignore[return-value]  # compiled, it gives an int
