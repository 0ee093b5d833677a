"""Threads, tasks and processes that stand in each other's way at locks, for 20 seconds on every target.

Holding proves that beside lock contention of three kinds, a convoy, deadlocks, a livelock and priority inversions, all at once on each
node, an actor call answered within two seconds at the 99th percentile, counted from when it was due, without an error; that each deadlock
was named and resolved within a second at the 99th percentile, none by its timeout; and that so many contenders were really there (the
dose). It uses about a third of a core on each node; it proves nothing about longer or higher load.
"""

from __future__ import annotations

from typing import Final

from ..combinators import hold, together
from ..hypotheses import ActorProbe, Threshold
from ..kinds import Deadlock, Livelock, LockContention, LockConvoy, PriorityInversion
from ..model import Scenario

TOTAL_S: Final = 20.0

scenario: Final = Scenario(
    name="contention",
    description="Locks that are contended, convoyed, deadlocked, livelocked and inverted, for 20 s.",
    seed=1,
    hypotheses=(
        ActorProbe(value_s=2.0, rate_hz=10.0, timeout_s=5.0, stat="p99", name="actors answer"),
        Threshold("concurrency.deadlock.detection", "p99", "<=", 1.0, name="deadlocks are named"),
        Threshold("concurrency.deadlock.timeouts", "sum", "<=", 0.0, name="no deadlock waits for its timeout"),
    ),
    plan=together(
        hold(LockContention(count=8, contention=0.8), for_s=TOTAL_S),
        hold(LockContention(count=16, contenders="tasks", contention=0.2), for_s=TOTAL_S),
        hold(LockContention(count=4, contenders="processes"), for_s=TOTAL_S),
        hold(LockConvoy(count=8), for_s=TOTAL_S),
        hold(Deadlock(count=2), for_s=TOTAL_S),
        hold(Livelock(count=1, backoff_s=0.01), for_s=TOTAL_S),
        hold(PriorityInversion(count=1, hold_s=0.005, burst_s=0.05, bound_s=0.03), for_s=TOTAL_S),
        phase="contention",
    ),
)
