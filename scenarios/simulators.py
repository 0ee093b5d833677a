"""What loads a node, as values: which simulator, how strong over time, with which options. Never runs anything.

`kinds` has one class for each simulator's record, made from it: `CpuLoad(0.5, mode="host_total")`, `MemoryPressure(bytes=Ramp(...))`.
A strength is given under the name of its unit, as a load shape (`actors.shape`) or a plain number, which is a constant shape;
options by their names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, cast

from actors import shape as shapes
from actors.errors import InputError
from actors.option import LARGEST
from actors.shape import Shape
from actors.simulator import SimulatorRecord, Unit

from .units import DURATION_MAX_S, check_number, check_whole

SHAPES: Final = tuple(shapes.KINDS.values())
PERIOD_MIN_S: Final = 0.1
USES_UP: Final = {"exhaustion", "disk"}  # the families of what uses something up, of which none is nothing to ask for


@dataclass(frozen=True, init=False)
class Simulator:
    """A load of one kind. Its fields are the units of its record, one of which is given, and its record's options.

    Raises `InputError` with the field's name for what is out of its range.
    """

    record: ClassVar[SimulatorRecord]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002  # each kind has its own, made from its fields
        raise TypeError("make one of the classes of scenarios.kinds")

    def __post_init__(self) -> None:
        label = self.record.name
        given: list[Unit] = [unit for unit in self.record.units if getattr(self, unit) is not None]
        if len(given) != 1:
            words = " or ".join(self.record.units)
            found = "neither" if not given else "both" if len(given) == len(self.record.units) == 2 else " and ".join(given)
            raise InputError("invalid_value", f"{label} needs either {words}, got {found}")
        shape = _strength(f"{label}.{given[0]}", given[0], getattr(self, given[0]))
        if self.record.family in USES_UP and not isinstance(shape, shapes.Custom) and not shape.peak(DURATION_MAX_S):
            message = f"{label}.{given[0]} must be above 0 at some time, got 0"
            raise InputError("invalid_value", message, "for a span without load there is pause")
        object.__setattr__(self, given[0], shape)
        options = {option.name: getattr(self, option.name) for option in self.record.options}
        for name, value in self.record.resolve_options(options, label).items():
            object.__setattr__(self, name, value)

    @property
    def unit(self) -> Unit:
        """Return the unit of the shape's values."""
        return next(unit for unit in self.record.units if getattr(self, unit) is not None)

    @property
    def shape(self) -> Shape:
        """Return the strength over time."""
        return cast("Shape", getattr(self, self.unit))

    def options(self) -> dict[str, Any]:
        """Return what travels to the node beside the shape: all options but texts that are empty."""
        values = {option.name: getattr(self, option.name) for option in self.record.options}
        return {name: value for name, value in values.items() if value != ""}


def levels(shape: Shape) -> dict[str, float]:
    """Return the values of a shape that are strengths, by field name (`levels[0]` for a step)."""
    found: dict[str, float] = {}
    for one in fields(shape):
        value = getattr(shape, one.name)
        if one.name == "levels":
            found |= {f"levels[{at}]": level for at, level in enumerate(value)}
        elif one.name not in ("duty", "function", "factor") and not one.name.endswith("_s"):
            found[one.name] = value
    return found


def _strength(label: str, unit: Unit, value: object) -> Shape:
    """Return a strength as a shape, its times and levels checked: fractions within 0 to 1, bytes and counts whole."""
    shape = value if isinstance(value, SHAPES) else shapes.Constant(check_number(label, value))
    for one in fields(shape):
        if one.name.endswith("_s"):
            check_number(f"{label}: {type(shape).__name__}.{one.name}", getattr(shape, one.name), PERIOD_MIN_S, DURATION_MAX_S)
    for name, level in levels(shape).items():
        place = label if isinstance(shape, shapes.Constant) else f"{label}: {type(shape).__name__}.{name}"
        if unit in ("bytes", "count"):
            check_whole(place, level, 0, LARGEST)
        else:
            check_number(place, level, 0.0, 1.0 if unit == "fraction" else LARGEST)
    return shape


def reshaped(simulator: Simulator, strength: float, pace: float) -> Simulator:
    """Return a simulator with all levels times `strength` and all times of its shape times `pace` (2: half as fast).

    Whole numbers are rounded down, so that shares never sum to more than the whole. Raises `InputError` (`invalid_value`) where
    the result is out of the simulator's range, or a function's time is to be changed.
    """
    shape = simulator.shape.scaled(strength)
    if pace != 1.0:
        shape = _paced(shape, pace)
    if simulator.unit in ("bytes", "count") and not isinstance(shape, shapes.Custom):
        shape = replace(shape, **_whole_levels(shape))
    return cast("Simulator", replace(cast("Any", simulator), **{simulator.unit: shape}))


def _paced(shape: Shape, pace: float) -> Shape:
    if isinstance(shape, shapes.Custom):
        message = f"the time of the function {shape.function!r} cannot be stretched"
        raise InputError("invalid_value", message, "write the function for the longer span")
    if isinstance(shape, shapes.Leak):
        return replace(shape, rate=shape.rate / pace)
    times = {one.name: getattr(shape, one.name) * pace for one in fields(shape) if one.name.endswith("_s")}
    return replace(shape, **times)


def _whole_levels(shape: Shape) -> dict[str, Any]:
    """Return each level rounded down to a whole number; what a product of floats lacks to one is forgiven."""

    def whole(level: float) -> float:
        return float(math.floor(level + 1e-6))

    if isinstance(shape, shapes.Steps):
        return {"levels": tuple(map(whole, shape.levels))}
    return {name: whole(level) for name, level in levels(shape).items()}
