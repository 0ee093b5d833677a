"""Safety policies: functions of one host snapshot and the node's limits. The worst verdict wins; no news is bad news. Pure.

    OK      load as planned; the ceiling rises again
    HOLD    no more than now: within a quarter of the reserve
    SHED    less: the ceiling falls until the host is back within its limits
    ABORT   nothing: halt the run everywhere

CPU never aborts: a busy host is what a burst asks for, and processors are given back within one look at the lease. It sheds
once the host was busier than its limit for longer than `cpu_busy_for_s`. Memory, disk and descriptors kill what runs beside the load
when they are gone, so they abort. A snapshot that is too old aborts, because nothing can be judged by it. An exception in a policy, or
an answer that is no verdict, aborts as well: a plug-in that cannot judge denies. So does NaN, which is within no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from actors.clock import SECOND_NS
from actors.messages import HostSnapshot

from .profiles import Limits

MIB: Final = 1 << 20
HOLD_MARGIN: Final = 1.25
SHED_FACTOR: Final = 0.9
RISE_STEP: Final = 0.01
CEILING_MIN: Final = 0.01


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    HOLD = 1
    SHED = 2
    ABORT = 3


HOLD, SHED, ABORT = Level.HOLD, Level.SHED, Level.ABORT  # looked up in every verdict


class Verdict(NamedTuple):
    """A level and the reason for it. A tuple: made ten times a second for every policy, twice as fast as a dataclass."""

    level: Level
    reason: str = ""


OK: Final = Verdict(Level.OK)


class Situation(NamedTuple):
    """What a policy may look at: the newest snapshot, the time now, and since when the host is busier than its limit (0: is not).

    Times are nanoseconds of boot time.
    """

    host: HostSnapshot
    now_ns: int
    busy_since_ns: int = 0


Policy = Callable[[Situation, Limits], Verdict]


def memory_headroom(situation: Situation, limits: Limits) -> Verdict:
    """Shed below the memory reserve, abort below half of it; the reserve is what `memory_used_fraction` leaves, up to a cap."""
    host, cap = situation.host, limits.memory_reserve_bytes_max
    total, free = host.memory_limit_bytes, host.memory_available_bytes
    reserve = (1.0 - limits.memory_used_fraction) * total
    reserve = cap if reserve > cap else reserve  # noqa: FURB136  # half the time of min(), for every healthy host
    if free >= reserve * HOLD_MARGIN:
        return OK
    floor = (1.0 - limits.memory_abort_fraction) * total
    return _below(host.node, "memory available", free, reserve, min(floor, cap / 2))


def disk_headroom(situation: Situation, limits: Limits) -> Verdict:
    """Shed below the disk reserve, abort below half of it; the reserve is what `disk_used_fraction` leaves, up to a cap."""
    host, cap = situation.host, limits.disk_reserve_bytes_max
    total, free = host.disk_total_bytes, host.disk_free_bytes
    reserve = (1.0 - limits.disk_used_fraction) * total
    reserve = cap if reserve > cap else reserve  # noqa: FURB136  # half the time of min(), for every healthy host
    if free >= reserve * HOLD_MARGIN:
        return OK
    floor = (1.0 - limits.disk_abort_fraction) * total
    return _below(host.node, "disk free", free, reserve, min(floor, cap / 2))


def _below(node: str, what: str, free: float, reserve: float, floor: float) -> Verdict:
    level = HOLD if free >= reserve else SHED if free >= floor else ABORT
    return Verdict(level, f"{node}: {free // MIB} MiB {what}, the reserve is {int(reserve) // MIB} MiB")


def descriptors_headroom(situation: Situation, limits: Limits) -> Verdict:
    """Shed and abort by the share of the host's descriptors that is open; a host without such a limit is fine."""
    host = situation.host
    used, limit = host.descriptors_used, host.descriptors_limit
    if limit <= 0 or used * HOLD_MARGIN <= limits.descriptors_fraction * limit:
        return OK
    shed = limits.descriptors_fraction * limit
    level = HOLD if used <= shed else SHED if used <= limits.descriptors_abort_fraction * limit else ABORT
    return Verdict(level, f"{host.node}: {used} of {limit} descriptors open, the limit is {int(shed)}")


def cpu_headroom(situation: Situation, limits: Limits) -> Verdict:
    """Shed once the host was busier than its limit for longer than allowed; hold until then. Never aborts."""
    if situation.host.cpu_busy_fraction <= limits.cpu_busy_fraction:
        return OK
    since_ns = situation.busy_since_ns
    busy_s = (situation.now_ns - since_ns) / SECOND_NS if since_ns else 0.0
    level = HOLD if busy_s <= limits.cpu_busy_for_s else SHED
    host = situation.host
    return Verdict(
        level, f"{host.node}: host {host.cpu_busy_fraction:.2f} busy for {int(busy_s)} s, the limit is {limits.cpu_busy_fraction}"
    )


def stale_snapshot(situation: Situation, limits: Limits) -> Verdict:
    """Abort when the newest snapshot is older than allowed, or comes from the future."""
    age_s = (situation.now_ns - situation.host.boot_ns) / SECOND_NS
    if -limits.stale_s <= age_s <= limits.stale_s:
        return OK
    return Verdict(Level.ABORT, f"{situation.host.node}: the newest host snapshot is {age_s:.1f} s old, limit {limits.stale_s:.1f} s")


POLICIES: Final[tuple[Policy, ...]] = (stale_snapshot, memory_headroom, disk_headroom, descriptors_headroom, cpu_headroom)


def judge(
    snapshot: HostSnapshot,
    limits: Limits,
    now_ns: int,
    busy_since_ns: int = 0,
    policies: Sequence[Policy] = POLICIES,
) -> Verdict:
    """Return the worst verdict of all policies; the first of equal ones. Never raises."""
    situation = Situation(snapshot, now_ns, busy_since_ns)
    worst_so_far = OK
    for policy in policies:
        try:
            verdict = policy(situation, limits)
            worse = verdict is not OK and verdict.level > worst_so_far.level
        except Exception as error:
            return _denied(policy, f"failed: {type(error).__name__}: {error}")
        if worse:
            worst_so_far = verdict
        if not isinstance(verdict, Verdict):
            return _denied(policy, f"answered {verdict!r}")
        if worst_so_far.level is Level.ABORT:
            break  # nothing can be worse
    return worst_so_far


# What a policy's verdict throttles; one without a resource throttles everything.
THROTTLES: Final[Mapping[str, tuple[Policy, ...]]] = MappingProxyType(
    {
        "cpu_cores": (descriptors_headroom, cpu_headroom),
        "memory_bytes": (descriptors_headroom, memory_headroom),
        "disk_bytes": (descriptors_headroom, disk_headroom),
        "descriptors": (descriptors_headroom,),
        "ports": (descriptors_headroom,),
        "tasks": (descriptors_headroom, memory_headroom),
        "mappings": (descriptors_headroom, memory_headroom),
        "locks": (descriptors_headroom, memory_headroom),
        "inodes": (descriptors_headroom, disk_headroom),
        "object_store_bytes": (descriptors_headroom, memory_headroom, disk_headroom),
    }
)


def judge_resources(snapshot: HostSnapshot, limits: Limits, now_ns: int, busy_since_ns: int = 0) -> dict[str, Verdict]:
    """Return by resource the worst verdict of the policies that throttle it: a busy CPU is no reason to give memory back."""
    return {resource: judge(snapshot, limits, now_ns, busy_since_ns, policies) for resource, policies in THROTTLES.items()}


def _denied(policy: Policy, why: str) -> Verdict:
    return Verdict(Level.ABORT, f"policy {getattr(policy, '__name__', policy)!s} {why}; a policy that cannot judge denies")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict, the first of equal ones; OK for none."""
    return max(verdicts, key=lambda verdict: verdict.level, default=OK)


def busy_since(before_ns: int, snapshot: HostSnapshot, limits: Limits) -> int:
    """Return since when the host is busier than its limit (boot time, 0: it is not), given what was so before this snapshot."""
    if snapshot.cpu_busy_fraction <= limits.cpu_busy_fraction:
        return 0
    return before_ns or snapshot.boot_ns


def next_ceiling(ceiling: float, verdict: Verdict) -> float:
    """Return the ceiling after one tick: additive increase, multiplicative decrease, made for ten ticks a second.

    SHED gives ceiling * 0.9 (a third is left after a second), HOLD the ceiling, OK ceiling + 0.01 (back from nothing to all in
    ten seconds), ABORT 0.
    """
    if verdict.level is Level.ABORT:
        return 0.0
    if verdict.level is Level.SHED:
        lower = ceiling * SHED_FACTOR
        return lower if lower >= CEILING_MIN else 0.0
    return ceiling if verdict.level is Level.HOLD else min(1.0, ceiling + RISE_STEP)
