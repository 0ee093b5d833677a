"""How a load waits: for the guardian to hold it, and for the start that all loads of a run share. Every wait has a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .clock import SECOND_NS
from .lease import LeaseWatch, Order
from .lifecycle import EXIT_GATE, EXIT_LEASE

GATE_S: Final = 30.0
LEASE_S: Final = 120.0  # the longest wait for a first lease once ready
_GATE_LOOK_S: Final = 0.002
_IDLE_S: Final = 0.1
_FINE_S: Final = 0.001


class GaveUpError(Exception):
    """The load ends before it began, with an exit code of `lifecycle`."""

    def __init__(self, exit_code: int, reason: str) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def wait_for_gate(watch: LeaseWatch) -> None:
    """Block until the guardian holds this process; raises `GaveUpError` when it does not within `GATE_S`."""
    give_up_ns = watch.clock.boot_ns() + round(GATE_S * SECOND_NS)
    while watch.control.gate(watch.slot) != watch.generation:
        if watch.clock.boot_ns() >= give_up_ns:
            raise GaveUpError(EXIT_GATE, f"the guardian did not register this load within {GATE_S:g} s")
        watch.clock.sleep(_GATE_LOOK_S)


def wait_for_start(watch: LeaseWatch, idle: Callable[[], None], stopped: Callable[[], bool] = bool) -> int | None:
    """Block until load begins and return that time in ns, or None when it is to end first.

    Coarse sleeps until a millisecond before, then short ones: loads of many nodes begin within a few milliseconds.
    """
    clock = watch.clock
    give_up_ns = clock.boot_ns() + round(LEASE_S * SECOND_NS)
    next_idle_ns = 0
    while True:
        order, now_ns, start_ns = watch.look(), clock.boot_ns(), watch.start_ns()
        if order is Order.DEAD:
            watch.expire()
        if order is Order.DRAIN or stopped():
            return None
        if order is Order.GO and start_ns and now_ns >= start_ns:
            return start_ns
        if order is Order.WAIT and now_ns >= give_up_ns:
            raise GaveUpError(EXIT_LEASE, f"no lease was given within {LEASE_S:g} s")
        if now_ns >= next_idle_ns and not 0 < start_ns - now_ns < 0.05 * SECOND_NS:
            idle()
            next_idle_ns = now_ns + round(_IDLE_S * SECOND_NS)
        clock.sleep(pause_before(start_ns, now_ns))


def pause_before(start_ns: int, now_ns: int) -> float:
    """Return how long to sleep before looking again: at most 5 ms, and into the last millisecond in short steps."""
    left_s = (start_ns - now_ns) / SECOND_NS if start_ns else _FINE_S * 5
    if left_s <= 0:
        return _FINE_S
    return min(0.005, left_s - _FINE_S) if left_s > 2 * _FINE_S else min(left_s, 0.0001)
