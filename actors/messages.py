"""Records that cross processes: plain, frozen, versioned, without behaviour. Standard library only.

`SCHEMA_VERSION` rises when a field changes its meaning or goes; adding one with a default does not raise it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal, get_args

SCHEMA_VERSION: Final = 1

Resource = Literal[
    "cpu_cores", "memory_bytes", "disk_bytes", "descriptors", "tasks", "inodes", "locks", "mappings", "ports", "object_store_bytes"
]
RESOURCES: Final[tuple[str, ...]] = get_args(Resource)  # fields of Capacity


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a plan may know about a node: its name and what selectors ask for."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One simulator on one node for one span of the timeline.

    `shape` is a shape's spec with values in `unit` ("fraction" of the node's capacity, or "bytes").
    `start_s` counts from the start barrier.
    """

    id: str
    kind: str
    node: str
    start_s: float
    duration_s: float
    unit: str
    shape: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    phase: str = ""
    seed: int = 0
    tolerance: float | None = None  # of the dose, set by the scenario; None: the simulator's own
    on_failure: str = "stop"  # what a failure of its load ends: the run, or with "continue" nothing but itself
    link: Mapping[str, Any] = field(default_factory=dict)  # of a run, where its plan asks for a peer: see `cluster.links`


@dataclass(frozen=True, slots=True)
class Amounts:
    """What an operation may take at its peak, or what a budget allows. `tasks` are processes and threads, `locks` those of loads' own."""

    cpu_cores: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    descriptors: int = 0
    tasks: int = 0
    inodes: int = 0
    locks: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """Return the sum."""
        return Amounts(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def minus(self, other: Amounts) -> Amounts:
        """Return the difference; may be negative, which a ledger's invariants refuse."""
        return Amounts(*(mine - theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def most(self, other: Amounts) -> Amounts:
        """Return the larger of each amount."""
        return Amounts(*map(max, self.values(), other.values()))

    def within(self, limit: Amounts) -> bool:
        """Tell whether each amount is at most the limit's (with a rounding margin for cores)."""
        return not self.beyond(limit)

    def beyond(self, limit: Amounts) -> tuple[str, ...]:
        """Return the names of the amounts that pass the limit's."""
        pairs = zip(AMOUNTS, self.values(), limit.values(), strict=True)
        return tuple(name for name, mine, most in pairs if mine > most + (1e-9 if name == "cpu_cores" else 0))

    def values(self) -> tuple[Any, ...]:
        """Return the amounts in the order of `AMOUNTS`."""
        return (self.cpu_cores, self.memory_bytes, self.disk_bytes, self.descriptors, self.tasks, self.inodes, self.locks)


AMOUNTS: Final = tuple(one.name for one in fields(Amounts))


def spoken(amount: str) -> str:
    """Return what an amount counts, in words: "bytes of memory" of `memory_bytes`, "cores" of `cpu_cores`."""
    subject, _, unit = amount.rpartition("_")
    return {"bytes": f"bytes of {subject}", "cores": "cores"}.get(unit, amount)


@dataclass(frozen=True, slots=True)
class Capacity:
    """A node's share of its machine: container limits are the denominators, divided by the raylets that share it.

    `descriptors` and `mappings` are what one process may have; `ports` those that the kernel gives to connections by itself.
    """

    cpu_cores: float
    memory_bytes: int
    disk_bytes: int
    sharers: int = 1
    descriptors: int = 0
    tasks: int = 0
    inodes: int = 0
    mappings: int = 0
    ports: int = 0
    locks: int = 0
    object_store_bytes: int = 0  # of the raylet that asks, 0 where there is none

    @property
    def amounts(self) -> Amounts:
        """Return all that there is of what operations reserve."""
        return Amounts(*(getattr(self, name) for name in AMOUNTS))

    def shared(self, sharers: int) -> Capacity:
        """Return the share of one of so many raylets. What one process may have is not divided, but for what the machine has in all."""
        return replace(
            self,
            cpu_cores=self.cpu_cores / sharers,
            memory_bytes=self.memory_bytes // sharers,
            disk_bytes=self.disk_bytes // sharers,
            sharers=sharers,
            descriptors=self.descriptors // sharers,
            tasks=self.tasks // sharers,
            inodes=self.inodes // sharers,
            locks=self.locks // sharers,
        )


@dataclass(frozen=True, slots=True)
class SlotTicket:
    """A slot of the control page, given to one operation."""

    slot: int
    generation: int
    segment_path: str = ""  # where the load records metrics: /proc/<agent pid>/fd/<n>
    run: str = ""


@dataclass(frozen=True, slots=True)
class SimulatorStatus:
    """What a simulator says of itself; its dose is measured elsewhere."""

    operation: str
    phase: str
    reason: str = ""
    pids: tuple[int, ...] = ()
    exit_code: int | None = None
    first_slice_ns: int = 0
    records: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A partial allocation: the first error number that the kernel gave, how many were asked for and how many are held."""

    errno: str  # a word of `exhaustion.refusal.ERRNOS`
    requested: int
    allocated: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a load held, as its meter counted it from outside, at three moments of its life: allocate, hold, release.

    Amounts are bytes, or how many; times are seconds from the operation's start, None for what did not come.
    """

    meter: str
    asked: float  # the most that was asked for
    allocate: float  # counted at the first look after its start
    allocate_s: float
    hold: float | None = None  # counted when it was first at target
    hold_s: float | None = None
    held_for_s: float = 0.0  # from then until it was last at target
    peak: float = 0.0  # the most that was counted
    release: float | None = None  # counted once it had ended
    release_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """A node's host at one instant; limits of the container are the denominators."""

    node: str
    boot_ns: int
    cpu_cores: float
    cpu_busy_fraction: float
    memory_limit_bytes: int
    memory_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    descriptors_used: int
    descriptors_limit: int
    load_average_1m: float = 0.0


@dataclass(frozen=True, slots=True, order=True)
class Halt:
    """The emergency halt: the higher generation wins, and of two with the same generation the one that is on."""

    generation: int = 0
    on: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a run's story."""

    kind: str
    message: str
    severity: str = "info"  # info, warning, error
    node: str = ""
    worker: str = ""
    phase: str = ""
    wall_ns: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


def to_json(record: Any) -> dict[str, Any]:
    """Return a record as JSON-ready data with its schema version."""
    return {"schema": SCHEMA_VERSION, **asdict(record)}
