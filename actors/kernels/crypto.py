"""SHA-256 by hashlib, which is OpenSSL's: a library's code, which releases the interpreter for what is longer than 2 KiB."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

BLOCK_BYTES: Final = 64
_TEXT: Final = bytes(range(256)) * 1024  # 256 KiB: what it says does not matter to how long it takes


def make() -> Callable[[int, int], int]:
    """Return the kernel: so many blocks hashed after a state of 64 bits, and the digest's first 64 bits as the next state."""
    text = memoryview(_TEXT)

    def work(rounds: int, state: int) -> int:
        digest, left = hashlib.sha256(state.to_bytes(8, "little")), rounds * BLOCK_BYTES
        while left > 0:
            digest.update(text[:left])
            left -= len(text)
        return int.from_bytes(digest.digest()[:8], "little")

    return work
