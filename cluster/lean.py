"""What a process of ours leaves out: pandas, which pyarrow looks for at its first conversion, and in an agent Arrow's own memory pool.

Importing pandas takes half a second and holds the interpreter: in an agent that guards load, with the machine at its busiest, that was
3.6 s without a sample. Nothing here uses it; a user's own process is left alone.
"""

from __future__ import annotations

import importlib.abc
import sys

ABSENT = "pandas"
GIVES_BACK = {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # of 100,000 series that were forgotten Arrow's own pool keeps 24 MiB


class _Absent(importlib.abc.MetaPathFinder):
    """Finds that a package is not installed."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == ABSENT:
            raise ModuleNotFoundError(f"{name} is left out of this process", name=name)


def leave_out() -> None:
    """Have this process do without pandas, unless it has it already. To be called before pyarrow is used."""
    if ABSENT not in sys.modules and not any(isinstance(finder, _Absent) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Absent())
