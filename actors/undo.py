"""What an undo record is, which kinds exist, and the journal that keeps records over any death.

A record is declarative: a kind and validated fields, never a command. It is written and synced before its effect is
applied; undoing needs no write, and replaying an undone record changes nothing. The effects themselves are performed by
`guardian.killing` and `guardian.files`. Standard library only: the guardian uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .errors import HarnessError, InputError
from .proc import Identity

RECORD_VERSION: Final = 1
JOURNAL_NAME: Final = "journal"
SLOT_BYTES: Final = 4_096
RECORDS_MAX: Final = 512
TREE_TOKEN_FILE: Final = ".stress-cluster-tree"  # noqa: S105  # a file name
TAG_BYTES: Final = 4_096

_HEAD: Final = struct.Struct("=4sHHIQI")  # magic, layout, state, payload bytes, sequence, CRC of all of that and the payload
_MAGIC: Final = b"SCUJ"
_LAYOUT: Final = 1
_ARMED: Final = 1
_FORBIDDEN_ROOTS: Final = ("/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True)
class Record:
    """One effect that has to be undone, and for whom it was made."""

    id: str
    kind: str
    slot: int
    generation: int
    cluster: str = ""
    node: str = ""
    run: str = ""
    operation: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    version: int = RECORD_VERSION


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a try to undo or verify a record.

    `result` is "undone" (nothing of ours is left), "pending" (try again) or "foreign" (not ours any more: left alone).
    """

    record: str
    result: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of effect: how it ends, how long it would live without us, and what its fields must be."""

    name: str
    kills: bool
    after_kills: bool
    lifetime: str  # process, boot or disk
    help: str
    check: Callable[[Mapping[str, Any]], dict[str, Any]]


def _text(fields: Mapping[str, Any], name: str, size_max: int = 2_048) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value or len(value) > size_max or "\0" in value:
        raise InputError("invalid_value", f"field {name!r} must be a text of 1 to {size_max} characters, got {value!r:.80}")
    return value


def _count(fields: Mapping[str, Any], name: str, default: int | None = None, least: int = 0) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 62:
        raise InputError("invalid_value", f"field {name!r} must be a whole number of at least {least}, got {value!r:.80}")
    return value


def _folder(fields: Mapping[str, Any], name: str) -> str:
    path = _text(fields, name)
    if not path.startswith("/") or os.path.normpath(path) != path or path == "/":
        raise InputError("invalid_value", f"field {name!r} must be a normal absolute path, got {path!r:.200}")
    if any(path == root or path.startswith(root + "/") for root in _FORBIDDEN_ROOTS if not path.startswith("/dev/shm/")):  # noqa: S108
        raise InputError("invalid_value", f"field {name!r} must not lie under {', '.join(_FORBIDDEN_ROOTS)}, got {path!r:.200}")
    return path


def _token(fields: Mapping[str, Any], name: str) -> str:
    value = _text(fields, name, 100)
    if not all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in value):
        raise InputError("invalid_value", f"field {name!r} may hold letters, digits, '-', '_' and '.', got {value!r:.120}")
    return value


def _check_container(fields: Mapping[str, Any]) -> dict[str, Any]:
    return dict(fields)  # written by the guardian itself, never by a client


def _check_process(fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        identity = Identity.from_json(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("invalid_value", f"a process is named by boot_id, pid_ns, pid and starttime, got {dict(fields)!r:.200}") from error
    return identity.to_json()


def _check_session(fields: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {"sid": _count(fields, "sid", least=2), "starttime": _count(fields, "starttime", least=1)}
    for name in ("boot_id", "pid_ns"):  # added by the guardian when armed
        if name in fields:
            checked[name] = fields[name]
    return checked


def _check_disk_fill(fields: Mapping[str, Any]) -> dict[str, Any]:
    path = fields.get("path", fields.get("dir"))
    checked: dict[str, Any] = {
        "path": _folder({"path": path}, "path"),
        "token": _token({"token": fields.get("token", fields.get("name"))}, "token"),
        "reserve_bytes": _count(fields, "reserve_bytes", 0),
    }
    for name in ("file", "tag"):  # added by the guardian when armed
        if name in fields:
            checked[name] = _text(fields, name, 400)
    return checked


def _check_tree(fields: Mapping[str, Any]) -> dict[str, Any]:
    token_file = _token({"token_file": fields.get("token_file", TREE_TOKEN_FILE)}, "token_file")
    if token_file in {".", ".."}:
        raise InputError("invalid_value", f"field 'token_file' must be a file name, got {token_file!r}")
    return {"path": _folder(fields, "path"), "token": _token(fields, "token"), "token_file": token_file}


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("container", True, False, "boot", "the operation's cgroups: everything in them is killed, they are removed", _check_container),
        Kind("process", True, False, "process", "a registered load: killed with its session, freed, waited for", _check_process),
        Kind("session", True, False, "boot", "every process of a session is killed until none is left", _check_session),
        Kind("disk_fill", False, False, "disk", "a tagged file of real blocks: emptied and unlinked", _check_disk_fill),
        Kind("tree", False, True, "disk", f"a folder of ours, marked by {TREE_TOKEN_FILE}: removed", _check_tree),
    )
}


class JournalError(HarnessError):
    """The journal cannot be written: nothing may be armed."""


def encode(record: Record, sequence: int) -> bytes:
    """Return a record's journal slot; raises `InputError` when it does not fit."""
    payload = json.dumps(asdict(record), separators=(",", ":")).encode()
    if len(payload) > SLOT_BYTES - _HEAD.size:
        raise InputError("invalid_value", f"a record of {len(payload)} bytes passes {SLOT_BYTES - _HEAD.size}; use a shorter path")
    crc = zlib.crc32(_HEAD.pack(_MAGIC, _LAYOUT, _ARMED, len(payload), sequence, 0) + payload)
    return (_HEAD.pack(_MAGIC, _LAYOUT, _ARMED, len(payload), sequence, crc) + payload).ljust(SLOT_BYTES, b"\0")


def decode(data: bytes) -> Record | str | None:
    """Return the record of a journal slot, None for a free slot, or a text that says why it is unreadable."""
    magic, layout, state, size, sequence, crc = _HEAD.unpack_from(data)
    if magic == b"\0\0\0\0" and state == 0:
        return None
    payload = data[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(payload) != size or zlib.crc32(_HEAD.pack(magic, layout, state, size, sequence, 0) + payload) != crc:
        return "torn"
    try:
        document = json.loads(payload)
        return Record(**{name: document[name] for name in Record.__dataclass_fields__ if name in document})
    except (ValueError, TypeError, KeyError) as error:
        return f"layout {layout}: {error}"


class Journal:
    """Preallocated slots in STATE/journal. One thread uses it; arming syncs, freeing is best effort."""

    def __init__(self, folder_fd: int) -> None:
        self._folder_fd = folder_fd
        self._fd = -1
        self._places: dict[str, int] = {}
        self._free: list[int] = []
        self._sequence = 0
        self._why_closed = "it was not opened"
        self.torn = 0

    def open(self) -> list[Record]:
        """Open or create the file and return what it holds; slots torn in writing are counted in `torn` and reused.

        A torn slot was never acknowledged, so nothing was applied for it. Raises `JournalError`.
        """
        try:
            self._fd = self._open_file()
            size = os.fstat(self._fd).st_size
            if size < RECORDS_MAX * SLOT_BYTES:
                os.posix_fallocate(self._fd, size, RECORDS_MAX * SLOT_BYTES - size)
                os.fsync(self._fd)
            os.fsync(self._folder_fd)
            return self._replay()
        except OSError as error:
            self.close()
            self._why_closed = str(error)
            raise JournalError("journal", f"cannot open the undo journal: {error}", "free space or repair STATE, then try again") from error

    def arm(self, record: Record) -> None:
        """Write a record and sync it; after return it survives any death. Raises `JournalError` or `InputError`."""
        if self._fd < 0:
            why = f"the undo journal could not be opened when the guardian started, so nothing may be armed: {self._why_closed}"
            raise JournalError("journal", why, "free space or repair STATE; the next guardian tries again, an idle one leaves by itself")
        if not self._free:
            raise JournalError("journal", f"the undo journal is full: {RECORDS_MAX} records", "end operations or run recover")
        data = encode(record, self._sequence)
        place = self._free.pop()
        self._sequence += 1
        try:
            _write_all(self._fd, data, place * SLOT_BYTES)
            os.fdatasync(self._fd)
        except OSError as error:
            self._clear(place)
            raise JournalError("journal", f"cannot sync the undo journal: {error}", "free space or repair STATE, then try again") from error
        self._places[record.id] = place

    def free(self, record_id: str) -> None:
        """Forget an undone record; best effort, because replaying it would change nothing."""
        place = self._places.pop(record_id, None)
        if place is not None:
            self._clear(place)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_file(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(JOURNAL_NAME, flags, 0o600, dir_fd=self._folder_fd)

    def _replay(self) -> list[Record]:
        records: list[Record] = []
        for place in range(os.fstat(self._fd).st_size // SLOT_BYTES):
            found = decode(os.pread(self._fd, SLOT_BYTES, place * SLOT_BYTES).ljust(SLOT_BYTES, b"\0"))
            if isinstance(found, str) and found != "torn":
                found = Record(id=f"unreadable-{place}", kind="unreadable", slot=-1, generation=0, fields={"why": found})
            if isinstance(found, Record):
                self._places[found.id] = place
                records.append(found)
                continue
            self.torn += found == "torn"
            self._free.append(place)
        self._free.sort(reverse=True)
        return records

    def _clear(self, place: int) -> None:
        with contextlib.suppress(OSError):  # best effort by rule: a replay of this record changes nothing
            os.pwrite(self._fd, bytes(_HEAD.size), place * SLOT_BYTES)
        self._free.append(place)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes were written")
