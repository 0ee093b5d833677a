"""Which records of a stream are taken: those that follow what is held, up to the first gap. Pure.

One rule for whoever keeps windows, so that what is sent again is skipped and what is missing is never stepped over. Only where files were
damaged is it: who had sent those records was told that they are safe, and has them no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TypeVar

from ..outbox import Bytes
from .store import Coverage, Stream

_T = TypeVar("_T")


def contiguous(coverage: Coverage, stream: Stream, *, damaged: bool = False) -> int:
    """Return the last number up to which a stream is held without a gap, or at all where files are damaged; 0 when nothing is."""
    ranges = coverage.held.get(stream)
    if ranges is None:
        return 0
    return ranges.last if damaged else ranges.contiguous


def following(
    coverage: Coverage,
    stream: Stream,
    records: Iterable[tuple[int, Bytes]],
    read: Callable[[int, Bytes], _T | None],
    *,
    damaged: bool = False,
) -> list[_T]:
    """Return what `read` makes of the records that are not held and follow without a gap, in their order; with one where files are damaged.

    `read` returns None for a record that is not whole: it and all that follow it are refused, and sent again.
    """
    taken: list[_T] = []
    wanted = contiguous(coverage, stream) + 1
    for sequence, data in sorted(records, key=itemgetter(0)):
        if sequence < wanted:
            continue
        one = read(sequence, data) if sequence == wanted or damaged else None
        if one is None:
            break
        if not coverage.has(stream, sequence):
            taken.append(one)
        wanted = sequence + 1
    return taken
