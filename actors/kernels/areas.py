"""The work areas of kernels: what lies in the memory that a compiled loop walks. Sizes follow from the caches that the machine reports."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..processor import Cache, Processor

MIB: Final = 1 << 20
MOST_BYTES: Final = 256 * MIB
LINE_WORDS: Final = 8
BRANCH_WORDS: Final = 1 << 17  # 1 MiB: longer than any predictor remembers, read in order, so that no cache counts
PAGES: Final = 1 << 15  # 128 MiB of small pages, more than any TLB holds


class Area:
    """Page-aligned anonymous memory of this process, as 64-bit words or doubles. Freed with the object."""

    def __init__(self, size_bytes: int, kind: type[np.uint64 | np.float64], advice: str = "MADV_HUGEPAGE") -> None:
        self._memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):  # a kernel without huge pages has small ones only
            self._memory.madvise(getattr(mmap, advice))
        self.values: npt.NDArray[Any] = np.frombuffer(self._memory, dtype=kind)

    @property
    def address(self) -> int:
        """Return where it begins."""
        return int(self.values.ctypes.data)

    @property
    def length(self) -> int:
        """Return how many elements it has."""
        return len(self.values)


def largest_power(limit: int) -> int:
    """Return the largest power of two up to a limit of at least 1."""
    return 1 << (limit.bit_length() - 1)


def level_bytes(processor: Processor, level: int) -> int:
    """Return the bytes that fit into a level of cache beside what else is there, and not into the level below: a power of two."""
    cache, below = processor.cache(level), processor.cache(level - 1)
    assert cache is not None, "asked for before: see KernelRecord.missing"
    part = cache.size_bytes // 2 // (cache.sharers if level > 2 else 1)
    return max(largest_power(part), 2 * largest_power(below.size_bytes) if below else mmap.PAGESIZE)


def beyond_bytes(processor: Processor) -> int:
    """Return the bytes that no cache holds: four times the largest, at least 64 MiB, at most `MOST_BYTES`."""
    largest = max(processor.caches, key=lambda cache: cache.size_bytes, default=Cache(0, 16 * MIB, 64, 1))
    return min(MOST_BYTES, max(64 * MIB, 4 * largest_power(largest.size_bytes)))


def lay_walk(values: npt.NDArray[Any], places: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
    """Write one closed walk through all places, in random order: each holds the index of the next."""
    order = rng.permutation(places)
    values[order] = np.roll(order, -1)


def places_of(area: Area, count: int) -> list[int]:
    """Return so many places of a walk, apart from each other in memory, so that no thread fetches for another."""
    places = np.flatnonzero(area.values)
    return [int(places[index * len(places) // count]) for index in range(count)]


def _words(processor: Processor, seed: int) -> Area:
    del processor, seed
    return Area(mmap.PAGESIZE, np.uint64)


def _doubles(processor: Processor, seed: int) -> Area:
    area = _words(processor, seed)
    area.values = area.values.view(np.float64)
    area.values[:] = 1.0
    return area


def _random_words(processor: Processor, seed: int) -> Area:
    del processor
    area = Area((BRANCH_WORDS + 1) * 8, np.uint64)
    area.values[:-1] = np.random.default_rng(seed).integers(0, 1 << 64, BRANCH_WORDS, dtype=np.uint64)
    return area


def _sorted_words(processor: Processor, seed: int) -> Area:
    area = _random_words(processor, seed)
    area.values[:-1].sort()
    return area


def _level(level: int) -> Callable[[Processor, int], Area]:
    return lambda processor, _: Area(level_bytes(processor, level), np.uint64)


def _memory(processor: Processor, seed: int) -> Area:
    del seed
    return Area(beyond_bytes(processor), np.uint64)


def _walk(processor: Processor, seed: int) -> Area:
    area = _memory(processor, seed)
    lay_walk(area.values, np.arange(0, area.length, LINE_WORDS), np.random.default_rng(seed))
    return area


def _pages(processor: Processor, seed: int) -> Area:
    """One line in each page, each at another place in its page, so that caches hold the lines and only translations are missed."""
    del processor
    area = Area(PAGES * mmap.PAGESIZE, np.uint64, "MADV_NOHUGEPAGE")
    words = mmap.PAGESIZE // 8
    pages = np.arange(PAGES)
    lay_walk(area.values, pages * words + pages * LINE_WORDS % words, np.random.default_rng(seed))
    return area


def _arrays(processor: Processor, seed: int) -> Area:
    del seed
    each = beyond_bytes(processor) // 3 // mmap.PAGESIZE * mmap.PAGESIZE
    area = Area(3 * each, np.float64)
    area.values[:] = 1.0
    return area


AREAS: Final[dict[str, Callable[[Processor, int], Area]]] = {
    "words": _words,
    "doubles": _doubles,
    "random_words": _random_words,
    "sorted_words": _sorted_words,
    "level1": _level(1),
    "level2": _level(2),
    "level3": _level(3),
    "memory": _memory,
    "walk": _walk,
    "pages": _pages,
    "arrays": _arrays,
}
