"""The members of a mesh: actors that receive numbered messages and keep which ones. A plain class; Ray makes actors of it."""

from __future__ import annotations

import os

from .board import claim
from .mesh_account import Pairs, Ranges
from .victims import burn


class Member:
    """Receives messages of many senders, one after another. What it knows dies with it."""

    def __init__(self, board: str, place: str) -> None:
        self._tally = claim(board)
        self._place = place
        self._known: dict[str, Ranges] = {}
        self._asked: set[str] = set()

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    def hello(self, sender: str) -> tuple[str, float, Pairs]:
        """Return on which node it is, its node's ceiling, and which messages it has of a sender."""
        return self._place, self._tally.ceiling(), self.known(sender)

    def receive(self, sender: str, number: int, payload: bytes, work_s: float) -> float:
        """Take one message, work, and acknowledge it by the node's ceiling. The payload is only carried."""
        del payload
        burn(work_s)
        self._known.setdefault(sender, Ranges()).add(number)
        self._tally.add()
        return self._tally.ceiling()

    def known(self, sender: str) -> Pairs:
        """Return which messages it has of a sender."""
        return self._known.get(sender, Ranges()).pairs

    def last_look(self, sender: str) -> Pairs:
        """Return the same to a sender that asks for the last time."""
        self._asked.add(sender)
        return self.known(sender)

    def asked(self) -> frozenset[str]:
        """Return which senders have asked for the last time."""
        return frozenset(self._asked)
