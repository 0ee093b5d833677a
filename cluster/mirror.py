"""Copying a run directory from the aggregator's node to where the user wants it; every file appears whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from actors.errors import InputError
from actors.proc import boot_id

from .files import write_whole

CHUNK_BYTES = 8 << 20
ATTEMPTS = 3


class RemoteDirectory(Protocol):
    """An aggregator, as the driver reaches it."""

    def call(self, method: str, *args: Any, timeout_s: float = 10.0) -> Any:
        """Call a method of `aggregator_shell.AggregatorShell`."""
        ...


def mirror(source: RemoteDirectory, run_dir: Path, only: Sequence[str] = ()) -> None:
    """Copy the closed files (all outside log/, or those named) that `run_dir` does not share with the aggregator.

    Raises what the calls raise; what was copied so far stays, each file whole.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if source.call("hello", timeout_s=20.0)["directory_identity"] == identity(run_dir):
        return  # OUT is STATE, as in a Ray job: the aggregator writes here itself
    for attempt in range(ATTEMPTS):
        try:
            _copy(source, run_dir, only)
        except InputError:  # a part went meanwhile: another one took its place
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


def _copy(source: RemoteDirectory, run_dir: Path, only: Sequence[str]) -> None:
    entries = source.call("files", timeout_s=20.0)
    names = {entry["name"] for entry in entries}
    for entry in entries:
        name = entry["name"]
        if name in only or (not only and not name.startswith("log/")):
            copy_file(source, run_dir, name, entry["size"])
    if not only:
        for path in (run_dir / "metrics").glob("*.parquet"):
            if f"metrics/{path.name}" not in names:  # would count twice for who does not know what took its place
                path.unlink(missing_ok=True)


def copy_file(source: RemoteDirectory, run_dir: Path, name: str, size: int) -> None:
    """Copy one file; it appears whole."""
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    write_whole(run_dir / name, partial(_write, chunks(source, name, size)))


def identity(directory: Path) -> list[str | int]:
    """Return what tells one directory from all others, also from one of the same path on another machine."""
    found = directory.stat()
    return [boot_id(), found.st_dev, found.st_ino]


def chunks(source: RemoteDirectory, name: str, size: int) -> Iterator[bytes]:
    """Yield a file in pieces."""
    for offset in range(0, max(size, 1), CHUNK_BYTES):
        yield source.call("read", name, offset, CHUNK_BYTES, timeout_s=60.0)


def _write(pieces: Iterator[bytes], file: BinaryIO) -> None:
    file.writelines(pieces)
