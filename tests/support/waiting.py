"""Wait for something to become true, with a bound and a message that says what did not happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(predicate: Callable[[], T], timeout_s: float, describe: str | Callable[[], str] = "", every_s: float = 0.02) -> T:
    """Return the first truthy answer of `predicate`.

    Raises `AssertionError` after `timeout_s` with `describe` (a text, or a function asked only then) and the last answer.
    """
    start = time.monotonic()
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() - start > timeout_s:
            what = describe() if callable(describe) else describe or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"not within {timeout_s:g} s: {what}; the last answer was {answer!r}")
        time.sleep(every_s)


def never(predicate: Callable[[], object], for_s: float, describe: str = "", every_s: float = 0.02) -> None:
    """Watch for `for_s` seconds that `predicate` stays falsy; raises `AssertionError` the first time it does not."""
    start = time.monotonic()
    while time.monotonic() - start < for_s:
        answer = predicate()
        after_s = time.monotonic() - start
        assert not answer, f"{describe or predicate} became {answer!r} after {after_s:.2f} s"
        time.sleep(every_s)
