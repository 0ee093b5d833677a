"""What others use of this machine's processors, as a load in host-total mode has to know. Reads counters, never works."""

from __future__ import annotations

from collections import deque
from typing import Final

from . import control
from .clock import SECOND_NS, process_cpu_ns
from .host import BusyMeter
from .lease import LeaseWatch

OTHERS_WINDOW_S: Final = 0.6


class OthersMeter:
    """How many cores others use on this machine: busy cores less the CPU time of all loads of ours, of whatever slot.

    Over the last `OTHERS_WINDOW_S`, so that ticks of the clock and late reports of other loads do not count.
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
        while len(self._samples) > 2 and self._samples[1][0] <= now_ns - OTHERS_WINDOW_S * SECOND_NS:
            self._samples.popleft()
        (then_ns, then_s), (last_ns, last_s) = self._samples[0], self._samples[-1]
        return max(0.0, (last_s - then_s) * SECOND_NS / (last_ns - then_ns)) if last_ns > then_ns else 0.0
