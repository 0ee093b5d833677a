"""DiskFill: fills a file system with real blocks, up and down with its shape, and keeps a reserve free.

The file outlives processes, so the guardian makes it, grows it, shrinks it and removes it; this holder only asks, five times
a second, from a thread of the simulator's actor. When that actor dies, the guardian undoes at the lease's end.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from . import control
from .clock import SECOND_NS
from .errors import InputError, RefusedError, StressError
from .lease import LeaseWatch
from .lifecycle import Event
from .messages import Capacity, Operation, SlotTicket
from .simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute
from .waiting import GaveUpError, wait_for_start

if TYPE_CHECKING:
    from .capability import NodeFacts

MIB: Final = 1 << 20
STEP_S: Final = 0.2
STEP_BYTES: Final = 512 * MIB  # the most that one request grows, so that its answer comes soon
GRAIN_BYTES: Final = 1 * MIB
APPLY_S: Final = 20.0
LOCAL_KINDS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})


class Guardian(Protocol):
    """What a holder needs of the guardian's client."""

    def call(self, op: str, *, timeout_s: float = ..., **fields: Any) -> dict[str, Any]:
        """Send one request and return its answer; raises `StressError`."""
        ...


class LeaseOverError(Exception):
    """The lease ended: the guardian undoes what was applied."""


def leave_by_raising(_: int) -> NoReturn:
    """Be the `leave` of a watch whose owner shares its process with others."""
    raise LeaseOverError


def fill_dir(operation: Operation, state_dir: Path) -> Path:
    """Return the folder that an operation fills: its option `dir`, else STATE/fill."""
    named = str(RECORD.resolve_options(operation.options)["dir"])
    return Path(os.path.normpath(named)) if named else Path(os.path.abspath(state_dir)) / "fill"  # noqa: PTH100  # links stay


def check_place(operation: Operation, state_dir: Path) -> None:
    """Refuse a folder on another file system than STATE's: capacity, reserve and the disk policy watch that one only."""
    folder = fill_dir(operation, state_dir)
    if not folder.exists():
        return  # STATE/fill is made later; what else is missing is said when it is to be filled
    if folder.stat().st_dev != state_dir.stat().st_dev:
        raise RefusedError(
            "capability",
            f"{operation.id}: option 'dir' names {folder}, which lies on another file system than the state folder {state_dir}; "
            "its room is not watched",
            "fill a folder beside the state folder, or set state_dir to a folder on that file system",
        )


def fill_token(operation: Operation, slot: int, generation: int) -> str:
    """Return the tag that names the file as this operation's, also beside another run's operation of the same name."""
    return f"fill-{hashlib.sha256(operation.id.encode()).hexdigest()[:12]}-{slot}-{generation}"


def fill_path(operation: Operation, ticket: SlotTicket, state_dir: Path, guardian_id: str) -> Path:
    """Return the file that the guardian fills for an operation: where its blocks are counted from outside."""
    name = f".stress-cluster-{guardian_id[:8]}-{fill_token(operation, ticket.slot, ticket.generation)}.fill"
    return fill_dir(operation, state_dir) / name


def room_bytes(folder: Path, held_bytes: int, reserve_bytes: int) -> int:
    """Return the most that may be held so that the reserve stays free. Raises `OSError`."""
    found = os.statvfs(folder)
    return max(0, held_bytes + found.f_bavail * found.f_frsize - reserve_bytes)


def next_bytes(asked_bytes: float, held_bytes: int, room: int) -> int:
    """Return what to hold next: the asked bytes within the room, in whole MiB, at most `STEP_BYTES` more than now."""
    wanted = min(int(asked_bytes), room, held_bytes + STEP_BYTES)
    return wanted // GRAIN_BYTES * GRAIN_BYTES


class DiskFill:
    """Holds one fill from a thread of its own. `poll` tells what happened since the last call."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, guardian: Guardian, state_dir: Path) -> None:
        options = RECORD.resolve_options(operation.options)
        self._operation = operation
        self._watch = watch
        self._guardian = guardian
        self._shape = absolute(operation, capacity)
        self._unit_bytes = float(capacity.disk_bytes) if operation.unit == "fraction" else 1.0
        self._folder = fill_dir(operation, state_dir)
        self._own_folder = not options["dir"]
        self._reserve_bytes = int(options["reserve_bytes"])
        self._held_bytes = 0
        self._wanted_bytes = 0
        self._applied = 0
        self._record = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="disk-fill", daemon=True)
        self._end: tuple[Event, str] | None = None

    exit_code: int | None = None
    pids: tuple[int, ...] = ()

    @property
    def records(self) -> tuple[str, ...]:
        """The undo record at the guardian."""
        return (self._record,) if self._record else ()

    def start(self) -> None:
        """Arm the undo and begin to wait for the start. Raises `StressError`: nothing was applied then."""
        self._check_folder()
        self._watch.stats.begin(self._watch.slot, self._watch.generation, os.getpid())
        answer = self._slot_call(
            "arm",
            kind="disk_fill",
            fields={
                "path": str(self._folder),
                "token": fill_token(self._operation, self._watch.slot, self._watch.generation),
                "reserve_bytes": self._reserve_bytes,
            },
        )
        self._record = str(answer["record"])
        self._thread.start()

    def _check_folder(self) -> None:
        if self._own_folder:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._folder.is_absolute() or not self._folder.is_dir() or self._folder.is_symlink():
            raise InputError("invalid_value", f"{self._operation.id}: option 'dir' must name an existing folder, got {self._folder}")
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise InputError("invalid_value", f"{self._operation.id}: the folder {self._folder} cannot be written by uid {os.geteuid()}")

    def _slot_call(self, op: str, **fields: Any) -> dict[str, Any]:
        return self._guardian.call(op, slot=self._watch.slot, generation=self._watch.generation, timeout_s=APPLY_S, **fields)

    def poll(self) -> tuple[Event, str] | None:
        """Return the end and its reason, None while the fill lives."""
        return self._end

    def drain(self) -> None:
        """End within a step and undo."""
        self._stopping.set()

    def kill(self) -> None:
        """End within a step; what hangs in a request is the guardian's to undo at the lease's end."""
        self._stopping.set()

    def close(self) -> None:
        """Nothing is held here once the thread has ended."""
        self._stopping.set()

    def _live(self) -> None:
        """Wait, follow the shape, undo; every way out leaves its reason."""
        try:
            self._watch.state(control.LOAD_READY)
            start_ns = wait_for_start(self._watch, self._idle, self._stopping.is_set)
            if start_ns is not None:
                self._follow(start_ns)
            self._end = self._judge(self._undo())
            self._watch.state(control.LOAD_DONE)
        except (LeaseOverError, GaveUpError) as error:
            self._end = (Event.LEASE_ENDED, str(error) or "the lease ended; the guardian undoes the fill")
        except (StressError, OSError) as error:
            self._watch.state(control.LOAD_FAILED)
            lost = isinstance(error, StressError) and error.code in {"stale_slot", "stale_epoch", "halted"}
            self._end = (Event.LEASE_ENDED if lost else Event.BROKE, str(error))

    def _idle(self) -> None:
        self._watch.report(asked=0.0, own=0.0, cpu_ns=0, operations=0)

    def _follow(self, start_ns: int) -> None:
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        clock = self._watch.clock
        self._watch.first_slice()
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on() and not self._stopping.is_set():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            wanted = next_bytes(asked, self._held_bytes, room_bytes(self._folder, self._held_bytes, self._reserve_bytes))
            if wanted != self._wanted_bytes or self._held_bytes < wanted:
                self._apply(wanted)
            self._watch.report(asked=asked / self._unit_bytes, own=self._held_bytes / self._unit_bytes, cpu_ns=0, operations=self._applied)
            spent_s = (clock.boot_ns() - now_ns) / SECOND_NS
            self._stopping.wait(min(max(0.0, STEP_S - spent_s), max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))

    def _apply(self, wanted_bytes: int) -> None:
        answer = self._guardian.call("apply", timeout_s=APPLY_S, record=self._record, params={"bytes": wanted_bytes})
        self._wanted_bytes, self._held_bytes = wanted_bytes, int(answer["achieved"])
        self._applied += 1

    def _undo(self) -> str:
        return str(self._guardian.call("undo", timeout_s=APPLY_S, record=self._record)["outcome"])

    def _judge(self, outcome: str) -> tuple[Event, str]:
        """Return what an outcome of the undo means for this fill."""
        if outcome == "undone":
            return Event.FINISHED, ""
        if outcome == "expired":
            return Event.LEASE_ENDED, "the lease ended before the fill did"
        return Event.BROKE, f"the undo of {self._record} ended as {outcome}"


_LOCAL_STATE: Final = f"state_dir on one of {', '.join(sorted(LOCAL_KINDS))}"


def _supported(facts: NodeFacts) -> Capability:
    if not facts.state_local:
        return Capability(
            "unavailable", f"STATE {facts.state_dir} lies on {facts.state_filesystem}: an undo journal needs a local disk", _LOCAL_STATE
        )
    if facts.state_filesystem not in LOCAL_KINDS:
        return Capability("fallback", f"{facts.state_filesystem} may write blocks instead of reserving them: slower to fill", _LOCAL_STATE)
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="DiskFill",
    family="disk",
    summary="Fills a file system with real blocks in one tagged file that the guardian removes.",
    units=("bytes", "fraction"),
    resource="disk_bytes",
    meter="blocks",
    measure="blocks of the file as the file system counts them",
    tolerance=0.02,
    look_ms=200,
    options=(
        Option("dir", "path", "", "folder to fill, on the file system of STATE; empty for a folder in STATE"),
        Option("reserve_bytes", "bytes", 1024 * MIB, "bytes that stay free whatever is asked"),
    ),
    supported=_supported,
    carrier="guardian",
    needs="STATE on a local file system",
    undo="the guardian arms it in its journal before any block is taken, and removes the tagged file",
    check_here=check_place,
)
