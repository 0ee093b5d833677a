"""An open loop: calls are due at `start + n / rate`, whether or not earlier ones have returned. Pure.

Response time counts from the intended start, so a stalled target cannot hide the calls that a closed loop would not have made
(coordinated omission; wrk2's README describes the effect). Times are integer nanoseconds of one clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.clock import SECOND_NS


@dataclass(frozen=True, slots=True)
class Sample:
    """One call that ended: which, when it was meant to begin, how long since then, how long since it was sent, and why it failed."""

    number: int
    intended_ns: int
    response_s: float
    service_s: float
    failure: str = ""


@dataclass(slots=True)
class OpenLoop:
    """The schedule of one probe and its calls in flight.

    `in_flight_max` bounds memory when the target is dead: calls due beyond it are not sent and fail as `not_sent` at their timeout.
    """

    rate_hz: float
    start_ns: int
    timeout_s: float
    in_flight_max: int = 1_000
    sent: int = 0
    flying: dict[int, tuple[int, int]] = field(default_factory=dict)  # number -> (intended, sent)

    def intended_ns(self, number: int) -> int:
        """Return when call `number` (from 0) is meant to begin."""
        return self.start_ns + round(number * SECOND_NS / self.rate_hz)

    def next_due_ns(self) -> int:
        """Return when the next call is due."""
        return self.intended_ns(self.sent)

    def take_due(self, now_ns: int) -> tuple[list[int], list[Sample]]:
        """Return the calls to send now, and those that cannot be sent because too many are in flight."""
        send: list[int] = []
        refused: list[Sample] = []
        while self.next_due_ns() <= now_ns:
            number, intended = self.sent, self.next_due_ns()
            self.sent += 1
            if len(self.flying) < self.in_flight_max:
                self.flying[number] = (intended, now_ns)
                send.append(number)
            else:
                refused.append(Sample(number, intended, self.timeout_s, 0.0, "not_sent"))
        return send, refused

    def done(self, number: int, now_ns: int, failure: str = "") -> Sample | None:
        """Take a call's end; nothing when it had timed out before."""
        entry = self.flying.pop(number, None)
        if entry is None:
            return None
        intended, sent = entry
        return Sample(number, intended, (now_ns - intended) / SECOND_NS, (now_ns - sent) / SECOND_NS, failure)

    def take_late(self, now_ns: int) -> list[Sample]:
        """Return the calls whose time is over: failures that count with the time waited so far."""
        limit = round(self.timeout_s * SECOND_NS)
        late = [number for number, (intended, _) in self.flying.items() if now_ns - intended >= limit]
        return [sample for number in late if (sample := self.done(number, now_ns, "timeout")) is not None]

    def abandon(self, now_ns: int) -> list[Sample]:
        """Return what is still in flight at the end as failures."""
        return [sample for number in list(self.flying) if (sample := self.done(number, now_ns, "unanswered")) is not None]
