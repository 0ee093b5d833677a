"""All that can be done to a node's memory, at once and one after the other, for a minute on every target: each within safe bounds.

Holding proves that while 128 MiB are taken gradually, given back at once in sawteeth, and leaked, beside 64 MiB of which half is free in
holes too small to be used, a working set that is read in sequence, at random and along pointers, and pages that the kernel gives up and
reads again 50 times a second, on each node, an actor call answered within two seconds at the 99th percentile, counted from when it was
due, without an error; that no node came under 128 MiB of available memory; and that each load was really there (the dose). It takes at most
240 MiB and a tenth of the processors of each node; it proves nothing about more.

Nobody waits for memory here, for that takes a control group of memory that not every node may make: add `MemoryStall` for it where
`stress-cluster doctor` says that it is available.
"""

from __future__ import annotations

from typing import Final

from actors.shape import Leak, Ramp, Sawtooth, Steps

from ..combinators import hold, sequence, together
from ..hypotheses import ActorProbe, Threshold
from ..kinds import MemoryAccess, MemoryFragment, MemoryPressure, VmPressure
from ..model import Scenario

MIB: Final = 1 << 20
TOTAL_S: Final = 60.0


def lasting(total_s: float) -> Scenario:
    """Return the scenario drawn out, or pushed together, to this many seconds: the same levels, each for its share of the time."""
    third_s = total_s / 3.0
    return Scenario(
        name="memory-storm",
        description="Memory taken gradually, in sawteeth and as a leak, split, read in three orders, and paged, for a minute.",
        seed=1,
        hypotheses=(
            Threshold("host.memory.available", "min", ">=", 128 * MIB, name="memory stays available"),
            ActorProbe(value_s=2.0, rate_hz=10.0, timeout_s=5.0, stat="p99", name="actors answer"),
        ),
        plan=together(
            sequence(
                hold(MemoryPressure(bytes=Ramp(start=0, end=128 * MIB, over_s=third_s * 0.7)), for_s=third_s, phase="gradual"),
                hold(MemoryPressure(bytes=Sawtooth(low=32 * MIB, high=128 * MIB, period_s=third_s / 2.0)), for_s=third_s, phase="sawtooth"),
                hold(MemoryPressure(bytes=Leak(start=32 * MIB, rate=round(96 * MIB / third_s))), for_s=third_s, phase="leak"),
            ),
            hold(MemoryFragment(bytes=Steps(levels=(32 * MIB, 64 * MIB, 48 * MIB), each_s=third_s)), for_s=total_s, phase="fragmentation"),
            sequence(
                hold(MemoryAccess(0.1, pattern="sequential", working_set=32 * MIB), for_s=third_s, phase="in sequence"),
                hold(MemoryAccess(0.1, pattern="random", working_set=32 * MIB), for_s=third_s, phase="at random"),
                hold(MemoryAccess(0.1, pattern="pointer_chase", working_set=32 * MIB), for_s=third_s, phase="along pointers"),
            ),
            # a second has 50 faults, and a slice of them may fall into the next one
            hold(VmPressure(per_second=50, file=8 * MIB), for_s=total_s, phase="paging", tolerance=0.25),
        ),
    )


scenario: Final = lasting(TOTAL_S)
