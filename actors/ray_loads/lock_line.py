"""Who holds a lock: first come, first served, with a token that fences off a holder whose time was over. Pure."""

from __future__ import annotations

from collections import deque
from contextlib import suppress


class LockLine:
    """One lock. Tokens rise; the oldest that has not left holds it."""

    def __init__(self) -> None:
        self._line: deque[int] = deque()
        self._last = 0
        self.expired = 0

    @property
    def holder(self) -> int | None:
        """The token that holds the lock."""
        return self._line[0] if self._line else None

    @property
    def waiting(self) -> int:
        """How many wait behind the holder."""
        return max(0, len(self._line) - 1)

    def enter(self) -> int:
        """Join the line, and return the token."""
        self._last += 1
        self._line.append(self._last)
        return self._last

    def leave(self, token: int) -> bool:
        """Give the lock back; False when the token does not hold it: its time was over, and the lock was given to another."""
        if self.holder != token:
            return False
        self._line.popleft()
        return True

    def withdraw(self, token: int) -> None:
        """Take a token out of the line, wherever it stands."""
        with suppress(ValueError):  # its time was over
            self._line.remove(token)

    def expire(self, token: int) -> bool:
        """End the time of a holder, and tell whether it still held the lock."""
        held = self.leave(token)
        self.expired += held
        return held
