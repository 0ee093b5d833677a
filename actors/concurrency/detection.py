"""What went wrong among tasks, found in what was seen of them. Pure: snapshots and logs in, findings out.

deadlock     a cycle in the wait-for graph of one instant
livelock     many tries and no progress over a while
inversion    an urgent task waits for a lock longer than allowed, held by a less urgent one, while one of between runs

Where a finding is acted upon is the loads' business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ..clock import SECOND_NS
from .locks import Wait
from .wait_graph import cycles

TRIES_MIN: Final = 10


@dataclass(frozen=True, slots=True)
class Deadlock:
    """A cycle, who should give way (who came last: it has waited least), since when it is closed, and it in words."""

    circle: tuple[str, ...]
    victim: str
    since_ns: int
    text: str


def deadlocks(waits: Mapping[str, Wait]) -> tuple[Deadlock, ...]:
    """Return the cycles among tasks that wait."""
    return tuple(_deadlock(circle, waits) for circle in cycles({task: (wait.holder,) for task, wait in waits.items()}))


def _deadlock(circle: tuple[str, ...], waits: Mapping[str, Wait]) -> Deadlock:
    victim = max(circle, key=lambda task: (waits[task].since_ns, task))
    text = ", ".join(f"{task} waits for {waits[task].lock} held by {waits[task].holder}" for task in circle)
    return Deadlock(circle, victim, waits[victim].since_ns, text)


@dataclass(slots=True)
class LivelockWatch:
    """Tells whether a group livelocks: at least `TRIES_MIN` tries and no progress within the last `window_s`.

    Fed with counts since the beginning, a few times a window. `found` counts livelocks: one ends with the first progress.
    """

    window_s: float
    found: int = 0
    is_livelock: bool = False
    _seen: deque[tuple[int, int, int]] = field(default_factory=deque)

    def look(self, now_ns: int, tries: int, progress: int) -> bool:
        """Take counts and return whether the group livelocks now."""
        seen = self._seen
        seen.append((now_ns, tries, progress))
        while len(seen) > 2 and seen[1][0] <= now_ns - self.window_s * SECOND_NS:
            seen.popleft()
        then_ns, tries_then, progress_then = seen[0]
        whole = now_ns - then_ns >= self.window_s * SECOND_NS
        now = progress == progress_then and (self.is_livelock or (whole and tries - tries_then >= TRIES_MIN))
        self.found += now and not self.is_livelock
        self.is_livelock = now
        return now


EventKind = Literal["asked", "got", "released", "ran"]


@dataclass(frozen=True, slots=True)
class LockEvent:
    """One line of a group's log: a task asked for the lock, got or released it, or ran a slice of other work."""

    at_ns: int
    kind: EventKind
    task: str
    priority: int


@dataclass(frozen=True, slots=True)
class Inversion:
    """An urgent task waited for a less urgent one while `between` ran."""

    waiter: str
    holder: str
    between: str
    at_ns: int
    waited_s: float


def inversions(log: Iterable[LockEvent], bound_s: float) -> tuple[Inversion, ...]:
    """Return the inversions in the log of one lock, whose lines are in order of time.

    Each wait that ended counts at most once: it was longer than `bound_s`, the lock was then held by a task of lower priority (its own,
    not a lent one), and a task of a priority between the two ran meanwhile. A wait that the log does not end is none yet.
    """
    found: list[Inversion] = []
    holder: LockEvent | None = None
    asked: dict[str, tuple[LockEvent, LockEvent | None]] = {}  # waiting task -> its question and who held the lock then
    between: dict[str, str] = {}
    for event in log:
        if event.kind == "asked":
            asked[event.task] = (event, holder)
        elif event.kind == "ran":
            for task, (question, held) in asked.items():
                if held is not None and held.priority < event.priority < question.priority:
                    between.setdefault(task, event.task)
        elif event.kind == "released":
            holder = None
        else:
            holder = event
            question, held = asked.pop(event.task, (event, None))
            ran, waited_s = between.pop(event.task, ""), (event.at_ns - question.at_ns) / SECOND_NS
            if held is not None and ran and waited_s > bound_s:
                found.append(Inversion(event.task, held.task, ran, question.at_ns, waited_s))
    return tuple(found)
