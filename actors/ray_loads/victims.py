"""What runs in the processes that are flooded: plain classes and functions that Ray makes actors and tasks of. Without Ray themselves."""

from __future__ import annotations

import os

from ..clock import process_cpu_ns
from .board import claim


def burn(work_s: float) -> None:
    """Use this much CPU time of this process, in seconds."""
    if work_s > 0.0:
        end_ns = process_cpu_ns() + work_s * 1e9
        while process_cpu_ns() < end_ns:
            pass


def serve(board: str, payload: bytes, work_s: float) -> None:
    """Serve one call: work, then count it on the board. The payload is only carried."""
    del payload
    burn(work_s)
    claim(board).add()


class Mailbox:
    """An actor that is flooded: it serves one call after another."""

    def __init__(self, board: str) -> None:
        self._board = board
        claim(board)

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    def serve(self, payload: bytes, work_s: float) -> None:
        """Serve one call."""
        serve(self._board, payload, work_s)
