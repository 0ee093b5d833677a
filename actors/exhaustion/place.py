"""Where loads make files without a name: on the file system of STATE, whose room and inodes are counted and watched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import InputError, RefusedError
from ..messages import Operation
from ..option import Option
from ..simulator import record_of
from ..state import ENV_STATE_DIR, default_state_dir

DIR = Option("dir", "path", "", "folder on the file system of STATE whose file system is used; empty for STATE")


def folder_of(operation: Operation, state_dir: Path | None = None) -> Path:
    """Return the folder in which an operation's files are made; in a load process STATE is in its environment."""
    named = str(record_of(operation.kind).resolve_options(operation.options)["dir"])
    return Path(named) if named else state_dir or default_state_dir(os.environ, os.geteuid())


def check_folder(operation: Operation, state_dir: Path) -> None:
    """Refuse a folder that is none, or on another file system than STATE's. Raises `InputError`, `RefusedError`."""
    folder = folder_of(operation, state_dir)
    if not folder.is_dir():
        raise InputError("invalid_value", f"{operation.id}: option 'dir' must name an existing folder, got {folder}")
    if folder.stat().st_dev != state_dir.stat().st_dev:
        raise RefusedError(
            "capability",
            f"{operation.id}: option 'dir' names {folder}, which lies on another file system than the state folder {state_dir}; "
            "what is left there is not watched",
            f"name a folder beside the state folder, or set {ENV_STATE_DIR} to a folder on that file system",
        )


def open_nameless(folder: Path, flags: int = 0) -> int:
    """Return a descriptor of a new file without a name, readable and writable; it ends with its last descriptor. Raises `OSError`."""
    return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | flags, stat.S_IRUSR | stat.S_IWUSR)
