"""A circuit breaker and a retry schedule. Pure: time and chance are arguments.

    closed ──(failure, the `threshold`-th in a row)──▶ open ──(reset_s are over)──▶ half-open ──(success, the `probes`-th)──▶ closed
                                                         ▲                              │
                                                         └──────────(failure)───────────┘

Every change of state is in `TABLE`. What fails when the breaker opens is kept by its owner, and is the first to probe with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from .clock import SECOND_NS
from .errors import InputError


class State(StrEnum):
    """Whether calls are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Event(StrEnum):
    """What a breaker hears."""

    SUCCESS = "success"
    LAST_PROBE = "last_probe"  # a success, and the last that half-open asks for
    FAILURE = "failure"
    LAST_STRAW = "last_straw"  # a failure, and the last that closed bears
    COOLED = "cooled"  # the reset time is over


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.CLOSED, Event.SUCCESS): State.CLOSED,
    (State.CLOSED, Event.FAILURE): State.CLOSED,
    (State.CLOSED, Event.LAST_STRAW): State.OPEN,
    (State.OPEN, Event.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.SUCCESS): State.HALF_OPEN,
    (State.HALF_OPEN, Event.LAST_PROBE): State.CLOSED,
    (State.HALF_OPEN, Event.FAILURE): State.OPEN,
    (State.HALF_OPEN, Event.LAST_STRAW): State.OPEN,
}


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When to open, how long to stay open, how many successes close it, and how retries back off."""

    threshold: int = 5
    reset_s: float = 60.0
    probes: int = 1
    backoff_s: float = 0.1
    backoff_s_max: float = 30.0

    def __post_init__(self) -> None:
        if self.threshold < 1 or self.probes < 1:
            raise InputError("invalid_value", f"threshold and probes are at least 1, got {self.threshold} and {self.probes}")
        if not 0 < self.reset_s < float("inf") or not 0 < self.backoff_s <= self.backoff_s_max < float("inf"):
            raise InputError(
                "invalid_value",
                f"reset {self.reset_s} s, back-off {self.backoff_s} s to {self.backoff_s_max} s",
                "all are more than 0 and finite, and the first back-off is at most the last",
            )

    def delay_s(self, failures: int, chance: float) -> float:
        """Return the wait after this many failures in a row: doubled each time up to the bound, of which chance (0..1) takes up to half.

        "Equal jitter": at least half stays, so that a failing sink is never hammered, and the rest spreads those that fail together.
        """
        whole = min(self.backoff_s_max, self.backoff_s * 2.0 ** min(failures - 1, 60))
        return whole / 2 + whole / 2 * chance


@dataclass(frozen=True, slots=True)
class Breaker:
    """One destination's breaker. `since_ns` is when it opened; failures and probes count in a row."""

    state: State = State.CLOSED
    failures: int = 0
    probes: int = 0
    since_ns: int = 0
    opened: int = 0  # how often, ever

    def succeed(self, policy: BreakerPolicy) -> Breaker:
        """Return the breaker after a call that went well."""
        last = self.probes + 1 >= policy.probes
        event = Event.LAST_PROBE if self.state is State.HALF_OPEN and last else Event.SUCCESS
        state = TABLE[self.state, event]
        return replace(self, state=state, failures=0, probes=self.probes + 1 if state is State.HALF_OPEN else 0)

    def fail(self, now_ns: int, policy: BreakerPolicy) -> Breaker:
        """Return the breaker after a call that failed."""
        event = Event.LAST_STRAW if self.failures + 1 >= policy.threshold else Event.FAILURE
        state = TABLE[self.state, event]
        if state is State.OPEN:
            return Breaker(state, self.failures + 1, 0, now_ns, self.opened + 1)
        return replace(self, state=state, failures=self.failures + 1)

    def look(self, now_ns: int, policy: BreakerPolicy) -> Breaker:
        """Return the breaker at this time: half-open when it has been open for the reset time."""
        if self.state is State.OPEN and now_ns >= self.opens_again_ns(policy):
            return replace(self, state=TABLE[self.state, Event.COOLED], probes=0)
        return self

    def opens_again_ns(self, policy: BreakerPolicy) -> int:
        """Return when an open breaker lets a probe through, in the caller's boot time."""
        return self.since_ns + round(policy.reset_s * SECOND_NS)
