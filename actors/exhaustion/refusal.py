"""What the kernel says when there is no more of something: its error numbers as a closed set of words. Standard library only."""

from __future__ import annotations

import errno
from typing import Final

from ..clock import SECOND_NS

_CODES: Final = (
    errno.EMFILE,  # this process has no descriptor left
    errno.ENFILE,  # the machine has none left
    errno.ENOMEM,
    errno.EAGAIN,  # no more tasks: of this user, in this control group, or on this machine
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EADDRNOTAVAIL,  # no port left
    errno.EADDRINUSE,
    errno.ECONNREFUSED,  # these four of a peer: nobody listens there,
    errno.ECONNRESET,  # it closed,
    errno.ETIMEDOUT,  # it is silent,
    errno.EHOSTUNREACH,  # or gone
    errno.ENOBUFS,
    errno.EACCES,
    errno.EPERM,
)
RETRY_S: Final = 1.0
OTHER: Final = "other"
ERRNOS: Final = (*(errno.errorcode[code] for code in _CODES), OTHER)


def errno_word(code: int | None) -> str:
    """Return the name of an error number, or "other" for one that no limit gives."""
    return errno.errorcode[code] if code in _CODES else OTHER


class Refusals:
    """What a load that asks all the time was refused. Pure: it says what is to be counted and published."""

    def __init__(self) -> None:
        self.code = 0
        self.short_of = 0  # the most that was asked for and refused, 0 once it is held
        self._again_ns = 0

    def refuse(self, word: str, asked_bytes: int, now_ns: int) -> bool:
        """Take a refusal by the name of its error number; tell whether it counts: once each `RETRY_S`."""
        self.code = self.code or getattr(errno, word)
        self.short_of = max(self.short_of, asked_bytes)
        if now_ns < self._again_ns:
            return False
        self._again_ns = now_ns + round(RETRY_S * SECOND_NS)
        return True

    def meet(self, held_bytes: int) -> bool:
        """Tell whether all that was refused is held by now; it is taken back then."""
        if not self.short_of or held_bytes < self.short_of:
            return False
        self.short_of = 0
        return True
