"""Whether an out-of-memory killer ended a load, the kernel's or Ray's: what the kernel counts, and the words of it. Decides nothing.

A load that is killed by SIGKILL says nothing of why. The kernel counts its own kills: of the whole machine in /proc/vmstat, and of each
control group with a limit in memory.events (version 2, what lies below included) or memory.oom_control (version 1).
Ray's memory monitor ends workers, not loads; whoever calls one is told by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .limits import PROC, chain, read_text

SCORE_MAX: Final = "1000"  # of oom_score_adj: who has it is ended first
MACHINE: Final = "this machine"
_KERNEL: Final = "the kernel's out-of-memory killer"
_RAY: Final = "OutOfMemoryError"  # ray.exceptions


def read_kills(proc: Path = PROC) -> dict[str, int]:
    """Return how many processes the kernel has ended so far for lack of memory: here, and in each limited group above this process."""
    cgroup, mounts = read_text(proc / "self/cgroup") or "", read_text(proc / "self/mountinfo") or ""
    files = {MACHINE: proc / "vmstat"}
    files |= {str(group): group / "memory.events" for group in chain("", cgroup, mounts)}
    files |= {str(group): group / "memory.oom_control" for group in chain("memory", cgroup, mounts)}
    found = {place: _count(read_text(file) or "") for place, file in files.items()}
    return {place: count for place, count in found.items() if count is not None}


def _count(text: str) -> int | None:
    rows = (line.split() for line in text.splitlines() if line.startswith("oom_kill "))
    return next((int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()), None)


def told(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Return what the kernel ended between two looks, "" for nothing; the nearest group that counted it is named."""
    rose = {place: after[place] - count for place, count in before.items() if after.get(place, count) > count}
    if not rose:
        return ""
    place = next((name for name in rose if name != MACHINE), MACHINE)
    several = "process" if rose[place] == 1 else "processes"
    return f"{_KERNEL} ended {rose[place]} {several} of {place} meanwhile"


def is_told(reason: str) -> bool:
    """Tell whether words about an end say that an out-of-memory killer made it."""
    return _KERNEL in reason or _RAY in reason
