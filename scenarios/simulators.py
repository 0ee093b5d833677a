"""What loads a node, as values: which simulator, how strong over time, with which options. Never runs anything.

Each names its strength by a load shape (`actors.shape`) or a plain number, which is a constant shape. `unit` says what the
shape's values are: a `fraction` of the node's capacity, or `bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from actors import shape as shapes
from actors.errors import InputError
from actors.kernels.table import NAMES
from actors.shape import Shape

from .units import DURATION_MAX_S, SIZE_MAX_BYTES, check_choice, check_number, check_text, check_whole

MODES: Final = ("own", "host_total")
KERNELS: Final = NAMES
SHAPES: Final = tuple(shapes.KINDS.values())
PERIOD_MIN_S: Final = 0.1
RESERVE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """Keep processors busy with a share of the node's capacity.

    `own`: the load itself takes the fraction. `host_total`: the load fills up what others use until the host is busy by the
    fraction. `cores` bounds the threads; `None` means all.
    """

    fraction: Shape | float
    mode: str = "own"
    kernel: str = "integer"
    cores: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fraction", _fractions("CpuLoad.fraction", self.fraction))
        check_choice("CpuLoad.mode", self.mode, MODES)
        check_choice("CpuLoad.kernel", self.kernel, KERNELS)
        if self.cores is not None:
            object.__setattr__(self, "cores", check_whole("CpuLoad.cores", self.cores, 1, 4096))

    @property
    def unit(self) -> str:
        """Return the unit of the shape's values."""
        return "fraction"

    @property
    def shape(self) -> Shape:
        """Return the strength over time."""
        return _as_shape(self.fraction)

    def options(self) -> dict[str, Any]:
        """Return what travels to the node beside the shape."""
        return {"mode": self.mode, "kernel": self.kernel, "cores": "all" if self.cores is None else self.cores}


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    """Hold anonymous memory, as bytes or as a fraction of the node's memory limit."""

    fraction: Shape | float | None = None
    bytes: Shape | float | None = None

    def __post_init__(self) -> None:
        _one_strength(self, "MemoryPressure")

    @property
    def unit(self) -> str:
        """Return the unit of the shape's values."""
        return "bytes" if self.fraction is None else "fraction"

    @property
    def shape(self) -> Shape:
        """Return the strength over time."""
        return _as_shape(self.bytes if self.fraction is None else self.fraction)

    def options(self) -> dict[str, Any]:
        """Return what travels to the node beside the shape."""
        return {}


@dataclass(frozen=True, slots=True)
class DiskFill:
    """Hold blocks of a file system in a tagged file, as bytes or as a fraction of the file system.

    `dir` is a folder on the node; empty means the node's own state folder. `reserve_bytes` stay free whatever is asked.
    """

    fraction: Shape | float | None = None
    bytes: Shape | float | None = None
    dir: str = ""
    reserve_bytes: int = RESERVE_BYTES

    def __post_init__(self) -> None:
        _one_strength(self, "DiskFill")
        check_text("DiskFill.dir", self.dir, 1000)
        if "\n" in self.dir or (self.dir and not self.dir.startswith("/")):
            raise InputError("invalid_value", f"DiskFill.dir must be an absolute path, got {self.dir!r}")
        object.__setattr__(self, "reserve_bytes", check_whole("DiskFill.reserve_bytes", self.reserve_bytes))

    @property
    def unit(self) -> str:
        """Return the unit of the shape's values."""
        return "bytes" if self.fraction is None else "fraction"

    @property
    def shape(self) -> Shape:
        """Return the strength over time."""
        return _as_shape(self.bytes if self.fraction is None else self.fraction)

    def options(self) -> dict[str, Any]:
        """Return what travels to the node beside the shape."""
        reserve = {"reserve_bytes": self.reserve_bytes}
        return {"dir": self.dir, **reserve} if self.dir else reserve


Simulator = CpuLoad | MemoryPressure | DiskFill

KINDS: Final[Mapping[str, type[CpuLoad | MemoryPressure | DiskFill]]] = {
    "CpuLoad": CpuLoad,
    "MemoryPressure": MemoryPressure,
    "DiskFill": DiskFill,
}


def levels(shape: Shape) -> dict[str, float]:
    """Return the values of a shape that are strengths, by field name (`levels[0]` for a step)."""
    found: dict[str, float] = {}
    for field in fields(shape):
        value = getattr(shape, field.name)
        if field.name == "levels":
            found |= {f"levels[{at}]": level for at, level in enumerate(value)}
        elif field.name != "duty" and not field.name.endswith("_s"):
            found[field.name] = value
    return found


def _one_strength(owner: MemoryPressure | DiskFill, name: str) -> None:
    if (owner.fraction is None) == (owner.bytes is None):
        found = "neither" if owner.fraction is None else "both"
        raise InputError("invalid_value", f"{name} needs either fraction or bytes, got {found}")
    if owner.fraction is not None:
        object.__setattr__(owner, "fraction", _fractions(f"{name}.fraction", owner.fraction))
    if owner.bytes is not None:
        object.__setattr__(owner, "bytes", _whole_bytes(f"{name}.bytes", owner.bytes))


def _as_shape(value: Shape | float | None) -> Shape:
    assert isinstance(value, SHAPES), "strengths are shapes once checked"
    return value


def _fractions(label: str, value: Shape | float) -> Shape:
    """Return a strength as a shape whose levels are fractions within 0 to 1."""
    shape = _timed(label, value)
    for name, level in levels(shape).items():
        check_number(_level_label(label, shape, name), level, 0.0, 1.0)
    return shape


def _whole_bytes(label: str, value: Shape | float) -> Shape:
    """Return a strength as a shape whose levels are whole bytes."""
    shape = _timed(label, value)
    for name, level in levels(shape).items():
        check_whole(_level_label(label, shape, name), level, 0, SIZE_MAX_BYTES)
    return shape


def _level_label(label: str, shape: Shape, name: str) -> str:
    return label if isinstance(shape, shapes.Constant) else f"{label}: {type(shape).__name__}.{name}"


def _timed(label: str, value: Shape | float) -> Shape:
    """Return a plain number as a constant, and check a shape's times against what a plan can hold."""
    if not isinstance(value, SHAPES):
        return shapes.Constant(check_number(label, value))
    for field in fields(value):
        if field.name.endswith("_s"):
            check_number(f"{label}: {type(value).__name__}.{field.name}", getattr(value, field.name), PERIOD_MIN_S, DURATION_MAX_S)
    return value
