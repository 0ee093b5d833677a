"""Scenarios that come with the product, by name. Each is a value in a file of its own; its docstring says what holding proves."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, Final

from actors.errors import InputError

from ..model import Scenario

NAMES: Final[tuple[str, ...]] = (
    "burst",
    "contention",
    "exhaustion",
    "memory-storm",
)


def get(name: str) -> Scenario:
    """Return a catalogue scenario, its words joined by - or _; raises `InputError` (`unknown_name`) with the nearest name."""
    known = str(name).replace("_", "-")
    if known not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMES)}; or give a .yaml or .py file"
        raise InputError("unknown_name", f"no scenario is called {name!r}", hint)
    scenario: Scenario = _module(known).scenario
    return scenario


def describe() -> Mapping[str, str]:
    """Return what holding each scenario proves, by name."""
    return {name: (_module(name).__doc__ or "").strip() for name in NAMES}


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
