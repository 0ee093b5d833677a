"""The threads of a load: as many units as are asked for, each of one or more threads, and the first error of any of them.

A unit that is no longer asked for is told to stop and leaves in its own time; `close` waits for all. An error in a thread stops nothing
by itself: the load's main thread meets it in `check` and ends the load with it, so that no error is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import HarnessError

LEAVE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Unit:
    """What one unit runs: a function for each of its threads, and how they are told to stop. `stop` may come more than once."""

    bodies: tuple[Callable[[], None], ...]
    stop: Callable[[], None]


class Crew:
    """Units of threads, made by `make` from their number. Used by the load's main thread."""

    def __init__(self, make: Callable[[int], Unit]) -> None:
        self._make = make
        self._units: list[tuple[Unit, list[threading.Thread]]] = []
        self._leaving: list[tuple[Unit, list[threading.Thread]]] = []
        self._trouble: BaseException | None = None

    @property
    def size(self) -> int:
        """How many units work."""
        return len(self._units)

    def resize(self, count: int) -> None:
        """Have so many units: start new ones, or tell the youngest to stop. A unit whose threads still leave comes back once they have."""
        while len(self._units) > count:
            unit, threads = self._units.pop()
            unit.stop()
            self._leaving.append((unit, threads))
        self._leaving = [(unit, threads) for unit, threads in self._leaving if any(thread.is_alive() for thread in threads)]
        while len(self._units) < count and not self._leaving:
            self._start(len(self._units))

    def _start(self, number: int) -> None:
        unit = self._make(number)
        threads = [
            threading.Thread(target=self._run, args=(body,), name=f"unit-{number}-{at}", daemon=True) for at, body in enumerate(unit.bodies)
        ]
        self._units.append((unit, threads))
        for thread in threads:
            thread.start()

    def _run(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as trouble:  # told by check(), which the main thread calls
            self._trouble = self._trouble or trouble

    def check(self) -> None:
        """Raise the first error of any thread."""
        if self._trouble is not None:
            raise self._trouble

    def close(self) -> None:
        """Stop all and wait for them. Raises `HarnessError` (`internal`) when a thread does not leave; errors are `check`'s."""
        everyone = [*self._units, *self._leaving]
        for unit, _ in everyone:
            unit.stop()
        for _, threads in everyone:
            for thread in threads:
                thread.join(LEAVE_S)
                if thread.is_alive():
                    raise HarnessError("internal", f"{thread.name} did not leave within {LEAVE_S:g} s")
        self._units, self._leaving = [], []
