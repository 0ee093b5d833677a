"""The orchestrator's journal: what it may have allowed, written before it tells anybody.

JSON lines with a checksum, in STATE on the orchestrator's node. Grants are written without a sync: they must survive the death
of this process, not of its machine, whose loss a successor covers by waiting a lease and its allowance. Admissions, halts,
ends and forgotten nodes are synced. A torn or damaged line is dropped and counted; what follows it is read.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from actors.messages import Amounts

SYNCED: Final = frozenset({"admitted", "halt", "done", "forgotten"})
MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier orchestrator left in writing."""

    halt_generation: int = 0
    halt_on: bool = False
    open_runs: tuple[str, ...] = ()
    charges: Mapping[str, Mapping[str, Amounts]] = field(default_factory=dict)  # by run and node: what nobody has confirmed to be gone
    damaged_lines: int = 0

    def after(self, entry: Mapping[str, Any]) -> Past:
        """Return the past with one more entry."""
        kind, run = entry["kind"], entry.get("run", "")
        if kind == "halt" and (entry["generation"], entry["on"]) > (self.halt_generation, self.halt_on):
            return replace(self, halt_generation=int(entry["generation"]), halt_on=bool(entry["on"]))
        if kind == "admitted":
            charges = {node: Amounts(*amounts) for node, amounts in entry["charges"].items()}
            return replace(self, open_runs=(*self.open_runs, run), charges={**self.charges, run: charges})
        if kind == "done":
            return replace(self, open_runs=tuple(one for one in self.open_runs if one != run))
        if kind == "released":
            return replace(self, charges=_without(self.charges, entry["node"], run))
        if kind == "forgotten":
            return replace(self, charges=_without(self.charges, entry["node"], None))
        return self


def _without(charges: Mapping[str, Mapping[str, Amounts]], node: str, run: str | None) -> dict[str, Mapping[str, Amounts]]:
    """Return the charges without those of a node, in one run or in all."""
    kept = {
        one: {name: amounts for name, amounts in held.items() if name != node or run not in {None, one}} for one, held in charges.items()
    }
    return {one: held for one, held in kept.items() if held}


class Journal:
    """Appends entries; what earlier lives wrote is in `past`.

    `write` reaches the page cache and waits for nothing; `sync` and `compact` wait for the disk, and no writer waits for them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()  # held for single writes only
        self._syncing = threading.Lock()  # held while the disk is waited for; only its holder may replace the file
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a torn last line must not swallow the next entry
        self._past = _read(path)
        self._meanwhile: list[bytes] | None = None  # what is written while a shorter file is being made

    def write(self, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Write entries in one call, in the order of the calls; return whether one of them needs a `sync`. Raises `OSError`."""
        if not entries:
            return False
        data = b"".join(_line(entry) for entry in entries)
        with self._writing:
            os.write(self._fd, data)
            self._size += len(data)
            if self._meanwhile is not None:
                self._meanwhile.append(data)
            for entry in entries:
                self._past = self._past.after(entry)
        return any(entry["kind"] in SYNCED for entry in entries)

    def sync(self) -> None:
        """Wait until all that was written before this call survives the machine. Raises `OSError`."""
        with self._syncing:
            os.fdatasync(self._fd)

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write entries; return once those that must survive the machine do. Raises `OSError`."""
        if self.write(entries):
            self.sync()

    def replay(self) -> Past:
        """Return the newest halt, the runs that were admitted and never done, and what nodes still owe."""
        with self._writing:
            return self._past

    @property
    def is_long(self) -> bool:
        """Whether it is time to `compact`."""
        return self._size >= MAX_BYTES

    def compact(self) -> None:
        """Keep the file bounded: carry over what is still open, drop the grants of the past. Raises `OSError`."""
        with self._syncing:
            meanwhile: list[bytes] = []
            with self._writing:
                past, self._meanwhile = self._past, meanwhile
            temporary = self._path.with_suffix(".new")
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, b"".join(_lines_of(past)))
                os.fsync(fd)
                with self._writing:
                    os.write(fd, b"".join(meanwhile))
                    temporary.replace(self._path)
                    self._fd, fd = fd, self._fd
                    self._size = os.fstat(self._fd).st_size
            finally:
                self._meanwhile = None
                os.close(fd)
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _read(path: Path) -> Past:
    past, damaged = Past(), 0
    for raw in path.read_bytes().splitlines():
        entry = _parse(raw)
        damaged += entry is None
        past = past.after(entry) if entry is not None else past
    return replace(past, damaged_lines=damaged)


def _lines_of(past: Past) -> Iterator[bytes]:
    """Yield the shortest journal that tells the same past."""
    yield _line({"run": "", "kind": "halt", "generation": past.halt_generation, "on": past.halt_on})
    for run in [*past.open_runs, *(set(past.charges) - set(past.open_runs))]:
        held = past.charges.get(run, {})
        yield _line({"run": run, "kind": "admitted", "charges": {node: astuple(amounts) for node, amounts in held.items()}})
        if run not in past.open_runs:
            yield _line({"run": run, "kind": "done"})


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
