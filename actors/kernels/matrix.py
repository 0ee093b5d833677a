"""Matrix products by numpy's BLAS. Its threads are held to one by the load's environment: each thread of the load is one already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

SIZE: Final = 128


def make() -> Callable[[int, int], int]:
    """Return the kernel, with matrices of its own: so many products; the state is what it was."""
    left, right = np.random.default_rng(1).random((2, SIZE, SIZE))
    product = np.empty((SIZE, SIZE))

    def work(rounds: int, state: int) -> int:
        for _ in range(rounds):
            np.dot(left, right, out=product)
        return state

    return work
