"""Talking to this machine's guardian: find it or start it, say hello, call it. Used by agents, simulators, drivers, the CLI.

A call takes an idle connection of the pool or opens one, so a `close_slot` that waits for its load never holds up a grant.
A lost guardian is found again within `RETRY_S` (its standby takes over); a call that had been sent is repeated only where
that is harmless. This module decides nothing about load.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any, Final, Self

from .. import proc
from ..clock import MILLISECOND_NS, SECOND_NS, Clock, SystemClock
from ..control import ControlPage, StatsPage
from ..errors import CODES, HarnessError
from ..state import open_state_dir
from .fields import PROTOCOL

RETRY_S: Final = 2.0
SPAWN_S: Final = 10.0
CALL_S: Final = 30.0
TAKEOVER_NS: Final = 300 * MILLISECOND_NS  # what a standby gets before a new guardian is started beside it
PACKET_BYTES: Final = 65_536
ANSWER_BYTES: Final = 1 << 20
IDLE_CONNECTIONS: Final = 4
SOCKET_NAME: Final = "guardian.sock"
# What may be sent again when the answer was lost with the connection.
REPEATABLE: Final = frozenset({"hello", "grant", "throttle", "start", "stop", "undo", "close_slot", "status", "halt", "resume", "apply"})


class GuardianError(HarnessError):
    """The guardian refused, or cannot be reached. `code` is one of `errors.CODES`."""


class _LostError(Exception):
    """The connection ended before an answer came."""


class GuardianClient:
    """A thread-safe connection to the guardian of one STATE.

    `hello` is the last answer to hello: guardian_id, pid, standby_pid, code_id, boottime_ns, nonce, halt, life.
    """

    def __init__(self, state_dir: Path, greeting: dict[str, Any], *, may_spawn: bool, clock: Clock) -> None:
        self._state_dir = state_dir
        self._greeting = greeting
        self._may_spawn = may_spawn
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[tuple[int, socket.socket]] = []
        self._generation = 0
        self._closed = False
        self._hello: dict[str, Any] = {}
        self._control: ControlPage | None = None
        self._stats: StatsPage | None = None
        self._page_fds: tuple[int, int] | None = None

    @classmethod
    def connect(
        cls, state_dir: str | Path, *, role: str, spawn: bool = True, code_id: str = "", clock: Clock | None = None, **fields: Any
    ) -> GuardianClient:
        """Reach the guardian of this STATE, starting one where there is none, and say hello.

        `role` is agent, simulator, driver or cli; `fields` are cluster, node, epoch, incarnation, watch. `code_id` is the
        product's, for status only: the guardian's own code is compared by the digest of its archive.
        Raises `GuardianError`: `busy` when one of other code is at work, `timeout` or `os` when none can be reached.
        """
        path = Path(state_dir)
        if spawn:
            open_state_dir(path)
        greeting = {"role": role, "protocol": PROTOCOL, "product": code_id, **fields}
        if role != "cli":
            greeting |= {"time_offset_ns": proc.time_offset_ns(), "pid_ns": proc.pid_namespace()}
        client = cls(path, greeting, may_spawn=spawn, clock=clock or SystemClock())
        client._give_back(client._reach(SPAWN_S))
        return client

    @property
    def hello(self) -> dict[str, Any]:
        """The guardian's last answer to hello."""
        return self._hello

    @property
    def control(self) -> ControlPage:
        """The control page, read-only; another one after a guardian without a living predecessor took over."""
        assert self._control is not None
        return self._control

    @property
    def stats(self) -> StatsPage:
        """The stats page, for loads to write and agents to read."""
        assert self._stats is not None
        return self._stats

    @property
    def page_fds(self) -> tuple[int, int]:
        """Descriptors (control, stats) to pass on to a load process, which maps them with `from_fd`."""
        assert self._page_fds is not None
        return self._page_fds

    def call(self, op: str, *, timeout_s: float = CALL_S, **fields: Any) -> dict[str, Any]:
        """Send one request and return its answer without `ok`.

        Raises `GuardianError` with the guardian's code, `timeout` when no answer came, `lost` when the guardian went
        while it worked on something that cannot be repeated blindly.
        """
        deadline_ns = self._clock.boot_ns() + round(timeout_s * SECOND_NS)
        while True:
            generation, link = self._take() or self._reach(RETRY_S)
            try:
                answer, fds = _exchange(link, {"op": op, **fields}, self._left_s(deadline_ns))
            except _LostError as error:
                self._drop(link)
                self._drop_idle()
                if op in REPEATABLE and self._left_s(deadline_ns) > 0:
                    continue
                raise GuardianError("lost", f"the guardian of {self._state_dir} went away during {op}", "see its guardian.log") from error
            except TimeoutError as error:
                self._drop(link)
                raise GuardianError("timeout", f"the guardian of {self._state_dir} did not answer {op} in {timeout_s:g} s") from error
            _close_fds(fds)
            self._give_back((generation, link))
            return _unwrap(answer)

    def close(self) -> None:
        """End all connections; pages stay mapped while something looks at them."""
        with self._lock:
            self._closed = True
        self._drop_idle()
        if self._control is not None:
            self._control.close()
        if self._stats is not None:
            self._stats.close()
        _close_fds(self._page_fds or ())
        self._page_fds = None

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _left_s(self, deadline_ns: int) -> float:
        return max(0.0, (deadline_ns - self._clock.boot_ns()) / SECOND_NS)

    def _take(self) -> tuple[int, socket.socket] | None:
        with self._lock:
            if self._closed:
                raise GuardianError("cancelled", "this guardian client was closed")
            return self._idle.pop() if self._idle else None

    def _give_back(self, entry: tuple[int, socket.socket]) -> None:
        with self._lock:
            if not self._closed and entry[0] == self._generation and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(entry)
                return
        self._drop(entry[1])

    def _drop(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closing a socket whose peer died may complain
            link.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            self._generation += 1
        for _, link in idle:
            self._drop(link)

    def _reach(self, patience_s: float) -> tuple[int, socket.socket]:
        """Connect and say hello until it is acknowledged, starting a guardian where none answers."""
        deadline_ns = self._clock.boot_ns() + round(patience_s * SECOND_NS)
        spawn_after_ns = self._clock.boot_ns() + (TAKEOVER_NS if self._hello else 0)
        trouble: Exception | None = None
        while True:
            try:
                return self._greet(self._left_s(deadline_ns))
            except (OSError, _LostError) as error:
                trouble = error
            now_ns = self._clock.boot_ns()
            if now_ns >= deadline_ns:
                raise GuardianError(
                    "timeout", f"no guardian answers in {self._state_dir}: {trouble}", f"see {self._state_dir}/guardian.log"
                ) from trouble
            if self._may_spawn and now_ns >= spawn_after_ns:
                self._start()
                spawn_after_ns = self._clock.boot_ns() + SECOND_NS // 2
            self._clock.sleep(0.01)

    def _start(self) -> None:
        """Start a guardian unless another caller is just doing so, and let others wait until it listens."""
        from . import spawn  # noqa: PLC0415  # brings the guardian's own modules

        with spawn.turn(self._state_dir) as mine:
            if not mine or self._listens():
                return
            spawn.start_guardian(self._state_dir)
            for _ in range(50):
                if self._listens():
                    return
                self._clock.sleep(0.01)

    def _listens(self) -> bool:
        try:
            connect_socket(self._state_dir).close()
        except OSError:
            return False
        return True

    def _greet(self, patience_s: float) -> tuple[int, socket.socket]:
        with self._lock:
            generation = self._generation
        link = connect_socket(self._state_dir)
        code = _code_of(self._greeting["role"])
        try:
            answer, fds = _exchange(link, {"op": "hello", "code_id": code, **self._greeting}, min(max(patience_s, 0.1), 2.0))
        except BaseException:
            self._drop(link)
            raise
        try:
            self._adopt_pages(_welcome_of(answer), fds)
        except BaseException:
            _close_fds(fds)
            self._drop(link)
            raise
        return generation, link

    def _adopt_pages(self, hello: dict[str, Any], fds: tuple[int, ...]) -> None:
        with self._lock:
            known = self._hello.get("life") == hello["life"] and self._page_fds is not None
            self._hello = hello
            if not known:
                _close_fds(self._page_fds or ())
                self._control, self._stats = ControlPage.from_fd(fds[0]), StatsPage.from_fd(fds[1])
                self._page_fds = (fds[0], fds[1])
                return
        _close_fds(fds)


def connect_socket(state_dir: Path) -> socket.socket:
    """Connect to the guardian's socket through a descriptor of STATE, so that a long path fits; raises OSError."""
    folder = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.settimeout(1.0)
        link.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        _check_owner(link, state_dir)
    except BaseException:
        link.close()
        raise
    finally:
        os.close(folder)
    return link


def _check_owner(link: socket.socket, state_dir: Path) -> None:
    uid = int.from_bytes(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], "little")
    if uid not in (0, os.geteuid()):
        raise PermissionError(f"the guardian in {state_dir} belongs to uid {uid}")


def _exchange(link: socket.socket, request: dict[str, Any], patience_s: float) -> tuple[dict[str, Any], tuple[int, ...]]:
    packet = json.dumps(request, separators=(",", ":")).encode()
    if len(packet) > PACKET_BYTES:
        raise GuardianError("invalid_value", f"a request of {len(packet)} bytes passes {PACKET_BYTES}", "send it in parts")
    link.settimeout(max(patience_s, 0.001))
    try:
        link.send(packet)
        data, ancillary, _, _ = link.recvmsg(PACKET_BYTES, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise
    except OSError as error:
        raise _LostError(str(error)) from error
    if not data:
        raise _LostError("the guardian closed the connection")
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return json.loads(data), tuple(fds)


def _welcome_of(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("retiring"):
        raise _LostError("the guardian of other code there is leaving")
    return _unwrap(answer)


def _unwrap(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.pop("ok", False):
        return answer
    code = answer.get("code", "internal")
    raise GuardianError(code if code in CODES else "internal", str(answer.get("message", answer)), str(answer.get("hint", "")))


def _close_fds(fds: tuple[int, ...]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # already closed with its page
            os.close(fd)


def _code_of(role: str) -> str:
    """Return the code that a guardian has to have for a caller; "" for any: commands talk to all, simulators to their agent's."""
    if role in {"cli", "simulator"}:
        return ""
    from . import spawn  # noqa: PLC0415  # brings the guardian's own modules

    return spawn.guardian_code_id()
