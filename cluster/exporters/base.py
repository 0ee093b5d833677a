"""What a destination is, and how it says that it failed. A destination moves rows and decides nothing: see `lane`.

Rows are Arrow record batches with the columns of `context.EXPORTED`: run and scenario, then the contract's metric columns. The caller is
one thread, and calls `open`, then `write` and `flush` in any number, then `close`; `health` may be asked at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


class RejectedError(Exception):
    """The destination answers, and will never take these rows: sending them again would not help. They are dropped and counted."""


class UnfinishedError(Exception):
    """Rows that `write` took are lost after all: their file could not be finished. `rows` says how many."""

    def __init__(self, rows: int, message: str) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a destination could take rows now, and why not."""

    ok: bool
    detail: str = ""


class Exporter(Protocol):
    """A destination. Nobody needs to inherit from this.

    `write` returns when the destination has taken all rows of the batch. When it raises, none of them counts as taken: the same
    batch is sent again, so a destination that may have taken some of them either takes them back (files are cut to where they
    stood) or is at-least-once. `RejectedError` says that sending again is useless; any other exception is a failure that may pass.
    """

    def open(self) -> None:
        """Make ready for rows. Called again after a failure of its own; after success it is not called again."""
        ...

    def write(self, batch: pa.RecordBatch) -> None:
        """Hand over all rows of a batch, or raise and hand over none."""
        ...

    def flush(self) -> None:
        """Make durable what was written, as far as this destination can."""
        ...

    def close(self) -> None:
        """Flush, finish and give up what is held. Harmless when repeated or never opened. Raises `UnfinishedError` for rows lost so."""
        ...

    def health(self) -> Health:
        """Tell whether the last call went well. Any thread may ask; never blocks and never raises."""
        ...
