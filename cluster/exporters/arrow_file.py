"""Parquet and Arrow IPC: the columns of `EXPORTED` with their types, digests included. Files appear whole, when they are closed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from .context import EXPORTED
from .files import PendingFile
from .json_file import WholeFile

GROUP_ROWS: Final = 1 << 17  # of a Parquet file: what a row group holds at least, save for the last one
GROUP_BYTES: Final = 8 << 20  # in memory, also at least
_DICTIONARY: Final = ["run", "scenario", "metric", "kind", "unit", "node", "worker", "phase"]


class ArrowWriterFile(WholeFile):
    """A file that an Arrow writer fills."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer: Any = None

    def _add(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def _end(self, pending: PendingFile) -> None:  # noqa: ARG002  # the writer has it
        writer, self._writer = self._writer, None
        writer.close()

    def _release(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError, pa.ArrowInvalid):  # its footer finds no room either; the file is removed
                writer.close()


class ParquetFile(ArrowWriterFile):
    """Parquet as a run directory has it: zstd, dictionaries for names, statistics on the time only.

    Rows are gathered here until they make a row group: the writer keeps what describes a group, some 15 kB, in memory until the file is
    finished, whatever its size. They are no less safe here than in the file, which a death before its end leaves to nobody; so their
    number and bytes bound what waits, and their age does not.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0

    def _begin(self, pending: PendingFile) -> None:
        self._forget()
        self._writer = pq.ParquetWriter(
            pending.sink,
            EXPORTED,
            compression="zstd",
            compression_level=1,
            use_dictionary=_DICTIONARY,
            write_statistics=["time"],
        )

    def _add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_rows >= GROUP_ROWS or self._held_bytes >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._held_rows:
            self._writer.write_batch(pa.concat_batches(self._held))
        self._forget()

    def _end(self, pending: PendingFile) -> None:
        self._write_group()
        super()._end(pending)

    def _release(self) -> None:
        self._forget()
        super()._release()

    def _forget(self) -> None:
        self._held, self._held_rows, self._held_bytes = [], 0, 0


class ArrowFile(ArrowWriterFile):
    """The Arrow IPC file format (with a footer, for random access), LZ4 inside."""

    def _begin(self, pending: PendingFile) -> None:
        self._writer = pa.ipc.new_file(pending.sink, EXPORTED, options=pa.ipc.IpcWriteOptions(compression="lz4"))
