"""Services that depend on one another, and how a failure spread among them. Pure: grown from a seed, told from measured failures.

Services stand in levels. One of level 0 depends on nothing; one of any other level depends on some of the level below. Clients call the
services of the highest level, and each request is handed on to every dependency of the service that took it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class ServiceGraph:
    """Names by level, lowest first; what each depends on; and the service of level 0 that is made to fail."""

    levels: tuple[tuple[str, ...], ...]
    dependencies: Mapping[str, tuple[str, ...]]
    first: str

    @property
    def services(self) -> tuple[str, ...]:
        """All names, those that others depend on before these."""
        return tuple(itertools.chain.from_iterable(self.levels))

    def traffic(self, per_s: float) -> dict[str, float]:
        """Return how many requests a second each service takes when clients send so many in all, to the entries in turn."""
        rates = dict.fromkeys(self.services, 0.0)
        for name in self.levels[-1]:
            rates[name] = per_s / len(self.levels[-1])
        for name in reversed(self.services):
            for other in self.dependencies[name]:
                rates[other] += rates[name]
        return rates


def name_of(number: int) -> str:
    """Return the name of a service."""
    return f"s{number:02d}"


def number_of(name: str) -> int:
    """Return the number of a service of this name."""
    return int(name[1:])


def grow(seed: int, services: int, levels: int, fan_out: int) -> ServiceGraph:
    """Return the graph of a seed: the same for the same arguments, whatever machine or release of Python.

    `fan_out` of the level below are called by each service, or all that there are; where some would have no caller, those with the
    fewest dependencies call them too. The first to fail is one on which services of every level depend. `services >= levels >= 2`.
    """
    chance = Random(seed)  # its `random` and `getrandbits` are the same everywhere; so are `sample` and `choice` of lists
    names = [name_of(number) for number in range(services)]
    sizes = [services // levels + (level < services % levels) for level in range(levels)]
    ends = list(itertools.accumulate(sizes))
    tiers = tuple(tuple(names[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    dependencies: dict[str, tuple[str, ...]] = dict.fromkeys(tiers[0], ())
    for below, tier in itertools.pairwise(tiers):
        called = {name: chance.sample(below, min(fan_out, len(below))) for name in tier}
        for other in (one for one in below if not any(one in some for some in called.values())):
            called[min(tier, key=lambda name: len(called[name]))].append(other)
        dependencies |= {name: tuple(sorted(some)) for name, some in called.items()}
    return ServiceGraph(tiers, dependencies, chance.choice(tiers[0]))


@dataclass(frozen=True, slots=True)
class Failure:
    """A service that failed: when, in nanoseconds of one clock, and the dependency for which it did; "" for the one that was made to."""

    service: str
    cause: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How far a failure has come. `rounds`: who failed about at once, by name; `depth`: the longest chain of causes, 0 for the first."""

    rounds: tuple[tuple[str, ...], ...] = ()
    depth: int = 0
    span_s: float = 0.0
    failed: int = 0
    share: float = 0.0


def tell(failures: Sequence[Failure], services: int, apart_s: float) -> Spread:
    """Return what these failures are together, in whatever order they are given.

    Who fails less than `apart_s` after another is of its round: what order they had within it, chance decided. A service whose
    cause is not among the failed is the first of a chain of its own.
    """
    in_time = sorted(failures, key=lambda one: (one.at_ns, one.service))
    if not in_time:
        return Spread()
    rounds: list[list[str]] = []
    depths: dict[str, int] = {}
    before_ns = in_time[0].at_ns
    for one in in_time:
        if not rounds or one.at_ns - before_ns > apart_s * 1e9:
            rounds.append([])
        rounds[-1].append(one.service)
        before_ns = one.at_ns
        depths[one.service] = depths[one.cause] + 1 if one.cause in depths else 0
    span_s = (in_time[-1].at_ns - in_time[0].at_ns) / 1e9
    told = tuple(tuple(sorted(some)) for some in rounds)
    return Spread(told, max(depths.values()), span_s, len(in_time), len(in_time) / services)
