"""Waits for what Ray starts for a load: processes take seconds, and some never come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ..clock import SECOND_NS
from ..errors import HarnessError
from ..lease import LeaseWatch, Order
from .flow import Outcome
from .ray_work import Ended, RayWork

READY_S: Final = 50.0
STEP_S: Final = 0.005


def await_started(
    openings: Iterable[Sequence[Any]], operation: str, watch: LeaseWatch, work: RayWork, is_stopping: Callable[[], bool]
) -> None:
    """Wait for the calls of one step after another, until all have ended or a stop.

    Raises `HarnessError`: `timeout` where Ray does not start what serves them, `lost` where that died; and as `LeaseWatch.expire` does.
    """
    deadline_ns = watch.clock.boot_ns() + round(READY_S * SECOND_NS)
    for calls in openings:
        while not is_stopping():
            ends = work.look(calls)
            _fail_on(ends, operation)
            if watch.look() is Order.DEAD:
                watch.expire()
            if None not in ends:
                break
            if watch.clock.boot_ns() > deadline_ns:
                raise HarnessError(
                    "timeout",
                    f"{operation}: Ray did not start {ends.count(None)} of {len(ends)} within {READY_S:g} s",
                    "its logical CPUs may be in use by others",
                )
            watch.clock.sleep(STEP_S)
        if is_stopping():
            return


def _fail_on(ends: Sequence[Ended | None], operation: str) -> None:
    broken = next((end for end in ends if end is not None and end.outcome is Outcome.FAILED), None)
    if broken is not None:
        raise HarnessError("lost", f"{operation}: what was to be loaded did not start: {broken.reason}")
