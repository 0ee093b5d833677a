"""A lower clock rate, simulated: the priority with which a load takes its share of each core before all others, and its bounds."""

from __future__ import annotations

import os
import resource
from typing import Final

from .errors import InputError, RefusedError

SLOWDOWN_MAX: Final = 0.9  # of a core: whoever watches and ends loads needs the rest
REALTIME_PRIORITY: Final = 10  # above all normal work of any session or group, below the threads of the kernel
REALTIME_US: Final = 500_000  # the kernel ends a load that works longer without a rest; the pacing rests within FORGET_S


def go_realtime() -> None:
    """Give the calling thread real-time priority; raises `PermissionError` where that is not allowed."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REALTIME_PRIORITY))


def check_slowdown(share: float, operation_id: str) -> None:
    """Raise `InputError` (`invalid_value`) when a slowdown would leave others less than a tenth of a core."""
    if share > SLOWDOWN_MAX + 1e-9:
        raise InputError(
            "invalid_value",
            f"{operation_id} takes {share:.0%} of each core before all others, at most {SLOWDOWN_MAX:.0%} can be taken",
            "lower the fraction, or use the mode `own`",
        )


def bound_realtime() -> None:
    """Have the kernel end this process should it ever work for `REALTIME_US` without a rest at real-time priority.

    Raises `RefusedError` (`capability`) when it may not have that priority.
    """
    resource.setrlimit(resource.RLIMIT_RTTIME, (REALTIME_US, REALTIME_US))
    try:
        go_realtime()
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError as error:
        message = "the mode slowdown needs real-time priority, which this process may not have"
        raise RefusedError("capability", message, "grant CAP_SYS_NICE, or use the mode `own`") from error
