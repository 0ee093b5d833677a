"""Ending processes: holds pidfds, signals through them, frees memory, and tells what is left. Decides nothing.

Used by the guardian's main thread only; freeing memory runs in threads of its own, because it blocks for its whole length.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from .. import memory_group, proc
from ..proc import Identity, ProcStat
from ..undo import Outcome, Record

RELEASES_MAX: Final = 8


class Killer:
    """The processes this guardian holds. `held` is told of each new pidfd, `dropped` before one is closed."""

    def __init__(self, held: Callable[[int, Identity], None], dropped: Callable[[int], None]) -> None:
        self._tell_held = held
        self._tell_dropped = dropped
        self._held: dict[Identity, int] = {}
        self._scan: list[ProcStat] | None = None
        self._releasing = threading.Semaphore(RELEASES_MAX)
        self._released: set[Identity] = set()
        self.spared: set[int] = {os.getpid()}

    def new_turn(self) -> None:
        """Forget the last scan of /proc."""
        self._scan = None

    def identify(self, pid: int, container: str) -> tuple[Identity | None, str]:
        """Hold a process; returns its identity, None when it is gone, and "cgroup" or "session"."""
        identity = proc.identify(pid)
        if identity is None or not self.hold(identity):
            return None, ""
        if container and _is_inside(pid, container):
            return identity, "cgroup"
        return identity, "session"

    def hold(self, identity: Identity) -> bool:
        """Open and keep a pidfd of exactly this process; False when it is gone."""
        if identity in self._held:
            return True
        fd = proc.open_pidfd(identity)
        if fd is None:
            return False
        self._held[identity] = fd
        self._tell_held(fd, identity)
        return True

    def drop(self, identity: Identity) -> None:
        """Let go of a pidfd."""
        fd = self._held.pop(identity, None)
        self._released.discard(identity)
        if fd is not None:
            self._tell_dropped(fd)
            os.close(fd)

    def close(self) -> None:
        """Let go of all."""
        for identity in list(self._held):
            self.drop(identity)

    def kill(self, record: Record) -> Outcome:
        """Kill everything a container, process or session record names; "undone" when nothing of it is left."""
        return _outcome(record, self._container(record, kill=True) if record.kind == "container" else self._processes(record, kill=True))

    def verify(self, record: Record) -> Outcome:
        """Look without touching."""
        return _outcome(record, self._container(record, kill=False) if record.kind == "container" else self._processes(record, kill=False))

    def _container(self, record: Record, *, kill: bool) -> str | None:
        left = [self._group(path, kill=kill) for path in memory_group.of(record.fields)]
        return "; ".join(filter(None, left)) or None

    def _group(self, path: str, *, kill: bool) -> str | None:
        if not os.path.isdir(path):  # noqa: PTH112  # a text from the journal
            return None
        if not proc.is_populated(path):
            if kill:
                proc.remove_cgroup(path)
                return None
            return f"the group {path} is still there"
        if kill:
            proc.kill_cgroup(path)
            for pid in proc.cgroup_pids(path):
                proc.raise_priority(pid)
        return f"processes {_brief(proc.cgroup_pids(path))} are left in {path}"

    def _processes(self, record: Record, *, kill: bool) -> str | None:
        try:
            named = _named(record)
        except ForeignError as error:
            return str(error)
        if named is None:
            return None
        leader, sid = named
        left = self._leader_left(leader) + self._members_left(leader, sid)
        if kill:
            for identity in left:
                self.end(identity)
        return f"processes {_brief([identity.pid for identity in left])} are left" if left else None

    def _leader_left(self, leader: Identity) -> list[Identity]:
        fd = self._held.get(leader)
        opened = proc.open_pidfd(leader) if fd is None else None
        probe = fd if fd is not None else opened
        if probe is None:
            return []
        try:
            return [] if proc.has_exited(probe) else [leader]
        finally:
            if opened is not None:
                os.close(opened)

    def _members_left(self, leader: Identity, sid: int) -> list[Identity]:
        if not sid:
            return []
        stat = proc.read_stat(sid)
        if stat is not None and stat.starttime != leader.starttime:
            return []  # the number means another process now: nobody of that session can be left
        if self._scan is None:
            self._scan = list(proc.scan())
        return [
            Identity(leader.boot_id, leader.pid_ns, member.pid, member.starttime)
            for member in self._scan
            if member.session == sid and member.pid not in self.spared and member.pid != leader.pid and member.state not in "ZX"
        ]

    def end(self, identity: Identity) -> None:
        """Signal, then let it die fast: SIGKILL through the pidfd, nice up, memory freed from here."""
        if identity.pid in self.spared:
            return
        fd = self._held.get(identity)
        keep = fd is not None
        if fd is None:
            fd = proc.open_pidfd(identity)
        if fd is None:
            return
        proc.kill_pidfd(fd)
        proc.raise_priority(identity.pid)
        if identity not in self._released and self._releasing.acquire(blocking=False):
            if keep:
                self._released.add(identity)
            threading.Thread(target=self._release, args=(os.dup(fd),), daemon=True).start()
        if not keep:
            os.close(fd)

    def _release(self, fd: int) -> None:
        try:
            proc.release_memory(fd)
        finally:
            os.close(fd)
            self._releasing.release()


class ForeignError(Exception):
    """The record names something outside of this guardian's reach."""


def _named(record: Record) -> tuple[Identity, int] | None:
    """Return (leader, session or 0) of a process or session record; None when another boot made it void."""
    fields = dict(record.fields)
    if record.kind == "session":
        fields["pid"] = fields["sid"]
    leader = Identity.from_json(fields)
    if leader.boot_id != proc.boot_id():
        return None
    if leader.pid_ns != proc.pid_namespace():
        raise ForeignError("foreign: the process belongs to another pid namespace and is never signalled from here")
    return leader, 0 if fields.get("container") == "cgroup" else leader.pid


def _outcome(record: Record, left: str | None) -> Outcome:
    if left is None:
        return Outcome(record.id, "undone")
    return Outcome(record.id, "foreign" if left.startswith("foreign") else "pending", left)


def _is_inside(pid: int, container: str) -> bool:
    try:
        if pid not in proc.cgroup_pids(container):
            proc.enter_cgroup(container, pid)
        return pid in proc.cgroup_pids(container)
    except OSError:
        return False  # not permitted: the session has to do


def _brief(pids: list[int]) -> str:
    states = [f"{pid}({stat.state})" for pid in pids[:8] if (stat := proc.read_stat(pid)) is not None]
    return ", ".join(states) + (f" and {len(pids) - 8} more" if len(pids) > 8 else "")
