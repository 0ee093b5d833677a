"""A small HTTP server with bounds on everything: one request a connection, a thread each, and a deadline for each of its parts.

A connection gets a handshake, a head and an answer, each within `timeout_s`; who is slower is told 408 or cut off. More requests than
`requests_max` at once are told 503 and when to come again; more connections than four times that are closed at once. Both are counted.
A stream goes on after its request is answered: as many again may be open, and who does not take a piece within `timeout_s` is cut off.
Closing lets answers under way finish. It knows nothing of metrics.
"""

from __future__ import annotations

import dataclasses
import email.utils
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError

from .http_message import BODY_BYTES_MAX, Refused, Request, Response, is_whole, parse

_LOG: Final = logging.getLogger(__name__)
_CHUNK: Final = 256 << 10
_LINGER_S: Final = 1.0
_CONNECTIONS_PER_REQUEST: Final = 4


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much at once, and how long for each part of a connection."""

    requests_max: int = 8
    timeout_s: float = 10.0


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    answering: bool = False


class HttpServer:
    """Answers from `start` to `close`. Port 0 takes a free one; see `port`. Raises `HarnessError` when the address cannot be had.

    `context` gives the TLS context for each connection, or None for plain HTTP. `answer` runs in many threads at once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        answer: Callable[[Request], Response],
        bounds: Bounds | None = None,
        context: Callable[[], ssl.SSLContext | None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._answer, self._context, self._bounds = answer, context, bounds or Bounds()
        self._clock: Clock = clock or SystemClock()
        self._slots = threading.BoundedSemaphore(self._bounds.requests_max)
        self._streams = threading.BoundedSemaphore(self._bounds.requests_max)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, _Connection] = {}
        self._counted: Counter[str] = Counter()
        self._is_closing = False
        self._listener = _listener(host, port)
        self._port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, name="prometheus", daemon=True)

    def start(self) -> None:
        """Begin to answer. Until then clients wait."""
        self._acceptor.start()

    @property
    def port(self) -> int:
        """The port that is served."""
        return self._port

    def counted(self) -> dict[str, int]:
        """Return how many requests had which status so far, and `closed` and `handshake` for connections that never had one."""
        with self._lock:
            return dict(self._counted)

    def close(self, grace_s: float = 5.0) -> None:
        """Stop accepting, let answers under way finish within the grace, cut off the rest, give up the port."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            idle = [connection.socket for connection in self._open.values() if not connection.answering]
        _cut([self._listener, *idle])
        self._acceptor.join()
        self._listener.close()
        deadline_ns = self._clock.boot_ns() + int(grace_s * SECOND_NS)
        for thread in self._serving():
            thread.join(max(0.0, (deadline_ns - self._clock.boot_ns()) / SECOND_NS))
        with self._lock:
            late = [connection.socket for connection in self._open.values()]
        _cut(late)
        for thread in self._serving():
            thread.join(_LINGER_S)

    def _serving(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._open)

    def _accept(self) -> None:
        failing = False
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._is_closing:
                    return
                if not failing:
                    _LOG.warning("cannot take connections: %s", error)  # no descriptors left, say; they wait until there are some
                failing = True
                self._clock.sleep(0.05)
                continue
            failing = False
            with self._lock:
                if self._is_closing or len(self._open) >= _CONNECTIONS_PER_REQUEST * self._bounds.requests_max:
                    self._counted["closed"] += 1
                    connection.close()
                    continue
                taken = _Connection(connection)
                thread = threading.Thread(target=self._serve, args=(taken,), name="prometheus-request", daemon=True)
                self._open[thread] = taken
                try:
                    thread.start()
                except (RuntimeError, MemoryError) as error:  # no thread to be had: the next one may do
                    _LOG.warning("cannot answer a connection: %s", error)
                    del self._open[thread]
                    self._counted["closed"] += 1
                    connection.close()

    def _serve(self, connection: _Connection) -> None:
        try:
            self._shake(connection)
            if self._exchange(connection):
                self._linger(connection.socket)
        except ssl.SSLError as error:
            self._count("handshake")
            _LOG.debug("no TLS with a client: %s", error)
        except OSError as error:
            self._count("closed")
            _LOG.debug("a client went away: %s", error)
        finally:
            with self._lock:
                self._open.pop(threading.current_thread(), None)
            connection.socket.close()

    def _shake(self, connection: _Connection) -> None:
        context = self._context()
        connection.socket.settimeout(self._bounds.timeout_s)
        if context is not None:
            wrapped = context.wrap_socket(connection.socket, server_side=True, do_handshake_on_connect=False)
            connection.socket = wrapped
            wrapped.do_handshake()

    def _exchange(self, connection: _Connection) -> bool:
        """Read a request and answer it; tell whether there was an answer."""
        try:
            request = self._read(connection.socket)
        except Refused as refused:
            self._send(connection.socket, _refusal(refused), "GET")
            return True
        with self._lock:
            if request is None or self._is_closing:
                self._counted["closed"] += 1
                return False
            connection.answering = True
        if not self._slots.acquire(blocking=False):
            busy = f"{self._bounds.requests_max} requests are being answered; come again"
            refusal = Refused(HTTPStatus.SERVICE_UNAVAILABLE, busy, (("Retry-After", "1"),))
            self._send(connection.socket, _refusal(refusal), request.method)
            return True
        with ExitStack() as held:
            try:
                response = self._answered(request)
                if response.stream is not None:
                    held.callback(response.stream.close)
                    response = self._admitted(response, held)
                self._send(connection.socket, response, request.method)
            finally:
                self._slots.release()
            if response.stream is not None and request.method != "HEAD":
                for piece in response.stream:
                    self._send_all(connection.socket, piece)
        return True

    def _admitted(self, response: Response, held: ExitStack) -> Response:
        """Return the stream, or its refusal when there are as many as may be."""
        if self._streams.acquire(blocking=False):
            held.callback(self._streams.release)
            return response
        busy = f"{self._bounds.requests_max} streams are open; come again"
        return _refusal(Refused(HTTPStatus.SERVICE_UNAVAILABLE, busy, (("Retry-After", "1"),)))

    def _answered(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except Refused as refused:
            return _refusal(refused)
        except Exception:
            _LOG.exception("cannot answer %s %s", request.method, request.path)
            return _refusal(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a fault of the server; its log says more"))

    def _read(self, connection: socket.socket) -> Request | None:
        """Return the request, or None when the client left before it had said anything. Raises `Refused`."""
        data = bytearray()
        deadline_ns = self._deadline_ns()
        while not is_whole(data):
            try:
                connection.settimeout(self._left_s(deadline_ns))
                got = connection.recv(16 << 10)
            except TimeoutError:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the request did not come within {self._bounds.timeout_s:g} s") from None
            if not got:
                if data:
                    raise Refused(HTTPStatus.BAD_REQUEST, "the request ends before its head does")
                return None
            data += got
        return parse(data)

    def _send(self, connection: socket.socket, response: Response, method: str) -> None:
        date = email.utils.formatdate(self._clock.wall_ns() / SECOND_NS, usegmt=True)  # who has a clock dates its answers: RFC 9110, 6.6.1
        response = dataclasses.replace(response, headers=(*response.headers, ("Date", date)))
        self._count(str(response.status.value))
        self._send_all(connection, response.head() if method == "HEAD" else response.head() + response.body)

    def _send_all(self, connection: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        deadline_ns = self._deadline_ns()
        while view:
            connection.settimeout(self._left_s(deadline_ns))
            view = view[connection.send(view[:_CHUNK]) :]

    def _linger(self, connection: socket.socket) -> None:
        """Read what the client still sends, a body say, for a moment: closing over unread bytes would take the answer away from it."""
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(min(_LINGER_S, self._bounds.timeout_s))
            with suppress(OSError, ValueError):  # the client may have gone without a word
                connection.unwrap()
            return
        left = BODY_BYTES_MAX
        deadline_ns = self._clock.boot_ns() + int(_LINGER_S * SECOND_NS)
        with suppress(OSError):  # the answer is sent; whether the client still talks makes no difference
            connection.shutdown(socket.SHUT_WR)
            while left > 0:
                connection.settimeout(max(0.01, (deadline_ns - self._clock.boot_ns()) / SECOND_NS))
                got = connection.recv(16 << 10)
                if not got or self._clock.boot_ns() >= deadline_ns:
                    break
                left -= len(got)

    def _deadline_ns(self) -> int:
        return self._clock.boot_ns() + int(self._bounds.timeout_s * SECOND_NS)

    def _left_s(self, deadline_ns: int) -> float:
        left_s = (deadline_ns - self._clock.boot_ns()) / SECOND_NS
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _count(self, what: str) -> None:
        with self._lock:
            self._counted[what] += 1


def _cut(sockets: list[socket.socket]) -> None:
    for one in sockets:
        with suppress(OSError):  # it is gone already
            socket.socket.shutdown(one, socket.SHUT_RDWR)  # of the plain socket: what TLS holds belongs to the thread that serves it


def _refusal(refused: Refused) -> Response:
    headers = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"), *refused.headers)
    return Response(refused.status, f"{refused.reason}\n".encode(), headers)


def _listener(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # a name of both kinds means IPv4, as ever
        return socket.create_server(address[:2], family=family, backlog=64)
    except (OSError, UnicodeError) as error:
        raise HarnessError("os", f"cannot serve metrics on {host}:{port}: {error}", "choose another --prometheus-port") from error
