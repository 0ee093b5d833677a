"""The scenario: one frozen, versioned value that says what should happen. Pure; equality is by content.

A value that exists is valid: every record checks itself when made and raises `InputError`. What only a cluster can tell (do
its nodes match, does it fit) is the plan's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from actors.errors import InputError

from .combinators import Tree, check_tree
from .exporters import Exporters
from .hypotheses import ActorProbe, Hypothesis, Threshold, title
from .recording import Metrics
from .targets import Targets
from .units import DURATION_MAX_S, SIZE_MAX_BYTES, check_choice, check_number, check_text, check_whole

VERSION: Final = 1
SEED_MAX: Final = (1 << 63) - 1
PROFILES: Final = ("conservative", "balanced", "aggressive")
ON_NODE_LOST: Final = ("stop", "continue")
HYPOTHESES_MAX: Final = 100
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}\Z")


@dataclass(frozen=True, slots=True)
class Budget:
    """What this run may take in all at any instant; `None` is no bound of its own beside the cluster's."""

    nodes_max: int | None = None
    cpu_cores_max: float | None = None
    memory_bytes_max: int | None = None
    disk_bytes_max: int | None = None
    duration_s_max: float | None = None

    def __post_init__(self) -> None:
        _keep_whole(self, "nodes_max", 1, 1_000_000)
        _keep_number(self, "cpu_cores_max", 0.0, 1e9)
        _keep_whole(self, "memory_bytes_max", 0, SIZE_MAX_BYTES)
        _keep_whole(self, "disk_bytes_max", 0, SIZE_MAX_BYTES)
        _keep_number(self, "duration_s_max", 0.0, DURATION_MAX_S)


@dataclass(frozen=True, slots=True)
class LimitOverrides:
    """Limits of a node that differ from the profile's. All but the two times are fractions of the node's capacity.

    Planned load: `cpu_fraction`, `memory_fraction`, `disk_fraction`, `counts_fraction`. Where load is shed: `cpu_busy_fraction`
    for longer than `cpu_busy_for_s`, `memory_used_fraction`, `disk_used_fraction`, `descriptors_fraction`. Where a run is aborted: the same
    with `abort`. A snapshot older than `stale_s` aborts as well.
    """

    cpu_fraction: float | None = None
    cpu_busy_fraction: float | None = None
    cpu_busy_for_s: float | None = None
    memory_fraction: float | None = None
    memory_used_fraction: float | None = None
    memory_abort_fraction: float | None = None
    disk_fraction: float | None = None
    counts_fraction: float | None = None
    disk_used_fraction: float | None = None
    disk_abort_fraction: float | None = None
    descriptors_fraction: float | None = None
    descriptors_abort_fraction: float | None = None
    stale_s: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            low, high = (0.1, 3_600.0) if item.name.endswith("_s") else (0.0, 1.0)
            _keep_number(self, item.name, low, high)

    def given(self) -> dict[str, float]:
        """Return the limits that are set, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What should happen: whom it may harm, what it does there over time, and what must hold."""

    name: str
    plan: Tree
    seed: int = 0
    description: str = ""
    targets: Targets = field(default_factory=Targets)
    budget: Budget = field(default_factory=Budget)
    profile: str | None = None  # None: what the settings say
    limits: LimitOverrides = field(default_factory=LimitOverrides)
    on_node_lost: str = "stop"
    hypotheses: tuple[Hypothesis, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    exporters: Exporters = field(default_factory=Exporters)
    version: int = VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            hint = "lower-case letters, digits and dashes, at most 40, such as burst-2"
            raise InputError("invalid_value", f"Scenario.name must be a short word, got {self.name!r}", hint)
        check_text("Scenario.description", self.description, 5_000)
        object.__setattr__(self, "seed", check_seed("Scenario.seed", self.seed))
        if self.profile is not None:
            check_choice("Scenario.profile", self.profile, PROFILES)
        check_choice("Scenario.on_node_lost", self.on_node_lost, ON_NODE_LOST)
        for name, kind in _RECORDS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError("invalid_value", f"Scenario.{name} must be {kind.__name__}, got {getattr(self, name)!r}")
        object.__setattr__(self, "hypotheses", _check_hypotheses(self.hypotheses))
        check_tree(self.plan)
        self._check_duration()
        self._check_recorded()

    def _check_duration(self) -> None:
        limit_s = self.budget.duration_s_max
        if limit_s is not None and self.plan.duration_s > limit_s:
            message = f"Scenario.plan lasts {self.plan.duration_s:g} s, its budget.duration_max is {limit_s:g} s"
            raise InputError("invalid_value", message, "shorten the plan or raise budget.duration_max")

    def _check_recorded(self) -> None:
        """Refuse a hypothesis about what is not recorded: it would be unknown at the end, and the run never passed."""
        for at, item in enumerate(self.hypotheses):
            if isinstance(item, Threshold) and (why := self.metrics.leaves_out(item.metric)):
                message = f"Scenario.hypotheses[{at}]: {title(item)!r} needs {item.metric}, which {why} leaves out"
                raise InputError("invalid_value", message, "record it, or drop the hypothesis")


_RECORDS: Final[Mapping[str, type]] = {
    "targets": Targets,
    "budget": Budget,
    "limits": LimitOverrides,
    "metrics": Metrics,
    "exporters": Exporters,
}


def check_version(version: object) -> None:
    """Raise `InputError` (`unsupported_version`) for any version but the one this code reads."""
    if isinstance(version, bool) or not isinstance(version, int) or version != VERSION:
        hint = "write version: 1, or use the stress-cluster release that wrote this document"
        raise InputError("unsupported_version", f"Scenario.version {version!r} is not supported, expected {VERSION}", hint)


def check_seed(label: str, seed: object) -> int:
    """Return a seed when it is a whole number of at most 63 bits; raises `InputError` (`invalid_value`)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEED_MAX:
        raise InputError("invalid_value", f"{label} must be a whole number from 0 to {SEED_MAX}, got {seed!r}")
    return seed


def _check_hypotheses(hypotheses: object) -> tuple[Hypothesis, ...]:
    if not isinstance(hypotheses, (list, tuple)) or len(hypotheses) > HYPOTHESES_MAX:
        raise InputError("invalid_value", f"Scenario.hypotheses must be a list of at most {HYPOTHESES_MAX} hypotheses")
    names = set()
    for at, item in enumerate(hypotheses):
        if not isinstance(item, (Threshold, ActorProbe)):
            raise InputError("invalid_value", f"Scenario.hypotheses[{at}] must be a Threshold or an ActorProbe, got {item!r}")
        if title(item) in names:
            raise InputError("invalid_value", f"Scenario.hypotheses: two are called {title(item)!r}", "give one of them another name")
        names.add(title(item))
    return tuple(hypotheses)


def _keep_number(owner: Any, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if value is not None:
        object.__setattr__(owner, name, float(check_number(f"{type(owner).__name__}.{name}", value, low, high)))


def _keep_whole(owner: Any, name: str, low: int, high: int) -> None:
    value = getattr(owner, name)
    if value is not None:
        object.__setattr__(owner, name, check_whole(f"{type(owner).__name__}.{name}", value, low, high))
