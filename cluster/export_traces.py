"""Paths of records on disk: `log/traces-NNNN.arrows` while a run goes on, `traces.parquet` at its end.

Tracing is best effort. What a dead aggregator had not written is lost, a disk that refuses costs paths and nothing else, and past
`PATHS_MAX` in one life no more are written; how many were not is told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from actors.clock import Clock

from .exporters.trace import Path
from .files import write_whole
from .metrics.store import log_files

FILE: Final = "traces.parquet"
PATHS_MAX: Final = 1_000_000
_STEM: Final = "traces"
_FOOTER: Final = b"stress_cluster_traces"  # JSON: the names of the logs that the file holds
_GROUP: Final = 64  # batches of the log that become one row group
_LOG: Final = logging.getLogger(__name__)

_TIME: Final = pa.timestamp("us", tz="UTC")
_HOP: Final = pa.struct([("stage", pa.string()), ("at", _TIME), ("rows", pa.int64()), ("batch", pa.int64())])
TRACES: Final = pa.schema(
    [
        pa.field("node", pa.string(), nullable=False),
        pa.field("incarnation", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("window_s", pa.float64(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("taken", _TIME, nullable=False),
        pa.field("exporter", pa.string(), nullable=False),
        pa.field("hops", pa.list_(_HOP), nullable=False),
        pa.field("unlisted", pa.int64(), nullable=False),
    ]
)


class TraceLog:
    """Writes the paths of one life. Not thread-safe; raises nothing."""

    def __init__(self, directory: FilePath, clock: Clock) -> None:
        self._directory, self._clock = directory, clock
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self.written = self.unwritten = 0

    def add(self, paths: Sequence[Path]) -> None:
        """Write paths, as far as there is room for them."""
        some = paths[: max(0, PATHS_MAX - self.written)]
        self.unwritten += len(paths) - len(some)
        if not some:
            return
        try:
            self._open()
            self._writer.write_batch(_batch(some, self._clock.wall_ns() - self._clock.boot_ns()))
            assert self._file is not None
            self._file.flush()
            self.written += len(some)
        except OSError as error:
            _LOG.warning("%s: %d traced paths are not written down: %s", self._directory.name, len(some), error)
            self.unwritten += len(some)
            self.close()  # its tail may be torn

    def _open(self) -> None:
        if self._writer is None:
            (self._directory / "log").mkdir(exist_ok=True)
            number = 1 + max((_number(name) for name in _all_names(self._directory)), default=0)
            self._file = (self._directory / "log" / f"{_STEM}-{number:04d}.arrows").open("xb")
            self._writer = pa.ipc.new_stream(self._file, TRACES, options=pa.ipc.IpcWriteOptions(compression="zstd"))

    def close(self) -> None:
        """Give up the file."""
        with suppress(OSError, pa.ArrowInvalid):  # readers do without the end mark
            if self._writer is not None:
                self._writer.close()
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = self._writer = None


def _batch(paths: Sequence[Path], wall_ns: int) -> pa.RecordBatch:
    """Return paths as rows; `wall_ns` is what makes boot time UTC."""
    columns: dict[str, list[Any]] = {name: [] for name in TRACES.names}
    for path in paths:
        origin = path.origin
        for name in ("node", "incarnation", "record", "window_s", "part", "rows"):
            columns[name].append(getattr(origin, name))
        columns["time"].append(origin.time_us)
        columns["taken"].append((origin.taken_ns + wall_ns) // 1000)
        columns["exporter"].append(path.exporter)
        columns["hops"].append([(hop.stage, (hop.at_ns + wall_ns) // 1000, hop.rows, hop.batch) for hop in path.hops])
        columns["unlisted"].append(path.unlisted)
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in TRACES], schema=TRACES)


def settle(directory: FilePath) -> None:
    """Turn the logs into `traces.parquet` and delete them. Raises `OSError`; then another call goes on."""
    logs = log_files(directory, _STEM)
    if not logs:
        return
    kept = directory / FILE
    footer = {_FOOTER: json.dumps(sorted({*_settled_names(directory), *(path.name for path in logs)})).encode()}

    def write(sink: BinaryIO) -> None:
        schema = TRACES.with_metadata(footer)
        with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1) as writer:
            if kept.exists():
                for group in pq.ParquetFile(kept).iter_batches():
                    writer.write_table(pa.Table.from_batches([group]).cast(TRACES).replace_schema_metadata(footer))
            group = []
            for batch in _logged(directory):
                group.append(batch)
                if len(group) == _GROUP:
                    writer.write_table(pa.Table.from_batches(group).replace_schema_metadata(footer))
                    group = []
            if group:
                writer.write_table(pa.Table.from_batches(group).replace_schema_metadata(footer))

    write_whole(kept, write)
    for path in logs:
        path.unlink()


def read_traces(directory: FilePath, condition: Any) -> list[dict[str, Any]]:
    """Return the paths that meet a condition (a `pyarrow.compute` expression), as they stand at any moment. Raises `OSError`."""
    tables = [pa.Table.from_batches([batch]).filter(condition) for batch in _logged(directory)]
    if (directory / FILE).exists():
        tables.insert(0, pq.read_table(directory / FILE, filters=condition).cast(TRACES))
    return [row for table in tables for row in table.to_pylist()]


def _logged(directory: FilePath) -> Iterator[pa.RecordBatch]:
    """Yield the whole batches of the logs that are not in the Parquet file."""
    settled = _settled_names(directory)
    for path in log_files(directory, _STEM):
        if path.name in settled:
            continue
        with suppress(FileNotFoundError), path.open("rb") as file:  # it was settled meanwhile
            try:
                reader = pa.ipc.open_stream(file)
                while True:
                    yield reader.read_next_batch()
            except (StopIteration, pa.ArrowInvalid, OSError):
                continue


def _settled_names(directory: FilePath) -> list[str]:
    if not (directory / FILE).exists():
        return []
    names: list[str] = json.loads((pq.read_schema(directory / FILE).metadata or {}).get(_FOOTER, b"[]"))
    return names


def _all_names(directory: FilePath) -> list[str]:
    return [*_settled_names(directory), *(path.name for path in log_files(directory, _STEM))]


def _number(name: str) -> int:
    return int(name.removesuffix(".arrows").rpartition("-")[2])
