"""Hashes that are the same in every process, on every machine and in every version: what sketches of several nodes agree on.

Python's own `hash` of a text differs from process to process. Numbers that are equal hash equally (1, 1.0 and True; 0.0 and
-0.0; every NaN); a text never equals a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Item = str | bytes | float | int | bool

_EXACT: Final = 1 << 53
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)


def hashes(items: Sequence[Item] | npt.NDArray[Any]) -> Hashes:
    """Return a 64-bit hash of each item. Raises `TypeError` for what is neither text, bytes nor number."""
    if isinstance(items, np.ndarray) and items.dtype.kind in "fb":
        return _of_floats(items.astype(np.float64))
    return np.fromiter(map(hash_of, items.tolist() if isinstance(items, np.ndarray) else items), np.uint64, len(items))


def distinct_hashes(items: Iterable[Item] | npt.NDArray[Any]) -> Hashes:
    """Return the hashes of the items, equal ones once; for a sketch that does not count repeats."""
    if isinstance(items, np.ndarray):
        return hashes(items)
    return hashes(list(dict.fromkeys(items)))


def hash_of(item: Item) -> int:
    """Return the 64-bit hash of one item."""
    if isinstance(item, str):
        return _digest(b"t", item.encode("utf-8", "surrogatepass"))
    if isinstance(item, bytes):
        return _digest(b"b", item)
    if isinstance(item, (int, np.integer)) and abs(int(item)) > _EXACT and int(item) != _as_float(int(item)):
        return _digest(b"i", str(int(item)).encode())
    if isinstance(item, (int, float, np.integer, np.floating)):
        return int(_of_floats(np.array([float(item)]))[0])
    raise TypeError(f"a {type(item).__name__} has no stable hash; give texts, bytes or numbers")


def _as_float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("nan")


def _digest(kind: bytes, data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=kind).digest(), "little")


def _of_floats(values: npt.NDArray[np.float64]) -> Hashes:
    """Return the finaliser of splitmix64 (S. Vigna, 2015) over the bits: one to one, so floats never collide with each other."""
    canonical = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, and no minus zero
    mixed = canonical.view(np.uint64) + _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    found: Hashes = mixed ^ (mixed >> np.uint64(31))
    return found
