"""JSON: lines that are appended to, or one array that appears whole. Written row by row: memory holds one batch, whatever the file's size.

NaN and infinities are the texts "NaN", "Infinity" and "-Infinity" (or null, as `TextForm` says); null is a value that a kind lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from actors.clock import Clock
from actors.errors import InputError

from .base import Health, UnfinishedError
from .files import Appended, AppendFile, PendingFile, last_line_end
from .text import TextForm
from .wal import Sync

_START_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class JsonForm:
    """How rows look: `indent` spaces (arrays only), keys sorted or in the contract's order, nulls written or left out."""

    text: TextForm = field(default_factory=TextForm)
    indent: int | None = None
    sort_keys: bool = False
    nulls: bool = True

    def __post_init__(self) -> None:
        if self.indent is not None and not 0 <= self.indent <= 8:
            raise InputError("invalid_value", f"indent is {self.indent}, expected 0 to 8")

    def rows(self, batch: pa.RecordBatch) -> Iterator[str]:
        """Yield each row as a JSON object."""
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=self.indent, sort_keys=self.sort_keys).encode
        for row in self.text.rows(batch):
            yield encode(row if self.nulls else {name: value for name, value in row.items() if value is not None})


class JsonLines(Appended):
    """One JSON object a line, appended. A torn last line is cut off when the file is opened again; a failed batch leaves no line.

    With `rotate_bytes` files that are full get a number, and hold whole lines: see `AppendFile`.

    A file that does not begin as ours do is refused with `InputError`, and keeps every byte.
    """

    def __init__(
        self,
        path: Path,
        form: JsonForm | None = None,
        *,
        sync: Sync = Sync.INTERVAL,
        rotate_bytes: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._form = form or JsonForm()
        if self._form.indent is not None:
            raise InputError("invalid_value", "JSON lines have no indent", "use the array form, or leave indent out")
        self.file = AppendFile(path, self._whole_bytes, sync=sync, rotate_bytes=rotate_bytes, clock=clock)
        self._health = Health(ok=True)

    def _whole_bytes(self, file: BinaryIO) -> int:
        file.seek(0)
        start = file.read(_START_BYTES).decode(errors="replace")
        ours = [f'{{"{name}"' for name in self._form.text.columns]
        if start and not any(start.startswith(one) or one.startswith(start) for one in ours):
            raise InputError("invalid_value", f"{self.file.path} begins with {start[:20]!r}: no JSON lines of ours", "use another file")
        return last_line_end(file)

    def open(self) -> None:
        """Open the file for appending."""
        self.file.open()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a line for each row."""
        try:
            self.file.open()  # also after a failure, or when it was deleted
            lines = "".join(f"{row}\n" for row in self._form.rows(batch)).encode()
            if self.file.rotate_for(len(lines)):
                self.file.open()
            self.file.write(lines)
        except OSError as error:
            self._health = Health(ok=False, detail=str(error))
            raise
        self._health = Health(ok=True)


class WholeFile:
    """What the forms share that appear whole: a pending file, how many rows it has taken, and what an error means for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: PendingFile | None = None
        self._rows = 0
        self._health = Health(ok=True)
        self._is_done = False

    def open(self) -> None:
        """Begin the file under its temporary name."""
        if self._pending is None:
            self._pending = PendingFile(self.path)
            try:
                self._begin(self._pending)
            except BaseException:
                self.abandon()
                raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. After an error in mid-file the rows so far are lost (`UnfinishedError`), and a new file is begun."""
        try:
            self.open()
            self._add(batch)
        except Exception as error:
            self._health = Health(ok=False, detail=str(error))
            lost = self._rows
            self.abandon()
            if lost:
                raise UnfinishedError(lost, f"{self.path}: {error}") from error
            raise
        self._rows += batch.num_rows
        self._health = Health(ok=True)

    def flush(self) -> None:
        """Do nothing: the file has no name before it is whole."""

    def close(self) -> None:
        """Finish the file; it then has its name. Without any row there is an empty one, if it was opened."""
        if self._pending is None:
            return
        try:
            self._end(self._pending)
            self._pending.finish()
        except OSError as error:
            lost = self._rows
            self.abandon()
            raise UnfinishedError(lost, f"{self.path}: {error}") from error
        self._pending, self._rows = None, 0

    def abandon(self) -> None:
        """Remove what is not finished."""
        if self._pending is not None:
            self._release()
            self._pending.abandon()
        self._pending, self._rows = None, 0

    def health(self) -> Health:
        """Tell how the last write went."""
        return self._health

    def _begin(self, pending: PendingFile) -> None:
        """Write what comes before the rows."""

    def _add(self, batch: pa.RecordBatch) -> None:
        """Write rows."""

    def _end(self, pending: PendingFile) -> None:
        """Write what comes after the rows."""

    def _release(self) -> None:
        """Give up a writer that holds the file."""


class JsonArray(WholeFile):
    """One JSON array of objects, which appears when it is closed."""

    def __init__(self, path: Path, form: JsonForm | None = None) -> None:
        super().__init__(path)
        self._form = form or JsonForm()

    def _begin(self, pending: PendingFile) -> None:
        pending.sink.write(b"[")

    def _add(self, batch: pa.RecordBatch) -> None:
        assert self._pending is not None
        first = self._rows == 0
        for row in self._form.rows(batch):
            self._pending.sink.write(("\n" if first else ",\n").encode() + row.encode())
            first = False

    def _end(self, pending: PendingFile) -> None:
        pending.sink.write(b"\n]\n" if self._rows else b"]\n")
