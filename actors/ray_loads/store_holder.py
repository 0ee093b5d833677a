"""Holds objects in its node's object store and reads them. Ray makes an actor of it, and frees what it holds when it ends."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from ..clock import SECOND_NS, SystemClock
from .ray_work import ObjectStore

TURN_S: Final = 0.2  # after which a turn ends, whatever is still to be done


@dataclass(frozen=True, slots=True)
class StoreTurn:
    """What one turn has done: objects held now, seconds of each put and get, and whether the store had no room, nor the disk behind it."""

    held: int
    puts_s: tuple[float, ...] = ()
    gets_s: tuple[float, ...] = ()
    refused: bool = False


class StoreHolder:
    """Owns the objects. Reads them in turn, the oldest first: those are spilled first."""

    def __init__(self, store: ObjectStore, object_bytes: int) -> None:
        self._store = store
        self._data = os.urandom(object_bytes)  # nothing that a file system could leave out
        self._held: list[Any] = []
        self._next = 0
        self._clock = SystemClock()

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    def turn(self, wanted: int, gets: int) -> StoreTurn:
        """Free what is too many, oldest first, put what is missing, read so many; what does not fit into `TURN_S` waits for the next."""
        del self._held[: max(0, len(self._held) - wanted)]
        end_ns = self._clock.boot_ns() + round(TURN_S * SECOND_NS)
        puts: list[float] = []
        reads: list[float] = []
        while len(self._held) < wanted and self._clock.boot_ns() < end_ns:
            begun_ns = self._clock.boot_ns()
            made = self._store.put(self._data)
            if made is None:
                return StoreTurn(len(self._held), tuple(puts), refused=True)
            puts.append((self._clock.boot_ns() - begun_ns) / SECOND_NS)
            self._held.append(made)
        while len(reads) < gets and self._held and self._clock.boot_ns() < end_ns:
            begun_ns = self._clock.boot_ns()
            self._next = (self._next + 1) % len(self._held)
            self._store.get(self._held[self._next])
            reads.append((self._clock.boot_ns() - begun_ns) / SECOND_NS)
        return StoreTurn(len(self._held), tuple(puts), tuple(reads))
