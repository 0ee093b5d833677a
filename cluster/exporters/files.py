"""Two kinds of file that a destination writes: one that is appended to, and one that appears whole. Neither is ever seen half done.

An `AppendFile` is cut back to where it stood when a write fails, and to its last whole record when it is opened after a crash. One that
has become too long is given a number, `x.0001.csv`, and never touched again; `x.csv` is begun anew. A `PendingFile` has a hidden temporary
name beside its own, so on the same file system, until it is finished: written, synced, renamed, and its folder synced.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError, InputError

from ..files import sync_folder
from .base import Health
from .wal import Sync

_SUFFIX: Final = ".part"


class AppendFile:
    """A file that grows by whole pieces.

    `whole_bytes` tells of an existing file how much of it is whole records; it may raise, and then nothing was cut. After an `OSError`
    the file is as long as before; if even that fails it is cut when it is opened again, before the next write. A file that was deleted
    or moved away is begun anew. `Sync.ALWAYS` syncs each write, `INTERVAL` at most every `interval_s`. With `rotate_bytes` a file is no
    longer than that, or holds one piece.
    """

    def __init__(
        self,
        path: Path,
        whole_bytes: Callable[[BinaryIO], int],
        *,
        sync: Sync = Sync.INTERVAL,
        interval_s: float = 1.0,
        rotate_bytes: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self.cut_bytes = 0  # torn tails that were removed
        self._rotate_bytes = rotate_bytes
        self._number = 0  # that a full file was given last
        self._whole_bytes = whole_bytes
        self._sync, self._interval_ns = sync, round(interval_s * SECOND_NS)
        self._clock = clock or SystemClock()
        self._synced_ns = self._clock.boot_ns()
        self._fd = -1
        self._end = 0

    @property
    def size(self) -> int:
        """Bytes that are written; 0 for a new file."""
        return self._end

    def open(self) -> bool:
        """Open or create the file, remove a torn tail and what a dead process left beside it; true when it is another file than before.

        Raises `OSError`, or `HarnessError` (`busy`) when somebody else writes it.
        """
        if self._fd >= 0 and not self._is_gone():
            return False
        self._drop()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(fd).st_size
            with os.fdopen(os.dup(fd), "rb") as reader:
                end = self._whole_bytes(reader)
            if end < size:
                os.ftruncate(fd, end)
                self.cut_bytes += size - end
            sweep(self.path)
            if self._sync is not Sync.NEVER:
                sync_folder(self.path.parent)  # also of a file that is there: who made it may have died before it came to that
        except BlockingIOError as error:
            os.close(fd)
            raise HarnessError("busy", f"{self.path} is being written by somebody else", "give each exporter a file of its own") from error
        except BaseException:  # also when `whole_bytes` refuses the file: a descriptor left open would pass for an opened file
            os.close(fd)
            raise
        self._fd, self._end = fd, end
        return True

    def write(self, data: bytes) -> None:
        """Append all of this or, with an `OSError`, nothing."""
        assert self._fd >= 0, "write before open"
        try:
            view, offset = memoryview(data), self._end
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
            if self._sync is Sync.ALWAYS or (self._sync is Sync.INTERVAL and self._clock.boot_ns() - self._synced_ns >= self._interval_ns):
                self.flush()
        except OSError:
            try:
                os.ftruncate(self._fd, self._end)
            except OSError:
                self._drop()  # the tail is cut when it is opened again
            raise
        self._end += len(data)

    def rotate_for(self, size: int, head_bytes: int = 0) -> bool:
        """Give the file a number if a piece of this size would make it too long; then it has to be opened anew. Raises `OSError`.

        A file that holds no more than its head keeps its name.
        """
        if self._rotate_bytes is None or self._end <= head_bytes or self._end + size <= self._rotate_bytes:
            return False
        self.flush()
        self.path.rename(self._next_name())
        self._drop()
        if self._sync is not Sync.NEVER:
            sync_folder(self.path.parent)
        return True

    def _next_name(self) -> Path:
        if not self._number and (found := rotated(self.path)):
            self._number = int(found[-1].stem.rpartition(".")[2])
        while True:
            self._number += 1
            name = self.path.with_name(f"{self.path.stem}.{self._number:04}{self.path.suffix}")
            if not name.exists():
                return name

    def replace(self, temporary: Path) -> None:
        """Put another file in this one's place, and go on at its end. Raises `OSError`, and then this one stands."""
        temporary.replace(self.path)
        sync_folder(self.path.parent)
        self._drop()
        self.open()

    def flush(self) -> None:
        """Force what was written to the device."""
        if self._fd >= 0 and self._sync is not Sync.NEVER:
            os.fdatasync(self._fd)
        self._synced_ns = self._clock.boot_ns()

    def close(self) -> None:
        """Flush and give the file up. Harmless when repeated."""
        try:
            self.flush()
        finally:
            self._drop()

    def _is_gone(self) -> bool:
        try:
            return os.fstat(self._fd).st_ino != self.path.stat().st_ino
        except OSError:
            return True

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Appended:
    """What destinations share that append to one file: `file`, and `_health`, how the last write went."""

    file: AppendFile
    _health: Health

    def flush(self) -> None:
        """Sync the file."""
        self.file.flush()

    def close(self) -> None:
        """Sync and close the file."""
        self.file.close()

    def health(self) -> Health:
        """Tell how the last write went."""
        return self._health


class PendingFile:
    """A file that gets its name when it is whole. Raises `OSError`; what a dead process left beside it is removed first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
        sweep(path)
        fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that its owner lives
        self.sink: BinaryIO = os.fdopen(fd, "wb")

    def finish(self) -> None:
        """Make it durable and give it its name, replacing a file that has it. On an error nothing appears."""
        try:
            self.sink.flush()
            os.fsync(self.sink.fileno())
            self.temporary.replace(self.path)
        except BaseException:
            self.abandon()
            raise
        self.sink.close()
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Remove it. Harmless when repeated."""
        with suppress(OSError):  # it is not there, or the folder is gone
            self.temporary.unlink()
        with suppress(OSError):  # what it still buffers finds no room; nobody will read it
            self.sink.close()


def rotated(path: Path) -> list[Path]:
    """Return the numbered files that once were this one, oldest first."""
    form = re.compile(re.escape(path.stem) + r"\.(\d{4,})" + re.escape(path.suffix))
    numbers = {int(found[1]): one for one in path.parent.iterdir() if (found := form.fullmatch(one.name))}
    return [numbers[number] for number in sorted(numbers)]


def sweep(path: Path) -> int:
    """Remove unfinished files of this name whose owners are dead; return how many."""
    found = 0
    for left in path.parent.glob(f".{path.name}.*{_SUFFIX}"):
        with suppress(OSError):  # it is being written, or somebody else removed it
            fd = os.open(left, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
                found += 1
            finally:
                os.close(fd)
    return found


def last_line_end(file: BinaryIO) -> int:
    """Return the size of a file up to and with its last newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def check_destination(path: Path, *, may_replace: bool = False) -> None:
    """Raise `InputError` when a file cannot be made here, or is there already."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError("not_found", f"{folder} is not a folder", "make it first, or give another --out")
    if path.is_dir():
        raise InputError("invalid_value", f"{path} is a folder", "give the name of a file in it")
    if path.exists() and not may_replace:
        raise InputError("invalid_value", f"{path} exists already", "give another --out, or --force to replace it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("os", f"{folder} may not be written by this user", "give another --out")
