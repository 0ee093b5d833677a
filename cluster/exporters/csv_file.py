"""CSV (RFC 4180) whose header always matches its rows: it stands once, and is widened when a label appears that it lacks.

Labels are columns of their own, `label.NAME`, or one column of JSON. A label that the header lacks: `REWRITE` writes the file anew with a
wider header (whole, under a temporary name, then renamed), `REST` puts it into the JSON column `other_labels`. Null is an empty field,
NaN and infinities are the words NaN, Infinity and -Infinity. A torn last record, which may hold newlines, is cut on opening.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import pyarrow as pa

from actors.clock import Clock
from actors.errors import InputError

from .base import Health, RejectedError
from .context import COLUMNS
from .files import Appended, AppendFile, PendingFile
from .text import TextForm
from .wal import Sync

PREFIX: Final = "label."
OTHER: Final = "other_labels"
_CHUNK: Final = 1 << 20


class NewLabel(StrEnum):
    """What happens to a label that the header lacks."""

    REWRITE = "rewrite"
    REST = "rest"
    REFUSE = "refuse"  # its batch is rejected


@dataclass(frozen=True, slots=True)
class CsvForm:
    """How the file looks. `labels` are columns from the start; with `as_json` all labels share one column."""

    text: TextForm = field(default_factory=TextForm)
    labels: tuple[str, ...] = ()
    new_label: NewLabel = NewLabel.REWRITE
    as_json: bool = False
    separator: str = ","
    quote_all: bool = False
    line_end: str = "\n"

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or self.separator in '"\r\n':
            raise InputError("invalid_value", f"the separator is {self.separator!r}, expected one character, no quote or newline")
        if self.line_end not in ("\n", "\r\n"):
            raise InputError("invalid_value", f"the line end is {self.line_end!r}, expected \\n or \\r\\n")

    def header(self, labels: Iterable[str]) -> list[str]:
        """Return the header for these labels."""
        plain = [name for name in self.text.columns if name != "labels"]
        if self.as_json:
            return [*plain, "labels"]
        return [*plain, *(f"{PREFIX}{name}" for name in labels), *([OTHER] if self.new_label is NewLabel.REST else [])]

    def records(self, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
        """Yield the fields of each row in the header's order."""
        for row in rows:
            yield [self._field(name, row, header) for name in header]

    def _field(self, name: str, row: Mapping[str, Any], header: Sequence[str]) -> Any:
        labels = row["labels"]
        if name.startswith(PREFIX):
            return labels.get(name.removeprefix(PREFIX))
        if name == OTHER:
            rest = {label: value for label, value in labels.items() if f"{PREFIX}{label}" not in header}
            return json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None
        if name == "labels":
            return json.dumps(labels, ensure_ascii=False, sort_keys=True)
        value = row[name]
        return repr(value) if isinstance(value, float) else value

    def text_of(self, records: Iterable[Sequence[Any]]) -> bytes:
        """Return records as CSV."""
        quoting: Literal[0, 1] = csv.QUOTE_ALL if self.quote_all else csv.QUOTE_MINIMAL
        lines = _Lines(self.line_end)
        # with this terminator a lone carriage return is quoted as well, which Python before 3.13 else leaves bare
        csv.writer(lines, delimiter=self.separator, quoting=quoting, lineterminator="\r\n").writerows(records)
        return "".join(lines.found).encode()


class _Lines:
    """Takes what a `csv.writer` writes, one record a call, and gives each its own line end."""

    def __init__(self, line_end: str) -> None:
        self.found: list[str] = []
        self._line_end = line_end

    def write(self, line: str) -> None:
        self.found.append(line[:-2] + self._line_end)


class CsvFile(Appended):
    """CSV that is appended to. Raises `InputError` when an existing file has columns that this form does not write.

    With `rotate_bytes` files that are full get a number, each with a header of its own: see `AppendFile`.
    """

    def __init__(
        self,
        path: Path,
        form: CsvForm | None = None,
        *,
        sync: Sync = Sync.INTERVAL,
        rotate_bytes: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._form = form or CsvForm()
        self.file = AppendFile(path, self._whole_bytes, sync=sync, rotate_bytes=rotate_bytes, clock=clock)
        self._next_header = self._form.header(self._form.labels)  # of a file that is begun: with all labels that were seen
        self._header: list[str] = []
        self._found: list[str] = []  # the header of the file that was opened last
        self._health = Health(ok=True)

    def open(self) -> None:
        """Open the file; an existing one is appended to under its own header, a new one gets one. A foreign one is left as it is."""
        if self.file.open():
            self._header = self._found
        if not self._header:  # a new file, or an earlier attempt to write it failed
            self.file.write(self._form.text_of([self._next_header]))
            self._header = self._next_header
        self._next_header = self._header

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a record for each row; the header is widened first when it has to be."""
        try:
            self.open()
            rows = list(self._form.text.rows(batch))
            self._widen(sorted({name for row in rows for name in row["labels"] if f"{PREFIX}{name}" not in self._header}))
            records = self._form.text_of(self._form.records(self._header, rows))
            if self.file.rotate_for(len(records), head_bytes=len(self._form.text_of([self._header]))):
                self.open()
            self.file.write(records)
        except OSError as error:
            self._health = Health(ok=False, detail=str(error))
            raise
        self._health = Health(ok=True)

    def _widen(self, new: Sequence[str]) -> None:
        if not new or self._form.as_json or OTHER in self._header:
            return
        if self._form.new_label is NewLabel.REFUSE:
            raise RejectedError(f"{self.file.path} has no column for the labels {', '.join(new)}")
        added = [f"{PREFIX}{name}" for name in new]
        pending = PendingFile(self.file.path)
        try:
            with self.file.path.open(encoding="utf-8", newline="") as old:
                reader = csv.reader(old, delimiter=self._form.separator)
                pending.sink.write(self._form.text_of([[*next(reader), *added]]))
                for record in reader:
                    pending.sink.write(self._form.text_of([[*record, *[""] * len(added)]]))
            pending.sink.flush()
            os.fsync(pending.sink.fileno())
            pending.sink.close()  # and with it its lock
            self.file.replace(pending.temporary)
        finally:
            pending.abandon()
        self._header = self._found

    def _whole_bytes(self, file: BinaryIO) -> int:
        """Return where the last whole record ends. Raises `InputError` for a file that is not of this form, before anything is cut."""
        end = whole_records(file)
        self._found = self._read_header(file) if end else []
        if not end:
            self._check_torn(file)
        return end

    def _read_header(self, file: BinaryIO) -> list[str]:
        file.seek(0)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            found = next(csv.reader(text, delimiter=self._form.separator), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError("invalid_value", f"{self.file.path} is no CSV: {error}", "use another file") from error
        finally:
            text.detach()
        wanted = self._form.header([])
        before = [name for name in wanted if name not in COLUMNS]  # as versions before these columns had it: its run goes on so
        labels = [name for name in found if name.startswith(PREFIX)]
        if [name for name in found if name not in labels] not in (wanted, before):
            raise self._foreign(found)
        return found

    def _check_torn(self, file: BinaryIO) -> None:
        """Refuse a file without a whole record that is not the beginning of a header of this form."""
        plain = [name for name in self._form.header([]) if name != OTHER]
        start = self._form.text_of([plain])[: -len(self._form.line_end)]
        file.seek(0)
        found = file.read(len(start))
        if not start.startswith(found):
            raise self._foreign([found.decode(errors="replace")])

    def _foreign(self, found: Sequence[str]) -> InputError:
        wanted = ", ".join(self._form.header([]))
        return InputError("invalid_value", f"{self.file.path} has the columns {', '.join(found)}", f"expected {wanted}; use another file")


def whole_records(file: BinaryIO) -> int:
    """Return the size of a CSV file up to the end of its last whole record: the last newline outside of quotes."""
    file.seek(0)
    end = at = quotes = 0
    while chunk := file.read(_CHUNK):
        parts = chunk.split(b"\n")
        for index, part in enumerate(parts):
            quotes += part.count(b'"')
            at += len(part)
            if index < len(parts) - 1:
                at += 1
                end = at if quotes % 2 == 0 else end
    return end
