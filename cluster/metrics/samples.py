"""The single samples of a run in detailed mode: their log and their Parquet files.

    log/samples-<n>.arrows         Arrow IPC streams of what is not in Parquet yet
    samples/part-<n>.parquet       whole files; the footer names the records that each one holds

A record of samples is committed like every other one, by its batch in the metrics log (see `store`): its samples are written and synced
before that, and those of a record that is not held do not count. Turning the log into Parquet follows what is held, so it may come
before or after the same step of the metrics, with a crash in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import make_folders, sync_folder
from .store import Coverage, Entry, LogFile, Tagged, coverage_of, held_by, log_files, read_log, sample_files, unchanged, write_parquet
from .windows import SAMPLES

_PLAIN: Final = ["metric", "unit", "node", "worker", "phase", "weight", "labels.key_value.key", "labels.key_value.value"]


def pending_samples(directory: Path, held: Coverage) -> Iterator[Tagged]:
    """Yield the log's samples of records that are held and not in Parquet yet, each record once."""
    seen = coverage_of(sample_files(directory))
    for path in log_files(directory, "samples"):
        for tagged in read_log(path, SAMPLES):
            if held.has(tagged.stream, tagged.sequence) and not seen.has(tagged.stream, tagged.sequence):
                seen.add(tagged.stream, tagged.sequence)
                yield tagged


def read_samples(directory: Path) -> pa.Table:
    """Return the samples of a run directory, at any moment and after any crash, each once; none in summary mode.

    Raises `HarnessError` when its files change all the time.
    """
    return unchanged(directory, lambda: _read(directory))


def _read(directory: Path) -> pa.Table:
    tables = [pq.read_table(path).cast(SAMPLES) for path in sample_files(directory)]
    tables += [pa.Table.from_batches([tagged.batch.replace_schema_metadata()]) for tagged in pending_samples(directory, held_by(directory))]
    return (pa.concat_tables(tables) if tables else SAMPLES.empty_table()).replace_schema_metadata()


class SampleStore:
    """The writer of a run's samples. Not thread-safe, and only beside the `RunStore` of the same directory, whose lock guards both."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: LogFile | None = None
        self.log_bytes = 0
        found = log_files(directory, "samples")
        for path in found:  # what a predecessor wrote may be held, and is acknowledged next
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.unsettled = bool(found)

    def append(self, entries: Sequence[Entry]) -> None:
        """Write and sync the samples of these records; they count once the records are held. Raises `OSError`."""
        filled = [entry for entry in entries if entry.samples is not None]
        if not filled:
            return
        self.unsettled = True
        try:
            self._file = self._file or LogFile.next(self._directory, "samples", SAMPLES)
            for entry in filled:
                self._file.write(entry.samples, entry)
            self.log_bytes = self._file.sync()
        except OSError:
            self.close()
            raise

    def settle(self, held: Coverage) -> None:
        """Turn the log into a Parquet part and delete it. Raises `OSError`; then the log still stands and another call goes on."""
        self.close()
        added, batches = Coverage(), []
        for tagged in pending_samples(self._directory, held):
            added.add(tagged.stream, tagged.sequence)
            batches.append(tagged.batch.replace_schema_metadata())
        if batches:
            parts = sample_files(self._directory)
            number = int(parts[-1].stem.rpartition("-")[2]) + 1 if parts else 0
            make_folders(self._directory / "samples")
            table = pa.Table.from_batches(batches, schema=SAMPLES)
            write_parquet(self._directory / "samples" / f"part-{number:04d}.parquet", table, added, _PLAIN)
        for path in log_files(self._directory, "samples"):
            path.unlink()
        with suppress(OSError):  # streams.json may still be there
            (self._directory / "log").rmdir()
        sync_folder(self._directory)
        self.log_bytes, self.unsettled = 0, False

    def written(self, held: Coverage) -> int:
        """Return how many samples are on disk and count."""
        in_parts: int = sum(pq.read_metadata(path).num_rows for path in sample_files(self._directory))
        in_log: int = sum(tagged.batch.num_rows for tagged in pending_samples(self._directory, held))
        return in_parts + in_log

    def close(self) -> None:
        """Give up the log that is being written; the next call begins another one."""
        if self._file is not None:
            self._file.close()
        self._file = None
