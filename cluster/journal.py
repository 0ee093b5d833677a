"""The orchestrator's journal: what it may have allowed, written before it tells anybody.

JSON lines with a checksum, in STATE on the orchestrator's node. Grants are written without a sync: they must survive the death
of this process, not of its machine, whose loss a successor covers by waiting a lease and its allowance. Admissions, halts
and ends are synced. A torn or damaged line is dropped and counted; what follows it is read.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SYNCED: Final = frozenset({"admitted", "halt", "done"})
MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier orchestrator left in writing."""

    halt_generation: int = 0
    halt_on: bool = False
    open_runs: tuple[str, ...] = ()
    damaged_lines: int = 0


class Journal:
    """Appends entries; `replay` reads what earlier lives wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a torn last line must not swallow the next entry

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write entries in one call; sync when one of them must survive the machine. Raises `OSError`."""
        if not entries:
            return
        data = b"".join(_line(entry) for entry in entries)
        with self._lock:
            self._rotate()
            os.write(self._fd, data)
            if any(entry["kind"] in SYNCED for entry in entries):
                os.fdatasync(self._fd)

    def replay(self) -> Past:
        """Return the newest halt and the runs that were admitted and never done."""
        halt, runs, damaged = (0, False), {}, 0
        for raw in self._path.read_bytes().splitlines():
            entry = _parse(raw)
            if entry is None:
                damaged += 1
            elif entry["kind"] == "halt" and entry["generation"] > halt[0]:
                halt = (int(entry["generation"]), bool(entry["on"]))
            elif entry["kind"] == "admitted":
                runs[entry["run"]] = True
            elif entry["kind"] == "done":
                runs.pop(entry["run"], None)
        return Past(halt[0], halt[1], tuple(runs), damaged)

    def _rotate(self) -> None:
        """Keep the file bounded: carry over what is still open, drop the grants of the past."""
        if os.fstat(self._fd).st_size < MAX_BYTES:
            return
        past = self.replay()
        lines = [_line({"run": "", "kind": "halt", "generation": past.halt_generation, "on": past.halt_on})]
        lines += [_line({"run": run, "kind": "admitted", "nodes": []}) for run in past.open_runs]
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(b"".join(lines))
        os.close(self._fd)
        temporary.replace(self._path)
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _line(entry: Mapping[str, Any]) -> bytes:
    body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _parse(raw: bytes) -> dict[str, Any] | None:
    checksum, _, body = raw.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        entry = json.loads(body)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "kind" in entry else None
