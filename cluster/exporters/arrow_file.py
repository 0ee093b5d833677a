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
    """Parquet as a run directory has it: zstd, dictionaries for names, statistics on the time only."""

    def _begin(self, pending: PendingFile) -> None:
        self._writer = pq.ParquetWriter(
            pending.sink,
            EXPORTED,
            compression="zstd",
            compression_level=1,
            use_dictionary=_DICTIONARY,
            write_statistics=["time"],
        )


class ArrowFile(ArrowWriterFile):
    """The Arrow IPC file format (with a footer, for random access), LZ4 inside."""

    def _begin(self, pending: PendingFile) -> None:
        self._writer = pa.ipc.new_file(pending.sink, EXPORTED, options=pa.ipc.IpcWriteOptions(compression="lz4"))
