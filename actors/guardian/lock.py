"""Who is the guardian of a STATE: one lock, whose inode must stay its path's inode, and the identities of its holders.

The lock is shared by fork with the standby, so that it never falls free while one of the two lives.
"""

# pathlib is left out: everything goes through the descriptor of STATE, which pathlib cannot

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import Final

from .. import proc
from ..clock import SECOND_NS, Clock
from ..proc import Identity

LOCK_NAME: Final = "guardian.lock"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Lock:
    """The held lock of one STATE folder."""

    def __init__(self, folder: int, fd: int) -> None:
        self._folder = folder
        self._fd = fd

    @classmethod
    def take(cls, folder: int, clock: Clock, patience_s: float) -> Lock | None:
        """Take the lock; None when another guardian keeps it for all of the patience."""
        deadline_ns = clock.boot_ns() + round(patience_s * SECOND_NS)
        while True:
            fd = _try(folder)
            if fd is not None:
                return cls(folder, fd)
            if clock.boot_ns() >= deadline_ns:
                return None
            clock.sleep(0.02)

    def is_ours(self) -> bool:
        """Tell whether the path still leads to what we locked: a cleaner that removes the file lets in a second guardian."""
        return _leads_to(self._folder, self._fd)

    def retake(self) -> bool:
        """Lock the path again after it was removed; False when somebody else has done so: then we are deposed."""
        fd = _try(self._folder)
        if fd is None:
            return False
        os.close(self._fd)
        self._fd = fd
        return True

    def sign(self, holders: list[Identity]) -> None:
        """Note who holds the lock, so that a later guardian can end holders that hang."""
        data = json.dumps([holder.to_json() for holder in holders]).encode()
        with contextlib.suppress(OSError):  # only a hint for `end_silent_holders`
            os.pwrite(self._fd, data.ljust(1_024), 0)

    def close(self) -> None:
        """Let go; the lock falls free when the standby's copy is closed too."""
        os.close(self._fd)


def end_silent_holders(folder: int) -> int:
    """SIGKILL the noted holders of the lock, by identity; returns how many were signalled.

    Only for a lock whose holders have answered nobody for seconds: both stopped, or the guardian stopped and the standby gone.
    """
    try:
        fd = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(fd, "rb") as file:
            holders = [Identity.from_json(fields) for fields in json.loads(file.read(4_096))]
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # nothing legible is noted: nobody can be named, so nobody is signalled
    signalled = 0
    for holder in holders:
        pidfd = proc.open_pidfd(holder)
        if pidfd is not None:
            proc.kill_pidfd(pidfd)
            os.close(pidfd)
            signalled += 1
    return signalled


def _try(folder: int) -> int | None:
    fd = os.open(LOCK_NAME, _FLAGS, 0o600, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    if not _leads_to(folder, fd):  # it was removed between open and lock
        os.close(fd)
        return None
    return fd


def _leads_to(folder: int, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(LOCK_NAME, dir_fd=folder, follow_symlinks=False), os.fstat(fd))
    except OSError:
        return False
