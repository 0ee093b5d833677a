"""The control plane's durations, and how long a charge must outlast a grant."""

from __future__ import annotations

from dataclasses import dataclass

from actors.clock import SECOND_NS

DRIFT = 2.1e-3  # two clocks, each up to 1,000 ppm off and in opposite directions


@dataclass(frozen=True, slots=True)
class Times:
    """The control plane's durations, in seconds."""

    lease_s: float = 5.0
    allowance_s: float = 2.0  # to kill and undo after a lease has ended, also where a standby must first take over (within 2 s)
    reserve_s: float = 30.0
    prepare_s: float = 60.0
    start_delay_s: float = 0.5
    stop_s: float = 30.0
    grace_s: float = 1.0
    collect_s: float = 15.0

    @property
    def driver_s(self) -> float:
        """How long a driver may be silent: less than a lease, so that the word of its death has reached all loads within one."""
        return 0.8 * self.lease_s

    @property
    def charge_ns(self) -> int:
        """How long after a reply a node's load may still exist, in nanoseconds."""
        return round((self.lease_s + self.allowance_s) * (1 + DRIFT) * SECOND_NS)
