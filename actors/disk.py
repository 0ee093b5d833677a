"""DiskFill: fills a file system with real blocks, up and down with its shape, and keeps a reserve free.

    asked ──▶ within the room above the reserve ──▶ a step of about STEP_S ──▶ shares of the files ──▶ the guardian
    no room (the reserve is reached, ENOSPC, EDQUOT) ──▶ told as a partial allocation, asked for again

The files outlive processes, so the guardian makes them, grows them, shrinks them and removes them; this holder only asks, ten times
a second, from a thread of the simulator's actor. When that actor dies, the guardian undoes at the lease's end.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from . import control
from .clock import SECOND_NS
from .errors import InputError, RefusedError, StressError
from .exhaustion.disk_io import RatePacer
from .exhaustion.holder import METRICS, HolderFigures
from .exhaustion.refusal import Refusals
from .lease import NOTE_NO_RECORDING, LeaseWatch, Order
from .lifecycle import Event
from .messages import Capacity, Operation, SlotTicket
from .meters import open_reporter
from .release import RELEASE_OPTIONS, Release
from .simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute
from .waiting import GaveUpError, wait_for_start

if TYPE_CHECKING:
    from .capability import NodeFacts

MIB: Final = 1 << 20
STEP_S: Final = 0.1  # between two looks; a request to the guardian takes about as long
STEP_BYTES: Final = 512 * MIB  # the most that one request grows
RESERVE_STEP_BYTES: Final = 64 * MIB  # the least of one request: less would not be quicker, however busy the machine is
WRITE_STEP_BYTES: Final = 8 * MIB
FREE_STEP_BYTES: Final = 1024 * MIB  # the most that one request gives back
GRAIN_BYTES: Final = 1 * MIB
PACED_S: Final = 0.02  # the least between two looks at a rate
APPLY_S: Final = 20.0
FILES_MAX: Final = 32
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


def fill_token(operation: Operation, slot: int, generation: int, file: int = 0) -> str:
    """Return the tag that names a file as this operation's, also beside another run's operation of the same name."""
    return f"fill-{hashlib.sha256(operation.id.encode()).hexdigest()[:12]}-{slot}-{generation}-{file}"


def fill_paths(operation: Operation, ticket: SlotTicket, state_dir: Path, guardian_id: str) -> tuple[Path, ...]:
    """Return the files that the guardian fills for an operation: where its blocks are counted from outside."""
    tokens = (fill_token(operation, ticket.slot, ticket.generation, file) for file in range(files_of(operation)))
    return tuple(fill_dir(operation, state_dir) / f".stress-cluster-{guardian_id[:8]}-{token}.fill" for token in tokens)


def files_of(operation: Operation) -> int:
    """Return how many files an operation fills."""
    return int(RECORD.resolve_options(operation.options)["files"])


def room_bytes(folder: Path, held_bytes: int, reserve_bytes: int) -> int:
    """Return the most that may be held so that the reserve stays free. Raises `OSError`."""
    found = os.statvfs(folder)
    return max(0, held_bytes + found.f_bavail * found.f_frsize - reserve_bytes)


def next_bytes(asked_bytes: float, held_bytes: int, room: int, step_bytes: int = STEP_BYTES) -> int:
    """Return what to hold next: the asked bytes within the room, in whole MiB, at most a step more than now."""
    return whole_grains(min(int(asked_bytes), room, held_bytes + step_bytes))


def whole_grains(size_bytes: float) -> int:
    """Return so many bytes without the rest that is no whole MiB."""
    return int(size_bytes) // GRAIN_BYTES * GRAIN_BYTES


def next_step_bytes(step_bytes: int, took_s: float, least_bytes: int) -> int:
    """Return how much the next request may grow, so that it takes about `STEP_S`: a stop never waits much longer than that. Pure."""
    if took_s > STEP_S:
        return max(least_bytes, step_bytes // 2)
    return min(STEP_BYTES, step_bytes * 2) if took_s < STEP_S / 2 else step_bytes


def shares(whole_bytes: int, files: int) -> list[int]:
    """Return what each of the files is to hold: equal to one byte, and none of them falls when the whole grows. Pure."""
    return [(whole_bytes + files - 1 - file) // files for file in range(files)]


class DiskFill:
    """Holds one fill from a thread of its own. `poll` tells what happened since the last call."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        guardian: Guardian,
        state_dir: Path,
        segment_path: str = "",
    ) -> None:
        options = RECORD.resolve_options(operation.options)
        self._operation = operation
        self._watch = watch
        self._guardian = guardian
        self._segment_path = segment_path
        self._shape = absolute(operation, capacity)
        self._unit_bytes = float(capacity.disk_bytes) if operation.unit == "fraction" else 1.0
        self._folder = fill_dir(operation, state_dir)
        self._own_folder = not options["dir"]
        self._reserve_bytes = int(options["reserve_bytes"])
        self._writes, self._rate = bool(options["write"]), float(options["rate_bytes"])
        self._pacer = RatePacer(GRAIN_BYTES)
        self._paced_ns = 0
        self._release = Release.of(options)
        self._least_bytes = self._step_bytes = WRITE_STEP_BYTES if self._writes else RESERVE_STEP_BYTES
        self._held = [0] * int(options["files"])
        self._wanted = [0] * int(options["files"])
        self._refusals = Refusals()
        self._applied = 0
        self._records: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="disk-fill", daemon=True)
        self._end: tuple[Event, str] | None = None

    exit_code: int | None = None
    pids: tuple[int, ...] = ()

    @property
    def records(self) -> tuple[str, ...]:
        """The undo records at the guardian, one for each file."""
        return tuple(self._records)

    @property
    def held_bytes(self) -> int:
        """What the blocks of all files take, as the guardian said last."""
        return sum(self._held)

    def start(self) -> None:
        """Arm the undo and begin to wait for the start. Raises `StressError`: nothing was applied then."""
        self._check_folder()
        self._watch.stats.begin(self._watch.slot, self._watch.generation)
        for file in range(len(self._held)):
            token = fill_token(self._operation, self._watch.slot, self._watch.generation, file)
            fields = {"path": str(self._folder), "token": token, "reserve_bytes": self._reserve_bytes}
            self._records.append(str(self._slot_call("arm", kind="disk_fill", fields=fields)["record"]))
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
        reporter, is_kept = open_reporter(self._segment_path, self._operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        try:
            figures = HolderFigures(reporter)
            self._watch.state(control.LOAD_READY)
            start_ns = wait_for_start(self._watch, lambda: self._publish(0.0, figures), self._stopping.is_set)
            if start_ns is not None:
                self._follow(start_ns, figures)
                self._release.follow(
                    self.held_bytes,
                    self._watch.clock.boot_ns(),
                    lambda at_ns: self._wait_until(at_ns, figures),
                    lambda level: self._lower_to(level, figures, self._goes_on),
                )
            self._lower_to(min(sum(self._wanted), FREE_STEP_BYTES), figures, self._is_leased)
            end = self._judge([self._undo(record) for record in self._records])
            self._watch.state(control.LOAD_DONE)
        except (LeaseOverError, GaveUpError) as error:
            end = (Event.LEASE_ENDED, str(error) or "the lease ended; the guardian undoes the fill")
        except (StressError, OSError) as error:
            self._watch.state(control.LOAD_FAILED)
            lost = isinstance(error, StressError) and error.code in {"stale_slot", "stale_epoch", "halted"}
            end = (Event.LEASE_ENDED if lost else Event.BROKE, str(error))
        finally:  # also of a fill that fails nothing is lost
            reporter.close()
        self._end = end

    def _goes_on(self) -> bool:
        return self._watch.may_go_on() and not self._stopping.is_set()

    def _publish(self, asked_bytes: float, figures: HolderFigures) -> None:
        figures.reporter.tick()
        own = self.held_bytes / self._unit_bytes
        self._watch.report(asked=asked_bytes / self._unit_bytes, own=own, cpu_ns=0, operations=self._applied)

    def _follow(self, start_ns: int, figures: HolderFigures) -> None:
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        clock = self._watch.clock
        self._watch.first_slice()
        self._paced_ns = clock.boot_ns()
        while (now_ns := clock.boot_ns()) < end_ns and self._goes_on():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            room = room_bytes(self._folder, self.held_bytes, self._reserve_bytes)
            wanted = next_bytes(asked, self.held_bytes, room, self._may_grow(now_ns))
            refused = self._apply(wanted, figures) if wanted != sum(self._wanted) or self.held_bytes < wanted else ""
            target = whole_grains(asked)
            if whole_grains(room) < target and wanted >= whole_grains(room):
                refused = refused or "ENOSPC"  # all above the reserve is held
            self._tell_refusal(refused, target, figures)
            self._publish(asked, figures)
            if wanted >= target or self._rate or refused:  # else the next step is due
                due_s = (now_ns - clock.boot_ns()) / SECOND_NS + self._pause_s(is_there=wanted >= target)
                self._stopping.wait(max(0.0, min(due_s, (end_ns - clock.boot_ns()) / SECOND_NS)))

    def _pause_s(self, *, is_there: bool) -> float:
        """Return how long it is from one look to the next: shorter where a rate is to be held evenly."""
        return STEP_S if is_there or not self._rate else max(PACED_S, self._pacer.pause_s(self._rate))

    def _may_grow(self, now_ns: int) -> int:
        """Return how many bytes more may be held now: a step, or what the rate allows where that is less."""
        if not self._rate:
            return self._step_bytes
        self._pacer.grow(self._rate, (now_ns - self._paced_ns) / SECOND_NS)
        self._paced_ns = now_ns
        return min(self._step_bytes, max(0, int(self._pacer.debt_bytes)))

    def _apply(self, wanted_bytes: int, figures: HolderFigures) -> str:
        """Have each file hold its share; return the name of the error number where there was no room."""
        clock, before, refused = self._watch.clock, self.held_bytes, ""
        begun_ns = clock.boot_ns()
        for file, share in enumerate(shares(wanted_bytes, len(self._held))):
            if share == self._wanted[file] and self._held[file] >= share:
                continue
            params = {"bytes": share, "write": self._writes}
            answer = self._guardian.call("apply", timeout_s=APPLY_S, record=self._records[file], params=params)
            self._wanted[file], self._held[file] = share, int(answer["achieved"])
            refused = refused or str(answer.get("refused", ""))
        took_s = (clock.boot_ns() - begun_ns) / SECOND_NS
        gained = max(0, self.held_bytes - before)
        self._pacer.pay(gained)
        if gained >= self._step_bytes // 2:  # less says nothing of how long a step takes
            self._step_bytes = next_step_bytes(self._step_bytes, took_s, self._least_bytes)
        self._applied += 1
        figures.moved(took_s, 1)
        return refused

    def _tell_refusal(self, word: str, asked_bytes: int, figures: HolderFigures) -> None:
        """Publish and count what there is no room for, and take it back once all of it is held."""
        if word and self._refusals.refuse(word, asked_bytes, self._watch.clock.boot_ns()):
            figures.refused(word)
            self._watch.shortfall(self._refusals.code, self._refusals.short_of, self.held_bytes)
        elif not word and self._refusals.meet(self.held_bytes):
            self._watch.shortfall(0, 0, 0)

    def _wait_until(self, at_ns: int, figures: HolderFigures) -> bool:
        """Wait with looks at the lease; false when the load is to end now."""
        while self._goes_on():
            left_s = (at_ns - self._watch.clock.boot_ns()) / SECOND_NS
            if left_s <= 0.0:
                return True
            self._stopping.wait(min(STEP_S, left_s))
            self._publish(self.held_bytes, figures)
        return False

    def _lower_to(self, level_bytes: int, figures: HolderFigures, goes_on: Callable[[], bool]) -> bool:
        """Give blocks back down to a level, a step at a time: some disks take long to free them. False when that was cut short."""
        while (wanted := sum(self._wanted)) > level_bytes:
            self._apply(max(level_bytes, wanted - FREE_STEP_BYTES), figures)
            self._publish(level_bytes, figures)
            if not goes_on():
                return False
        return True

    def _is_leased(self) -> bool:
        if self._watch.look() is Order.DEAD:
            self._watch.expire()
        return True

    def _undo(self, record: str) -> str:
        return str(self._guardian.call("undo", timeout_s=APPLY_S, record=record)["outcome"])

    def _judge(self, outcomes: Sequence[str]) -> tuple[Event, str]:
        """Return what the outcomes of the undo mean for this fill."""
        bad = [
            f"the undo of {record} ended as {outcome}"
            for record, outcome in zip(self._records, outcomes, strict=True)
            if outcome not in _ENDS
        ]
        if bad:
            return Event.BROKE, "; ".join(bad)
        return (Event.LEASE_ENDED, "the lease ended before the fill did") if "expired" in outcomes else (Event.FINISHED, "")


_ENDS: Final = frozenset({"undone", "expired"})
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
    summary="Fills a file system with real blocks in tagged files that the guardian removes.",
    units=("bytes", "fraction"),
    resource="disk_bytes",
    meter="blocks",
    measure="blocks of the files as the file system counts them",
    tolerance=0.02,
    look_ms=100,
    options=(
        Option("dir", "path", "", "folder to fill, on the file system of STATE; empty for a folder in STATE"),
        Option("reserve_bytes", "bytes", 1024 * MIB, "bytes that stay free whatever is asked"),
        Option("files", "integer", 1, "in how many files of equal size", low=1, high=FILES_MAX),
        Option("write", "flag", False, "write each block instead of reserving it: as slow as the disk is"),
        Option("rate_bytes", "bytes", 0, "bytes a second that it grows at most, 0 for as fast as it can"),
        *RELEASE_OPTIONS,
    ),
    metrics=METRICS,
    supported=_supported,
    carrier="guardian",
    needs="STATE on a local file system",
    undo="the guardian arms it in its journal before any block is taken, and removes the tagged files",
    check_here=check_place,
)
