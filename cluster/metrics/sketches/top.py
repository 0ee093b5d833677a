"""The most frequent items with a bounded number of counters: Misra-Gries, in the form that merges. Immutable, pure.

At most `size` counters are kept. Where there would be more, the count of the first that finds no place is taken off all, and what
is not above zero goes (P. Agarwal et al., "Mergeable summaries", 2012). So

    held(item) <= true count <= held(item) + error,    error = what was taken off in all <= (count - sum of held) / (size + 1)

and every item with more than count / (size + 1) samples is among the held ones, however the parts were merged. The order of merging may
change which others are held, never these bounds; merging two is the same both ways round.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from actors.errors import InputError

from .hashing import hash_of

SIZE: Final = 256
KEY_LENGTH: Final = 200  # characters; what is longer is cut, with its hash
_HEAD: Final = struct.Struct("<2sBIQQI")  # magic, version, size, count, error, checksum of the counters
_MAGIC: Final = b"TK"
_VERSION: Final = 1


class Held(NamedTuple):
    """An item, and between which bounds its true count lies."""

    item: str
    at_least: int
    at_most: int


@dataclass(frozen=True, slots=True)
class Top:
    """Counters by item. `count` is of all samples, exactly; `error` is what the true count of an item may be above its counter."""

    counters: Mapping[str, int] = field(default_factory=dict)
    count: int = 0
    error: int = 0
    size: int = SIZE

    @classmethod
    def of(cls, items: Iterable[str] | Mapping[str, int], *, size: int = SIZE) -> Top:
        """Return the sketch of these items, or of items with their counts. Raises `InputError` for a size outside 1 to 65,536."""
        if not 1 <= size <= 1 << 16:
            raise InputError("invalid_value", f"a top list's size lies in 1 to 65,536, got {size}")
        found: Counter[str] = Counter()
        for item, count in Counter(items).items():
            if count < 0:
                raise InputError("invalid_value", f"{item!r} cannot have been seen {count} times")
            if count:
                found[shortened(item)] += count
        return _reduced(found, found.total(), 0, size)

    def top(self, number: int) -> list[Held]:
        """Return the items with the highest counters, of equal ones those that sort first."""
        ranked = sorted(self.counters.items(), key=lambda pair: (-pair[1], pair[0]))
        return [Held(item, held, held + self.error) for item, held in ranked[:number]]

    def encode(self) -> bytes:
        """Return the bytes: a head of 31, then the counters as JSON."""
        body = json.dumps(sorted(self.counters.items()), separators=(",", ":")).encode()
        return _HEAD.pack(_MAGIC, _VERSION, self.size, self.count, self.error, zlib.crc32(body)) + body


def decode(data: bytes) -> Top:
    """Return the sketch of these bytes. Raises `ValueError` when they are none or of an unknown version."""
    if len(data) < _HEAD.size:
        raise ValueError(f"a top list has at least {_HEAD.size} bytes, got {len(data)}")
    magic, version, size, count, error, checksum = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"not a top list of version {_VERSION}: starts with {data[:3]!r}")
    if zlib.crc32(data[_HEAD.size :]) != checksum:
        raise ValueError("a top list's counters do not match their checksum")
    counters = dict(json.loads(data[_HEAD.size :]))
    if len(counters) > size or sum(counters.values()) + error * (size + 1) > count:
        raise ValueError("a top list's counters pass its size or its count")
    return Top(counters, count, error, size)


def merge(sketches: Iterable[Top]) -> Top:
    """Return the sketch of all samples together; sizes must be equal (`InputError`); none at all gives an empty one."""
    found = list(sketches)
    if len({one.size for one in found}) > 1:
        raise InputError("invalid_value", f"top lists of sizes {sorted({one.size for one in found})} do not merge")
    counters: Counter[str] = Counter()
    for one in found:
        counters.update(one.counters)
    return _reduced(counters, sum(one.count for one in found), sum(one.error for one in found), found[0].size if found else SIZE)


def shortened(item: str) -> str:
    """Return the item, or its beginning and its hash where it is too long to be kept: a counter's size is bounded."""
    return item if len(item) <= KEY_LENGTH else f"{item[: KEY_LENGTH - 17]}~{hash_of(item):016x}"


def _reduced(counters: Counter[str], count: int, error: int, size: int) -> Top:
    if len(counters) > size:
        taken = sorted(counters.values(), reverse=True)[size]
        counters = Counter({item: held - taken for item, held in counters.items() if held > taken})
        error += taken
    return Top(dict(counters), count, error, size)
