"""The guardian's words: what its core orders, what it hears back, and the two tables that drive slots and records.

Everything here is data. `core` runs the tables, tests enumerate them, docs/explanation/guardian.md draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

from ..clock import MILLISECOND_NS, SECOND_NS
from ..messages import Amounts, Halt
from ..proc import Identity
from ..undo import Outcome, Record

NEVER_NS: Final = 1 << 62
STANDING: Final = frozenset("Tt")  # stopped by a signal, or by a tracer: man 5 proc_pid_stat


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Bounds of the guardian; times in nanoseconds of boottime."""

    lease_max_ns: int = 60 * SECOND_NS
    unleased_max_ns: int = 60 * SECOND_NS  # how long a slot may stay open before its first grant
    release_max_ns: int = 30 * SECOND_NS
    grace_max_ns: int = 60 * SECOND_NS
    verify_again_ns: int = 1 * SECOND_NS
    retry_min_ns: int = 5 * MILLISECOND_NS
    retry_max_ns: int = 100 * MILLISECOND_NS
    stuck_after_ns: int = 3 * SECOND_NS
    stuck_retry_ns: int = 1 * SECOND_NS
    idle_exit_ns: int = 10 * SECOND_NS
    records_per_slot_max: int = 64
    watched_max: int = 16
    history_max: int = 512


# --- what the core orders -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reply:
    """Answer a connection."""

    peer: str
    body: dict[str, Any]


@dataclass(slots=True)
class WriteLeases:
    """Store lease words: (slot, generation, deadline_ns), 0 for not live."""

    items: tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class WriteCeilings:
    """Store throttles: (slot, 0..1)."""

    items: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class WriteStop:
    """Store a stop word."""

    slot: int
    generation: int
    code: int


@dataclass(slots=True)
class WriteGate:
    """Open the gate for the registered load."""

    slot: int
    generation: int


@dataclass(slots=True)
class WriteStart:
    """Store when load begins."""

    slot: int
    generation: int
    start_ns: int


@dataclass(slots=True)
class ResetSlot:
    """Prepare a slot for a new generation."""

    slot: int
    generation: int
    epoch: int
    sharers: int


@dataclass(slots=True)
class Identify:
    """Open and keep a pidfd of this pid, move it into the container if one is named; answered by `Identified`."""

    token: int
    pid: int
    container: str = ""


@dataclass(slots=True)
class Watch:
    """Keep a pidfd of a process known from the journal; its end is told by `died`, at once when it is gone already."""

    identity: Identity


@dataclass(slots=True)
class Unwatch:
    """Let go of a pidfd."""

    identity: Identity


@dataclass(slots=True)
class Observe:
    """Look at the state of a held process; answered by `Observed`."""

    token: int
    identity: Identity


@dataclass(slots=True)
class KillOwner:
    """SIGKILL an agent or simulator that stands still: through its pidfd, and only exactly this process."""

    identity: Identity


@dataclass(slots=True)
class MakeContainer:
    """Make the operation's container; answered by `ContainerMade`."""

    record: Record


@dataclass(slots=True)
class JournalArm:
    """Write and sync a record; answered by `Journalled`."""

    record: Record


@dataclass(slots=True)
class JournalFree:
    """Forget a record; best effort, not answered."""

    record: str


@dataclass(slots=True)
class SaveHalt:
    """Write the halt bit to disk; answered by `HaltSaved`."""

    generation: int
    on: bool


@dataclass(slots=True)
class PublishHalt:
    """Show on the control page which halt is in force and which is on disk. Goes before any load ends by it."""

    halt: Halt
    kept: Halt


@dataclass(slots=True)
class Kill:
    """Kill what the record names and tell what is left; answered by `Outcome`. Goes before everything else."""

    record: Record


@dataclass(slots=True)
class Undo:
    """Undo an effect that is no process; answered by `Outcome`."""

    record: Record


@dataclass(slots=True)
class Verify:
    """Look whether anything of the effect is left; answered by `Outcome`."""

    record: Record


@dataclass(slots=True)
class Apply:
    """Do one step of an effect; answered by `Applied`."""

    record: Record
    params: Mapping[str, Any]


@dataclass(slots=True)
class Retire:
    """Nothing is left to guard: close the socket and, if nobody waits at it, exit."""


Action: TypeAlias = (
    Reply
    | WriteLeases
    | WriteCeilings
    | WriteStop
    | WriteGate
    | WriteStart
    | ResetSlot
    | Identify
    | Watch
    | Unwatch
    | Observe
    | KillOwner
    | MakeContainer
    | JournalArm
    | JournalFree
    | SaveHalt
    | PublishHalt
    | Kill
    | Undo
    | Verify
    | Apply
    | Retire
)


# --- what the core hears back -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identified:
    """The process behind a pid, None when there is none; `container` is "cgroup" or "session"."""

    token: int
    identity: Identity | None
    container: str = "session"


@dataclass(frozen=True, slots=True)
class Observed:
    """The state letter of /proc/PID/stat, "" when the process is gone."""

    token: int
    state: str


@dataclass(frozen=True, slots=True)
class Journalled:
    """A record is durable, or why not (code, message)."""

    record: str
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ContainerMade:
    """The container's folder, "" when the session has to do, or why it has not the limit that was asked (code, message)."""

    record: str
    path: str
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What an effect has reached; `more` asks for another step, `refused` names the error number where there is no room for one."""

    record: str
    achieved: int
    more: bool = False
    error: tuple[str, str] | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class HaltSaved:
    """The halt bit is on disk, or why not."""

    generation: int
    error: tuple[str, str] | None = None


Result: TypeAlias = Identified | Observed | Journalled | ContainerMade | Applied | HaltSaved | Outcome


# --- the life of a slot -------------------------------------------------------------------------------------------------


class SlotPhase(StrEnum):
    """Where a slot stands."""

    OPENING = "opening"  # its container record is not yet durable
    OPEN = "open"  # no lease yet
    LIVE = "live"
    DRAINING = "draining"  # asked to stop by itself, still under its lease
    ENDING = "ending"  # killing and undoing
    CHECKING = "checking"  # all gone; verified again a little later
    FREE = "free"


class SlotEvent(StrEnum):
    """What happens to a slot."""

    READY = "ready"
    GRANT = "grant"
    DRAIN = "drain"
    END = "end"
    RELEASED = "released"
    CLEAN = "clean"


_P, _E = SlotPhase, SlotEvent
SLOT_TABLE: Final[dict[tuple[SlotPhase, SlotEvent], SlotPhase]] = {
    (_P.OPENING, _E.READY): _P.OPEN,
    (_P.OPENING, _E.END): _P.ENDING,
    (_P.OPEN, _E.GRANT): _P.LIVE,
    (_P.OPEN, _E.DRAIN): _P.DRAINING,
    (_P.OPEN, _E.END): _P.ENDING,
    (_P.LIVE, _E.GRANT): _P.LIVE,
    (_P.LIVE, _E.DRAIN): _P.DRAINING,
    (_P.LIVE, _E.END): _P.ENDING,
    (_P.DRAINING, _E.GRANT): _P.DRAINING,
    (_P.DRAINING, _E.DRAIN): _P.DRAINING,
    (_P.DRAINING, _E.END): _P.ENDING,
    (_P.ENDING, _E.RELEASED): _P.CHECKING,
    (_P.CHECKING, _E.CLEAN): _P.FREE,
}
LOADING: Final = frozenset({_P.OPENING, _P.OPEN, _P.LIVE, _P.DRAINING})


# --- the life of a record -----------------------------------------------------------------------------------------------


class RecordState(StrEnum):
    """Where an effect's record stands."""

    ARMING = "arming"  # not yet durable
    ARMED = "armed"
    UNDOING = "undoing"
    STUCK = "stuck"  # could not be undone in time; tried again, reported
    VERIFYING = "verifying"
    CHECKED = "checked"  # verified once
    RECHECKING = "rechecking"
    ENDED = "ended"
    FOREIGN = "foreign"  # somebody else's now: left alone, reported, kept in the journal


class RecordEvent(StrEnum):
    """What happens to a record."""

    SYNCED = "synced"
    REFUSED = "refused"
    END = "end"
    UNDONE = "undone"
    PENDING = "pending"
    LATE = "late"
    FOREIGN = "foreign"
    DUE = "due"


class Effect(StrEnum):
    """What a step of a record asks for."""

    NONE = "none"
    UNDO = "undo"
    RETRY = "retry"
    RETRY_SLOWLY = "retry slowly"
    VERIFY = "verify"
    WAIT = "wait"
    FREE = "free"


_S, _R, _F = RecordState, RecordEvent, Effect
RECORD_TABLE: Final[dict[tuple[RecordState, RecordEvent], tuple[RecordState, Effect]]] = {
    (_S.ARMING, _R.SYNCED): (_S.ARMED, _F.NONE),
    (_S.ARMING, _R.REFUSED): (_S.ENDED, _F.NONE),
    (_S.ARMED, _R.END): (_S.UNDOING, _F.UNDO),
    (_S.UNDOING, _R.DUE): (_S.UNDOING, _F.UNDO),
    (_S.UNDOING, _R.PENDING): (_S.UNDOING, _F.RETRY),
    (_S.UNDOING, _R.LATE): (_S.STUCK, _F.RETRY_SLOWLY),
    (_S.UNDOING, _R.UNDONE): (_S.VERIFYING, _F.VERIFY),
    (_S.UNDOING, _R.FOREIGN): (_S.FOREIGN, _F.NONE),
    (_S.STUCK, _R.DUE): (_S.STUCK, _F.UNDO),
    (_S.STUCK, _R.PENDING): (_S.STUCK, _F.RETRY_SLOWLY),
    (_S.STUCK, _R.LATE): (_S.STUCK, _F.RETRY_SLOWLY),
    (_S.STUCK, _R.UNDONE): (_S.VERIFYING, _F.VERIFY),
    (_S.STUCK, _R.FOREIGN): (_S.FOREIGN, _F.NONE),
    (_S.VERIFYING, _R.UNDONE): (_S.CHECKED, _F.WAIT),
    (_S.VERIFYING, _R.PENDING): (_S.UNDOING, _F.UNDO),
    (_S.VERIFYING, _R.LATE): (_S.STUCK, _F.RETRY_SLOWLY),
    (_S.VERIFYING, _R.FOREIGN): (_S.FOREIGN, _F.NONE),
    (_S.CHECKED, _R.DUE): (_S.RECHECKING, _F.VERIFY),
    (_S.RECHECKING, _R.UNDONE): (_S.ENDED, _F.FREE),
    (_S.RECHECKING, _R.PENDING): (_S.UNDOING, _F.UNDO),
    (_S.RECHECKING, _R.LATE): (_S.STUCK, _F.RETRY_SLOWLY),
    (_S.RECHECKING, _R.FOREIGN): (_S.FOREIGN, _F.NONE),
}
# Nothing of ours is left of it.
GONE: Final = frozenset({_S.CHECKED, _S.RECHECKING, _S.ENDED, _S.FOREIGN})
# Or nothing more can be done about it now: whoever waits is answered, and told that it is not gone.
SETTLED: Final = GONE | {_S.STUCK}
FINAL: Final = frozenset({_S.ENDED, _S.FOREIGN})


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits for an answer: the connection and the number the request carried."""

    peer: str
    request: Any = None


@dataclass(slots=True)
class Tracked:
    """A record with where it stands."""

    record: Record
    state: RecordState = RecordState.ARMING
    due_ns: int = NEVER_NS
    since_ns: int = 0  # when undoing began
    tries: int = 0
    detail: str = ""
    applying: bool = False
    params: Mapping[str, Any] | None = None
    achieved: int = 0
    waiters: list[Waiter] = field(default_factory=list)  # of an undo
    appliers: list[Waiter] = field(default_factory=list)
    armer: Waiter | None = None


@dataclass(slots=True)
class Slot:
    """One operation's place: who owns it, until when it may load, and what has to be undone for it."""

    index: int  # negative: found in the journal, without a place on this page
    generation: int
    cluster: str
    node: str
    epoch: int
    incarnation: int
    run: str
    operation: str
    amounts: Amounts
    release_ns: int
    sharers: int = 1
    phase: SlotPhase = SlotPhase.OPENING
    deadline_ns: int = 0
    drain_until_ns: int = NEVER_NS
    opened_ns: int = 0
    stopped_ns: int = 0
    released_ns: int = 0
    cause: str = ""
    container: str = ""
    memory_group: str = ""  # where that is limited, and not the container itself
    known_as: int | None = None  # of one found in the journal: the index by which its owner asks for it
    records: list[Tracked] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    closers: list[Waiter] = field(default_factory=list)

    @property
    def loads(self) -> bool:
        """Tell whether it may take anything of the machine; a driver's slot does not."""
        return self.amounts != Amounts()

    @property
    def key(self) -> tuple[int, int]:
        """Slot and generation."""
        return self.index, self.generation

    @property
    def ticket(self) -> tuple[int, int]:
        """Slot and generation as its owner was told."""
        return self.index if self.known_as is None else self.known_as, self.generation


@dataclass(slots=True)
class Halting:
    """A halt on its way: answered when its slots are released and its bit is on disk."""

    waiter: Waiter | None
    generation: int
    decided_ns: int
    slots: set[tuple[int, int]]
    killed: list[dict[str, Any]]
    last_gone_ns: int = 0
    stuck: list[str] = field(default_factory=list)  # what was killed and is not gone
    saved: bool = False
    error: tuple[str, str] | None = None
