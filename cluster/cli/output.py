"""What the command line prints: one JSON document or plain text on standard output, everything else on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from actors.errors import StressError


def emit(document: Any, as_json: bool, lines: Iterable[str]) -> None:
    """Print the document with `--json`, else the lines."""
    if as_json:
        print_json(document)
    else:
        put("".join(f"{line}\n" for line in lines))


def print_json(document: Any) -> None:
    """Print one JSON document; what JSON has no word for (NaN, infinities) becomes null."""
    put(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def put(text: str) -> None:
    """Write to standard output. A reader that has seen enough changes no exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)


def plain(value: Any) -> Any:
    """Return JSON-ready data of records, mappings, sequences and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value) if isinstance(value, Path) else value
    return str(value)


def fail(error: StressError, as_json: bool) -> int:
    """Report an error where the caller looks for it, and return its exit code."""
    if as_json:
        print_json(error.to_json())
    else:
        say(f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else ""))
    return error.exit_code


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line on standard error; a terminal that is gone is no reason to stop following a run."""
    stream = stream or sys.stderr
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Point a stream whose reader is gone at nothing, so that the interpreter's last flush does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return aligned columns as lines; nothing when there is no row."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(len(row[index]) for row in [list(head), *cells]) for index in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [list(head), *cells]]
