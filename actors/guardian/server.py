"""The guardian as a process: performs what `core` orders. Decides nothing about load, and imports everything at its start.

`main` starts it; it takes over what the journal holds, binds its socket, and serves until nothing is left to guard.
"""

# pathlib is left out: files of STATE are reached through its descriptor
# ruff: noqa: PTH106

from __future__ import annotations

import contextlib
import os
import select
import signal
import traceback
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from .. import memory_group, proc
from ..clock import MILLISECOND_NS, SECOND_NS, Clock, SystemClock
from ..control import GATE, SLOTS, START, STOP_KILL, ControlWriter
from ..proc import Identity
from ..undo import KINDS, Journal, JournalError, Outcome, Record
from . import standby
from .core import GuardianCore
from .disk import Disk, read_halt
from .files import Files
from .killing import Killer
from .links import Link, Links
from .lock import Lock
from .model import (
    Action,
    ContainerMade,
    CoreSettings,
    Identified,
    Identify,
    Kill,
    KillOwner,
    MakeContainer,
    Observe,
    Observed,
    PublishHalt,
    Reply,
    ResetSlot,
    Result,
    Retire,
    Unwatch,
    Verify,
    Watch,
    WriteCeilings,
    WriteGate,
    WriteLeases,
    WriteStart,
    WriteStop,
)

BEAT_NS: Final = 500 * MILLISECOND_NS  # at most between two signs of life; whatever wakes the guardian gives one too
LOG_BYTES_MAX: Final = 1 << 20
PACKETS_PER_TURN: Final = 32
HOMELESS_S: Final = 10.0
FIRST: Final = (PublishHalt, WriteStop, WriteLeases, Kill)


def forbid_all(page: ControlWriter) -> None:
    """Take every lease away: loads end by their own look."""
    for slot in range(SLOTS):
        generation, _ = page.lease(slot)
        page.write_stop(slot, generation, STOP_KILL)
        page.write_lease(slot, generation, 0)


class Ending(Enum):
    """Why `Guardian.run` returned."""

    RETIRED = "retired"
    DEPOSED = "deposed"
    PROMOTED = "promoted"  # in a standby forked while serving: its guardian is dead


@dataclass(slots=True)
class World:
    """What guardian and standby share: folder, lock, pages, names."""

    state_dir: str
    folder: int
    lock: Lock
    page: ControlWriter
    fds: tuple[int, int]
    guardian_id: str
    life: str
    code_id: str
    settings: CoreSettings
    clock: Clock


class Guardian:
    """One serving life: from taking over the journal to retirement."""

    def __init__(self, world: World, shadow: standby.Standby, *, takeover: bool) -> None:
        self._world = world
        self._shadow = shadow
        self._ending: Ending | None = None
        self._epoll = select.epoll()
        self._links = Links(world.folder)
        self._held: dict[int, Identity] = {}
        self._killer = Killer(self._on_held, self._on_dropped)
        self._journal = Journal(world.folder)
        self._disk = Disk(world.folder, self._journal, Files(world.state_dir), lambda: world.lock)
        self._root = _container_root(world.guardian_id)
        self._memory_root = _memory_root(world.guardian_id)
        self._core = GuardianCore(
            world.guardian_id,
            life=world.life if not takeover else f"{world.life}.{os.getpid()}",
            code_id=world.code_id,
            settings=world.settings,
            halt=read_halt(world.folder),
            container_root=self._root,
            memory_root=self._memory_root,
            machine=(proc.boot_id(), proc.pid_namespace()),
            generation_base=int.from_bytes(os.urandom(2), "little"),
        )
        self._core.page_life = world.life
        self._core.time_offset_ns = proc.time_offset_ns()
        self._leases = _leases_of(world.page) if takeover else {}
        self._terminating = False
        self._homeless_ns = 0

    def run(self) -> Ending:
        """Serve until there is an end."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._introduce()
        self._world.page.write_halt(self._core.halt, self._core.halt_kept)
        self._world.page.beat(self._now())
        self._adopt()
        self._disk.start()
        self._epoll.register(self._links.listen(), select.EPOLLIN)
        self._epoll.register(self._disk.fd, select.EPOLLIN)
        self._epoll.register(self._shadow.pidfd, select.EPOLLIN)
        log(f"guardian {self._world.guardian_id} serves as {os.getpid()}, standby {self._shadow.pid}")
        self._core.stay(self._now())
        next_beat_ns = 0
        while self._ending is None:
            due_ns = min(next_beat_ns, self._core.next_due_ns)
            events = self._epoll.poll(max(0.0, (due_ns - self._now()) / SECOND_NS))
            now_ns = self._now()
            self._world.page.beat(now_ns)
            next_beat_ns = now_ns + BEAT_NS
            self._turn(events, now_ns)
        return self._ending

    def _turn(self, events: list[tuple[int, int]], now_ns: int) -> None:
        """One round: deaths, what is due, results, then requests."""
        self._killer.new_turn()
        if self._homeless_ns:
            self._leave_removed_state(now_ns)
        elif not self._world.lock.is_ours() and not self._recover_lock(now_ns):
            return
        ready = {fd for fd, _ in events}
        for fd in [fd for fd in ready if fd in self._held]:
            self._on_death(fd, now_ns)
        if self._terminating:
            self._terminating = False
            self._perform(self._core.end_all("guardian terminated", now_ns))
        self._perform(self._core.tick(now_ns))
        if self._disk.fd in ready:
            for result in self._disk.take():
                self._perform(self._core.done(result, now_ns))
        if self._shadow.pidfd in ready:
            self._replace_shadow()
        for fd in ready:
            if fd in self._links.by_fd:
                self._serve(self._links.by_fd[fd], now_ns)
        if self._links.listener is not None and self._links.listener.fileno() in ready:
            self._accept()

    # --- actions ------------------------------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        """Do what is ordered, kills and what forbids load before the rest."""
        todo = deque(actions)
        while todo and self._ending is None:
            first = [action for action in todo if isinstance(action, FIRST)]
            rest = [action for action in todo if not isinstance(action, FIRST)]
            todo.clear()
            for action in (*first, *rest):
                result = self._do(action)
                if result is not None:
                    todo.extend(self._core.done(result, self._now()))

    def _do(self, action: Action) -> Result | None:
        page = self._world.page
        match action:
            case Reply():
                self._answer(action)
            case WriteLeases():
                for slot, generation, deadline_ns in action.items:
                    page.write_lease(slot, generation, deadline_ns)
            case WriteCeilings():
                for slot, ceiling in action.items:
                    page.write_ceiling(slot, ceiling)
            case PublishHalt():
                page.write_halt(action.halt, action.kept)
            case WriteStop():
                page.write_stop(action.slot, action.generation, action.code)
            case WriteGate():
                page.write(action.slot, GATE, action.generation)
            case WriteStart():
                page.write(action.slot, START, action.start_ns)
            case ResetSlot():
                page.reset_slot(action.slot, action.generation, action.epoch, action.sharers)
            case Identify():
                return self._identify(action)
            case Watch():
                self._watch(action.identity)
            case Unwatch():
                self._killer.drop(action.identity)
            case Observe():
                return Observed(action.token, proc.state_of(action.identity))
            case KillOwner():
                log(f"process {action.identity.pid} stands still behind the end of its lease: killed")
                self._killer.end(action.identity)
            case MakeContainer():
                return self._make_container(action.record)
            case Kill():
                return _guarded(action.record, self._killer.kill)
            case Verify() if KINDS[action.record.kind].kills:
                return _guarded(action.record, self._killer.verify)
            case Retire():
                self._retire()
            case _:
                self._disk.put(action)
        return None

    def _answer(self, action: Reply) -> None:
        link = self._links.by_peer.get(action.peer)
        if link is None:
            return
        fds = self._world.fds if action.body.pop("pages", False) else ()
        if not self._links.send(link, action.body, fds):
            self._drop(link)

    def _identify(self, action: Identify) -> Identified:
        try:
            identity, container = self._killer.identify(action.pid, action.container)
        except OSError as error:
            log(f"cannot hold process {action.pid}: {error}")
            return Identified(action.token, None)
        return Identified(action.token, identity, container or "session")

    def _watch(self, identity: Identity) -> None:
        if not self._killer.hold(identity):
            self._perform(self._core.died(identity, self._now()))

    def _make_container(self, record: Record) -> ContainerMade:
        path = str(record.fields["path"])
        try:
            memory_group.make(record.fields)
        except OSError as error:  # a load that is to be limited never runs without its limit
            return ContainerMade(record.id, "", ("os", f"no group of memory for {record.operation}: {error}"))
        if not path:
            return ContainerMade(record.id, "")
        try:
            proc.make_cgroup(path)
        except OSError as error:
            log(f"no group for {record.operation}: {error}")
            return ContainerMade(record.id, "")
        return ContainerMade(record.id, path)

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_held(self, fd: int, identity: Identity) -> None:
        self._held[fd] = identity
        self._epoll.register(fd, select.EPOLLIN)

    def _on_dropped(self, fd: int) -> None:
        self._held.pop(fd, None)
        with contextlib.suppress(OSError):  # it was taken out when the process died
            self._epoll.unregister(fd)

    def _on_death(self, fd: int, now_ns: int) -> None:
        identity = self._held.pop(fd)
        self._epoll.unregister(fd)
        self._perform(self._core.died(identity, now_ns))

    def _on_sigterm(self, *_: object) -> None:
        self._terminating = True

    def _accept(self) -> int:
        taken = 0
        while (link := self._links.accept()) is not None:
            self._epoll.register(link.sock, select.EPOLLIN)
            taken += 1
        return taken

    def _serve(self, link: Link, now_ns: int) -> None:
        for _ in range(PACKETS_PER_TURN):
            try:
                request = self._links.receive(link)
            except BlockingIOError:
                return
            if request is None:
                self._drop(link)
                return
            if isinstance(request, str):
                self._perform([Reply(link.peer, {"ok": False, "code": "invalid_value", "message": request, "hint": ""})])
            else:
                self._perform(self._handle(request, link.peer, now_ns))
            if link.peer not in self._links.by_peer:
                return

    def _handle(self, request: dict[str, Any], peer: str, now_ns: int) -> list[Action]:
        try:
            return self._core.handle(request, peer, now_ns)
        except Exception:
            log(f"a bug in handling {request.get('op')!r:.40}: {traceback.format_exc()}")
            return [Reply(peer, {"ok": False, "code": "internal", "message": "a bug in the guardian, see its log", "hint": ""})]

    def _drop(self, link: Link) -> None:
        with contextlib.suppress(OSError):  # closing takes it out as well
            self._epoll.unregister(link.sock)
        self._links.drop(link)
        self._perform(self._core.gone(link.peer, self._now()))

    # --- own life -----------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._world.clock.boot_ns()

    def _introduce(self) -> None:
        me = proc.identify(os.getpid())
        other = proc.identify(self._shadow.pid)
        self._world.lock.sign([one for one in (me, other) if one is not None])
        self._killer.spared = {os.getpid(), self._shadow.pid}
        self._core.facts.update(pid=os.getpid(), standby_pid=self._shadow.pid)

    def _adopt(self) -> None:
        """Read the journal and take over what it holds; without a journal nothing can be armed, and the rest still serves."""
        try:
            records = self._journal.open()
        except JournalError as error:
            log(str(error))
            records = []
        self._core.facts["journal_torn"] = self._journal.torn
        if records:
            log(f"adopts {len(records)} records")
        self._perform(self._core.adopt(records, self._leases, self._now()))

    def _replace_shadow(self) -> None:
        self._epoll.unregister(self._shadow.pidfd)
        self._shadow.reap()
        log("the standby ended; forking another")
        self._fork_shadow()

    def _fork_shadow(self) -> None:
        me = proc.identify(os.getpid())
        assert me is not None
        shadow = standby.fork()
        if shadow is None:
            self._abandon()
            standby.wait_for_silence(me, self._world.page)
            self._ending = Ending.PROMOTED
            return
        self._shadow = shadow
        self._epoll.register(shadow.pidfd, select.EPOLLIN)
        self._introduce()

    def _abandon(self) -> None:
        """In a fresh standby: let go of everything but the shared world."""
        self._links.close()
        for fd in [self._epoll.fileno(), self._disk.fd, self._shadow.pidfd, *self._held]:
            with contextlib.suppress(OSError):  # already closed in the guardian
                os.close(fd)
        self._journal.close()

    def _leave_removed_state(self, now_ns: int) -> None:
        """Go once everything is ended and undone, or after `HOMELESS_S`: without STATE nothing can be armed or found again."""
        if self._core.idle or now_ns - self._homeless_ns > HOMELESS_S * SECOND_NS:
            forbid_all(self._world.page)
            self._shadow.end()
            self._ending = Ending.RETIRED

    def _recover_lock(self, now_ns: int) -> bool:
        """Lock the removed lock file's name again or, if another guardian did, forbid all load and go.

        When STATE itself was removed, everything is ended and undone from memory.
        """
        if not os.fstat(self._world.folder).st_nlink:
            self._homeless_ns = now_ns
            self._perform(self._core.end_all("the state folder was removed", now_ns))
            return True
        if not self._world.lock.retake():
            log("deposed: another guardian holds the lock of this state folder")
            forbid_all(self._world.page)
            self._shadow.end()
            self._ending = Ending.DEPOSED
            return False
        log("the lock file had been removed; locked again")
        self._epoll.unregister(self._shadow.pidfd)
        self._shadow.end()
        self._fork_shadow()
        return self._ending is None

    def _retire(self) -> None:
        """Close the socket, and exit only if nobody came meanwhile: the decision falls under the lock."""
        if not self._core.idle:
            return
        if self._accept():
            self._core.stay(self._now())
            return
        self._links.unlisten()
        self._disk.finish(1.0)
        self._shadow.end()
        for root in (self._root, self._memory_root.folder if self._memory_root else ""):
            with contextlib.suppress(OSError):  # never made, or in use by a predecessor's leftovers
                os.rmdir(root)
        log("nothing left to guard; exits")
        self._ending = Ending.RETIRED


def _guarded(record: Record, work: object) -> Outcome:
    """Run a killing step; what the system refuses is tried again."""
    assert callable(work)
    try:
        outcome: Outcome = work(record)
    except OSError as error:
        return Outcome(record.id, "pending", str(error))
    return outcome


def _leases_of(page: ControlWriter) -> dict[int, tuple[int, int, int]]:
    return {slot: (*page.lease(slot), page.stop(slot)[1]) for slot in range(SLOTS) if page.lease(slot)[0]}


def _container_root(guardian_id: str) -> str:
    try:
        own = proc.cgroup_root()
    except OSError:
        return ""
    return f"{own}/stress-cluster-{guardian_id[:8]}" if own else ""


def _memory_root(guardian_id: str) -> memory_group.MemoryRoot | None:
    found = memory_group.find()
    return found and memory_group.MemoryRoot(found.version, f"{found.folder}/stress-cluster-{guardian_id[:8]}")


def log(text: str) -> None:
    """Write one line to the log, which starts again when it is full."""
    with contextlib.suppress(OSError):  # a full disk must not stop the guardian
        if os.fstat(2).st_size > LOG_BYTES_MAX:
            os.ftruncate(2, 0)
        os.write(2, f"{SystemClock().wall_ns() / SECOND_NS:.3f} [{os.getpid()}] {text}\n".encode())
