"""A disk that loses at a power cut whatever was not forced to it: file contents, and names in folders."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


class Disk:
    """What is durable below a folder: each file as of its last sync, each name as of its folder's last. The strictest disk there may be.

    While `watched`, `os.fsync` and `os.fdatasync` only note what they make durable, and `look` is called after each of them.
    """

    def __init__(self, root: Path, look: Callable[[], None] = lambda: None) -> None:
        self.root, self.look = root.resolve(), look
        self.syncs = 0
        self._names: dict[int, dict[str, int]] = {}  # by folder
        self._data: dict[int, bytes] = {}
        self._held: dict[int, int] = {}  # open, so that no number is given to another file meanwhile
        self._folders: set[int] = set()

    def cut(self, target: Path) -> Path:
        """Make `target` what is found of the folder after a power cut now, and return it."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        self._restore(self.root.stat().st_ino, target)
        return target

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Note what is synced, until the end of the block."""
        try:
            with mock.patch.object(os, "fsync", self._sync), mock.patch.object(os, "fdatasync", self._sync):
                yield self
        finally:
            for fd in self._held.values():
                os.close(fd)

    def _sync(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if not path.is_relative_to(self.root):
            return
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(fd) as entries:
                self._names[found.st_ino] = {entry.name: self._hold(entry.name, fd) for entry in entries}
        else:
            self._hold(path.name, fd)
            self._data[found.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
        self.syncs += 1
        self.look()

    def _hold(self, name: str, fd: int) -> int:
        """Keep a file, or an entry of a folder, from giving its number away."""
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            kept = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        else:
            kept = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        found = os.fstat(kept)
        if stat.S_ISDIR(found.st_mode):
            self._folders.add(found.st_ino)
        if self._held.setdefault(found.st_ino, kept) != kept:
            os.close(kept)
        return found.st_ino

    def _restore(self, folder: int, target: Path) -> None:
        for name, number in self._names.get(folder, {}).items():
            if number in self._folders:
                (target / name).mkdir()
                self._restore(number, target / name)
            else:
                (target / name).write_bytes(self._data.get(number, b""))
