"""The life of one simulator, as a table. Everything that changes a phase is in `TABLE`; `step` only looks it up. Pure.

    NEW ──▶ PREPARING ──▶ READY ──▶ RUNNING ──▶ DONE          ran to its end, or stopped as asked
               │            │          │
               └────────────┴──────────┴──▶ DRAINING ──▶ DONE
                            any of them ──▶ EXPIRED          its lease ended, the load ended itself or was killed
                            any of them ──▶ FAILED           the load broke; the reason says how

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from .errors import HarnessError


class Phase(StrEnum):
    """Where a simulator is in its life."""

    NEW = "new"
    PREPARING = "preparing"
    READY = "ready"
    RUNNING = "running"
    DRAINING = "draining"
    DONE = "done"
    EXPIRED = "expired"
    FAILED = "failed"


class Event(StrEnum):
    """What happened to a simulator."""

    PREPARE = "prepare"  # the agent asks for the load
    WARMED = "warmed"  # the load is warm and waits for its start
    STARTED = "started"  # the first slice of load ran
    STOP = "stop"  # somebody asks for the end
    GRACE_OVER = "grace_over"  # the end asked for did not come in time
    FINISHED = "finished"  # the load ended as it should
    LEASE_ENDED = "lease_ended"  # the load ended because its lease did
    BROKE = "broke"  # the load ended otherwise


class Effect(StrEnum):
    """What the shell does when a phase changes."""

    SPAWN = "spawn"  # start the load and register it at the guardian
    DRAIN = "drain"  # ask the load to end
    KILL = "kill"  # end the load by force
    RELEASE = "release"  # give back what the shell holds


TERMINAL: Final = frozenset({Phase.DONE, Phase.EXPIRED, Phase.FAILED})

_ENDS: Final = {
    Event.FINISHED: (Phase.DONE, (Effect.RELEASE,)),
    Event.LEASE_ENDED: (Phase.EXPIRED, (Effect.RELEASE,)),
    Event.BROKE: (Phase.FAILED, (Effect.RELEASE,)),
}

TABLE: Final[dict[tuple[Phase, Event], tuple[Phase, tuple[Effect, ...]]]] = {
    (Phase.NEW, Event.PREPARE): (Phase.PREPARING, (Effect.SPAWN,)),
    (Phase.NEW, Event.STOP): (Phase.DONE, (Effect.RELEASE,)),
    (Phase.NEW, Event.LEASE_ENDED): (Phase.EXPIRED, (Effect.RELEASE,)),
    (Phase.PREPARING, Event.WARMED): (Phase.READY, ()),
    (Phase.PREPARING, Event.STARTED): (Phase.RUNNING, ()),  # both happened between two looks
    (Phase.PREPARING, Event.STOP): (Phase.DRAINING, (Effect.DRAIN,)),
    (Phase.READY, Event.STARTED): (Phase.RUNNING, ()),
    (Phase.READY, Event.STOP): (Phase.DRAINING, (Effect.DRAIN,)),
    (Phase.RUNNING, Event.STOP): (Phase.DRAINING, (Effect.DRAIN,)),
    (Phase.DRAINING, Event.WARMED): (Phase.DRAINING, ()),  # the load had not seen the stop yet
    (Phase.DRAINING, Event.STARTED): (Phase.DRAINING, ()),
    (Phase.DRAINING, Event.STOP): (Phase.DRAINING, ()),
    (Phase.DRAINING, Event.GRACE_OVER): (Phase.DRAINING, (Effect.KILL,)),
    **{(phase, event): end for phase in (Phase.PREPARING, Phase.READY, Phase.RUNNING, Phase.DRAINING) for event, end in _ENDS.items()},
    **{(phase, event): (phase, ()) for phase in TERMINAL for event in Event},  # the end is the end
}


@dataclass(frozen=True, slots=True)
class Life:
    """A simulator's phase, why it is there, and the way it came."""

    phase: Phase = Phase.NEW
    reason: str = ""
    story: tuple[str, ...] = ()


def step(life: Life, event: Event, reason: str = "") -> tuple[Life, tuple[Effect, ...]]:
    """Return the life after an event and what is to be done.

    The first reason given on the way to an end stays. Raises `HarnessError` (`internal`) with the story when the event
    cannot happen in this phase.
    """
    found = TABLE.get((life.phase, event))
    if found is None:
        told = " > ".join((*life.story, f"{life.phase}+{event}"))
        raise HarnessError("internal", f"a simulator in phase {life.phase} cannot take {event}; its story: {told}")
    phase, effects = found
    if life.phase in TERMINAL:
        return life, effects
    return replace(life, phase=phase, reason=life.reason or reason, story=(*life.story, f"{life.phase}+{event}")[-16:]), effects


EXIT_DONE: Final = 0
EXIT_NO_ROOM: Final = 71  # the operating system has no memory left for the load (EX_OSERR)
EXIT_LEASE: Final = 75  # the lease ended (EX_TEMPFAIL)
EXIT_ORPHAN: Final = 76  # the shell was gone before the load began
EXIT_GATE: Final = 77  # the guardian did not open the gate in time


def classify_exit(exit_code: int, *, slot_live: bool, stopping: bool) -> Event:
    """Return what a load's exit means; `exit_code` is negative for a signal, as in `subprocess`.

    A signal is an end by the lease when the slot is dead, an end as asked when a stop was asked for, else a break.
    """
    if exit_code == EXIT_DONE:
        return Event.FINISHED
    if exit_code == EXIT_LEASE:
        return Event.LEASE_ENDED
    if exit_code < 0 and stopping:
        return Event.FINISHED
    if exit_code < 0 and not slot_live:
        return Event.LEASE_ENDED
    return Event.BROKE
