"""Errors by stable code: how many, and each in words. How often they come is the stream's to say: `errors.rate`.

The codes are the closed table of `errors.CODES`, so there are never more series than codes. What is no error of ours gets the nearest code:
`os` (errno kept), `timeout`, `cancelled`, and `internal` for the rest, with the type's name.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import dataclass
from typing import Final

from ..errors import StressError

ErrorSink = Callable[[BaseException], object]

TEXT_MAX: Final = 200
CAUSES_MAX: Final = 16  # errors of a chain that are looked at for an errno


@dataclass(frozen=True, slots=True)
class Noted:
    """One error in words, the how-manieth of its code it is, and its errno where it has one."""

    code: str
    number: int
    kind: str
    message: str
    errno: int | None = None


def code_of(error: BaseException) -> str:
    """Return the stable code of any error."""
    if isinstance(error, StressError):
        return error.code
    if isinstance(error, TimeoutError):  # before OSError, which it is a kind of
        return "timeout"
    if isinstance(error, OSError):
        return "os"
    if isinstance(error, (asyncio.CancelledError, FutureCancelledError, KeyboardInterrupt)):
        return "cancelled"
    return "internal"


def errno_of(error: BaseException) -> int | None:
    """Return the errno of an error, or of the one that it was raised from, at most `CAUSES_MAX` steps back."""
    found: BaseException | None = error
    for _ in range(CAUSES_MAX):  # causes may form a circle
        if found is None:
            return None
        if isinstance(found, OSError) and found.errno is not None:
            return found.errno
        found = found.__cause__
    return None


class ErrorLedger:
    """Counts errors. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}

    def note(self, error: BaseException) -> Noted:
        """Count an error under its code, and return what there is to say of it."""
        code = code_of(error)
        with self._lock:
            number = self._totals[code] = self._totals.get(code, 0) + 1
        return Noted(code, number, type(error).__name__, str(error)[:TEXT_MAX], errno_of(error))

    def totals(self) -> dict[str, int]:
        """Return how many there were of each code."""
        with self._lock:
            return dict(self._totals)
