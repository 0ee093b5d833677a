"""Effects that lie on disk: the tagged fill file and trees of ours. Runs in the guardian's disk thread; decides nothing.

Only what carries our mark is touched: a path that leads elsewhere, another kind of file or other content is "foreign".
"""

# pathlib is left out: everything goes through descriptors of folders
# ruff: noqa: PTH103, PTH119, PTH208

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

from ..undo import TAG_BYTES, Outcome, Record
from .blocks import CHUNK_BYTES, Writer, allocate
from .model import Applied

STEP_BYTES: Final = 64 << 20
BLOCK_BYTES: Final = 4_096
ENTRIES_PER_STEP: Final = 2_000
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT}


class ForeignError(Exception):
    """Something that is not ours stands where our effect should be."""


class Files:
    """Applies, undoes and verifies `disk_fill` and `tree` records. `state_dir` is where a missing fill folder may be made."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._open: dict[str, int] = {}
        self._writes: set[str] = set()  # records on file systems without fallocate
        self._writer = Writer()

    def apply(self, record: Record, params: Mapping[str, Any]) -> Applied:
        """Bring a fill file one step nearer to `bytes`; `achieved` is what its blocks take.

        With `write` each block is written, else reserved where the file system can. What there is no room for is `refused`.
        """
        try:
            fd = self._open.get(record.id)
            if fd is None:
                fd = self._open[record.id] = self._create(record)
            more, refused = self._step(record, fd, int(params["bytes"]), writes=bool(params.get("write")))
            return Applied(record.id, os.fstat(fd).st_blocks * 512, more, refused=refused)
        except ForeignError as error:
            return Applied(record.id, 0, error=("foreign", str(error)))
        except OSError as error:
            return Applied(record.id, 0, error=("os", f"cannot fill {record.fields['path']}: {error}"))

    def undo(self, record: Record) -> Outcome:
        """Remove the effect; "foreign" leaves everything as it is."""
        try:
            done = self._remove_fill(record) if record.kind == "disk_fill" else _remove_tree(record)
        except ForeignError as error:
            self._forget(record)
            return Outcome(record.id, "foreign", str(error))
        except OSError as error:
            return Outcome(record.id, "pending", str(error))
        if done:
            self._forget(record)
        return Outcome(record.id, "undone" if done else "pending", "" if done else "still removing")

    def verify(self, record: Record) -> Outcome:
        """Look whether anything of ours is left."""
        try:
            found = self._find_fill(record) if record.kind == "disk_fill" else _find_tree(record)
        except ForeignError:
            return Outcome(record.id, "undone")  # what stands there now is not ours
        except OSError as error:
            return Outcome(record.id, "pending", str(error))
        for fd in found or ():
            os.close(fd)
        return Outcome(record.id, "undone") if found is None else Outcome(record.id, "pending", "it is there again")

    def _forget(self, record: Record) -> None:
        self._writes.discard(record.id)
        fd = self._open.pop(record.id, None)
        if fd is not None:
            os.close(fd)

    # --- disk_fill --------------------------------------------------------------------------------------------------

    def _create(self, record: Record) -> int:
        """Make the file and mark it, or open our own again after a takeover."""
        path = record.fields["path"]
        if path == self._state_dir or path.startswith(self._state_dir + "/"):
            os.makedirs(path, mode=0o700, exist_ok=True)
        found = self._find_fill(record)
        if found is not None:
            folder, fd = found
            os.close(folder)
        else:
            folder = os.open(path, _FOLDER)
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(record.fields["file"], flags, 0o600, dir_fd=folder)
            finally:
                os.close(folder)
        if os.fstat(fd).st_size < TAG_BYTES:
            os.pwrite(fd, _tag(record).ljust(TAG_BYTES, b"\0"), 0)
        return fd

    def _step(self, record: Record, fd: int, wanted: int, *, writes: bool) -> tuple[bool, str]:
        """Return whether there is more to do, and the name of the error number where there is no room for it."""
        wanted = max(-(-wanted // BLOCK_BYTES) * BLOCK_BYTES, TAG_BYTES)
        size = os.fstat(fd).st_size
        if wanted <= size:
            if wanted < size:
                os.ftruncate(fd, wanted)
            return False, ""
        writes = writes or record.id in self._writes
        room = _room(fd, int(record.fields.get("reserve_bytes", 0)))
        length = min(wanted - size, CHUNK_BYTES if writes else STEP_BYTES, room)
        if length <= 0:
            return False, errno.errorcode[errno.ENOSPC]
        try:
            self._grow(record, fd, size, length, writes=writes)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False, errno.errorcode[error.errno]
            raise
        return os.fstat(fd).st_size < wanted, ""

    def _grow(self, record: Record, fd: int, offset: int, length: int, *, writes: bool) -> None:
        if not writes and allocate(fd, offset, length):
            return
        self._writes |= set() if writes else {record.id}
        self._writer.write(fd, offset, length)

    def _find_fill(self, record: Record) -> tuple[int, int] | None:
        """Return (folder, file) descriptors of our own file, None when there is nothing; raises ForeignError, OSError."""
        try:
            folder = os.open(record.fields["path"], _FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fd = self._open_ours(record, folder)
        except BaseException:
            os.close(folder)
            raise
        if fd is None:
            os.close(folder)
            return None
        return folder, fd

    def _open_ours(self, record: Record, folder: int) -> int | None:
        name = record.fields["file"]
        try:
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise ForeignError(f"{record.fields['path']}/{name} is not a plain file")
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return None
        try:
            self._check_ours(record, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_ours(self, record: Record, fd: int) -> None:
        found = os.fstat(fd)
        held = self._open.get(record.id)
        if held is not None and not os.path.samestat(found, os.fstat(held)):
            raise ForeignError("another file took the place of ours")
        mark = _tag(record)
        if not stat.S_ISREG(found.st_mode) or (found.st_size and os.pread(fd, len(mark), 0) != mark):
            raise ForeignError("the file does not carry our tag")

    def _remove_fill(self, record: Record) -> bool:
        found = self._find_fill(record)
        if found is None:
            return True
        folder, fd = found
        try:
            name = record.fields["file"]
            os.ftruncate(fd, 0)  # gives the blocks back even where somebody else holds the file open
            if os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(fd)):
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(fd)
            os.close(folder)
        return True


def _tag(record: Record) -> bytes:
    return f"{record.fields['tag']}\n".encode()


def _room(fd: int, reserve: int) -> int:
    """Return how many bytes the file may grow so that the reserve stays free, in whole blocks."""
    found = os.fstatvfs(fd)
    return max(0, found.f_bavail * found.f_frsize - reserve) // BLOCK_BYTES * BLOCK_BYTES


# --- tree ---------------------------------------------------------------------------------------------------------------


def _find_tree(record: Record) -> tuple[int, int] | None:
    """Return (parent, tree) descriptors of a folder that carries our token, None when there is none."""
    parent_path, name = os.path.split(record.fields["path"])
    try:
        parent = os.open(parent_path, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        tree = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        os.close(parent)
        return None
    except OSError as error:
        os.close(parent)
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise ForeignError(f"{record.fields['path']} is not a plain folder") from error
        raise
    if _token_of(tree, record.fields["token_file"]) != record.fields["token"] and os.listdir(tree):
        os.close(parent)
        os.close(tree)
        raise ForeignError(f"{record.fields['path']} does not carry our token")
    return parent, tree


def _token_of(tree: int, name: str) -> str:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=tree)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(200).decode("utf-8", "replace").strip()


def _remove_tree(record: Record) -> bool:
    """Remove a part of the tree, the token last; True when all of it is gone."""
    found = _find_tree(record)
    if found is None:
        return True
    parent, tree = found
    try:
        device, token_file = os.fstat(tree).st_dev, record.fields["token_file"]
        left = _empty(tree, device, ENTRIES_PER_STEP, keep=token_file)
        if left <= 0:
            return False
        with contextlib.suppress(FileNotFoundError):  # an empty folder of ours that never got its token
            os.unlink(token_file, dir_fd=tree)
        os.rmdir(os.path.basename(record.fields["path"]), dir_fd=parent)
        return True
    finally:
        os.close(tree)
        os.close(parent)


def _empty(folder: int, device: int, budget: int, keep: str = "") -> int:
    """Remove what lies in a folder, never through a link or onto another file system; returns what is left of the budget."""
    for name in os.listdir(folder):
        if name == keep:
            continue
        if budget <= 0:
            return 0
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                budget = _remove_folder(name, folder, device, budget)
            else:
                os.unlink(name, dir_fd=folder)
        budget -= 1
    return budget


def _remove_folder(name: str, parent: int, device: int, budget: int) -> int:
    child = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if os.fstat(child).st_dev != device:
            raise ForeignError(f"another file system is mounted at {name!r} inside of the tree")
        budget = _empty(child, device, budget)
    finally:
        os.close(child)
    if budget > 0:
        os.rmdir(name, dir_fd=parent)
    return budget
