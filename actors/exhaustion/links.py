"""Connections between nodes: dials the peer that its link names, and keeps what another load with the same key dials here.

    held ──▶ dialled, at most as many as asked ──▶ the peer accepts at its next look, and keeps those that say the key
    one end closes, or its process is killed ──▶ the other is told, and closes at its next look
    a node or the network is gone ──▶ the other end is told nothing: the kernel ends it when `keepalive_probes` stay unanswered

Single-threaded: what is accepted and what has ended is looked after whenever it is asked how many are held.
"""

from __future__ import annotations

import errno
import hmac
import os
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from ..clock import MILLISECOND_NS, SECOND_NS, Clock
from ..limits import PROC, read_text
from . import tuning
from .tcp import FIN_WAIT, RESET, TIME_WAIT, count_states

ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Links:
    """Connections of which the other end is on another node. Used by one thread."""

    def __init__(self, link: Mapping[str, Any], clock: Clock, *, orderly: bool) -> None:
        self._clock = clock
        self._here, self._there = (tuple(link[name]) for name in ("listen", "dial"))
        self._key, self._orderly = bytes.fromhex(link["key"]), orderly
        self._listener: socket.socket | None = None
        self._ready = select.epoll()
        self._dialled: dict[int, socket.socket] = {}
        self._accepted: dict[int, socket.socket] = {}
        self._unknown: dict[int, socket.socket] = {}  # who has not said the key yet
        self._lost = 0  # closed by the peer since the last take

    @property
    def held(self) -> int:
        """How many that were dialled here are established, as far as the kernel knows."""
        self._serve(0.0)
        return len(self._dialled)

    def open(self) -> None:
        """Listen on the node's own address. Raises `OSError` (EADDRINUSE), which says what to set."""
        try:
            self._listener = socket.create_server(self._here, backlog=tuning.used.peer_backlog)
        except OSError as error:
            host, port = self._here
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; option 'port' names another one") from error
        self._listener.setblocking(False)
        self._ready.register(self._listener, select.EPOLLIN)

    def take(self, count: int) -> None:
        """Dial so many more, fewer where the next look at the lease is due before; raises `OSError`.

        ECONNREFUSED, ETIMEDOUT or EHOSTUNREACH where the peer is absent, ECONNRESET where it has closed, EMFILE, ENFILE.
        """
        if self._lost:  # so that it is told, and not dialled again and again
            lost, self._lost = self._lost, 0
            raise ConnectionResetError(errno.ECONNRESET, f"the peer closed {lost} connections")
        look_ns = self._clock.boot_ns() + round(tuning.used.look_s * SECOND_NS)
        for _ in range(count):
            one = self._dial()
            self._dialled[one.fileno()] = one
            self._ready.register(one, ENDED)
            if self._clock.boot_ns() >= look_ns:
                return

    def _dial(self) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._set(one)
            one.settimeout(tuning.used.peer_connect_s)
            one.connect(self._there)
            one.sendall(self._key)
            one.setblocking(False)
        except TimeoutError as error:
            one.close()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
        except OSError:
            one.close()
            raise
        return one

    def _set(self, one: socket.socket) -> None:
        """Have an end close by a reset unless in order, and end by itself when its peer says nothing any more."""
        tuned = tuning.used
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, tuned.keepalive_s)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, tuned.keepalive_s)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, tuned.keepalive_probes)
        silent_ms = round((1 + tuned.keepalive_probes) * tuned.keepalive_s * SECOND_NS / MILLISECOND_NS)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent_ms)  # of the key, or of an end, that is not answered
        if not self._orderly:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _serve(self, wait_s: float) -> None:
        """Accept who came, hear who they are, and close what has ended; waits at most so long for the first of it."""
        for descriptor, seen in self._ready.poll(wait_s):
            if self._listener is not None and descriptor == self._listener.fileno():
                self._accept()
            elif seen & ENDED:
                self._lost += descriptor in self._dialled
                self._close(descriptor)
            else:
                self._hear(descriptor)

    def _accept(self) -> None:
        assert self._listener is not None, "only a listener is asked"
        with suppress(OSError):  # nobody else waits, or no descriptor is left: who waits is asked again
            while True:
                one = self._listener.accept()[0]
                self._set(one)
                one.setblocking(False)
                self._unknown[one.fileno()] = one
                self._ready.register(one, ENDED | select.EPOLLIN)
                self._hear(one.fileno())
                if len(self._unknown) > tuning.used.peer_strangers:
                    self._close(next(iter(self._unknown)))

    def _hear(self, descriptor: int) -> None:
        """Keep an end whose first words are the key, close any other; one that has said nothing stays unknown."""
        one = self._unknown[descriptor]
        try:
            said = one.recv(len(self._key))
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not hmac.compare_digest(said, self._key):
            self._close(descriptor)
            return
        self._accepted[descriptor] = self._unknown.pop(descriptor)
        self._ready.modify(descriptor, ENDED)

    def _close(self, descriptor: int) -> None:
        for ends in (self._dialled, self._accepted, self._unknown):
            if one := ends.pop(descriptor, None):
                one.close()  # the kernel forgets it in `_ready` too

    def give_back(self, count: int) -> None:
        """Close this end of the last ones; the peer closes its own when it sees that."""
        for _ in range(min(count, len(self._dialled))):  # fewer where the peer closed some meanwhile
            self._close(next(reversed(self._dialled)))

    def figures(self) -> dict[str, float]:
        """Close what the peer has not closed in time, and return how many of both directions are in TIME_WAIT on this node."""
        tuned = tuning.used
        for _ in range(round(tuned.settle_s / tuned.look_s)):
            if not self._accepted and not self._in(*FIN_WAIT):
                break
            self._serve(tuned.look_s)
        for descriptor in [*self._accepted, *self._unknown]:
            self._close(descriptor)
        return {"load.sockets.waiting": float(self._in(TIME_WAIT))}

    def _in(self, *states: str) -> int:
        """Return how many ends on this node are in one of these states, dialled here or accepted here."""
        return count_states(read_text(PROC / "self/net/tcp") or "", {self._here[1], self._there[1]}, states)
