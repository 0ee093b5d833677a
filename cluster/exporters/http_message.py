"""The head of an HTTP request: bytes to a request, or to the status that refuses it (RFC 9112). Strict and pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

LINE_BYTES_MAX: Final = 8 << 10
HEAD_BYTES_MAX: Final = 16 << 10
HEADERS_MAX: Final = 64
BODY_BYTES_MAX: Final = 64 << 10  # nothing here takes a body; a small one does no harm

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION: Final = re.compile(r"HTTP/(\d)\.(\d)")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ONCE: Final = frozenset({"host", "authorization", "content-length"})


class Refused(Exception):
    """A request that gets no answer but this status; `reason` tells its sender why."""

    def __init__(self, status: HTTPStatus, reason: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Names of headers are in lower case; `path` is without the query, which is as it was sent."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""


class Stream(Protocol):
    """What follows a head piece by piece, until it ends or the connection does."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces, waiting for each."""
        ...

    def close(self) -> None:
        """Give up what it holds. Always called once, iterated or not."""
        ...


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Length and connection headers are the server's. A stream has no length: it ends with the connection."""

    status: HTTPStatus
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=utf-8"),)
    stream: Stream | None = None

    def head(self) -> bytes:
        """Return status line and headers."""
        told = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{name}: {value}" for name, value in self.headers)]
        length = [] if self.stream is not None else [f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*told, *length, "Connection: close", "", ""]).encode("latin-1")


def is_whole(data: bytes | bytearray) -> bool:
    """Tell whether a head has come to its end. Raises `Refused` when it is too long already."""
    end = data.find(b"\r\n\r\n")
    line = data.find(b"\r\n")
    if (line if line >= 0 else len(data)) > LINE_BYTES_MAX:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"a request line has at most {LINE_BYTES_MAX} bytes")
    if (end if end >= 0 else len(data)) > HEAD_BYTES_MAX:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have at most {HEAD_BYTES_MAX} bytes")
    return end >= 0


def parse(data: bytes | bytearray) -> Request:
    """Return the request of a whole head. Raises `Refused`."""
    first, *lines = bytes(data).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, minor = _request_line(first)
    if len(lines) > HEADERS_MAX:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request has at most {HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, value = _header(line)
        if name in headers and name in _ONCE:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the header {name} may be there once")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if minor and "host" not in headers:
        raise Refused(HTTPStatus.BAD_REQUEST, "HTTP/1.1 needs a Host header")
    _check_body(headers)
    path, _, query = target.partition("?")
    return Request(method, path, headers, query)


def _request_line(line: str) -> tuple[str, str, int]:
    parts = line.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not parts[1] or _CONTROL.search(parts[1]):
        raise Refused(HTTPStatus.BAD_REQUEST, "the first line must be METHOD /path HTTP/1.1")
    version = _VERSION.fullmatch(parts[2])
    if version is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the first line must be METHOD /path HTTP/1.1")
    if version[1] != "1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    target = re.sub(r"^https?://[^/?]+", "", parts[1], flags=re.IGNORECASE) if "://" in parts[1] else parts[1]
    if not target.startswith("/") and target != "*":
        raise Refused(HTTPStatus.BAD_REQUEST, "a path begins with /")
    return parts[0], target, int(version[2])


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
        raise Refused(HTTPStatus.BAD_REQUEST, "a header is NAME: VALUE on one line")
    return name.lower(), value.strip(" \t")


def _check_body(headers: Mapping[str, str]) -> None:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refused(HTTPStatus.BAD_REQUEST, "Content-Length must be a number")
    if "transfer-encoding" in headers or len(length) > 18 or int(length) > BODY_BYTES_MAX:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"no body is taken here, and none is skipped beyond {BODY_BYTES_MAX} bytes")
