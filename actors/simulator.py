"""What a simulator is: code plus a record. `list`, `describe`, the reference, the schema, scenarios and preflight come from the records.

A simulator's file holds its `RECORD` and the code that the record's `entry` names. The code runs in a load process of its own
(or in the simulator's actor, when the guardian or Ray carries the effect), never where the records are read: importing this
module loads neither numba nor Ray.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from . import shape as shapes
from .errors import InputError, RefusedError
from .messages import AMOUNTS, Amounts, Capacity, Operation, Resource
from .on_demand import OnDemand
from .option import Option, Value, nearest

if TYPE_CHECKING:
    from .capability import NodeFacts
    from .lease import LeaseWatch

__all__ = [
    "AVAILABLE",
    "NO_KERNELS",
    "REGISTRY",
    "Capability",
    "Option",
    "Simulator",
    "SimulatorRecord",
    "absolute",
    "check",
    "check_here",
    "memory_limit_bytes",
    "peak_amounts",
    "record_of",
    "whole_of",
]

Verdict = Literal["available", "fallback", "unavailable"]
Family = Literal["cpu", "memory", "disk", "exhaustion", "concurrency", "backend"]
Unit = Literal["fraction", "bytes", "count", "per_second"]
Carrier = Literal["process", "guardian", "ray"]

# Unit of a strength -> what its values are, in words.
UNITS: Final[Mapping[Unit, str]] = {
    "fraction": "a share of what the node has",
    "bytes": "bytes that are held",
    "count": "how many are held",
    "per_second": "how many a second",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a node can run a simulator. With everything but `available` go a reason, and what would allow it where something would."""

    verdict: Verdict
    reason: str = ""
    allow: str = ""

    def to_json(self) -> dict[str, str]:
        """Return what `doctor` tells of a node."""
        return asdict(self)


AVAILABLE: Final = Capability("available")
NO_KERNELS: Final = Capability("unavailable", "numba is not installed, so there are no compiled kernels", "pip install numba")


class Simulator(Protocol):
    """What a load process runs. Made once per operation; used by one thread at a time."""

    def warm_up(self) -> None:
        """Get ready without loading: compile, open, calibrate."""
        ...

    def idle(self) -> None:
        """Give a sign of life; called about ten times a second between `warm_up` and `run`."""
        ...

    def run(self, start_ns: int) -> None:
        """Load from `start_ns` until the operation's end, a stop, or the lease's end; ask the watch as often as the record says."""
        ...


class SimulatorFactory(Protocol):
    """How a load process makes its simulator."""

    def __call__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str) -> Simulator:
        """Return the simulator; no load yet. Metrics are recorded in the segment at `segment_path`, "" for none."""
        ...


@dataclass(frozen=True, slots=True)
class SimulatorRecord:
    """All that other parts need to know of a simulator.

    `carrier` says what carries the load: a process of its own, the guardian, or Ray, whose actors and tasks the simulator's actor owns.
    `entry` is "module:attribute" below `actors`, loaded there only; "" when the guardian applies the effect.
    `resource` names what of `Capacity` a fraction is of, and which of the node's ceilings throttles it. Of it the peak is reserved, unless
    `reserves` says what an operation takes at a peak (in `resource`'s unit, or in the operation's own where that is no fraction).
    `of_time`: a fraction is of time, not of the resource.
    `meter` names how the dose is seen from outside (`dose.METERS`). `tolerance` is the dose's: a share of the capacity for CPU, of what
    is asked else (contract, "Dose reached"). `metrics` are the names that its load records, all of them.
    `check_here` looks at what can only be known on the node, before anything is reserved there.

    Some have more to say. `meters`: units whose dose is seen by another meter. `floor`: the least that a count may be off by. `rule`
    raises `InputError` for options that do not go together. `scratch`: its load gets a folder of its own as working folder, which the
    guardian removes. `memory_limit`: bytes to which a control group of memory of its own is limited, which the guardian makes; 0 for none.
    """

    name: str
    family: Family
    summary: str
    units: tuple[Unit, ...]
    resource: Resource
    meter: str
    measure: str
    tolerance: float
    look_ms: int
    options: tuple[Option, ...]
    supported: Callable[[NodeFacts], Capability]
    metrics: tuple[str, ...] = ()
    needs: str = ""
    undo: str = "what it holds ends with its process"
    entry: str = ""
    carrier: Carrier = "process"
    reserves: Callable[[float, Operation, Capacity], Amounts] | None = None
    of_time: bool = False
    check_here: Callable[[Operation, Path], None] | None = None
    meters: Mapping[Unit, str] = field(default_factory=dict)
    rule: Callable[[Mapping[str, Value]], None] | None = None
    scratch: bool = False
    memory_limit: Callable[[Operation], int] | None = None
    floor: float | None = None

    def meter_of(self, unit: str) -> str:
        """Return how the dose of an operation in this unit is seen from outside."""
        return next((meter for of, meter in self.meters.items() if of == unit), self.meter)

    def resolve_options(self, given: Mapping[str, Any], label: str = "") -> dict[str, Value]:
        """Return all options with defaults filled in. `label` is put before their names in messages.

        Raises `InputError`: `unknown_key` with the nearest known one, `invalid_value` with what was expected.
        """
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise InputError("unknown_key", f"{self.name} has no option {name!r}", nearest(name, known))
        full = {name: option.check(given.get(name, option.default), f"{label}.{name}" if label else "") for name, option in known.items()}
        if self.rule is not None:
            self.rule(full)
        return full

    def make(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Simulator:
        """Return the simulator's code, loaded now; only where load may run."""
        factory: SimulatorFactory = self.load_entry()
        return factory(operation, capacity, watch, segment_path)

    def load_entry(self) -> Any:
        """Import and return what `entry` names."""
        module, _, attribute = self.entry.partition(":")
        return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)

    def to_json(self) -> dict[str, Any]:
        """Return what `list` and `describe` print."""
        return {
            "name": self.name,
            "summary": self.summary,
            "family": self.family,
            "units": {unit: UNITS[unit] for unit in self.units},
            "resource": self.resource,
            "measure": self.measure,
            "meter": {unit: self.meter_of(unit) for unit in self.units},
            "tolerance": self.tolerance,
            "look_ms": self.look_ms,
            "needs": self.needs,
            "undo": self.undo,
            "metrics": list(self.metrics),
            "options": {option.name: option.to_schema() for option in self.options},
        }


# The file of each simulator below `actors`; its record is read when first asked for.
_MODULES: Final[Mapping[str, str]] = {
    "CpuLoad": "cpu",
    "CpuPressure": "cpu_pressure",
    "MemoryPressure": "memory",
    "MemoryFragment": "memory_fragment",
    "MemoryAccess": "memory_access",
    "VmPressure": "vm_pressure",
    "MemoryStall": "memory_stall",
    "DiskFill": "disk",
    # those that use something up
    "Descriptors": "exhaustion.descriptors",
    "Mappings": "exhaustion.mappings",
    "Sockets": "exhaustion.sockets",
    "Connections": "exhaustion.connections",
    "Ports": "exhaustion.ports",
    "Threads": "exhaustion.threads",
    "Processes": "exhaustion.processes",
    "Inodes": "exhaustion.inodes",
    "SharedMemory": "exhaustion.shared_memory",
    "Semaphores": "exhaustion.semaphores",
    "DiskIO": "exhaustion.disk_io",
    # those that contend
    "LockContention": "concurrency.contention",
    "LockConvoy": "concurrency.convoy",
    "Deadlock": "concurrency.deadlock",
    "Livelock": "concurrency.livelock",
    "PriorityInversion": "concurrency.inversion",
    # those of another program
    "StressNg": "stress_ng.record",
    # those that Ray carries
    "MailboxFlood": "ray_loads.mailbox_flood",
    "TaskExplosion": "ray_loads.task_explosion",
    "ClusterLock": "ray_loads.cluster_lock",
    "ActorMesh": "ray_loads.actor_mesh",
    "Cascade": "ray_loads.cascade",
    "ObjectStorePressure": "ray_loads.object_store",
}


def _record(name: str) -> SimulatorRecord:
    record: SimulatorRecord = importlib.import_module(f"{__package__}.{_MODULES[name]}").RECORD
    return record


REGISTRY: Final[Mapping[str, SimulatorRecord]] = OnDemand(_MODULES, _record)


def record_of(kind: str) -> SimulatorRecord:
    """Return a simulator's record; raise `InputError` (`unknown_name`) with the nearest name."""
    if kind not in REGISTRY:
        raise InputError("unknown_name", f"unknown simulator {kind!r}", nearest(kind, REGISTRY))
    return REGISTRY[kind]


def absolute(operation: Operation, capacity: Capacity) -> shapes.Shape:
    """Return the operation's shape in cores or bytes of this node, or in its own unit where that is no part of them."""
    return shapes.from_spec(operation.shape).scaled(whole_of(operation, capacity))


def whole_of(operation: Operation, capacity: Capacity) -> float:
    """Return what 1 in the operation's unit is: all of the resource for a fraction of it, else 1.

    Raises `RefusedError` (`capability`) for a fraction of what the node states no limit of.
    """
    record = record_of(operation.kind)
    if operation.unit != "fraction" or record.of_time:
        return 1.0
    whole = float(getattr(capacity, record.resource))
    if not whole:
        message = f"{operation.id} asks a share of the {record.resource} of {operation.node}, which states none"
        raise RefusedError("capability", message, "ask for a number, or leave that node out")
    return whole


def check(operation: Operation) -> None:
    """Check what can be known without a node; raise `InputError` that says what is wrong."""
    record = record_of(operation.kind)
    record.resolve_options(operation.options)
    shape = shapes.from_spec(operation.shape)
    if operation.unit not in record.units:
        raise InputError("invalid_value", f"{record.name} takes values in {' or '.join(record.units)}, got {operation.unit!r}")
    if not math.isfinite(operation.duration_s) or operation.duration_s <= 0.0:
        raise InputError("invalid_value", f"{operation.id}: duration_s must be above 0, got {operation.duration_s!r}")
    peak = shape.peak(operation.duration_s)
    if operation.unit == "fraction" and peak > 1.0:
        raise InputError("invalid_value", f"{operation.id} asks {peak:.0%} of the node's capacity; at most 100% can be asked")
    if isinstance(shape, shapes.Custom):
        shape.check(operation.duration_s)


def check_here(operation: Operation, state_dir: Path) -> None:
    """Check on the operation's own node what can only be known there; raise `InputError` or `RefusedError`."""
    check = record_of(operation.kind).check_here
    if check is not None:
        check(operation, state_dir)


def memory_limit_bytes(operation: Operation) -> int:
    """Return to how many bytes the operation's own control group of memory is limited, 0 where it has none."""
    limit = record_of(operation.kind).memory_limit
    return 0 if limit is None else limit(operation)


def peak_amounts(operation: Operation, capacity: Capacity) -> Amounts:
    """Return the most that an operation takes on a node: what its slot reserves at the guardian."""
    record, peak = record_of(operation.kind), absolute(operation, capacity).peak(operation.duration_s)
    if record.reserves is not None:
        return record.reserves(peak, operation, capacity)
    assert record.resource in AMOUNTS, f"{record.name} reserves nothing"
    most: dict[str, Any] = {record.resource: peak if record.resource == "cpu_cores" else math.ceil(peak)}
    return Amounts(**most)
