"""What a lane holds and counts: chunks of rows, their place on disk, and where every row went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from actors.breaker import State

from .limits import Limits, Reason


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that wait. `first` is the sequence number of the first row in this lane; `durable` rows are in the spill as well."""

    first: int
    batch: pa.RecordBatch
    size_bytes: int
    since_ns: int
    durable: bool = False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.batch.num_rows)

    @property
    def after(self) -> int:
        """Sequence number behind the last row."""
        return self.first + self.rows


class Spill(Protocol):
    """Rows on disk, in order. `SpillLog` is one. Each method may raise `OSError`, and then nothing has changed."""

    @property
    def pending_rows(self) -> int:
        """Rows that `read` has not given out since they were written or put back."""
        ...

    @property
    def next_bytes(self) -> int:
        """Size in memory of what `read` gives next; 0 when nothing is pending."""
        ...

    @property
    def after(self) -> int:
        """Sequence number behind the highest that was ever written."""
        ...

    def append(self, first: int, batch: pa.RecordBatch) -> bool:
        """Write rows; false when the bound leaves no room for them."""
        ...

    def read(self) -> tuple[int, pa.RecordBatch] | int:
        """Give out the oldest pending rows and the number of the first, or how many rows were broken and are now forgotten."""
        ...

    def ack(self, after: int) -> None:
        """Forget all rows with a lower sequence number, also where that cuts a record in two."""
        ...

    def rewind(self) -> None:
        """Make everything pending again that was not acknowledged."""
        ...


@dataclass(slots=True)
class Counts:
    """What happened so far. Rows, unless the name says otherwise."""

    produced: int = 0
    recovered: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    dropped: Counter[Reason] = field(default_factory=Counter)
    attempts: int = 0  # calls of write
    successes: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by the class of the error

    @property
    def dropped_rows(self) -> int:
        """Rows dropped for any reason."""
        return self.dropped.total()


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane at one moment, for readers."""

    produced: int
    recovered: int
    delivered: int
    delivered_bytes: int
    dropped: dict[str, int]
    queued: int
    queued_bytes: int
    spilled: int
    attempts: int
    successes: int
    failures: dict[str, int]
    breaker: State
    breaker_opened: int
    last_success_ns: int | None
    last_error: str

    @property
    def balance(self) -> int:
        """Rows that are not accounted for; 0, or there is a bug."""
        return self.produced + self.recovered - self.delivered - sum(self.dropped.values()) - self.queued - self.spilled


def pieces(batch: pa.RecordBatch, limits: Limits) -> Iterator[pa.RecordBatch]:
    """Cut rows into batches within the limits of a batch; a single row may pass its bytes. Parts are copies: none holds the whole."""
    if batch.num_rows <= 1 or (batch.num_rows <= limits.batch_rows and batch.nbytes <= limits.batch_bytes):
        if batch.num_rows:
            yield batch
        return
    step = _step(batch, min(limits.batch_rows, batch.num_rows // 2), limits.batch_bytes)
    for at in range(0, batch.num_rows, step):
        part = batch.slice(at, step)
        yield from pieces(part.take(pa.array(range(part.num_rows), pa.int64())), limits)


def slices(batch: pa.RecordBatch, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Cut rows into parts of this many rows and about this many bytes at most. Parts are views: each holds the whole."""
    step = _step(batch, max(1, min(rows, batch.num_rows)), size)
    for at in range(0, max(1, batch.num_rows), step):
        yield batch.slice(at, step)


def _step(batch: pa.RecordBatch, rows: int, size: int) -> int:
    while rows > 1 and batch.nbytes * rows // batch.num_rows > size:
        rows //= 2
    return rows
