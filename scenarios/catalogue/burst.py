"""Bursts of CPU load beside held memory and a small disk fill, for 40 seconds on every target.

Holding proves that for 40 seconds, with the hosts' processors twice at half of their capacity for twelve seconds, 256 MiB
more memory in use and 64 MiB more disk taken on each node, an actor call answered within two seconds at the 99th percentile,
counted from when it was due, without an error; that no node came under 128 MiB of available memory; and that the load was
really there (the dose). It proves nothing about longer or higher load.

The CPU fills the host up to the asked level (`host_total`), so what else runs there is counted in. Levels stay for twelve and
eight seconds: they leave more than twenty windows that have settled, so that one second in which something else went on does not
decide the verdict.
"""

from __future__ import annotations

from typing import Final

from actors.shape import Burst, Ramp

from ..combinators import hold, together
from ..hypotheses import ActorProbe, Threshold
from ..kinds import CpuLoad, DiskFill, MemoryPressure
from ..model import Scenario

MIB: Final = 1 << 20
TOTAL_S: Final = 40.0

scenario: Final = Scenario(
    name="burst",
    description="Bursts of CPU to half of each host, with memory and a little disk held, for 40 s.",
    seed=1,
    hypotheses=(
        Threshold("host.memory.available", "min", ">=", 128 * MIB, name="memory stays available"),
        ActorProbe(value_s=2.0, rate_hz=10.0, timeout_s=5.0, stat="p99", name="actors answer"),
    ),
    plan=together(
        hold(CpuLoad(Burst(base=0.25, peak_level=0.5, period_s=20.0, length_s=12.0), mode="host_total"), for_s=TOTAL_S),
        hold(MemoryPressure(bytes=Ramp(start=0, end=256 * MIB, over_s=5.0)), for_s=TOTAL_S),
        hold(DiskFill(bytes=64 * MIB, reserve_bytes=512 * MIB), for_s=TOTAL_S),
        phase="burst",
    ),
)
