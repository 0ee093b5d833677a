"""What a service holds for one of its dependencies: a bounded line of requests, and a breaker where it has one. Pure: time is an argument.

Every request that is put in has one end, or still waits:

    put = taken + degraded + waiting

Without a breaker a request waits until the dependency takes it, however often that is asked in vain: so the line fills up, and the service
can take no more. With one, calls are not even tried while the breaker is open, and requests are answered without the dependency.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from ..breaker import Breaker, BreakerPolicy, State


class Fate(StrEnum):
    """What became of a call to a dependency, or of a request that was answered without one."""

    TAKEN = "taken"
    REFUSED = "refused"  # it had no room
    TIMED_OUT = "timed_out"
    DIED = "died"  # Ray said that there is no such actor any more
    DEGRADED = "degraded"


FATES = tuple(map(str, Fate))


@dataclass(slots=True)
class LaneCounts:
    """How many so far, by fate."""

    taken: int = 0
    refused: int = 0
    timed_out: int = 0
    died: int = 0
    degraded: int = 0


class Lane:
    """One line. Its owner asks `may_call` while something waits, and says with `end` what became of the call."""

    def __init__(self, room: int, policy: BreakerPolicy | None = None) -> None:
        self.room = room
        self.waiting = 0
        self.counts = LaneCounts()
        self.failed_ns = 0  # the first call that failed
        self._policy = policy
        self._breaker = Breaker()

    @property
    def is_full(self) -> bool:
        """Whether no request more can wait."""
        return self.waiting >= self.room

    def put(self) -> None:
        """Have one more request wait. Only while the line is not full."""
        assert not self.is_full
        self.waiting += 1

    def may_call(self, now_ns: int) -> bool:
        """Tell whether the dependency is to be called for the first that waits; else answer that one without, by `end` with `DEGRADED`."""
        if self._policy is None:
            return True
        self._breaker = self._breaker.look(now_ns, self._policy)
        return self._breaker.state is not State.OPEN

    def end(self, fate: Fate, now_ns: int) -> None:
        """Take what became of the first that waits: it is done when it was taken or answered without, else it waits on."""
        setattr(self.counts, fate, getattr(self.counts, fate) + 1)
        self.waiting -= fate in {Fate.TAKEN, Fate.DEGRADED}
        if fate in {Fate.REFUSED, Fate.TIMED_OUT, Fate.DIED}:
            self.failed_ns = self.failed_ns or now_ns
            self._breaker = self._breaker.fail(now_ns, self._policy) if self._policy else self._breaker
        elif fate is Fate.TAKEN and self._policy:
            self._breaker = self._breaker.succeed(self._policy)

    def told(self) -> dict[str, int]:
        """Return the counts by fate."""
        return asdict(self.counts)
