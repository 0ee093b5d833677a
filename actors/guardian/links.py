"""The guardian's socket: accepts callers of the same user, takes one JSON request per packet, survives any garbage."""

# pathlib is left out: the socket's name is reached through the descriptor of STATE

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Final

SOCKET_NAME: Final = "guardian.sock"
PACKET_BYTES: Final = 65_536
SEND_BUFFER_BYTES: Final = 1 << 20
LINKS_MAX: Final = 512
_TRUNCATED: Final = "a request has at most 65536 bytes and is one JSON object"


@dataclass(slots=True)
class Link:
    """One connection; `peer` is what the core calls it."""

    peer: str
    sock: socket.socket


@dataclass(slots=True)
class Links:
    """The listening socket and its connections, by descriptor and by peer."""

    folder: int
    listener: socket.socket | None = None
    by_fd: dict[int, Link] = field(default_factory=dict)
    by_peer: dict[str, Link] = field(default_factory=dict)
    _count: int = 0

    def listen(self) -> int:
        """Bind STATE/guardian.sock anew and return the descriptor to poll; raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # nobody was here before
            os.unlink(SOCKET_NAME, dir_fd=self.folder)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.bind(f"/proc/self/fd/{self.folder}/{SOCKET_NAME}")
        os.chmod(SOCKET_NAME, 0o600, dir_fd=self.folder)
        listener.listen(128)
        self.listener = listener
        return listener.fileno()

    def answers(self) -> bool:
        """Tell whether some guardian at the socket answers a malformed request within a second."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(f"/proc/self/fd/{self.folder}/{SOCKET_NAME}")
                probe.send(b"{}")
                return bool(probe.recv(PACKET_BYTES))
            except OSError:
                return False

    def accept(self) -> Link | None:
        """Take the next caller that waits, None when there is none. Other users are turned away."""
        while self.listener is not None:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return None
            if len(self.by_fd) >= LINKS_MAX or not _is_trusted(sock):
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._count += 1
            link = Link(f"c{self._count}", sock)
            self.by_fd[sock.fileno()] = self.by_peer[link.peer] = link
            return link
        return None

    def receive(self, link: Link) -> dict[str, Any] | str | None:
        """Return the next request, a text for what is none, None when the caller has gone. Raises BlockingIOError."""
        try:
            data, _, flags, _ = link.sock.recvmsg(PACKET_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            return None
        if not data:
            return None
        if flags & socket.MSG_TRUNC:
            return _TRUNCATED
        try:
            request = json.loads(data)
        except (ValueError, RecursionError) as error:
            return f"{_TRUNCATED}: {error}"
        return request if isinstance(request, dict) else _TRUNCATED

    def send(self, link: Link, body: dict[str, Any], fds: tuple[int, ...] = ()) -> bool:
        """Answer; False when the caller has gone or does not read, and is to be dropped."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            link.sock.sendmsg([json.dumps(body, separators=(",", ":")).encode()], ancillary)
        except OSError:
            return False
        return True

    def drop(self, link: Link) -> None:
        """Close one connection."""
        self.by_fd.pop(link.sock.fileno(), None)
        self.by_peer.pop(link.peer, None)
        link.sock.close()

    def unlisten(self) -> None:
        """Stop listening and remove the name."""
        if self.listener is not None:
            with contextlib.suppress(FileNotFoundError):  # a cleaner was faster
                os.unlink(SOCKET_NAME, dir_fd=self.folder)
            self.listener.close()
            self.listener = None

    def close(self) -> None:
        """Close every descriptor, leaving the name in place."""
        for link in list(self.by_fd.values()):
            self.drop(link)
        if self.listener is not None:
            self.listener.close()
            self.listener = None


def _is_trusted(sock: socket.socket) -> bool:
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in {0, os.geteuid()}
