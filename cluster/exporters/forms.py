"""The files that a run can be written to, as a table: `export`, `list exporters` and `describe` read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from ..files import sync_folder
from .arrow_file import ArrowFile, ParquetFile
from .base import Exporter
from .context import Context
from .csv_file import CsvFile, CsvForm
from .files import sweep
from .json_file import JsonArray, JsonLines


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of file. `make` takes its path and the label names that will come; `appends`: written in place, a row at a time."""

    name: str
    suffix: str
    summary: str
    appends: bool
    make: Callable[[Path, Sequence[str]], Exporter]


FORMS: Final[dict[str, Form]] = {
    form.name: form
    for form in (
        Form("json", ".json", "One JSON array of rows; NaN and infinities as text, no digests.", False, lambda path, _: JsonArray(path)),
        Form("jsonl", ".jsonl", "JSON lines, one row each; NaN and infinities as text, no digests.", True, lambda path, _: JsonLines(path)),
        Form(
            "csv",
            ".csv",
            "CSV, a column for each label; NaN and infinities as words, no digests.",
            True,
            lambda path, labels: CsvFile(path, CsvForm(labels=tuple(labels))),
        ),
        Form(
            "parquet",
            ".parquet",
            "Parquet with the columns and types of the run directory, run and scenario before, digests included.",
            False,
            lambda path, _: ParquetFile(path),
        ),
        Form(
            "arrow",
            ".arrow",
            "Arrow IPC file with the columns and types of the run directory, run and scenario before, digests included.",
            False,
            lambda path, _: ArrowFile(path),
        ),
    )
}


def write_file(form: Form, path: Path, batches: Iterable[pa.RecordBatch], context: Context, labels: Sequence[str] = ()) -> int:
    """Write the rows of a run to a file that appears whole, replacing one of that name, and return its size in bytes.

    Raises `OSError` or `UnfinishedError`; then no file appears, and one that was there stands.
    """
    sweep(path)
    target = path.with_name(f".{path.name}.{os.getpid()}.part") if form.appends else path
    exporter = form.make(target, labels)
    is_written = False
    try:
        exporter.open()
        for batch in batches:
            exporter.write(context.on(batch))
        exporter.close()
        if form.appends:
            target.replace(path)
            sync_folder(path.parent)
        is_written = True
    finally:
        if not is_written:
            _abandon(form, exporter, target)
    return path.stat().st_size


def _abandon(form: Form, exporter: Exporter, target: Path) -> None:
    if form.appends:
        target.unlink(missing_ok=True)
    else:
        assert isinstance(exporter, (JsonArray, ArrowFile, ParquetFile)), f"{form.name} cannot be abandoned"
        exporter.abandon()
