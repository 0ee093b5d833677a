"""The life of one operation as its node's agent drives it. Everything that changes a stage is in this table.

    WANTED ──▶ OPENING ──▶ PREPARING ──▶ READY ──▶ ARMED ──▶ RUNNING ──▶ CLOSING ──▶ CLEAN
                   └────────────┴───────────┴─────────┴──── CLOSE, FAIL ───▶ ┘

CLOSING is the guardian's work: drain, kill, undo, verify. CLEAN is its word that nothing is left; only that is terminal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """Where an operation stands on its node."""

    WANTED = "wanted"
    OPENING = "opening"
    PREPARING = "preparing"
    READY = "ready"
    ARMED = "armed"  # the start time is written; load begins by itself
    RUNNING = "running"
    CLOSING = "closing"
    CLEAN = "clean"


class Event(StrEnum):
    """What can happen to an operation."""

    OPEN = "open"
    OPENED = "opened"
    REFUSED = "refused"  # the guardian gave no slot: there is nothing to close
    PREPARED = "prepared"
    START = "start"
    FIRST_SLICE = "first_slice"
    CLOSE = "close"  # asked to, or its load has ended
    CLOSED = "closed"


class Effect(StrEnum):
    """What the agent does on a change."""

    OPEN_SLOT = "open_slot"
    PREPARE = "prepare"
    WRITE_START = "write_start"
    CLOSE_SLOT = "close_slot"
    EXCHANGE = "exchange"


TABLE: Final[dict[tuple[Stage, Event], tuple[Stage, tuple[Effect, ...]]]] = {
    (Stage.WANTED, Event.OPEN): (Stage.OPENING, (Effect.OPEN_SLOT,)),
    (Stage.WANTED, Event.CLOSE): (Stage.CLEAN, (Effect.EXCHANGE,)),
    (Stage.OPENING, Event.OPENED): (Stage.PREPARING, (Effect.PREPARE, Effect.EXCHANGE)),
    (Stage.OPENING, Event.REFUSED): (Stage.CLEAN, (Effect.EXCHANGE,)),
    (Stage.PREPARING, Event.PREPARED): (Stage.READY, (Effect.EXCHANGE,)),
    (Stage.PREPARING, Event.CLOSE): (Stage.CLOSING, (Effect.CLOSE_SLOT,)),
    (Stage.READY, Event.START): (Stage.ARMED, (Effect.WRITE_START,)),
    (Stage.READY, Event.CLOSE): (Stage.CLOSING, (Effect.CLOSE_SLOT,)),
    (Stage.ARMED, Event.FIRST_SLICE): (Stage.RUNNING, ()),
    (Stage.ARMED, Event.CLOSE): (Stage.CLOSING, (Effect.CLOSE_SLOT,)),
    (Stage.RUNNING, Event.CLOSE): (Stage.CLOSING, (Effect.CLOSE_SLOT,)),
    (Stage.CLOSING, Event.CLOSED): (Stage.CLEAN, (Effect.EXCHANGE,)),
}


def step(stage: Stage, event: Event) -> tuple[Stage, tuple[Effect, ...]]:
    """Return the next stage and what to do; an event that the stage does not know changes nothing."""
    return TABLE.get((stage, event), (stage, ()))
