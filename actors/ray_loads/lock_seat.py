"""Which actor keeps a lock that several nodes want: the seat is taken by whoever is quickest, and taken again when its holder has died.

The keeper has a name that Ray gives once at a time, and ends with the simulator that made it. The others find it by that name. Each
keeper is a term: when one has died, the next term begins, and what the last one guarded went with it. Two terms may live at once for a
moment, where somebody did not know of the later one yet: everybody goes over to the highest that they find, and whoever made a lower one
ends it.

    absent --(found or made)--> present --(its end is seen, or a higher term found)--> absent
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from ..clock import SECOND_NS, Clock
from ..errors import HarnessError
from .flow import Outcome
from .lock_actors import LockKeeper
from .ray_work import Ended, RayWork
from .starting import STEP_S

AGAIN_S: Final = 0.05  # between two looks for a keeper while there is none
FIND_S: Final = 1.0  # until the first look for a higher term; each further one comes twice as late, for such a look may wait for Ray
FIND_MAX_S: Final = 32.0
HERE_S: Final = 1.0  # between two signs of life to the keeper
MAKE_S: Final = 0.5  # between two keepers that one simulator makes
MADE_MAX: Final = 64  # of one simulator: what keeps on dying is an error
OPEN_S: Final = 40.0  # less than `starting.READY_S`, which waits for it
CALLS_MAX: Final = 10_000  # under way at a keeper: who waits for the lock, in all nodes' contenders


class Seat:
    """One simulator's view of the keeper. With no name the lock is this node's own, and its keeper is never replaced."""

    def __init__(self, work: RayWork, clock: Clock, lease_s: float, user: str, operation: str, name: str) -> None:
        self.keeper: Any = None
        self.term = -1
        self.made = 0
        self._work, self._clock, self._lease_s, self._user, self._operation = work, clock, lease_s, user, operation
        self._prefix = f"{name}/" if name else ""
        self._stay: Any = None  # the call that ends with the keeper
        self._here: Any = None  # the last sign of life
        self._ours: Any = None  # the keeper, when it was made here
        self._here_s = self._looked_s = self._made_s = -math.inf
        self._find_s = FIND_S

    @property
    def is_shared(self) -> bool:
        """Tell whether other nodes want the lock too."""
        return bool(self._prefix)

    def open(self) -> Iterator[list[Any]]:
        """Find the keeper or make it; it is there once it has answered. Raises `HarnessError`."""
        until_s = self._now_s() + OPEN_S
        while not self._answers():
            self.tend()
            if self.keeper is not None and self.keeper is self._ours:
                yield [self._here]
                return
            if self._now_s() > until_s:
                raise HarnessError(
                    "timeout",
                    f"{self._operation}: no keeper of the lock was found or made within {OPEN_S:g} s",
                    "the node that makes it may be slow, or about to end",
                )
            self._clock.sleep(AGAIN_S)
            yield []

    def tend(self) -> bool:
        """Look whether the keeper lives, and for another where it does not; return whether there is a new one. Raises `HarnessError`."""
        if not self.is_shared:
            return self.keeper is None and self._make()
        self._see_its_end()
        now_s = self._now_s()
        if self.keeper is not None and now_s - self._here_s >= HERE_S:
            self._give_a_sign(now_s)
        if now_s - self._looked_s < (AGAIN_S if self.keeper is None else self._find_s):
            return False
        self._looked_s = now_s
        if self.keeper is not None:
            self._find_s = min(FIND_MAX_S, 2 * self._find_s)
        return self._find() or (self.keeper is None and self._make())

    def leave(self, wait_s: float) -> None:
        """Say that nobody here wants the lock any more; who made the keeper stays until the others have said so, `wait_s` at most."""
        if self.keeper is None:
            return
        until_s = self._now_s() + wait_s
        self._ask("leave", self._user, until_s=until_s)
        if self.is_shared and self.keeper is self._ours:
            while self._now_s() < until_s and self._ask("users", until_s=until_s):
                self._clock.sleep(STEP_S)

    def close(self) -> None:
        """End the keeper that was made here; tell one of another node that nobody here wants the lock, and wait for no answer."""
        if self._ours is not None:
            self._work.kill(self._ours)
        elif self.keeper is not None:
            self._work.call(self.keeper, "leave", self._user)
        self.keeper = self._ours = None

    # ---- how it is taken

    def _see_its_end(self) -> None:
        end = self._end_of(self._stay) if self.keeper is not None else None
        if end is None:
            return
        if end.outcome is Outcome.FAILED and not end.reason.startswith("ActorUnavailableError"):
            self.keeper = None
        else:  # out of reach for a moment, or silent for so long that it was taken to have left: the keeper lives
            self._stay = self._work.call(self.keeper, "stay", self._user)

    def _give_a_sign(self, now_s: float) -> None:
        self._here_s = now_s
        self._here = self._work.call(self.keeper, "here", self._user)

    def _answers(self) -> bool:
        end = self._end_of(self._here) if self.keeper is not None else None
        return end is not None and end.outcome is Outcome.FINISHED

    def _end_of(self, call: Any) -> Ended | None:
        return self._work.look([call])[0]

    def _find(self) -> bool:
        known = {f"{self._prefix}{self.term}"}
        found = {int(name.removeprefix(self._prefix)): handle for name, handle in self._work.find(self._prefix, known).items()}
        term = max(found, default=-1)
        if term <= self.term:
            return False
        if self._ours is not None:  # of a lower term
            self._work.kill(self._ours)
            self._ours = None
        self._take(term, found[term])
        return True

    def _make(self) -> bool:
        """Make the keeper of the next term; False when another was quicker. Raises `HarnessError` when it was made too often."""
        if self._now_s() - self._made_s < MAKE_S:
            return False
        if self.made >= MADE_MAX:
            raise HarnessError("lost", f"{self._operation}: the keeper of the lock has died {self.made} times")
        term = self.term + 1
        name = f"{self._prefix}{term}" if self.is_shared else ""
        made = self._work.spawn(LockKeeper, self._lease_s, name=name, at_once=CALLS_MAX)
        if made is None:
            return False
        self._made_s = self._now_s()
        self.made += 1
        self._ours = made
        self._take(term, made)
        return True

    def _take(self, term: int, keeper: Any) -> None:
        self.term, self.keeper = term, keeper
        self._find_s = FIND_S
        self._stay = self._work.call(keeper, "stay", self._user)
        self._give_a_sign(self._now_s())

    def _ask(self, method: str, *args: Any, until_s: float) -> Any:
        """Return what the keeper says, None when it does not answer in time or has ended."""
        call = self._work.call(self.keeper, method, *args)
        while (end := self._end_of(call)) is None and self._now_s() < until_s:
            self._clock.sleep(STEP_S)
        return end.value if end is not None else None

    def _now_s(self) -> float:
        return self._clock.boot_ns() / SECOND_NS
