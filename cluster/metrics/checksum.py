"""Checksums of a run's own Arrow and Parquet files, which these formats lack: a flipped bit is found, never read.

A record of the log and a Parquet file each carry a mark of fixed width in their metadata, with the CRC-32 of all their bytes in it,
counted with zeros in the mark's place. Other readers see one more entry of metadata.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import pyarrow as pa

from actors.errors import HarnessError

KEY: Final = b"stress_cluster_crc"
_MARK: Final = b"\x02stress-cluster crc32\x03"
_DIGITS: Final = 8
EMPTY: Final = _MARK + b"0" * _DIGITS
_CHUNK: Final = 1 << 20
_PARQUET_END: Final = 8  # length of the footer, and PAR1
_MESSAGE: Final = b"\xff\xff\xff\xff"  # begins each message of an Arrow stream; a length of metadata follows
_END_OF_STREAM: Final = _MESSAGE + bytes(4)


# records of the log


def seal_messages(data: memoryview) -> None:
    """Put its checksum into what an Arrow writer wrote for one record, the schema before it or not."""
    end = _head_end(data, 0)
    begin = 0 if _MARK in bytes(data[:end]) else end  # the schema has no body
    at = begin + bytes(data[begin : _head_end(data, begin)]).index(_MARK) + len(_MARK)
    data[at : at + _DIGITS] = _digits(zlib.crc32(data[begin:]))


def sound_records(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each record of a log that is whole and as it was written, whatever lies between."""
    whole, view, at = pa.py_buffer(data), memoryview(data), 0
    while 0 <= at < len(data):
        end = _message_end(whole, data, at)
        if end and _is_sound(view[at:end], _head_end(data, at) - at):
            yield at, end
            at = end
        else:
            at = data.find(_MESSAGE, at + 1)


class PassedOver(NamedTuple):
    """Bytes of a log that are in no sound record: of one that is damaged, and of one at the end that is torn or being written."""

    damaged: int
    torn: int


def passed_over(data: bytes, schema: pa.Schema) -> PassedOver:
    """Return how much of a log with this schema is not read."""
    whole, records = pa.py_buffer(data), list(sound_records(data))
    first = _message_end(whole, data, 0)
    begin = first if first and _is_schema(data[:first], schema) else 0
    end = len(data) - len(_END_OF_STREAM) * data.endswith(_END_OF_STREAM)
    last = records[-1][1] if records else begin
    torn = 0 if _message_end(whole, data, last) else end - last
    return PassedOver(end - begin - sum(end - at for at, end in records) - torn, torn)


def _is_schema(data: bytes, schema: pa.Schema) -> bool:
    try:
        return bool(pa.ipc.read_schema(pa.py_buffer(data)).equals(schema))
    except (pa.ArrowInvalid, OSError):
        return False


def _head_end(data: bytes | memoryview, at: int) -> int:
    return at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")


def _message_end(whole: pa.Buffer, data: bytes, at: int) -> int:
    """Return where the message that begins here ends; 0 when none does, or not all of it is there."""
    if data[at : at + 4] != _MESSAGE or not at + 8 < _head_end(data, at) <= len(data):
        return 0
    try:
        body = pa.ipc.read_message(whole.slice(at)).body
    except (pa.ArrowInvalid, OSError, EOFError):
        return 0
    return int(_head_end(data, at) + (body.size if body is not None else 0))


def _is_sound(message: memoryview, head: int) -> bool:
    at = bytes(message[:head]).find(_MARK) + len(_MARK)
    if at < len(_MARK):
        return False
    crc = zlib.crc32(message[at + _DIGITS :], zlib.crc32(b"0" * _DIGITS, zlib.crc32(message[:at])))
    return message[at : at + _DIGITS] == _digits(crc)


def _digits(crc: int) -> bytes:
    return f"{crc:08x}".encode()


# Parquet files


def seal_parquet(file: BinaryIO) -> None:
    """Put its checksum into a Parquet file that was written with `EMPTY` in its metadata. The file must be readable too."""
    at, crc = _mark_of(file), 0
    assert at, "written without a mark"
    file.seek(0)
    while chunk := file.read(_CHUNK):
        crc = zlib.crc32(chunk, crc)
    file.seek(at)
    file.write(_digits(crc))
    file.seek(0, os.SEEK_END)


def check_parquet(path: Path) -> None:
    """Raise `HarnessError` when a Parquet file of a run is not as it was written. Raises `FileNotFoundError` when it is gone."""
    stat = path.stat()
    if not _is_sound_parquet(path, stat.st_ino, stat.st_size, stat.st_mtime_ns):
        what = f"{path} is damaged: its bytes are not those that were written"
        raise HarnessError("os", what, "copy the file again from where the run was made, or move it away to read the rest")


@lru_cache(maxsize=4096)  # files outside log/ never change
def _is_sound_parquet(path: Path, inode: int, size: int, mtime_ns: int) -> bool:  # noqa: ARG001  # which file it is
    with path.open("rb") as file:
        at = _mark_of(file)
        if not at:
            return False
        file.seek(0)
        crc, left = 0, at
        while chunk := file.read(min(_CHUNK, left)):
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        found = file.read(_DIGITS)
        crc = zlib.crc32(b"0" * _DIGITS, crc)
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return found == _digits(crc)


def _mark_of(file: BinaryIO) -> int:
    """Return where the digits lie in a Parquet file; 0 when it has no footer with a mark."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _PARQUET_END))
    tail = file.read()
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < _PARQUET_END or not 0 < length <= size - _PARQUET_END:
        return 0
    begin = size - _PARQUET_END - length
    file.seek(begin)
    at = file.read(length).find(_MARK)
    return begin + at + len(_MARK) if at >= 0 else 0
