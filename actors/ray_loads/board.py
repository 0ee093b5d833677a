"""Counts of finished calls in shared memory: written by the processes that serve, read from outside. Never by the one that floods.

The simulator's process makes the board, a memfd that ends with the last process that holds it. Each process that serves claims
one of its words by a lock that the kernel drops when the process dies; the next one to claim the word counts on from there.

Behind the counts is one word in the other direction: how far the node's ceiling is lowered, for those whom other nodes call.
"""

from __future__ import annotations

import fcntl
import functools
import mmap
import os
import struct
from array import array
from typing import Final

NAME: Final = "stress-cluster-served"
LINK: Final = f"/memfd:{NAME}"  # how its descriptors show in /proc/PID/fd
WORDS: Final = 512
_WORD_BYTES: Final = 8
_BYTES: Final = WORDS * _WORD_BYTES
_LOWERED: Final = struct.Struct("=d")  # 1 - ceiling, so that a new board says that nothing is lowered


class Board:
    """The board of one operation, held open."""

    def __init__(self) -> None:
        self._fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _BYTES + _LOWERED.size)

    @property
    def path(self) -> str:
        """Where other processes of this user find it while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def served(self) -> int:
        """Return how many calls were served so far."""
        return total(self._fd)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def total(fd: int) -> int:
    """Return the sum of a board's words, from a descriptor of it. Raises `OSError`."""
    words = array("Q")
    words.frombytes(os.pread(fd, _BYTES, 0))
    return sum(words)


def lower(path: str, ceiling: float) -> None:
    """Tell those that serve the node's ceiling, 0..1. Raises `OSError` when the board is gone."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, _LOWERED.pack(1.0 - ceiling), _BYTES)
    finally:
        os.close(fd)


class Tally:
    """One process's word on a board. Used by one thread at a time."""

    def __init__(self, shared: mmap.mmap, index: int) -> None:
        self._shared = shared
        self._words = memoryview(shared)[:_BYTES].cast("Q")
        self._index = index

    def ceiling(self) -> float:
        """Return the node's ceiling, 0..1."""
        (lowered,) = _LOWERED.unpack_from(self._shared, _BYTES)
        return float(1.0 - lowered)

    def add(self) -> None:
        """Count one call."""
        self._words[self._index] += 1

    def put(self, value: int) -> None:
        """Say how much there is now, where that is not counted up."""
        self._words[self._index] = value


@functools.cache
def claim(path: str) -> Tally:
    """Return this process's word on the board at a path, always the same one. Raises `OSError` when the board is gone or full.

    Its descriptor stays open, since closing it would drop the lock.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    for index in range(WORDS):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _WORD_BYTES, index * _WORD_BYTES)
        except BlockingIOError:
            continue
        return Tally(mmap.mmap(fd, _BYTES + _LOWERED.size), index)
    os.close(fd)
    raise OSError(f"more than {WORDS} processes serve at once")
