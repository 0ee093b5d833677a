"""Is the share of contended acquisitions what the model says, for each kind of contender and over the range of the factor?

Run: python benchmarks/bench_contention.py. Four contenders, a mean hold of 1 ms (tasks: 5 ms, for their event loop wakes in whole
milliseconds), as many acquisitions as give a standard error of about 1.6 % of the share if they were independent. What is compared is
counted by the locks; that they exclude is checked by what they protect.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

from actors.clock import SystemClock
from actors.concurrency.contest import ContestSettings, contended_share
from actors.concurrency.contest_processes import ProcessContest
from actors.concurrency.contest_tasks import TaskContest
from actors.concurrency.contest_threads import ThreadContest

CONTENDERS, MOST_S = 4, 60.0
HOLD_S = {"processes": 0.001, "threads": 0.001, "tasks": 0.005}
CONTENTIONS = (0.3, 0.5, 0.8)
ERROR = 0.016
GOAL = 0.05


def share(kind: str, contention: float) -> tuple[float, int, int]:
    """Return the share of contended acquisitions of one kind, of how many, and how many waits were told."""
    waits: list[float] = []
    settings = ContestSettings(contention, HOLD_S[kind], 7, SystemClock(), waits.append, lambda _: None)
    contest = {
        "threads": lambda: ThreadContest(settings),
        "tasks": lambda: TaskContest(settings),
        "processes": lambda: ProcessContest(settings, CONTENDERS),
    }[kind]()
    expected = contended_share(CONTENDERS, contention)
    enough, late_s = (1 - expected) / expected / ERROR**2, time.monotonic() + MOST_S
    while contest.operations < enough and time.monotonic() < late_s:
        contest.resize(CONTENDERS)
        contest.look()
        time.sleep(0.02)
    contest.close()
    found = contest.figures()
    acquisitions = sum(lock.acquisitions for lock in found)
    return sum(lock.contended for lock in found) / acquisitions, acquisitions, len(waits)


def main() -> int:
    """Measure, print, store."""
    figures, goals = {}, {}
    for kind in HOLD_S:  # processes first: they are forked while there is one thread
        for contention in CONTENTIONS:
            expected = contended_share(CONTENDERS, contention)
            found, acquisitions, waits = share(kind, contention)
            off = abs(found / expected - 1)
            figures[f"{kind} {contention:g}"] = {
                "expected": round(expected, 4),
                "found": round(found, 4),
                "off": round(off, 4),
                "acquisitions": acquisitions,
                "waits_told": waits,
            }
            goals[f"{kind} {contention:g}: share within {GOAL:.0%} of the model"] = (GOAL, off <= GOAL)
    return store("contention", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
