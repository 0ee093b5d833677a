"""What a simulator is: code plus a record. `list`, `describe`, the reference, the schema and preflight come from the records.

A simulator's file holds its `RECORD` and the code that the record's `entry` names. The code runs in a load process of its own
(or in the simulator's actor, when the guardian applies the effect), never where the records are read: importing this
module loads neither numba nor Ray.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from . import shape as shapes
from .errors import InputError
from .messages import Amounts, Capacity, Operation

if TYPE_CHECKING:
    from .capability import NodeFacts
    from .lease import LeaseWatch

Verdict = Literal["available", "fallback", "unavailable"]
Unit = Literal["fraction", "bytes"]
OptionKind = Literal["text", "integer", "bytes", "choice", "cores"]


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a node can run a simulator; a reason goes with everything but `available`."""

    verdict: Verdict
    reason: str = ""


AVAILABLE: Final = Capability("available")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a simulator. `kind` "cores" is "all" or a whole number from 1."""

    name: str
    kind: OptionKind
    default: str | int
    help: str
    choices: tuple[str, ...] = ()
    choice_help: Mapping[str, str] = field(default_factory=dict)  # where `help` does not say what each choice is

    def check(self, value: Any) -> str | int:
        """Return the value, or raise `InputError` (`invalid_value`) that says what was expected."""
        if self.kind == "choice":
            return self._require(value, value in self.choices, f"one of {', '.join(self.choices)}")
        if self.kind == "text":
            return self._require(value, isinstance(value, str) and "\0" not in value, "a text")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.kind == "cores":
            return self._require(value, value == "all" or (whole and value >= 1), '"all" or a whole number from 1')
        return self._require(value, whole and value >= 0, "a whole number from 0")

    def _require(self, value: Any, fits: bool, expected: str) -> str | int:
        if not fits:
            raise InputError("invalid_value", f"option {self.name!r} must be {expected}, got {value!r}")
        found: str | int = value
        return found

    def to_schema(self) -> dict[str, Any]:
        """Return the option's JSON Schema."""
        about: dict[str, Any] = {"description": self.help, "default": self.default}
        if self.kind == "choice" and self.choice_help:
            return {"oneOf": [{"const": choice, "description": self.choice_help[choice]} for choice in self.choices], **about}
        if self.kind == "choice":
            return {"enum": list(self.choices), **about}
        if self.kind == "text":
            return {"type": "string", **about}
        if self.kind == "cores":
            return {"oneOf": [{"const": "all"}, {"type": "integer", "minimum": 1}], **about}
        return {"type": "integer", "minimum": 0, **about}


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

    `entry` is "module:attribute" below `actors`, loaded in the load process only; "" when the guardian applies the effect.
    `resource` names what of `Capacity` and `Amounts` its values take. `tolerance` is the dose's: a share of the
    capacity for CPU, of the asked bytes else (contract, "Dose reached").
    """

    name: str
    summary: str
    units: tuple[Unit, ...]
    resource: Literal["cpu_cores", "memory_bytes", "disk_bytes"]
    measure: str
    tolerance: float
    look_ms: int
    options: tuple[Option, ...]
    supported: Callable[[NodeFacts], Capability]
    entry: str = ""

    def resolve_options(self, given: Mapping[str, Any]) -> dict[str, str | int]:
        """Return all options with defaults filled in.

        Raises `InputError`: `unknown_key` with the nearest known one, `invalid_value` with what was expected.
        """
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise InputError("unknown_key", f"{self.name} has no option {name!r}", nearest(name, known))
        return {name: option.check(given.get(name, option.default)) for name, option in known.items()}

    def make(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> Simulator:
        """Return the simulator's code, loaded now; only where load may run."""
        module, _, attribute = self.entry.partition(":")
        factory: SimulatorFactory = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
        return factory(operation, capacity, watch, segment_path)

    def to_json(self) -> dict[str, Any]:
        """Return what `list` and `describe` print."""
        return {
            "name": self.name,
            "summary": self.summary,
            "units": list(self.units),
            "resource": self.resource,
            "measure": self.measure,
            "tolerance": self.tolerance,
            "look_ms": self.look_ms,
            "options": {option.name: option.to_schema() for option in self.options},
        }


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """Return a hint that offers the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


_MODULES: Final = ("cpu", "memory", "disk")


class _Registry(Mapping[str, SimulatorRecord]):
    """The records by name, read from the simulators' files when first asked for."""

    @functools.cached_property
    def _records(self) -> dict[str, SimulatorRecord]:
        records = (importlib.import_module(f"{__package__}.{module}").RECORD for module in _MODULES)
        return {record.name: record for record in records}

    def __getitem__(self, name: str) -> SimulatorRecord:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


REGISTRY: Final[Mapping[str, SimulatorRecord]] = _Registry()


def record_of(kind: str) -> SimulatorRecord:
    """Return a simulator's record; raise `InputError` (`unknown_name`) with the nearest name."""
    if kind not in REGISTRY:
        raise InputError("unknown_name", f"unknown simulator {kind!r}", nearest(kind, REGISTRY))
    return REGISTRY[kind]


def absolute(operation: Operation, capacity: Capacity) -> shapes.Shape:
    """Return the operation's shape in cores or bytes of this node."""
    record = record_of(operation.kind)
    shape = shapes.from_spec(operation.shape)
    return shape.scaled(float(getattr(capacity, record.resource))) if operation.unit == "fraction" else shape


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


def peak_amounts(operation: Operation, capacity: Capacity) -> Amounts:
    """Return the most that an operation takes on a node: what its slot reserves at the guardian."""
    peak = absolute(operation, capacity).peak(operation.duration_s)
    resource = record_of(operation.kind).resource
    if resource == "cpu_cores":
        return Amounts(cpu_cores=peak)
    return Amounts(memory_bytes=math.ceil(peak)) if resource == "memory_bytes" else Amounts(disk_bytes=math.ceil(peak))
