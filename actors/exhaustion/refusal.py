"""What the kernel says when there is no more of something: its error numbers as a closed set of words. Standard library only."""

from __future__ import annotations

import errno
from typing import Final

_CODES: Final = (
    errno.EMFILE,  # this process has no descriptor left
    errno.ENFILE,  # the machine has none left
    errno.ENOMEM,
    errno.EAGAIN,  # no more tasks: of this user, in this control group, or on this machine
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EADDRNOTAVAIL,  # no port left
    errno.EADDRINUSE,
    errno.ENOBUFS,
    errno.EACCES,
    errno.EPERM,
)
OTHER: Final = "other"
ERRNOS: Final = (*(errno.errorcode[code] for code in _CODES), OTHER)


def errno_word(code: int | None) -> str:
    """Return the name of an error number, or "other" for one that no limit gives."""
    return errno.errorcode[code] if code in _CODES else OTHER
