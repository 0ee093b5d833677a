"""Descriptors, map entries, sockets, connections, threads, processes and disk used up together, a little of each, for 20 seconds.

Holding proves that with 500 descriptors, 2,000 map entries, 200 sockets, 100 connections, 100 threads, 16 processes and 64 MiB of disk
taken on every target at once, all for at least 14 seconds, an actor call answered within two seconds at the 99th percentile, counted
from when it was due, without an error; and that each of them was really there (the dose), with nothing refused. The summary's `overlap`
says for how long all of them were at target at once. It proves nothing about the machine's limits: what happens near them is told by the
same scenario with more of one kind (`--set`), and an allocation that is refused then is told as partial.
"""

from __future__ import annotations

from typing import Final

from actors.shape import Ramp

from ..combinators import hold, together
from ..hypotheses import ActorProbe
from ..kinds import Connections, Descriptors, DiskFill, Mappings, Processes, Sockets, Threads
from ..model import Scenario

MIB: Final = 1 << 20
TOTAL_S: Final = 20.0
RAMP_S: Final = 4.0


def _up_to(count: int) -> Ramp:
    return Ramp(start=0, end=count, over_s=RAMP_S)


scenario: Final = Scenario(
    name="exhaustion",
    description="A little of all that a kernel counts, taken together and held, for 20 s.",
    seed=1,
    hypotheses=(ActorProbe(value_s=2.0, rate_hz=10.0, timeout_s=5.0, stat="p99", name="actors answer"),),
    plan=together(
        hold(Descriptors(count=_up_to(500)), for_s=TOTAL_S),
        hold(Mappings(count=_up_to(2000)), for_s=TOTAL_S),
        hold(Sockets(count=_up_to(200), protocol="udp"), for_s=TOTAL_S),
        hold(Connections(count=_up_to(100)), for_s=TOTAL_S),
        hold(Threads(count=_up_to(100)), for_s=TOTAL_S),
        hold(Processes(count=_up_to(16)), for_s=TOTAL_S),
        hold(DiskFill(bytes=64 * MIB, reserve_bytes=512 * MIB), for_s=TOTAL_S),
        phase="exhaustion",
    ),
)
