"""The classes of the simulators, each made from its record when asked for. `kinds.pyi`, made by `stub`, tells type checkers of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import Any, Final, cast

from actors.on_demand import OnDemand
from actors.option import Option
from actors.shape import Shape
from actors.simulator import REGISTRY, SimulatorRecord

from .simulators import Simulator


def _kind_of(name: str) -> type[Simulator]:
    """Return the class of a record."""
    record = REGISTRY[name]
    only = len(record.units) == 1
    strengths = [(unit, Shape | float) if only else (unit, Shape | float | None, field(default=None)) for unit in record.units]
    options = [(option.name, type(option.default), field(default=option.default)) for option in record.options]
    about = {"record": record, "__doc__": record.summary, "__module__": __name__}
    made = make_dataclass(record.name, [*strengths, *options], bases=(Simulator,), namespace=about, frozen=True)
    return cast("type[Simulator]", made)


KINDS: Final[Mapping[str, type[Simulator]]] = OnDemand(REGISTRY, _kind_of)
__all__ = ["KINDS", *KINDS]  # noqa: PLE0604  # names of records


def __getattr__(name: str) -> Any:
    if name in KINDS:
        return KINDS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def stub() -> str:
    """Return the text of `kinds.pyi`."""
    return _HEAD + "\n".join(_class(record) for record in REGISTRY.values())


_HEAD: Final = """# Made by scenarios.kinds.stub() from the simulators' records; a test compares.
from collections.abc import Mapping
from typing import Final, Literal

from actors.shape import Shape

from .simulators import Simulator

KINDS: Final[Mapping[str, type[Simulator]]]

def stub() -> str: ...

"""


def _class(record: SimulatorRecord) -> str:
    default = "" if len(record.units) == 1 else " | None = None"
    strengths = [f"{unit}: Shape | float{default}" for unit in record.units]
    options = [f"{option.name}: {_type(option)} = ..." for option in record.options]
    names = [f"    {unit}: Shape{' | None' if default else ''}" for unit in record.units]
    names += [f"    {option.name}: {_type(option)}" for option in record.options]
    parameters = "".join(f"        {one},\n" for one in (*strengths, *options))
    init = f"    def __init__(\n        self,\n{parameters}    ) -> None: ..."
    return "\n".join([f"class {record.name}(Simulator):", *names, init, ""])


def _type(option: Option) -> str:
    """Return an option's type, as a type checker reads it."""
    if option.kind == "choice":
        return f"Literal[{', '.join(repr(choice) for choice in option.choices)}]".replace("'", '"')
    return {"integer": "int", "bytes": "int", "cores": "int | str", "flag": "bool", "text": "str", "path": "str"}.get(option.kind, "float")
