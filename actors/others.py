"""What others use of this machine's processors, as a load in host-total mode has to know. Reads counters, never works."""

from __future__ import annotations

from collections import deque
from typing import Final

from . import control
from .clock import SECOND_NS, process_cpu_ns
from .host import BusyMeter
from .lease import LeaseWatch

OTHERS_WINDOW_S: Final = 0.6
JUMP_WINDOW_S: Final = 0.2
JUMP_CORES: Final = 0.15  # more than a tick of the clock and a late report of another load make in that time


class OthersMeter:
    """How many cores others use on this machine: busy cores less the CPU time of all loads of ours, of whatever slot.

    Over the last `OTHERS_WINDOW_S`, so that ticks of the clock and late reports of other loads do not count; where the newest
    `JUMP_WINDOW_S` tell of something else, over these alone, so that a load gives way and fills up within a moment.
    """

    def __init__(self, watch: LeaseWatch, busy: BusyMeter | None = None) -> None:
        self._watch = watch
        self._busy = busy or BusyMeter(clock=watch.clock)
        self._slots: dict[tuple[int, int], int] = {}
        self._ours_s = 0.0
        self._samples: deque[tuple[int, float]] = deque(maxlen=256)

    def _account(self) -> float:
        """Return CPU seconds of our loads so far; one counts from when it was first seen, one that ended adds no more."""
        stats = self._watch.stats
        stats.put(self._watch.slot, control.CPU, process_cpu_ns())
        found = ((slot, stats.word(slot, control.GENERATION)) for slot in range(control.SLOTS))
        seen = {(slot, generation): stats.word(slot, control.CPU) for slot, generation in found if generation}
        self._ours_s += sum(max(0, cpu_ns - self._slots[key]) for key, cpu_ns in seen.items() if key in self._slots) / SECOND_NS
        self._slots = seen
        return self._ours_s

    def sample(self) -> float:
        """Return the cores that others use, at least 0; 0 before two samples were taken."""
        now_ns, busy_s = self._busy.read()
        self._samples.append((now_ns, busy_s - self._account()))
        self._forget(now_ns, OTHERS_WINDOW_S)
        whole = _slope(self._samples[0], self._samples[-1])
        recent = next(one for one in reversed(self._samples) if one[0] <= now_ns - JUMP_WINDOW_S * SECOND_NS or one is self._samples[0])
        if abs(_slope(recent, self._samples[-1]) - whole) > JUMP_CORES:
            self._forget(now_ns, JUMP_WINDOW_S)
            whole = _slope(self._samples[0], self._samples[-1])
        return max(0.0, whole)

    def _forget(self, now_ns: int, window_s: float) -> None:
        """Drop what is older than a window, but for the sample at its beginning."""
        while len(self._samples) > 2 and self._samples[1][0] <= now_ns - window_s * SECOND_NS:
            self._samples.popleft()


def _slope(first: tuple[int, float], last: tuple[int, float]) -> float:
    """Return seconds a second between two samples, 0 where no time has passed."""
    return (last[1] - first[1]) * SECOND_NS / (last[0] - first[0]) if last[0] > first[0] else 0.0
