"""The files of a run: written whole or not at all, and each record counted once whatever dies in between.

    log/metrics-<n>.arrows, log/events-<n>.arrows   Arrow IPC streams of what is not in Parquet yet
    log/streams.json                                streams that were announced
    metrics/part-<n>.parquet, events.parquet        whole files; the footer names the records that each one holds
    metrics/rolled-<n>.parquet                      the same, in the place of other parts; see `parts`

**Commit.** A record (node, incarnation, sequence) is held if and only if its batch can be read from a metrics log or lies within
a metrics footer's ranges; every record has such a batch, also one without rows. Its events are written and synced before
it, so a record that is held has its events, and the events of one that is not held are not counted. No third file is needed.

**Log to Parquet.** Metrics part, then events.parquet, then the log is deleted. A crash in between leaves records in two places; readers
take them from the footer's file and skip them in the log, for metrics and events each by its own footers.

A log with a torn tail is never appended to: the next file has the next number. One writer per run directory, by flock on the folder.

**Damage.** Records of the log and Parquet files have checksums (see `checksum`). A record that is not as it was written is passed over,
and those after it are read; a Parquet file that is not stops a reader. The writer sets damaged files aside in damaged/, and `damage` says
which; what they held shows as holes in the ranges of their streams.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError

from ..files import make_folders, sync_folder, write_whole
from .checksum import EMPTY, KEY, PassedOver, check_parquet, passed_over, seal_messages, seal_parquet, sound_records
from .parts import DAMAGED, FOOTER, next_path, part_files, present_parts, sweep_replaced
from .ranges import Ranges
from .windows import EVENTS, LOG_COLUMNS, METRICS, QUANTILES, SAMPLES, with_quantiles

Stream = tuple[str, str]  # node, incarnation
_T = TypeVar("_T")

_LOG: Final = logging.getLogger(__name__)
_ATTEMPTS: Final = 8  # at reading files while they stand still, and
_PATIENCE_NS: Final = 20 * SECOND_NS  # at least as long
_GROUP: Final = 512  # records that are filtered at once
_GROUP_BYTES: Final = 1 << 20  # of records that are read at once
_SCHEMAS: Final = {"metrics": METRICS, "events": EVENTS, "samples": SAMPLES}
LOGS: Final = tuple(_SCHEMAS)
_PLAIN: Final = ("metric", "kind", "unit", "node", "worker", "phase")


def _sync_log(directory: Path) -> None:
    """Make durable what can be read of the log."""
    paths = [*log_files(directory, "events"), *log_files(directory, "metrics")]
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if paths:
        sync_folder(directory / "log")


# which records are held


@dataclass(frozen=True, slots=True)
class End:
    """Where a stream ends, and whether its owner said so itself."""

    sequence: int
    clean: bool


@dataclass(slots=True)
class Coverage:
    """Records by stream, and the ends that are known."""

    held: dict[Stream, Ranges] = field(default_factory=dict)
    ends: dict[Stream, End] = field(default_factory=dict)

    def has(self, stream: Stream, sequence: int) -> bool:
        """Tell whether a record is among these."""
        return sequence in self.held.get(stream, Ranges())

    def holds(self, other: Coverage) -> bool:
        """Tell whether all records of another are among these."""
        return all(self.held.get(stream, Ranges()).union(ranges) == self.held.get(stream) for stream, ranges in other.held.items())

    def add(self, stream: Stream, sequence: int, end: End | None = None) -> None:
        """Add a record."""
        self.held.setdefault(stream, Ranges()).add(sequence)
        if end is not None:
            self.ends[stream] = end

    def absorb(self, other: Coverage) -> None:
        """Add all records of another."""
        for stream, ranges in other.held.items():
            self.held[stream] = self.held.get(stream, Ranges()).union(ranges)
        self.ends.update(other.ends)

    def copy(self) -> Coverage:
        """Return one that changes by itself."""
        return Coverage({stream: Ranges(ranges.pairs()) for stream, ranges in self.held.items()}, dict(self.ends))

    def to_footer(self) -> bytes:
        """Return what a Parquet footer carries."""
        streams = []
        for (node, incarnation), ranges in sorted(self.held.items()):
            end = self.ends.get((node, incarnation))
            entry: dict[str, Any] = {"node": node, "incarnation": incarnation, "ranges": ranges.pairs()}
            streams.append(entry | ({"end": end.sequence, "clean": end.clean} if end else {}))
        return json.dumps({"schema": 1, "streams": streams}).encode()

    @property
    def missing(self) -> int:
        """How many records before the last of their streams are not among these."""
        return sum(ranges.missing for ranges in self.held.values())

    @classmethod
    def of_footer(cls, metadata: Mapping[bytes, bytes] | None) -> Coverage:
        """Return the records that a Parquet footer names; none when it is not one of ours."""
        found = cls()
        for entry in json.loads((metadata or {}).get(FOOTER, b'{"streams": []}'))["streams"]:
            stream = (entry["node"], entry["incarnation"])
            found.held[stream] = Ranges([(first, last) for first, last in entry["ranges"]])
            if "end" in entry:
                found.ends[stream] = End(entry["end"], entry["clean"])
        return found


# the log


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it stands in the log."""

    stream: Stream
    sequence: int
    metrics: pa.RecordBatch
    events: pa.RecordBatch
    end: End | None = None
    samples: pa.RecordBatch | None = None
    frame: memoryview | None = None  # of a mapped file, where its arrays may be views of that: see `near`

    def tag(self) -> dict[str, str]:
        """Return the metadata of the record's batches."""
        tag = {"node": self.stream[0], "incarnation": self.stream[1], "record": str(self.sequence)}
        return tag | ({"end": str(self.end.sequence), "clean": str(int(self.end.clean))} if self.end else {})


@dataclass(frozen=True, slots=True)
class Tagged:
    """A batch from the log, with the contract's columns, and the record it belongs to."""

    stream: Stream
    sequence: int
    batch: pa.RecordBatch
    end: End | None


class LogFile:
    """One Arrow IPC stream that is being written. After an error it must be left alone: its tail may be torn."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("xb")
        sync_folder(path.parent)
        self._schema = _log_schema(schema)
        self._record = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._record, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    @classmethod
    def next(cls, directory: Path, stem: str, schema: pa.Schema) -> LogFile:
        """Begin the log of the next number."""
        make_folders(directory / "log")
        found = log_files(directory, stem)
        number = int(found[-1].stem.rpartition("-")[2]) + 1 if found else 1
        return cls(directory / "log" / f"{stem}-{number:04d}.arrows", schema)

    def write(self, batch: pa.RecordBatch, entry: Entry) -> None:
        """Write one record's batch."""
        owner = (*entry.stream, entry.sequence)
        columns = [pa.repeat(pa.scalar(value, column.type), batch.num_rows) for value, column in zip(owner, LOG_COLUMNS, strict=True)]
        made = pa.RecordBatch.from_arrays([*batch.columns, *columns], schema=self._schema)
        self._writer.write_batch(made, custom_metadata=entry.tag() | {"crc": EMPTY.decode()})
        with self._record.getbuffer() as made:
            seal_messages(made)
            self._file.write(made)
        self._record.seek(0)
        self._record.truncate()

    def sync(self) -> int:
        """Make it durable; return its size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Give up the file."""
        with suppress(OSError, pa.ArrowInvalid):  # the end mark is a courtesy; readers do without it
            self._writer.close()
            self._file.write(self._record.getvalue())
        with suppress(OSError):  # what was promised is synced already
            self._file.close()


def _log_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*schema, *LOG_COLUMNS])


def read_log(path: Path, schema: pa.Schema) -> Iterator[Tagged]:
    """Yield the batches of a log file that are whole and as they were written."""
    yield from _read_log(path.read_bytes(), schema)


def _read_log(data: bytes, schema: pa.Schema) -> Iterator[Tagged]:
    head, view, records = _log_schema(schema).serialize().to_pybytes(), memoryview(data), sound_records(data)
    while group := _group(records):
        with pa.ipc.open_stream(pa.py_buffer(b"".join([head, *(view[at:end] for at, end in group)]))) as reader:
            for _ in group:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                tag = {key.decode(): value.decode() for key, value in dict(metadata).items()}
                end = End(int(tag["end"]), tag["clean"] == "1") if "end" in tag else None
                yield Tagged((tag["node"], tag["incarnation"]), int(tag["record"]), batch.select(schema.names), end)


def _group(records: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Take the next records that are read as one stream: to open one costs more than to read a small record, and it copies them."""
    found: list[tuple[int, int]] = []
    size = 0
    for at, end in records:
        found.append((at, end))
        size += end - at
        if size >= _GROUP_BYTES:
            break
    return found


def unread_bytes(directory: Path) -> dict[Path, int]:
    """Return of which logs of metrics `read_log` passes over how many bytes: of a record that is torn, damaged or being written."""
    return {path: sum(rest) for path, rest in _passed_over(directory, ("metrics",)).items() if any(rest)}


def damage_of(directory: Path) -> list[str]:
    """Return in words what of a run directory is damaged and therefore not read: parts of logs, and files that its writer set aside."""
    return [
        *_damaged(_passed_over(directory, LOGS)),
        *(f"{path.name}, set aside in {DAMAGED}/" for path in sorted((directory / DAMAGED).glob("*"))),
    ]


def _damaged(logs: Mapping[Path, PassedOver]) -> list[str]:
    return [f"{rest.damaged} bytes of {path.name}" for path, rest in logs.items() if rest.damaged]


def _passed_over(directory: Path, stems: Sequence[str]) -> dict[Path, PassedOver]:
    found = {}
    for stem in stems:
        for path in log_files(directory, stem):
            with suppress(FileNotFoundError):  # it went into Parquet meanwhile
                found[path] = passed_over(path.read_bytes(), _log_schema(_SCHEMAS[stem]))
    return found


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that a run directory holds, each record once."""

    metrics: pa.Table
    events: pa.Table
    coverage: Coverage


def log_files(directory: Path, stem: str) -> list[Path]:
    """Return the log files of one kind in the order of their making."""
    return sorted((directory / "log").glob(f"{stem}-*.arrows"), key=lambda path: int(path.stem.rpartition("-")[2]))


def sample_files(directory: Path) -> list[Path]:
    """Return the Parquet parts of single samples in the order of their making. Raises `HarnessError` for one that is damaged."""
    found = sorted((directory / "samples").glob("part-*.parquet"))
    for path in found:
        check_parquet(path)
    return found


def _files(directory: Path) -> list[tuple[str, int]]:
    logs = [path for stem in LOGS for path in log_files(directory, stem)]
    found = [*part_files(directory), *sample_files(directory), *logs, directory / "events.parquet"]
    return [(str(path), path.stat().st_ino) for path in found if path.exists()]


def read_run(directory: Path) -> Contents:
    """Return what a run directory holds, at any moment and after any crash.

    A live writer may turn log into Parquet meanwhile, so files are listed again at the end, and read again when they changed.
    Raises `HarnessError` when they always do.
    """
    return unchanged(directory, lambda: _read_run(directory))


def read_metrics(directory: Path, columns: list[str], condition: Any) -> pa.Table:
    """Return these columns of the rows that meet a condition (a `pyarrow.compute` expression); see `read_run`."""
    return unchanged(directory, lambda: _read_metrics(directory, columns, condition)[0])


def unchanged(directory: Path, read: Callable[[], _T], clock: Clock | None = None) -> _T:
    """Return what `read` finds in a run directory whose files stood still meanwhile; raises `HarnessError` when they never do.

    What `read` raises of files that stood still is raised: one that was replaced under it only looks damaged.
    """
    clock, attempts = clock or SystemClock(), 0
    give_up_ns = clock.boot_ns() + _PATIENCE_NS
    while attempts < _ATTEMPTS or clock.boot_ns() < give_up_ns:
        attempts += 1
        with suppress(FileNotFoundError):  # the log went into Parquet meanwhile
            before = _files(directory)
            try:
                found = read()
            except (OSError, HarnessError, pa.ArrowException):
                if before == _files(directory):
                    raise
                continue
            if before == _files(directory):
                return found
    raise HarnessError("busy", f"the files of {directory} changed {attempts} times while they were read", "try again")


def _read_run(directory: Path) -> Contents:
    metrics, coverage = _read_metrics(directory, METRICS.names, None)
    return Contents(metrics, read_events(directory, coverage), coverage)


def _read_metrics(directory: Path, columns: list[str], condition: Any) -> tuple[pa.Table, Coverage]:
    coverage = metrics_coverage(directory)
    tables, asks = [read_parts(directory, columns, condition)], set(QUANTILES)
    pending = pending_metrics(directory, coverage)
    while group := list(islice(pending, _GROUP)):
        rows = pa.Table.from_batches([tagged.batch.replace_schema_metadata() for tagged in group], schema=METRICS)
        rows = rows if condition is None else rows.filter(condition)
        tables.append((rows if asks.isdisjoint(columns) else with_quantiles(rows)).select(columns))
        for tagged in group:
            coverage.add(tagged.stream, tagged.sequence, tagged.end)
    return pa.concat_tables(tables), coverage


def read_parts(directory: Path, columns: list[str], condition: Any) -> pa.Table:
    """Return these columns of the rows in Parquet that meet a condition."""
    schema = pa.schema([METRICS.field(name) for name in columns])
    tables = [pq.read_table(path, columns=columns, filters=condition).cast(schema) for path in part_files(directory)]
    return pa.concat_tables(tables).replace_schema_metadata() if tables else schema.empty_table()


def held_by(directory: Path) -> Coverage:
    """Return the records that a run directory holds."""
    found = metrics_coverage(directory)
    for tagged in pending_metrics(directory, found):
        found.add(tagged.stream, tagged.sequence, tagged.end)
    return found


def metrics_coverage(directory: Path) -> Coverage:
    """Return the records whose metrics are in Parquet."""
    return coverage_of(part_files(directory))


def coverage_of(paths: Iterable[Path]) -> Coverage:
    """Return the records that the footers of these Parquet files name."""
    found = Coverage()
    for path in paths:
        if path.exists():
            found.absorb(Coverage.of_footer(pq.read_schema(path).metadata))
    return found


def pending_metrics(directory: Path, covered: Coverage) -> Iterator[Tagged]:
    """Yield the log's metrics that `covered` does not have, each record once."""
    yield from _pending((path.read_bytes() for path in log_files(directory, "metrics")), covered)


def pending_metrics_now(directory: Path, covered: Coverage) -> Iterator[Tagged]:
    """Return an iterator over the same, of the log as it is now: it may go into Parquet meanwhile. Holds the log, as packed as it is."""
    return _pending([path.read_bytes() for path in log_files(directory, "metrics")], covered)


def _pending(logs: Iterable[bytes], covered: Coverage) -> Iterator[Tagged]:
    seen = Coverage()
    covered = covered.copy()
    for log in logs:
        for tagged in _read_log(log, METRICS):
            if not covered.has(tagged.stream, tagged.sequence) and not seen.has(tagged.stream, tagged.sequence):
                seen.add(tagged.stream, tagged.sequence)
                yield tagged


def read_events(directory: Path, held: Coverage) -> pa.Table:
    """Return the events of the records that are held, from events.parquet and the log, each record's once."""
    path = directory / "events.parquet"
    if path.exists():
        check_parquet(path)
    tables = [pq.read_table(path).cast(EVENTS)] if path.exists() else []
    seen = coverage_of([path])
    for log in log_files(directory, "events"):
        for tagged in read_log(log, EVENTS):
            if held.has(tagged.stream, tagged.sequence) and not seen.has(tagged.stream, tagged.sequence):
                seen.add(tagged.stream, tagged.sequence)
                tables.append(pa.Table.from_batches([tagged.batch]))
    return (pa.concat_tables(tables) if tables else EVENTS.empty_table()).replace_schema_metadata()


# the writer


class RunStore:
    """The one writer of a run directory. Not thread-safe: the aggregator guards it.

    Raises `HarnessError` (`busy`) when the directory has a writer.
    """

    def __init__(self, directory: Path) -> None:
        import fcntl  # noqa: PLC0415  # reading works on every platform, writing where there is flock

        make_folders(directory / "log")
        make_folders(directory / "metrics")
        self.directory = directory
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise HarnessError("busy", f"another process writes {directory}") from error
        for leftover in [*directory.glob(".*.tmp"), *directory.glob("*/.*.tmp")]:
            leftover.unlink()
        passed = _passed_over(directory, LOGS)
        self.damage = [*self._set_aside(), *_damaged(passed)]  # in words, what was found now
        sweep_replaced(directory)
        self._metrics: LogFile | None = None
        self._events: LogFile | None = None
        self.log_bytes = 0
        _sync_log(directory)  # what counts as held is acknowledged next, and who wrote it may have died before its own sync
        self.coverage = metrics_coverage(directory)
        self.recovered = list(pending_metrics(directory, self.coverage))  # for who needs to know; may be cleared
        for tagged in self.recovered:
            self.coverage.add(tagged.stream, tagged.sequence, tagged.end)
        self.unsettled = bool(log_files(directory, "metrics") or log_files(directory, "events"))

    def append(self, entries: list[Entry]) -> None:
        """Write records to the log and sync them: events first, then metrics, whose batch is the commit.

        Raises `OSError`; then none of these records counts as held, and the next call begins new files.
        """
        try:
            if any(entry.events.num_rows for entry in entries):
                self._events = self._events or LogFile.next(self.directory, "events", EVENTS)
                for entry in entries:
                    if entry.events.num_rows:
                        self._events.write(entry.events, entry)
                self._events.sync()
            self._metrics = self._metrics or LogFile.next(self.directory, "metrics", METRICS)
            for entry in entries:
                self._metrics.write(entry.metrics, entry)
            self.log_bytes = self._metrics.sync()
        except OSError:
            self._abandon()
            raise
        self.unsettled = True
        for entry in entries:
            self.coverage.add(entry.stream, entry.sequence, entry.end)

    def _set_aside(self) -> list[str]:
        """Move Parquet files that are damaged out of the way, so that the run goes on without them; return them in words."""
        found = []
        events = self.directory / "events.parquet"
        for path in [*present_parts(self.directory), *sorted((self.directory / "samples").glob("*.parquet")), events]:
            try:
                check_parquet(path)
            except FileNotFoundError:
                continue
            except HarnessError:
                (self.directory / DAMAGED).mkdir(exist_ok=True)
                name = f"samples-{path.name}" if path.parent.name == "samples" else path.name
                path.replace(self.directory / DAMAGED / name)
                sync_folder(self.directory / DAMAGED)
                _LOG.error("%s is damaged and was set aside: what it held is lost", path)
                found.append(f"{name}, set aside in {DAMAGED}/")
        return found

    def settle(self) -> None:
        """Turn the log into Parquet and delete it. Raises `OSError`; then the log still stands and another call goes on."""
        self._abandon()
        if self._set_aside():
            held = held_by(self.directory)
            held.ends.update(self.coverage.ends)
            self.coverage = held
        self._settle_metrics()
        self._settle_events()
        for path in [*log_files(self.directory, "events"), *log_files(self.directory, "metrics")]:
            path.unlink()
        with suppress(OSError):  # streams.json may still be there
            (self.directory / "log").rmdir()
        sync_folder(self.directory)
        self.log_bytes = 0
        self.unsettled = False

    def _settle_metrics(self) -> None:
        added = Coverage()
        batches = []
        for tagged in pending_metrics(self.directory, metrics_coverage(self.directory)):
            added.add(tagged.stream, tagged.sequence, tagged.end)
            batches.append(tagged.batch)
        if added.held or not part_files(self.directory):
            path = next_path(self.directory)
            write_parquet(path, with_quantiles(pa.Table.from_batches(batches, schema=METRICS)), added)

    def _settle_events(self) -> None:
        path = self.directory / "events.parquet"
        covered = metrics_coverage(self.directory)
        if path.exists() and coverage_of([path]) == covered:
            return
        table = read_events(self.directory, covered).sort_by([("time", "ascending"), ("node", "ascending"), ("sequence", "ascending")])
        write_parquet(path, table, covered, ["node", "worker", "phase", "kind", "severity"])

    @property
    def staged(self) -> Path:
        """Where a part is written that is to take the place of others; swept when its writer dies."""
        return self.directory / "metrics" / ".rolled.tmp"

    def replace(self, staged: Path) -> None:
        """Let a part that `retention.roll` wrote count from now on, and remove what it replaces. Raises `OSError`."""
        staged.replace(next_path(self.directory, rolled=True))
        sync_folder(self.directory / "metrics")
        sweep_replaced(self.directory)

    def close(self) -> None:
        """Give up the directory."""
        self._abandon()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _abandon(self) -> None:
        for file in (self._metrics, self._events):
            if file is not None:
                file.close()
        self._metrics = self._events = None


def parquet_options(dictionary: Sequence[str] = _PLAIN) -> dict[str, Any]:
    """Return how parts are written; `dictionary` names the columns whose values repeat."""
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": list(dictionary),
        "column_encoding": {"time": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},  # the second in single samples only
        "write_statistics": ["time"],
    }


def write_parquet(path: Path, table: pa.Table, coverage: Coverage, dictionary: Sequence[str] = _PLAIN) -> None:
    """Write a whole file whose footer names the records that it holds. Raises `OSError`."""
    whole = table.combine_chunks()  # a record is a few rows, and a writer that takes each by itself is three times as slow
    footed = whole.replace_schema_metadata({FOOTER: coverage.to_footer(), KEY: EMPTY})

    def write(sink: BinaryIO) -> None:
        pq.write_table(footed, sink, row_group_size=1 << 20, **parquet_options(dictionary))
        seal_parquet(sink)

    write_whole(path, write)
