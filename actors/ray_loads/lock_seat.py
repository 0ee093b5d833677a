"""Which actor keeps a lock that several nodes want: the seat is taken by whoever is quickest, and taken again when its holder has died.

The keeper has a name that Ray gives once at a time, and ends with the simulator that made it. The others find it by that name. Each
keeper is a term: when one has died, the next term begins, and what the last one guarded went with it. Two terms may live at once for a
moment, where somebody did not know of the later one yet (or cannot, while the network is cut): everybody goes over to the highest that they
find, and whoever made a lower one ends it.

    absent --(found or made)--> present --(its end is seen, or a higher term found)--> absent
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from ..clock import SECOND_NS, Clock
from ..errors import HarnessError
from .lock_actors import LockKeeper
from .ray_work import RayWork
from .starting import STEP_S

AGAIN_S: Final = 0.05  # between two looks for a keeper while there is none
FIND_S: Final = 1.0  # between two looks for a higher term while there is one
OPEN_S: Final = 20.0
CALLS_MAX: Final = 10_000  # under way at a keeper: who waits for the lock, in all nodes' contenders


class Seat:
    """One simulator's view of the keeper. With no name the lock is this node's own, and its keeper is never replaced."""

    def __init__(self, work: RayWork, clock: Clock, lease_s: float, user: str, name: str) -> None:
        self.keeper: Any = None
        self.term = -1
        self._work, self._clock, self._lease_s, self._user = work, clock, lease_s, user
        self._prefix = f"{name}/" if name else ""
        self._stay: Any = None  # the call that ends with the keeper
        self._made: Any = None  # the keeper, when it is ours
        self._looked_s = -math.inf

    @property
    def is_shared(self) -> bool:
        """Tell whether other nodes want the lock too."""
        return bool(self._prefix)

    def open(self) -> Iterator[list[Any]]:
        """Find the keeper or make it; it is there once it has told its process. Raises `HarnessError`."""
        until_s = self._now_s() + OPEN_S
        while not self.tend():
            if self._now_s() > until_s:
                raise HarnessError("timeout", f"no keeper of the lock {self._prefix} was found or made within {OPEN_S:g} s")
            self._clock.sleep(AGAIN_S)
            yield []
        yield [self._work.call(self.keeper, "pid")]

    def tend(self) -> bool:
        """Look whether the keeper lives, and for another where it does not; return whether there is a new one."""
        if self.keeper is not None and self.is_shared and self._work.look([self._stay])[0] is not None:
            self.keeper = None
            self._looked_s = -math.inf
        if self.keeper is not None and not self.is_shared:
            return False
        now_s = self._now_s()
        if now_s - self._looked_s < (AGAIN_S if self.keeper is None else FIND_S):
            return False
        self._looked_s = now_s
        return self._find() or (self.keeper is None and self._make())

    def leave(self, wait_s: float) -> None:
        """Say that nobody here wants the lock any more; who made the keeper stays until the others have said so, `wait_s` at most."""
        if self.keeper is None:
            return
        until_s = self._now_s() + wait_s
        self._ask("leave", self._user, until_s=until_s)
        if self._made is not None and self.is_shared:
            while self._now_s() < until_s and self._ask("users", until_s=until_s):
                self._clock.sleep(STEP_S)

    def close(self) -> None:
        """End the keeper that was made here."""
        if self._made is not None:
            self._work.kill(self._made)
            self._made = None

    # ---- how it is taken

    def _find(self) -> bool:
        if not self.is_shared:
            return False
        found = {int(name.removeprefix(self._prefix)): handle for name, handle in self._work.find(self._prefix).items()}
        term = max(found, default=-1)
        if term <= self.term:
            return False
        self.close()  # ours was of a lower term
        self._take(term, found[term])
        return True

    def _make(self) -> bool:
        """Make the keeper of the next term; False when another was quicker."""
        term = self.term + 1
        name = f"{self._prefix}{term}" if self.is_shared else ""
        made = self._work.spawn(LockKeeper, self._lease_s, name=name, at_once=CALLS_MAX)
        if made is None:
            return False
        self._made = made
        self._take(term, made)
        return True

    def _take(self, term: int, keeper: Any) -> None:
        self.term, self.keeper = term, keeper
        self._stay = self._work.call(keeper, "stay", self._user)

    def _ask(self, method: str, *args: Any, until_s: float) -> Any:
        """Return what the keeper says, None when it does not answer in time or has ended."""
        call = self._work.call(self.keeper, method, *args)
        while (end := self._work.look([call])[0]) is None and self._now_s() < until_s:
            self._clock.sleep(STEP_S)
        return end.value if end is not None else None

    def _now_s(self) -> float:
        return self._clock.boot_ns() / SECOND_NS
