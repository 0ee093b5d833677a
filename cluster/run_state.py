"""The life of one run. Everything that changes its phase is in this table; nothing else does.

    ADMITTED ──▶ PREPARING ──▶ STARTING ──▶ RUNNING ──▶ STOPPING ──▶ COLLECTING ──▶ DONE
                     └──────────────┴── STOP, FAILED ──▶ ┘

STOPPING ends when every node is clean or no longer reachable; COLLECTING when every stream of metrics has arrived or its
time is over. A run never goes back, and DONE is terminal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where a run stands."""

    ADMITTED = "admitted"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    COLLECTING = "collecting"
    DONE = "done"


class Event(StrEnum):
    """What can happen to a run."""

    PREPARE = "prepare"
    ALL_READY = "all_ready"
    STARTED = "started"
    STOP = "stop"  # the plan's end, a request, a failure, a safety verdict: the cause is kept beside the phase
    ALL_CLEAN = "all_clean"
    COLLECTED = "collected"


class Effect(StrEnum):
    """What the orchestrator does on a change."""

    START_AGENTS = "start_agents"
    SET_START = "set_start"
    START_PROBES = "start_probes"
    STOP_PROBES = "stop_probes"
    POKE = "poke"
    REPORT = "report"
    FINISH = "finish"


TABLE: Final[dict[tuple[Phase, Event], tuple[Phase, tuple[Effect, ...]]]] = {
    (Phase.ADMITTED, Event.PREPARE): (Phase.PREPARING, (Effect.START_AGENTS, Effect.REPORT)),
    (Phase.ADMITTED, Event.STOP): (Phase.STOPPING, (Effect.REPORT,)),
    (Phase.PREPARING, Event.ALL_READY): (Phase.STARTING, (Effect.SET_START, Effect.POKE, Effect.START_PROBES, Effect.REPORT)),
    (Phase.PREPARING, Event.STOP): (Phase.STOPPING, (Effect.POKE, Effect.REPORT)),
    (Phase.STARTING, Event.STARTED): (Phase.RUNNING, (Effect.REPORT,)),
    (Phase.STARTING, Event.STOP): (Phase.STOPPING, (Effect.POKE, Effect.STOP_PROBES, Effect.REPORT)),
    (Phase.RUNNING, Event.STOP): (Phase.STOPPING, (Effect.POKE, Effect.STOP_PROBES, Effect.REPORT)),
    (Phase.STOPPING, Event.ALL_CLEAN): (Phase.COLLECTING, (Effect.POKE, Effect.REPORT)),
    (Phase.COLLECTING, Event.COLLECTED): (Phase.DONE, (Effect.FINISH, Effect.REPORT)),
}


def step(phase: Phase, event: Event) -> tuple[Phase, tuple[Effect, ...]]:
    """Return the next phase and what to do; an event that the phase does not know changes nothing."""
    return TABLE.get((phase, event), (phase, ()))
