"""How many threads a load has, when each of them works and when it rests. Pure: never reads a clock, never works."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .errors import InputError
from .option import Value
from .simulator import AVAILABLE, NO_KERNELS, Capability

if TYPE_CHECKING:
    from .capability import NodeFacts

SLICE_S: Final = 0.001
LOOK_S: Final = 0.005
SPREAD_S: Final = 0.010  # a partly busy core works and rests within about this long
FORGET_S: Final = 0.2
REPORT_S: Final = 0.02
PRESSURE_GAIN: Final = 0.8  # a second: slow beside the half second over which waiting is seen


@dataclass(slots=True)
class Pacer:
    """Decides when one thread runs: a debt of CPU seconds that grows by what is asked and falls by what was used. Pure."""

    debt_s: float = 0.0

    def settle(self, asked_cores: float, elapsed_s: float, used_s: float) -> None:
        """Account for an interval; at most what was asked in the last `FORGET_S` stays owed, or overdrawn."""
        most = FORGET_S * asked_cores
        self.debt_s = max(-FORGET_S, min(most, self.debt_s + asked_cores * elapsed_s - used_s))

    def pause_s(self, asked_cores: float) -> float:
        """Return how long to rest, 0 while CPU time is owed; never more than `LOOK_S`.

        A rest ends when the debt is asked * (1 - asked) * SPREAD_S: work and rest then take SPREAD_S together.
        """
        if self.debt_s > 0.0:
            return 0.0
        if asked_cores < 1e-6:  # less than a slice in a thousand seconds
            return LOOK_S
        wanted = asked_cores * (1.0 - min(asked_cores, 1.0)) * SPREAD_S
        return min(LOOK_S, (wanted - self.debt_s) / asked_cores + 1e-6)


def next_rounds(rounds: int, used_s: float, rounds_min: int = 100) -> int:
    """Return how many rounds take about `SLICE_S`, from how long the last slice took; at most doubled or divided by eight."""
    if used_s <= 0.0:
        return rounds * 2
    factor = min(2.0, max(0.125, SLICE_S / used_s))
    return max(rounds_min, round(rounds * factor))


@dataclass(slots=True)
class PressureLoop:
    """Decides which share of its core each thread works so that processes wait for so much of the time: an integrator. Pure."""

    limit: float = 1.0  # of the share
    share: float = 0.0

    def settle(self, asked: float, stalled: float, elapsed_s: float) -> None:
        """Account for an interval in which somebody waited for `stalled` of the time; both are shares of it."""
        self.share = min(self.limit, max(0.0, self.share + PRESSURE_GAIN * (asked - stalled) * elapsed_s))


def thread_count(cores: Value, capacity_cores: float, peak_cores: float, operation_id: str) -> int:
    """Return how many threads share the load: one for each core of the node's share, or as many as asked.

    Raises `InputError` (`invalid_value`) when fewer cores are named than the peak needs.
    """
    if cores == "all":
        return max(1, math.ceil(capacity_cores - 1e-9))
    if peak_cores > int(cores) + 1e-9:
        raise InputError(
            "invalid_value",
            f"{operation_id} asks {peak_cores:.2f} cores at its peak and names {cores}",
            "raise the option `cores` or lower the fraction",
        )
    return int(cores)


def paced(facts: NodeFacts) -> Capability:
    """Return whether a node can run threads of compiled loops at the strength that is asked."""
    if not facts.has_numba:
        return NO_KERNELS
    if facts.nice > 0 and not facts.may_raise_nice:
        return Capability(
            "fallback",
            f"runs at nice {facts.nice}: weaker than other processes on a busy host",
            "run Ray with CAP_SYS_NICE, or with a limit of nice (ulimit -e) that lets it be raised",
        )
    return AVAILABLE
