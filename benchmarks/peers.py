"""Peers that may not be installed: each gives its figures, or says that it is missing. None is left out without a word."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

MISSING = "missing: not installed"


def measured(module: str, call: Callable[[], Any]) -> Any:
    """Return what `call` finds when the module is there; else that it is missing, or why this release of it could not be measured."""
    try:
        if importlib.util.find_spec(module) is None:
            return MISSING
    except ModuleNotFoundError:  # of its parent
        return MISSING
    try:
        return call()
    except (AttributeError, ImportError, TypeError, ValueError) as error:  # another release with another interface
        return f"missing: {type(error).__name__}: {error}"


def installed(*distributions: str) -> tuple[str, ...]:
    """Return those that are installed, for the machine's facts."""
    found = []
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def figures_of(found: dict[str, Any]) -> dict[str, float]:
    """Return the figures among these, without what is missing."""
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}
