"""What a raylet's command line says of its object store. Standard library and /proc only: no call of Ray, so that it cannot wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .limits import PROC

SPILLED: Final = "ray_spilled_objects_{}"  # the folder that Ray 2.60 makes for a node: its private/external_storage.py


@dataclass(frozen=True, slots=True)
class RayletStore:
    """A node's object store: its size in bytes, and the folder that it spills to; None where that is no folder of this machine."""

    size_bytes: int
    spill_folder: Path | None


def parse_store(arguments: Sequence[str]) -> RayletStore | None:
    """Return what a command line says, None when it is no raylet's."""
    said = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument)
    size = said.get("object_store_memory", "")
    if not (arguments and arguments[0].endswith("/raylet") and size.isdigit()):
        return None
    folder, node = said.get("fallback_directory", ""), said.get("node_id", "")
    return RayletStore(int(size), Path(folder) / SPILLED.format(node) if folder.startswith("/") and node else None)


def read_store(raylet_pid: int, proc: Path = PROC) -> RayletStore | None:
    """Return the object store of the raylet that has this pid, None when there is none: a worker of Ray has its raylet as parent."""
    try:
        line = (proc / str(raylet_pid) / "cmdline").read_bytes()
    except OSError:
        return None
    return parse_store(line.decode(errors="replace").split("\0"))


def spilled_bytes(folder: Path) -> int:
    """Return the bytes of all files in a spill folder; what is written now counts as far as it is. 0 where there is no folder yet."""
    total = 0
    try:
        for entry in folder.iterdir():
            try:
                total += entry.stat().st_size
            except OSError:  # it was deleted meanwhile
                continue
    except OSError:
        return total
    return total
