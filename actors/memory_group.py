"""Control groups with a limit of memory, one for an operation that is to run short of it by itself: where they go, how they are made.

Version 2 needs a group above us that hands the memory controller on to its children and that we may write to; the operation's container
then lies there and has the limit. Version 1 has a tree of its own for memory: a group there holds the limit, beside the container.
Standard library only: the guardian uses it. What exists already is never changed, and controllers are switched on in folders of ours only.
"""

# pathlib is left out of what the guardian calls: paths are texts from its journal
# ruff: noqa: PTH103, PTH120

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import RefusedError
from .limits import PROC, chain, read_text

NO_GROUP: Final = "no control group of memory can be made here: the memory controller is not handed on to us, or its tree is read-only"
ALLOW: Final = "run Ray where it may make groups of memory: systemd's Delegate=memory, or as root on the host"


@dataclass(frozen=True, slots=True)
class MemoryRoot:
    """A folder in which groups with a limit of memory can be made. `version` is the tree's: 1 or 2."""

    version: int
    folder: str


def _is_writable(folder: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs"))


def find(proc: Path = PROC, is_writable: Callable[[Path], bool] = _is_writable) -> MemoryRoot | None:
    """Return the nearest folder from our own group upwards that can hold such groups; None where there is none.

    A process may move only where the nearest group above both is writable (cgroup-v2.rst, "Delegation Containment"): that is this folder.
    """
    cgroup, mounts = read_text(proc / "self/cgroup") or "", read_text(proc / "self/mountinfo") or ""
    for folder in chain("", cgroup, mounts):
        if "memory" in (read_text(folder / "cgroup.subtree_control") or "").split() and is_writable(folder):
            return MemoryRoot(2, str(folder))
    for folder in chain("memory", cgroup, mounts)[:1]:
        if (folder / "memory.limit_in_bytes").exists() and is_writable(folder):
            return MemoryRoot(1, str(folder))
    return None


def places(container_root: str, memory: MemoryRoot | None, name: str, limit_bytes: int) -> dict[str, Any]:
    """Return where an operation's container and its group of memory go: fields of its undo record. Pure.

    `path` is "" without a container; without a limit nothing else is told. Raises `RefusedError` (`unsupported`) for a limit where no
    group can have one.
    """
    path = f"{container_root}/{name}" if container_root else ""
    if not limit_bytes:
        return {"path": path}
    if memory is None:
        raise RefusedError("unsupported", NO_GROUP, ALLOW)
    group = f"{memory.folder}/{name}"
    return {"path": group if memory.version == 2 else path, "memory_group": group, "memory_limit_bytes": limit_bytes}


def of(fields: Mapping[str, Any]) -> list[str]:
    """Return the folders that a container's record names, each once."""
    return list(dict.fromkeys(path for path in (str(fields.get("path", "")), str(fields.get("memory_group", ""))) if path))


def make(fields: Mapping[str, Any]) -> None:
    """Make the group of memory that a container's record names, and limit it; does nothing where it names none. Raises `OSError`."""
    group = str(fields.get("memory_group", ""))
    if not group:
        return
    shared = os.path.dirname(group)
    is_second = group == fields.get("path")
    os.makedirs(shared, exist_ok=True)  # an earlier operation made the shared folder
    if is_second:
        _write(f"{shared}/cgroup.subtree_control", "+memory")
    os.makedirs(group, exist_ok=True)  # left by an earlier life with the same name: it is ours
    _write(f"{group}/{'memory.max' if is_second else 'memory.limit_in_bytes'}", str(fields["memory_limit_bytes"]))
    with contextlib.suppress(OSError):  # a kernel without swap: there is nothing to forbid
        _write(f"{group}/{'memory.swap.max' if is_second else 'memory.swappiness'}", "0")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # never creates: a name that the kernel does not know is an error
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
