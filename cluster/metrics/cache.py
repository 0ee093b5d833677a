"""Answers that were given already, kept by question and revision of the data, for a limited time and within limited memory.

A revision is a number that rises with every change of the data: an answer is given again only for the revision that it was made
from, and what is left of earlier ones goes at once. The time to live bounds the age of an answer beside that. No answer is a copy: what
is kept must not be changed by who gets it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from actors.clock import SECOND_NS, Clock
from actors.errors import InputError

TTL_S: Final = 10.0
MAX_ENTRIES: Final = 1_024
MAX_BYTES: Final = 64 << 20


class Hit(NamedTuple):
    """An answer, which may well be None, and the boot time that its data was read at."""

    value: Any
    made_ns: int


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What happened so far, and what is held now.

    Every question was a hit or a miss. `expired` of the misses found an answer past its time. An answer that was put in has been
    `evicted` (to make room), `invalidated` (by newer data), `expired`, replaced, or is among the entries; `oversized` ones never came in.
    """

    hits: int = 0
    misses: int = 0
    expired: int = 0
    evicted: int = 0
    invalidated: int = 0
    oversized: int = 0
    entries: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Entry:
    value: Any
    revision: int
    made_ns: int
    size: int


class QueryCache:
    """Answers by question, the least recently used going first. All methods may be called from any thread.

    Raises `InputError` for bounds below 1 or a time to live that is not above 0.
    """

    def __init__(self, clock: Clock, *, ttl_s: float = TTL_S, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        if not (ttl_s > 0 and max_entries >= 1 and max_bytes >= 1):
            words = f"a cache needs a time to live above 0 s and bounds from 1, got {ttl_s} s, {max_entries} entries, {max_bytes} bytes"
            raise InputError("invalid_value", words)
        self._clock = clock
        self._ttl_ns = round(ttl_s * SECOND_NS)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._revision = 0
        self._bytes = 0
        self._counts = dict.fromkeys(("hits", "misses", "expired", "evicted", "invalidated", "oversized"), 0)

    def get(self, question: Hashable, revision: int) -> Hit | None:
        """Return the answer that was made of this revision less than the time to live ago, or None for a miss."""
        with self._lock:
            self._drop_before(revision)
            entry = self._entries.get(question)
            if entry is not None and self._clock.boot_ns() - entry.made_ns >= self._ttl_ns:
                self._drop(question, "expired")
                entry = None
            if entry is None or entry.revision != revision:
                self._counts["misses"] += 1
                return None
            self._counts["hits"] += 1
            self._entries.move_to_end(question)
            return Hit(entry.value, entry.made_ns)

    def put(self, question: Hashable, revision: int, value: Any, *, size: int = 64, made_ns: int | None = None) -> None:
        """Keep an answer of about `size` bytes, that was made at `made_ns` of boot time (default: now).

        One of an older revision than was seen is not kept, nor one that is larger than a quarter of the cache.
        """
        with self._lock:
            self._drop_before(revision)
            if revision < self._revision:
                self._counts["invalidated"] += 1
                return
            if size > self._max_bytes // 4:
                self._counts["oversized"] += 1
                return
            if question in self._entries:
                self._bytes -= self._entries.pop(question).size
            made = self._clock.boot_ns() if made_ns is None else made_ns
            self._entries[question] = _Entry(value, revision, made, size)
            self._bytes += size
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)), "evicted")

    def counts(self) -> CacheCounts:
        """Return what happened so far, and what is held now."""
        with self._lock:
            return CacheCounts(**self._counts, entries=len(self._entries), bytes=self._bytes)

    def _drop(self, question: Hashable, reason: str) -> None:
        self._bytes -= self._entries.pop(question).size
        self._counts[reason] += 1

    def _drop_before(self, revision: int) -> None:
        if revision > self._revision:
            self._revision = revision
            self._counts["invalidated"] += len(self._entries)
            self._entries.clear()
            self._bytes = 0
