"""How what is held is given back after the planned end: at once, or in equal steps. One way for all that hold something.

    held ──▶ 3/4 ──▶ 2/4 ──▶ 1/4 ──▶ 0        k steps, one each interval, the first one an interval after the end

What is asked before that end is the dose, whole. Whoever asks for the end meanwhile gets all of it at once. Pure but for its callers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .clock import SECOND_NS
from .lease import LeaseWatch
from .option import Option, Value

LOOK_S: Final = 0.05


def release_options(steps: int = 1, interval_s: float = 0.1) -> tuple[Option, ...]:
    """Return the options of all that gives back in steps; `steps` and `interval_s` (seconds) are their defaults."""
    return (
        Option("release_steps", "integer", steps, "in how many equal steps it is given back after the planned end", low=1, high=10_000),
        Option("release_interval_s", "duration", interval_s, "seconds between two such steps", low=0.05, high=60.0),
    )


RELEASE_OPTIONS: Final = release_options()


def release_level(held: int, steps: int, done: int) -> int:
    """Return how much is still held after `done` of `steps` equal steps down from `held`. Pure."""
    return held * (steps - min(done, steps)) // steps


@dataclass(frozen=True, slots=True)
class Release:
    """The steps that an operation asks for."""

    steps: int
    interval_s: float

    @classmethod
    def of(cls, options: Mapping[str, Value]) -> Release:
        """Return what the resolved options of a simulator say."""
        return cls(int(options["release_steps"]), float(options["release_interval_s"]))

    def follow(self, held: int, begun_ns: int, wait_until: Callable[[int], bool], lower_to: Callable[[int], bool]) -> None:
        """Lower what is held by equal steps from `begun_ns` on, down to the last one, which is the caller's: then it gives all back.

        `wait_until` gets a time, `lower_to` an amount; either returns False when the load is to end now, and then so does this.
        """
        if not held or self.steps == 1:
            return
        for done in range(1, self.steps + 1):
            if not wait_until(begun_ns + round(done * self.interval_s * SECOND_NS)):
                return
            if done < self.steps and not lower_to(release_level(held, self.steps, done)):
                return


def wait_until(watch: LeaseWatch, at_ns: int, tell: Callable[[], object], look_s: float = LOOK_S) -> bool:
    """Wait with a look at the lease each `look_s`, and a sign of life after each; false when the load is to end now."""
    while watch.may_go_on():
        left_s = (at_ns - watch.clock.boot_ns()) / SECOND_NS
        if left_s <= 0.0:
            return True
        watch.clock.sleep(min(look_s, left_s))
        tell()
    return False
