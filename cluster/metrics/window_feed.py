"""Windows of a run as they come, for whoever listens: each new one is offered once, when it is on disk, never before.

A subscriber chooses windows in the words of a query (`metric`, `node`, `worker`, `phase`, `label`), and how many may wait for it. Choosing
costs the push some tenths of a millisecond for each subscriber; nothing else of a subscriber's happens there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from actors.errors import InputError

from .answer import chosen
from .question import Query, Words, parse
from .subscription import BOUND, Feed, Overflow, Subscription
from .windows import METRICS, with_quantiles

if TYPE_CHECKING:
    from .store import Entry

CHOOSING: Final = ("metric", "node", "worker", "phase", "label")
QUEUEING: Final = ("bound", "overflow")


class Window(NamedTuple):
    """One row of a batch that arrived."""

    batch: pa.RecordBatch
    row: int


class WindowFeed:
    """The feed of one run. Any thread may call it."""

    def __init__(self) -> None:
        self._feed: Feed[Window] = Feed()

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return self._feed.subscribers

    def take(self, entries: Sequence[Entry]) -> None:
        """Offer the windows of records that are on disk."""
        for batch in (entry.metrics for entry in entries if self._feed.subscribers and entry.metrics.num_rows):
            self._feed.publish([Window(batch, row) for row in range(batch.num_rows)])

    def subscribe(self, words: Words) -> Subscription[Window]:
        """Return a subscription to the windows that these words choose, all without a word.

        `bound` is how many may wait (10,000), `overflow` what a full queue does: `drop_oldest` (the default) or `drop_newest`.
        Raises `InputError` for what is no such word, value or name, `RefusedError` when there are too many, or the run has ended.
        """
        for word, texts in words.items():
            if word not in (*CHOOSING, *QUEUEING):
                known = ", ".join((*CHOOSING, *QUEUEING))
                raise InputError("unknown_key", f"a stream of windows has no {word!r}", f"known: {known}")
            if word in QUEUEING and len(texts) > 1:
                raise InputError("invalid_value", f"{word} can be said once, got {', '.join(map(repr, texts))}")
        query = parse({"metric": ("*",), **{word: texts for word, texts in words.items() if word in CHOOSING}})
        bound, overflow = _bound(words.get("bound", ())), _overflow(words.get("overflow", ()))
        return self._feed.subscribe(bound, overflow, partial(_wanted, query))

    def close(self) -> None:
        """End it: each subscriber gets what waits for it, then its stream ends."""
        self._feed.close()


def rows_of(windows: Iterable[Window]) -> Iterator[pa.RecordBatch]:
    """Yield windows as batches with the contract's columns, their quantiles filled in."""
    for _, some in itertools.groupby(windows, lambda window: id(window.batch)):
        found = list(some)
        rows = found[0].batch.take(pa.array([window.row for window in found], pa.int64())).replace_schema_metadata()
        yield from with_quantiles(pa.Table.from_batches([rows], schema=METRICS)).combine_chunks().to_batches()


def _wanted(query: Query, windows: Sequence[Window]) -> Sequence[Window]:
    """Return those of one batch's windows that a query chooses."""
    batch = windows[0].batch
    table = pa.Table.from_batches([batch]).append_column("row", pa.array(np.arange(batch.num_rows)))
    return [windows[row] for row in chosen(table, query)["row"].to_pylist()]


def _bound(texts: Sequence[str]) -> int:
    if not texts:
        return BOUND
    if not (texts[0].isascii() and texts[0].isdigit()):
        raise InputError("invalid_value", f"bound is a number of windows, got {texts[0]!r}")
    return int(texts[0][:10])


def _overflow(texts: Sequence[str]) -> Overflow:
    try:
        return Overflow(texts[0]) if texts else Overflow.DROP_OLDEST
    except ValueError:
        raise InputError("unknown_name", f"unknown overflow {texts[0]!r}", f"known: {', '.join(Overflow)}") from None
