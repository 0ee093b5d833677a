"""Which records of a run each exporter has been given: as they come in, or from the run directory when it is behind.

All of it belongs to the pipeline's event loop, but for `take`. The order of records is that of their coming, save for a destination
that is behind: it may be given newer ones before it has all older ones.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from .exporters.limits import Limits
from .exporters.pipeline import ExportPipeline
from .exporters.rows import pieces
from .metrics.aggregator import Aggregator
from .metrics.store import Coverage, Entry, Stream
from .metrics.windows import METRICS, with_quantiles

INBOX_BYTES: Final = 64 << 20
_ROOM_S: Final = 0.02
_AT_ONCE: Final = 1 / 32  # of a destination's bounds: what it is given at once when it is behind
_READ_ROWS: Final = 8192


class Feed:
    """See the module. `known`: the records that each destination has from an earlier life."""

    def __init__(self, core: Aggregator, pipeline: ExportPipeline, limits: Mapping[str, Limits], known: Mapping[str, Coverage]) -> None:
        self._core, self._pipeline, self._limits = core, pipeline, dict(limits)
        self._loop = asyncio.get_running_loop()
        self._wake, self._is_empty = asyncio.Event(), asyncio.Event()
        self._is_stopped = False
        self._known = {name: coverage.copy() for name, coverage in known.items()}
        self.given = {name: coverage.copy() for name, coverage in known.items()}
        self._begun = {name: coverage.copy() for name, coverage in known.items()}  # given, or being given by somebody
        self.earlier_rows = dict.fromkeys(limits, 0)  # of `known`, so not given in this life
        self._marks: dict[str, deque[tuple[int, Coverage]]] = {name: deque() for name in limits}
        self._live: set[str] = set()  # who is given records as they come
        self._counted: set[str] = set()
        self._lock = threading.Lock()
        self._inbox: deque[Entry] = deque()
        self._inbox_bytes = 0

    # as they come

    def take(self, entries: Sequence[Entry]) -> None:
        """Take records that are on disk; for any thread, and never waits. What finds no room is read from the run directory later."""
        size = sum(entry.metrics.nbytes for entry in entries)
        with self._lock:
            if self._inbox_bytes + size > INBOX_BYTES:
                return
            self._inbox.extend(entries)
            self._inbox_bytes += size
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Give each record that comes to the destinations that are up to date, until `emptied` has taken too long."""
        try:
            await self._run()
        finally:
            self._is_stopped = True
            self._is_empty.set()

    async def _run(self) -> None:
        while not self._is_stopped:
            with self._lock:
                entry = self._inbox.popleft() if self._inbox else None
                self._inbox_bytes -= entry.metrics.nbytes if entry is not None else 0
            if entry is None:
                self._is_empty.set()
                await self._wake.wait()
                self._wake.clear()
                continue
            self._is_empty.clear()
            records = _record(entry.stream, entry.sequence)
            to = [name for name in self._live if self._begin(name, records)]
            if to:
                await self._pipeline.export(filled(entry.metrics), to=None if len(to) == len(self.given) else to)
                self._note(to, records)

    async def emptied(self, timeout_s: float) -> None:
        """Wait until all that was taken is given, or this long: then the rest is given to nobody. Nothing may be taken meanwhile."""
        if self._is_stopped:
            return
        self._is_empty.clear()
        self._wake.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
            return
        self._is_stopped = True
        self._wake.set()
        await self._is_empty.wait()  # for the record in hand

    def _begin(self, name: str, records: Coverage) -> bool:
        """Tell whether these are to be given; nobody else is told so again."""
        if self._begun[name].holds(records):
            return False
        self._begun[name].absorb(records)
        return True

    def _note(self, names: Collection[str], records: Coverage) -> None:
        positions = self._pipeline.positions()
        for name in names:
            self.given[name].absorb(records)
            self._marks[name].append((positions[name][0], records))

    # from the run directory

    async def catch_up(self, name: str) -> None:
        """Give a destination all that the run holds and it lacks, as fast as it takes it, until it is up to date."""
        while True:
            held = await asyncio.to_thread(self._core.held)
            if not self.given[name].holds(held) or (self._known[name].held and name not in self._counted):
                await self._bring(name)
            elif name in self._live:
                return
            if name in self._live:
                await asyncio.sleep(_ROOM_S)  # what is missing may be on its way
            self._live.add(name)  # and look once more: what came since the look was given to nobody

    async def _bring(self, name: str) -> None:
        """Give what is missing. A Parquet file does not say which rows are whose: of one that is known in part all come again."""
        parts, pending = await asyncio.to_thread(self._core.stored)
        for path, records in parts:
            if not self._begin(name, records):
                self._count(name, records, pq.read_metadata(path).num_rows)
            else:
                for batch in _rows_of(path):
                    await self._give(name, batch)
                self._note((name,), records)
        for tagged in pending:
            records = _record(tagged.stream, tagged.sequence)
            if not self._begin(name, records):
                self._count(name, records, tagged.batch.num_rows)
            else:
                await self._give(name, filled(tagged.batch))
                self._note((name,), records)
        self._counted.add(name)

    def _count(self, name: str, records: Coverage, rows: int) -> None:
        if name not in self._counted and self._known[name].holds(records):
            self.earlier_rows[name] += rows

    async def _give(self, name: str, batch: pa.RecordBatch) -> None:
        for part in pieces(batch, self._limits[name].shrunk(_AT_ONCE)):
            while not self._pipeline.takes_whole(name, part):  # noqa: ASYNC110  # a lane tells nobody that it has room
                await asyncio.sleep(_ROOM_S)
            await self._pipeline.export(part, to=(name,))

    # what is done

    def settled(self) -> dict[str, Coverage]:
        """Return the records, by destination, that it has got for good since this was last asked, as far as a death is concerned."""
        found: dict[str, Coverage] = {}
        for name, (_, settled) in self._pipeline.positions().items():
            marks = self._marks[name]
            while marks and marks[0][0] <= settled:
                found.setdefault(name, Coverage()).absorb(marks.popleft()[1])
        return found


def filled(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows of the log as the Parquet files have them: with their quantiles."""
    table = with_quantiles(pa.Table.from_batches([batch.replace_schema_metadata()], schema=METRICS))
    return next(iter(table.combine_chunks().to_batches()), batch.replace_schema_metadata())


def _rows_of(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in pq.ParquetFile(path).iter_batches(_READ_ROWS):
        yield from pa.Table.from_batches([batch]).cast(METRICS).replace_schema_metadata().to_batches()


def _record(stream: Stream, sequence: int) -> Coverage:
    made = Coverage()
    made.add(stream, sequence)
    return made
