"""The only place that reads a clock. Everything else is handed a `Clock`, so that time can be virtual.

Leases count in CLOCK_BOOTTIME, which goes on through a suspend; MONOTONIC would stop, and wall time may jump.
Standard library only: the guardian uses it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

SECOND_NS = 1_000_000_000
MILLISECOND_NS = 1_000_000


class Clock(Protocol):
    """Boot time for deadlines, wall time for labels, and a way to wait."""

    def boot_ns(self) -> int:
        """Return nanoseconds of CLOCK_BOOTTIME."""
        ...

    def wall_ns(self) -> int:
        """Return nanoseconds of UTC since 1970; may jump, never used for a deadline."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Wait for this long in boot time."""
        ...


class SystemClock:
    """The machine's clocks."""

    def boot_ns(self) -> int:
        """Return nanoseconds of CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        """Return nanoseconds of UTC since 1970."""
        return time.time_ns()

    def sleep(self, duration_s: float) -> None:
        """Wait in real time."""
        time.sleep(duration_s)


def thread_cpu_ns() -> int:
    """Return the CPU time of the calling thread in ns: what a closed loop compares with what it was asked for."""
    return time.thread_time_ns()


def process_cpu_ns() -> int:
    """Return the CPU time of all threads of this process in ns."""
    return time.process_time_ns()


@dataclass(slots=True)
class VirtualClock:
    """A clock that moves only when told to: `advance` it, or let `sleep` do it."""

    now_ns: int = 1_000 * SECOND_NS
    wall_offset_ns: int = 1_700_000_000 * SECOND_NS

    def boot_ns(self) -> int:
        """Return the virtual boot time."""
        return self.now_ns

    def wall_ns(self) -> int:
        """Return the virtual wall time; `wall_offset_ns` may be stepped to simulate a jump."""
        return self.now_ns + self.wall_offset_ns

    def sleep(self, duration_s: float) -> None:
        """Advance by the duration instead of waiting."""
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Move boot and wall time forward."""
        self.now_ns += round(duration_s * SECOND_NS)
