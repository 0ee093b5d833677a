"""Namespaces of a process's own, by the calls that Python 3.11 has no names for. What is in one ends with its last process."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

CLONE_NEWNS: Final = 0x00020000  # these three: linux/sched.h
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWNET: Final = 0x40000000

T = TypeVar("T")


def leave(kinds: int, what: str) -> None:
    """Move this thread into new namespaces of these kinds; raises `OSError` (EPERM), which says that `what` cannot be made."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(kinds) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot make {what}: {os.strerror(code)}")


def within(fd: int, kind: int, look: Callable[[], T]) -> T | None:
    """Return what a look gives inside the namespace behind a descriptor (of /proc/PID/ns), or None where it cannot be entered.

    A thread of its own enters and ends, so that nobody else of this process is moved, and nothing keeps the namespace alive.
    """
    found: list[T] = []

    def enter() -> None:
        if ctypes.CDLL(None).setns(fd, kind) == 0:
            found.append(look())

    thread = threading.Thread(target=enter, name="within-namespace")
    thread.start()
    thread.join()
    return found[0] if found else None
