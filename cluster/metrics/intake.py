"""Which records of a stream are taken: those that follow what is held, up to the first gap. Pure.

One rule for whoever keeps windows, so that what is sent again is skipped and what is missing is never stepped over. The one exception: a
sender says up to which number it was told that all is safe. It has those records no more, so what of them is missing here is lost (a file
was damaged), and the stream goes on behind the gap, which stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TypeVar

from ..outbox import Bytes
from .store import Coverage, Stream

_T = TypeVar("_T")


def reached(coverage: Coverage, stream: Stream, safe: int = 0) -> int:
    """Return the number after which a stream goes on: after the last that is held, or after `safe`, which its sender was told.

    What is missing before it had been acknowledged, for nothing is ever taken beyond a gap, and is lost.
    """
    ranges = coverage.held.get(stream)
    return safe if ranges is None else max(ranges.last, safe)


def following(
    coverage: Coverage,
    stream: Stream,
    records: Iterable[tuple[int, Bytes]],
    read: Callable[[int, Bytes], _T | None],
    safe: int = 0,
) -> list[_T]:
    """Return what `read` makes of the records that are not held and follow without a gap, in their order; see `reached` for `safe`.

    One that was taken for lost is taken as well. `read` returns None for a record that is not whole: it and all that follow it are
    refused, and sent again.
    """
    taken: list[_T] = []
    wanted = reached(coverage, stream, safe) + 1
    before = 0
    for sequence, data in sorted(records, key=itemgetter(0)):
        if sequence == before or coverage.has(stream, sequence):
            continue
        one = read(sequence, data) if sequence <= wanted else None
        if one is None:
            break
        taken.append(one)
        before, wanted = sequence, max(wanted, sequence + 1)
    return taken
