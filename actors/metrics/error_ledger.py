"""Errors by stable code: how many, and the last few of each in words. How often they come is the stream's to say: `errors.rate`.

The codes are the closed table of `errors.CODES`, so there are never more series than codes. What is no error of ours gets the nearest code:
`os` (errno kept), `timeout`, `cancelled`, and `internal` for the rest, with the type's name in its example.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import dataclass
from typing import Final

from ..clock import Clock
from ..errors import CODES, StressError

ErrorSink = Callable[[BaseException], object]

EXAMPLES: Final = 3  # kept of each code
TEXT_MAX: Final = 200
CAUSES_MAX: Final = 16  # errors of a chain that are looked at for an errno


@dataclass(frozen=True, slots=True)
class Example:
    """One error in words: when (UTC ns), what, and its errno where it has one."""

    wall_ns: int
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
    """Counts errors and keeps the last few of each code. Safe from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}
        self._examples: dict[str, deque[Example]] = {}

    def note(self, error: BaseException) -> str:
        """Count an error and keep it as an example; return its code."""
        code = code_of(error)
        kind = type(error).__name__
        self.note_code(code, str(error), kind=kind, errno=errno_of(error))
        return code

    def note_code(self, code: str, message: str = "", *, kind: str = "", errno: int | None = None) -> None:
        """Count an error that is known by its code, as one that came from another process."""
        assert code in CODES, f"unknown error code {code!r}"
        with self._lock:
            self._totals[code] = self._totals.get(code, 0) + 1
            example = Example(self._clock.wall_ns(), kind, message[:TEXT_MAX], errno)
            self._examples.setdefault(code, deque(maxlen=EXAMPLES)).append(example)

    def totals(self) -> dict[str, int]:
        """Return how many there were of each code."""
        with self._lock:
            return dict(self._totals)

    def recent(self) -> dict[str, tuple[Example, ...]]:
        """Return the last few errors of each code, the most frequent code first."""
        with self._lock:
            ranked = sorted(self._totals, key=lambda code: (-self._totals[code], code))
            return {code: tuple(self._examples[code]) for code in ranked}
