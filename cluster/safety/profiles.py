"""Limits of a node: three profiles as data, scaled by the node's capacity. Pure.

Every limit is a maximum, so that conservative <= balanced <= aggressive holds for each. What must stay free of memory and disk is
what the fraction leaves, but at most a cap: 10 % of a large host is more than Ray and the system need.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from actors.errors import InputError, RefusedError
from actors.messages import Amounts, Capacity
from scenarios.hypotheses import show
from scenarios.model import LimitOverrides

GIB: Final = 1 << 30
UNCAPPED: Final = 1 << 62
MONITOR_MARGIN: Final = 0.01  # of the memory: Ray looks four times a second, and load is shed within a tenth of one


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a node. Fractions are of the node's capacity; the container's limits are the denominators.

    `*_reserve_bytes_max` cap what must stay free: memory and disk shed below it, and abort below half of it.
    """

    cpu_fraction: float
    cpu_busy_fraction: float
    cpu_busy_for_s: float
    memory_fraction: float
    memory_used_fraction: float
    memory_abort_fraction: float
    disk_fraction: float
    counts_fraction: float
    disk_used_fraction: float
    disk_abort_fraction: float
    descriptors_fraction: float
    descriptors_abort_fraction: float
    stale_s: float
    memory_reserve_bytes_max: int
    disk_reserve_bytes_max: int

    def planned(self, capacity: Capacity) -> Amounts:
        """Return the most that all loads together may take of a node with this capacity."""
        whole = capacity.amounts
        shares = {name: getattr(whole, name) * getattr(self, limit) for name, limit in PLANNED.items()}
        return Amounts(**{name: most if name == "cpu_cores" else int(most) for name, most in shares.items()})


HELP: Final[Mapping[str, str]] = {
    "cpu_fraction": "highest planned CPU load of a node",
    "cpu_busy_fraction": "busy share of the host above which load is shed",
    "cpu_busy_for_s": "seconds for which the host may be that busy first",
    "memory_fraction": "highest planned memory of a node",
    "memory_used_fraction": "used memory of the host above which load is shed",
    "memory_abort_fraction": "used memory of the host above which the run is aborted",
    "disk_fraction": "highest planned share of the file system",
    "counts_fraction": "highest planned share of the descriptors, tasks, inodes and locks that there may be",
    "disk_used_fraction": "used share of the file system above which load is shed",
    "disk_abort_fraction": "used share of the file system above which the run is aborted",
    "descriptors_fraction": "open share of the host's descriptors above which load is shed",
    "descriptors_abort_fraction": "open share of the host's descriptors above which the run is aborted",
    "stale_s": "age in seconds of the newest host snapshot above which the node's load is ended",
    "memory_reserve_bytes_max": "most memory that must stay free, however large the host",
    "disk_reserve_bytes_max": "most disk that must stay free, however large the file system",
}

PROFILES: Final[Mapping[str, Limits]] = {
    "conservative": Limits(
        cpu_fraction=0.7,
        cpu_busy_fraction=0.85,
        cpu_busy_for_s=5.0,
        memory_fraction=0.5,
        memory_used_fraction=0.8,
        memory_abort_fraction=0.9,
        disk_fraction=0.3,
        counts_fraction=0.5,
        disk_used_fraction=0.8,
        disk_abort_fraction=0.9,
        descriptors_fraction=0.7,
        descriptors_abort_fraction=0.85,
        stale_s=2.0,
        memory_reserve_bytes_max=4 * GIB,
        disk_reserve_bytes_max=4 * GIB,
    ),
    "balanced": Limits(
        cpu_fraction=0.9,
        cpu_busy_fraction=0.97,
        cpu_busy_for_s=10.0,
        memory_fraction=0.7,
        memory_used_fraction=0.9,
        memory_abort_fraction=0.95,
        disk_fraction=0.6,
        counts_fraction=0.7,
        disk_used_fraction=0.9,
        disk_abort_fraction=0.95,
        descriptors_fraction=0.8,
        descriptors_abort_fraction=0.9,
        stale_s=2.0,
        memory_reserve_bytes_max=4 * GIB,
        disk_reserve_bytes_max=4 * GIB,
    ),
    "aggressive": Limits(
        cpu_fraction=0.95,
        cpu_busy_fraction=1.0,
        cpu_busy_for_s=30.0,
        memory_fraction=0.85,
        memory_used_fraction=0.95,
        memory_abort_fraction=0.98,
        disk_fraction=0.85,
        counts_fraction=0.85,
        disk_used_fraction=0.95,
        disk_abort_fraction=0.98,
        descriptors_fraction=0.9,
        descriptors_abort_fraction=0.95,
        stale_s=2.0,
        memory_reserve_bytes_max=4 * GIB,
        disk_reserve_bytes_max=4 * GIB,
    ),
}
DEFAULT_PROFILE: Final = "balanced"
PLANNED: Final[Mapping[str, str]] = {  # what is reserved -> the limit on how much of it may be planned
    "cpu_cores": "cpu_fraction",
    "memory_bytes": "memory_fraction",
    "disk_bytes": "disk_fraction",
    "descriptors": "counts_fraction",
    "tasks": "counts_fraction",
    "inodes": "counts_fraction",
    "locks": "counts_fraction",
}
_WORDS: Final[Mapping[str, str]] = {"cpu_cores": "cores of CPU", "memory_bytes": "of memory", "disk_bytes": "of disk"} | {
    name: name for name in ("descriptors", "tasks", "inodes", "locks")
}


def limits_for(profile: str = DEFAULT_PROFILE, overrides: LimitOverrides | None = None, *, allow_starve: bool = False) -> Limits:
    """Return a profile's limits with a scenario's own in their place.

    A measured fraction of memory or disk that a scenario sets counts in full: its cap is lifted. `allow_starve` lifts the bounds
    of what may be planned, never those of what is measured. Raises `InputError` for an unknown profile, or when load would be
    shed above where the run is aborted.
    """
    if profile not in PROFILES:
        raise InputError("unknown_name", f"no profile is called {profile!r}", f"known: {', '.join(PROFILES)}")
    given: dict[str, float] = overrides.given() if overrides else {}
    planned = dict.fromkeys(PLANNED.values(), 1.0) if allow_starve else {}
    limits = replace(PROFILES[profile], **(given | planned))  # type: ignore[arg-type]  # the two ints are not among them
    return checked(_uncapped(limits, given))


def _uncapped(limits: Limits, given: Mapping[str, float]) -> Limits:
    memory = UNCAPPED if {"memory_used_fraction", "memory_abort_fraction"} & set(given) else limits.memory_reserve_bytes_max
    disk = UNCAPPED if {"disk_used_fraction", "disk_abort_fraction"} & set(given) else limits.disk_reserve_bytes_max
    return replace(limits, memory_reserve_bytes_max=memory, disk_reserve_bytes_max=disk)


def below_monitor(limits: Limits, share: float, memory_bytes: int) -> Limits:
    """Return the limits of memory of a node on which Ray ends workers above a used share of it: load is shed before that.

    A measured fraction that a scenario sets itself stays as it is. `share` is 1.0 where Ray ends none.
    """
    if share >= 1.0 or limits.memory_reserve_bytes_max == UNCAPPED:
        return limits
    most = max(0.0, share - MONITOR_MARGIN)
    reserve = max(limits.memory_reserve_bytes_max, math.ceil((1.0 - most) * memory_bytes))
    return replace(limits, memory_used_fraction=min(limits.memory_used_fraction, most), memory_reserve_bytes_max=reserve)


def strictest(limits: Iterable[Limits]) -> Limits:
    """Return for each limit the strictest of several: runs that share a node share its limits. Needs at least one."""
    given = list(limits)
    kept = {item.name: max if item.name.endswith("_reserve_bytes_max") else min for item in fields(Limits)}
    return Limits(**{name: pick(getattr(one, name) for one in given) for name, pick in kept.items()})


def checked(limits: Limits) -> Limits:
    """Return the limits, or raise `InputError` (`invalid_value`) where one that sheds lies above the one that aborts."""
    for shed, abort in (
        ("memory_used_fraction", "memory_abort_fraction"),
        ("disk_used_fraction", "disk_abort_fraction"),
        ("descriptors_fraction", "descriptors_abort_fraction"),
    ):
        if getattr(limits, shed) > getattr(limits, abort):
            message = f"limits.{shed} ({getattr(limits, shed):g}) lies above limits.{abort} ({getattr(limits, abort):g})"
            raise InputError("invalid_value", message, "load is shed before a run is aborted")
    return limits


def check_planned(wanted: Mapping[str, Amounts], capacities: Mapping[str, Capacity], limits: Limits) -> None:
    """Raise `RefusedError` (`budget`) where a node's planned peak passes its limits, naming node, amount and limit.

    `wanted` and `capacities` are by node. A node without a known capacity is refused as well.
    """
    for node, amounts in wanted.items():
        if node not in capacities:
            raise RefusedError("capability", f"the capacity of {node} is not known", "see `stress-cluster doctor`")
        _check_node(node, amounts, limits.planned(capacities[node]))


def _figure(name: str, value: float) -> str:
    """Return an amount's number as people write it."""
    return f"{value:.2f}" if name == "cpu_cores" else show(int(value), "size") if name.endswith("_bytes") else f"{value:,}"


def _check_node(node: str, amounts: Amounts, allowed: Amounts) -> None:
    if amounts.within(allowed):
        return
    for name in amounts.beyond(allowed):
        limit = PLANNED[name]
        asked, most = (_figure(name, getattr(one, name)) for one in (amounts, allowed))
        message = f"the plan asks {asked} {_WORDS[name]} on {node}, its limit is {most} (limits.{limit})"
        raise RefusedError("budget", message, f"ask for less, raise limits.{limit} or the profile, or pass --allow-starve")


def listing() -> tuple[dict[str, object], ...]:
    """Return every limit with its help and its value in each profile, for `list limits`."""
    return tuple(
        {"name": item.name, "help": HELP[item.name], **{name: getattr(limits, item.name) for name, limits in PROFILES.items()}}
        for item in fields(Limits)
    )
