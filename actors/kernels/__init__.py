"""Compiled loops that load a core. Each module compiles at import (or reads the cache) and gives `work(rounds, seed)`.

They release the interpreter, touch no memory and never look at a clock: the caller keeps each call short.
The cache lies where NUMBA_CACHE_DIR says, a folder of STATE in load processes; without it nothing is cached, so that no files
appear beside the sources.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Final, cast

Kernel = Callable[[int, int], int]

NAMES: Final = ("integer", "float")
_MODULES: Final = {"integer": "integer", "float": "floating"}


def compile_kernel(function: Kernel) -> Kernel:
    """Return `work(rounds, seed)` compiled, or read from the cache where there is one."""
    import numba  # noqa: PLC0415  # only load processes pay for it

    return cast("Kernel", numba.njit("uint64(uint64, uint64)", nogil=True, cache="NUMBA_CACHE_DIR" in os.environ)(function))


def load_kernel(name: str) -> Kernel:
    """Return a kernel of `NAMES`, compiled; the first call on a machine takes seconds, later ones under one."""
    kernel: Kernel = importlib.import_module(f"{__name__}.{_MODULES[name]}").work
    return kernel
