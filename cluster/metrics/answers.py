"""Questions to a run directory that is being written: answered from its files once, and from memory while nothing has changed.

Quantiles are computed here, when somebody asks, never while windows are taken.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.clock import Clock
from actors.errors import InputError

from ..files import read_json
from .answer import READ, extent
from .asking import About, ask, condition_of, document, understand
from .cache import TTL_S, CacheCounts, Hit, QueryCache
from .query import COLUMNS, QUANTILES, STATS, Between, condition, figure, labelled
from .question import Words
from .sketches import Accumulators, Figure
from .sketches.fold import summarise
from .store import read_metrics


class Answers:
    """What the windows of one run say. `lock` is the writer's: files are read, and the revision moves, under it alone."""

    def __init__(self, directory: Path, lock: threading.RLock, clock: Clock, *, ttl_s: float = TTL_S) -> None:
        self._directory = directory
        self._lock = lock
        self._clock = clock
        self._cache = QueryCache(clock, ttl_s=ttl_s)
        self._revision = 0
        self._span: Between | None = None  # the time that all windows cover, in seconds of UTC, once somebody has asked
        self._is_span_known = False
        self._quantile_computations = 0
        self._accumulators: Accumulators | None = None  # looked for when one is asked for

    def changed(self) -> None:
        """Say that the files are about to change: nothing older is answered again. To be called under the lock."""
        self._revision += 1

    def grew(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Say which windows have come to those that are there. To be called under the lock."""
        if self._is_span_known:
            for batch in batches:
                self._span = _union(self._span, extent(batch))

    def forget_span(self) -> None:
        """Say that the windows may cover another time than is known. To be called under the lock."""
        self._is_span_known = False

    def rows(
        self,
        metric: str,
        node: str | None = None,
        worker: str | None = None,
        between: Between | None = None,
        *,
        columns: list[str] | None = None,
    ) -> Hit:
        """Return these columns of the windows as a table, and when they were read. Raises `InputError` for an unknown metric."""
        chosen = columns or COLUMNS
        asked = ("rows", metric, node, worker, between, tuple(chosen))
        with self._lock:
            return self._kept(asked, chosen, condition(metric, node, worker, between))

    def _kept(self, asked: Hashable, columns: list[str], wanted: Any) -> Hit:
        """Return what was read before, or read it. Under the lock."""
        if found := self._cache.get(asked, self._revision):
            return found
        made_ns = self._clock.boot_ns()
        table = read_metrics(self._directory, columns, wanted)
        self._cache.put(asked, self._revision, table, size=table.nbytes + 1024, made_ns=made_ns)
        return Hit(table, made_ns)

    def figure(
        self, metric: str, stat: str, node: str | None, labels: Mapping[str, str] | None, between: Between | None, worker: str | None
    ) -> float | None:
        """Return one figure over all matching windows; see `query.figure`. Raises `InputError` for an unknown metric or statistic."""
        if stat not in STATS:
            raise InputError("unknown_name", f"unknown statistic {stat!r}", f"known: {', '.join(STATS)}")
        asked = ("figure", metric, stat, node, worker, between, tuple(sorted((labels or {}).items())))
        with self._lock:
            revision = self._revision
            if found := self._cache.get(asked, revision):
                known: float | None = found.value
                return known
            rows = self.rows(metric, node, worker, between)
            table = labelled(rows.value, labels)
            self._quantile_computations += bool(stat in QUANTILES and table.num_rows)
        answer = figure(table, metric, stat, between)  # without the lock: merging digests may take its time
        self._cache.put(asked, revision, answer, made_ns=rows.made_ns)  # as old as what it was made from
        return answer

    def summarise(
        self,
        metric: str,
        accumulator: str,
        *,
        node: str | None = None,
        worker: str | None = None,
        between: Between | None = None,
        label: str = "",
    ) -> dict[str, Figure]:
        """Return what an accumulator says of all matching windows, the product's own or an installed one; see `sketches.fold`.

        Raises `InputError` for a metric, accumulator or label that is not known.
        """
        record = self._accumulators_known().find(accumulator)
        return summarise(self.rows(metric, node, worker, between).value, metric, record, label=label)

    def ask(self, words: Words) -> dict[str, Any]:
        """Return the document that answers a question in words; see `question.parse` and `asking.document`.

        Raises `InputError` for a question that is none, `HarnessError` when the files cannot be read now.
        """
        manifest = read_json(self._directory / "manifest.json") or {}
        about = About.of(manifest, self._directory.name, str(manifest.get("status") or ""))
        with self._lock:
            revision, span = self._revision, self._covered()
            query = understand(words, about, span)
            if found := self._cache.get(("ask", query), revision):
                return document(found.value, about)
            wanted = ("windows", query.metrics, query.other, query.since_us, query.until_us)
            rows = self._kept(wanted, READ, condition_of(query))
        record = self._accumulators_known().find(query.accumulator) if query.accumulator else None
        answered = ask(query, rows.value, span, record)  # without the lock: merging digests may take its time
        with self._lock:
            self._quantile_computations += bool(answered.quantiles)
        self._cache.put(("ask", query), revision, answered, size=answered.size_bytes, made_ns=rows.made_ns)
        return document(answered, about)

    def _covered(self) -> Between | None:
        """Return the time that all windows cover: read once, and followed from then on. Under the lock."""
        if not self._is_span_known:
            self._span = extent(read_metrics(self._directory, ["time", "window_s"], None))
            self._is_span_known = True
        return self._span

    def _accumulators_known(self) -> Accumulators:
        with self._lock:
            if self._accumulators is None:
                self._accumulators = Accumulators()
                self._accumulators.load()
            return self._accumulators

    def counts(self) -> CacheCounts:
        """Return how many questions were answered from memory, and what is held there."""
        return self._cache.counts()

    @property
    def quantile_computations(self) -> int:
        """How often a quantile was computed for a figure."""
        return self._quantile_computations


def _union(one: Between | None, other: Between | None) -> Between | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one[0], other[0]), max(one[1], other[1])
