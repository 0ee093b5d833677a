"""A value made of files, made again when they change. A change for the worse keeps the old value and is told. Thread-safe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from actors.errors import InputError

_LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")
_Signature = tuple[tuple[int, int, int, int] | None, ...]


class Watched(Generic[T]):
    """The newest good value. The first must be good: `load` raises `InputError` when it is not. `more` are files that a value names."""

    def __init__(self, paths: Sequence[Path], load: Callable[[], T], more: Callable[[T], Sequence[Path]] = lambda _: ()) -> None:
        self._paths, self._load, self._more = tuple(paths), load, more
        self._lock = threading.Lock()
        self._value = load()
        self._seen: _Signature = ()  # the first look reads once more: a file may have changed since
        self.problem = ""

    def current(self) -> T:
        """Return the value; the files are looked at, and read if they changed."""
        with self._lock:
            before = self._signature()
            if before != self._seen:
                self._reload()
                self._seen = before  # what changed during the reading is read by the next look
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
        except InputError as error:
            self.problem = f"{error.message}; what was read before is still in use"
            _LOG.error("%s", self.problem)  # the message is whole, and no stack may show what a file holds
        else:
            self.problem = ""

    def _signature(self) -> _Signature:
        return tuple(map(_stamp, (*self._paths, *self._more(self._value))))


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def read_private(path: Path, setting: str) -> bytes:
    """Return a file that others may not read. Raises `InputError` that names the setting, and never what the file holds."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            "invalid_setting", f"{setting}: {path} cannot be read: {error.strerror}", "name a file on the node that serves the metrics"
        ) from None
    if mode & 0o007:
        raise InputError("invalid_setting", f"{setting}: {path} can be read by everybody (mode {mode & 0o777:o})", f"chmod o-rwx {path}")
    return data
