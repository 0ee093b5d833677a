"""Rows on disk for a lane: record batches as payloads of a write-ahead log."""

from __future__ import annotations

import pyarrow as pa

from .wal import WriteAheadLog


class SpillLog:
    """A lane's `Spill` on a `WriteAheadLog`."""

    def __init__(self, log: WriteAheadLog) -> None:
        self.log = log

    @property
    def pending_rows(self) -> int:
        """Rows that `read` has not given out since they were written or put back."""
        return self.log.pending_rows

    @property
    def next_bytes(self) -> int:
        """Size in memory of what `read` gives next."""
        return self.log.next_bytes

    @property
    def after(self) -> int:
        """Sequence number behind the highest that was ever written."""
        return self.log.after

    @property
    def lost_bytes(self) -> int:
        """Bytes of records that were damaged so that nobody can say which rows they held; see `WriteAheadLog`."""
        return self.log.lost_bytes

    def append(self, first: int, batch: pa.RecordBatch) -> bool:
        """Write rows; false when the bound leaves no room for them."""
        return self.log.append(first, batch.num_rows, encoded(batch), batch.nbytes)

    def read(self) -> tuple[int, pa.RecordBatch] | int:
        """Give out the oldest pending rows, or how many rows turned out to be broken."""
        found = self.log.read()
        if not isinstance(found, tuple):
            return self.log.remaining(found)
        entry, payload = found
        done = entry.rows - self.log.remaining(entry)
        return entry.first + done, decoded(payload).slice(done)

    def ack(self, after: int) -> None:
        """Forget all rows with a lower sequence number."""
        self.log.ack(after)

    def rewind(self) -> None:
        """Make everything pending again that was not acknowledged."""
        self.log.rewind()

    def close(self) -> None:
        """Give up the folder."""
        self.log.close()


def encoded(batch: pa.RecordBatch) -> bytes:
    """Return a batch as an Arrow IPC stream of its own, LZ4 inside."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decoded(payload: bytes) -> pa.RecordBatch:
    """Return the batch of `encoded`."""
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return reader.read_next_batch()
