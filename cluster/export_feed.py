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

from actors.clock import Clock

from .exporters.limits import Limits
from .exporters.pipeline import ExportPipeline
from .exporters.rows import pieces, slices
from .exporters.trace import Origin
from .metrics.aggregator import Aggregator
from .metrics.store import Coverage, Entry, Stream
from .metrics.windows import EVENTS, METRICS, with_quantiles
from .near import give_back

INBOX_BYTES: Final = 64 << 20
_AT_ONCE: Final = 1 / 32  # of a destination's bounds: what it is given at once when it is behind
_READ_ROWS: Final = 8192
_NO_EVENTS: Final = pa.RecordBatch.from_pylist([], schema=EVENTS)


class Feed:
    """See the module. `known`: the records that each destination has from an earlier life."""

    def __init__(
        self, core: Aggregator, pipeline: ExportPipeline, limits: Mapping[str, Limits], known: Mapping[str, Coverage], clock: Clock
    ) -> None:
        self._core, self._pipeline, self.limits, self._clock = core, pipeline, dict(limits), clock
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
        self._noted = {name: asyncio.Event() for name in limits}
        self._inbox: deque[tuple[Entry, int]] = deque()
        self._inbox_bytes = 0

    # as they come

    def take(self, entries: Sequence[Entry]) -> None:
        """Take records that are on disk; for any thread, and never waits. What finds no room is read from the run directory later."""
        size, now_ns = sum(entry.metrics.nbytes for entry in entries), self._clock.boot_ns()
        with self._lock:
            if self._inbox_bytes + size > INBOX_BYTES:
                return
            self._inbox.extend((entry, now_ns) for entry in entries)
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
                entry, taken_ns = self._inbox.popleft() if self._inbox else (None, 0)
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
                everyone = None if len(to) == len(self.given) else to
                for part in self._cut(entry):
                    await self._pipeline.export(part, to=everyone, origin=_origin(entry, taken_ns))
                give_back(entry.frame)
                self._note(to, records)

    def _cut(self, entry: Entry) -> Iterator[pa.RecordBatch]:
        """Yield a record's rows; those of a mapped file in parts that every destination takes as they are, so that none copies its own."""
        rows = filled(entry.metrics)
        if entry.frame is None:
            yield rows
            return
        bounds = self.limits.values()
        yield from slices(rows, min(one.batch_rows for one in bounds), min(one.batch_bytes for one in bounds))

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
            self._noted[name].set()

    # from the run directory

    async def catch_up(self, name: str) -> None:
        """Give a destination all that the run holds and it lacks, as fast as it takes it, until it is up to date."""
        while True:
            self._noted[name].clear()
            held = await asyncio.to_thread(self._core.held)
            if not self.given[name].holds(held) or (self._known[name].held and name not in self._counted):
                await self._bring(name)
            elif name in self._live:
                return
            if name in self._live:
                await self._noted[name].wait()  # what is missing is on its way: somebody has begun to give it
            self._live.add(name)  # and look once more: what came since the look was given to nobody

    async def _bring(self, name: str) -> None:
        """Give what is missing. A Parquet file does not say which rows are whose: of one that is known in part all come again."""
        parts, pending = await asyncio.to_thread(self._core.stored)
        for path, records in parts:
            if not self._begin(name, records):
                self._count(name, records, pq.read_metadata(path).num_rows)
            else:
                origin = Origin(part=path.name, rows=pq.read_metadata(path).num_rows, taken_ns=self._clock.boot_ns())
                for batch in _rows_of(path):
                    await self._give(name, batch, origin)
                self._note((name,), records)
        for tagged in pending:
            records = _record(tagged.stream, tagged.sequence)
            if not self._begin(name, records):
                self._count(name, records, tagged.batch.num_rows)
            else:
                entry = Entry(tagged.stream, tagged.sequence, tagged.batch, _NO_EVENTS)
                await self._give(name, filled(tagged.batch), _origin(entry, self._clock.boot_ns()))
                self._note((name,), records)
        self._counted.add(name)

    def _count(self, name: str, records: Coverage, rows: int) -> None:
        if name not in self._counted and self._known[name].holds(records):
            self.earlier_rows[name] += rows

    async def _give(self, name: str, batch: pa.RecordBatch, origin: Origin | None) -> None:
        for part in pieces(batch, self.limits[name].shrunk(_AT_ONCE)):
            await self._pipeline.room(name, part)
            await self._pipeline.export(part, to=(name,), origin=origin)

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


def _origin(entry: Entry, taken_ns: int) -> Origin | None:
    """Return what a record's paths are told by; one without rows goes nowhere."""
    rows = entry.metrics
    if not rows.num_rows:
        return None
    time_us, window_s = rows.column("time")[0].value, rows.column("window_s")[0].as_py()
    return Origin(*entry.stream, entry.sequence, time_us, window_s, rows.num_rows, taken_ns)


def _record(stream: Stream, sequence: int) -> Coverage:
    made = Coverage()
    made.add(stream, sequence)
    return made
