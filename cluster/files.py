"""Files that are written whole or not at all. Imports nothing heavy: drivers and commands use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name, fsync it, rename it, fsync the folder. Raises `OSError`; then the old file stands."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a driver and a `report` may write one directory
    try:
        with temporary.open("w+b") as sink:
            write(sink)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # nothing was made, or the disk fails altogether
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_json_atomic(path: Path, doc: Mapping[str, Any]) -> None:
    """Write a JSON document as a whole file. NaN and infinities become null: JSON has none. Raises `OSError`."""
    body = json.dumps(_plain(doc), indent=2, allow_nan=False, default=str).encode() + b"\n"
    write_whole(path, lambda sink: _discard(sink.write(body)))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON document, or None when there is no such file."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def make_folders(folder: Path, mode: int = 0o777) -> None:
    """Make a folder with all above it, so that a power cut leaves it there. Raises `OSError`.

    One that is there is made durable too: who made it may have died before it came to that.
    """
    missing = [one for one in folder.parents if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for made in (*reversed(missing), folder):
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _discard(_: object) -> None:
    """Take a result that nobody needs."""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):  # noqa: PLR0124  # NaN
        return None
    return value
