"""Compiled loops that load a core. Each module compiles at import (or reads the cache) and gives `work(rounds, seed)`.

They release the interpreter, touch no memory and never look at a clock: the caller keeps each call short.
The cache lies where NUMBA_CACHE_DIR says; load processes set it to a folder of STATE.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final

Kernel = Callable[[int, int], int]

NAMES: Final = ("integer", "float")
_MODULES: Final = {"integer": "integer", "float": "floating"}


def load_kernel(name: str) -> Kernel:
    """Return a kernel of `NAMES`, compiled; the first call on a machine takes seconds, later ones under one."""
    kernel: Kernel = importlib.import_module(f"{__name__}.{_MODULES[name]}").work
    return kernel
