"""How each part of a scenario reads from a document, writes to one, and is described by JSON Schema: one table for all three.

A `Kind` is a small value with three answers. Records are tables of fields over the dataclasses of the model, so a field that is
added there and forgotten here fails a test, and what the reader accepts is what the schema says.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final, Protocol

from actors import shape as shapes
from actors.errors import InputError
from actors.shape import Shape

from . import units
from .document import Entries, Items, Leaf, Node, show, wrong

Schema = dict[str, Any]


class Kind(Protocol):
    """One kind of value in a document."""

    def read(self, node: Node, label: str) -> Any:
        """Return the value of a node; raises `InputError` with its place."""
        ...

    def write(self, value: Any) -> Any:
        """Return JSON-like data that reads back as the value."""
        ...

    def schema(self) -> Schema:
        """Return the JSON Schema of what `read` accepts."""
        ...


def named(label: str, message: str) -> str:
    """Return a message that says which part of the document it is about; the whole has no name."""
    return f"{label}: {message}" if label else message


def expected(node: Node, label: str, what: str, hint: str = "") -> InputError:
    """Return the error of a value that is of another kind."""
    return wrong(node.place, "invalid_value", named(label, f"expected {what}, found {show(node)}"), hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that offers the nearest known word, or all of them."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(words)}"


def unknown_key(node: Entries, key: str, label: str, known: Iterable[str]) -> InputError:
    """Return the error of a key that is not known at its place."""
    return wrong(node.keys[key], "unknown_key", named(label, f"unknown key {key!r}"), nearest(key, known))


def placed(node: Node, label: str, error: InputError) -> InputError:
    """Return an error of a record's own check with the place of the node to blame."""
    return wrong(node.place, error.code, named(label, error.message), error.hint)


@dataclass(frozen=True, slots=True)
class Text:
    """Text; numbers and truth values must be quoted to be one."""

    def read(self, node: Node, label: str) -> str:
        """Return the text."""
        if isinstance(node, Leaf) and isinstance(node.value, str):
            return node.value
        quotes = "put it in quotes" if isinstance(node, Leaf) and node.value is not None else ""
        raise expected(node, label, "text", quotes)

    def write(self, value: str) -> str:
        """Return the text."""
        return value

    def schema(self) -> Schema:
        """Return the schema."""
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words."""

    known: tuple[str, ...]

    def read(self, node: Node, label: str) -> str:
        """Return the word."""
        if isinstance(node, Leaf) and isinstance(node.value, str):
            if node.value in self.known:
                return node.value
            raise expected(node, label, f"one of {', '.join(self.known)}", nearest(node.value, self.known))
        raise expected(node, label, f"one of {', '.join(self.known)}")

    def write(self, value: str) -> str:
        """Return the word."""
        return value

    def schema(self) -> Schema:
        """Return the schema."""
        return {"enum": list(self.known)}


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number, without a unit."""

    low: int = 0
    high: int | None = None

    def read(self, node: Node, label: str) -> int:
        """Return the number; its range is checked by the record."""
        if isinstance(node, Leaf) and isinstance(node.value, int) and not isinstance(node.value, bool):
            return node.value
        raise expected(node, label, "a whole number")

    def write(self, value: float) -> int:
        """Return the number without a point: shapes keep theirs as floats."""
        return int(value)

    def schema(self) -> Schema:
        """Return the schema."""
        bound = {} if self.high is None else {"maximum": self.high}
        return {"type": "integer", "minimum": self.low, **bound}


@dataclass(frozen=True, slots=True)
class Number:
    """A number without a unit."""

    low: float = 0.0

    def read(self, node: Node, label: str) -> float:
        """Return the number; its range is checked by the record."""
        if isinstance(node, Leaf) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return _in_range(node, label, node.value)
        raise expected(node, label, "a number")

    def write(self, value: float) -> float:
        """Return the number, whole ones without a point."""
        return _plain(value)

    def schema(self) -> Schema:
        """Return the schema."""
        return {"type": "number", "minimum": self.low}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a unit: `duration` (plain numbers are seconds), `size` (bytes), or `fraction` (0 to 1)."""

    of: str

    def read(self, node: Node, label: str) -> float:
        """Return seconds, bytes or a fraction."""
        if isinstance(node, Leaf) and isinstance(node.value, str):
            try:
                return _QUANTITIES[self.of].parse(node.value)
            except InputError as error:
                raise placed(node, label, error) from error
        if not isinstance(node, Leaf) or isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            raise expected(node, label, _QUANTITIES[self.of].words)
        value = _in_range(node, label, node.value)
        if value < 0:
            raise expected(node, label, _QUANTITIES[self.of].words)
        if self.of == "fraction" and value > 1:
            raise expected(node, label, _QUANTITIES[self.of].words, f"write {node.value:g}%" if value <= 100 else "")
        if self.of == "size" and value != int(value):
            raise expected(node, label, "a whole number of bytes")
        return value

    def write(self, value: float) -> str | float:
        """Return the shortest exact text."""
        return _QUANTITIES[self.of].format(int(value) if self.of == "size" else value)

    def schema(self) -> Schema:
        """Return the schema."""
        quantity = _QUANTITIES[self.of]
        number = {"type": "integer" if self.of == "size" else "number", "minimum": 0}
        return {"anyOf": [{**number, "maximum": quantity.high}, {"type": "string", "pattern": quantity.pattern, "minLength": 1}]}


@dataclass(frozen=True, slots=True)
class _QuantityWords:
    words: str
    pattern: str
    high: float
    parse: Callable[[str], float]
    format: Callable[[Any], str | float]


_QUANTITIES: Final[Mapping[str, _QuantityWords]] = {
    "duration": _QuantityWords(
        "a duration such as 30s, 2m or 1h30m", units.DURATION_PATTERN, units.DURATION_MAX_S, units.parse_duration, units.format_duration
    ),
    "size": _QuantityWords("a size such as 512MiB or 1GB", units.SIZE_PATTERN, units.SIZE_MAX_BYTES, units.parse_size, units.format_size),
    "fraction": _QuantityWords("a share such as 60% or 0.6", units.FRACTION_PATTERN, 1, units.parse_fraction, units.format_fraction),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A threshold's value: a number, or one with any unit; the record tells which unit its metric has."""

    def read(self, node: Node, label: str) -> Any:
        """Return the number and the kind of its unit (`number` for none)."""
        if not isinstance(node, Leaf) or not isinstance(node.value, str):
            return Number().read(node, label), "number"
        for of, quantity in _QUANTITIES.items():
            try:
                return quantity.parse(node.value), of
            except InputError:
                continue
        raise expected(node, label, "a number, a duration, a size or a share")

    def write(self, value: Any) -> Any:
        """Return a (number, kind) pair as its shortest exact text."""
        number, of = value
        exact = of in _QUANTITIES and 0 <= number <= _QUANTITIES[of].high and (of != "size" or number == int(number))
        return Quantity(of).write(number) if exact else _plain(number)

    def schema(self) -> Schema:
        """Return the schema."""
        texts = [{"type": "string", "pattern": quantity.pattern, "minLength": 1} for quantity in _QUANTITIES.values()]
        return {"anyOf": [{"type": "number"}, *texts]}


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of one kind."""

    item: Kind
    least: int = 0

    def read(self, node: Node, label: str) -> tuple[Any, ...]:
        """Return the items."""
        if not isinstance(node, Items):
            raise expected(node, label, "a list")
        return tuple(self.item.read(item, f"{label}[{at}]") for at, item in enumerate(node.nodes))

    def write(self, value: Iterable[Any]) -> list[Any]:
        """Return the items."""
        return [self.item.write(item) for item in value]

    def schema(self) -> Schema:
        """Return the schema."""
        return {"type": "array", "items": self.item.schema(), **({"minItems": self.least} if self.least else {})}


@dataclass(frozen=True, slots=True)
class Labels:
    """A mapping of words to texts, kept as pairs."""

    def read(self, node: Node, label: str) -> tuple[tuple[str, str], ...]:
        """Return sorted pairs."""
        if not isinstance(node, Entries):
            raise expected(node, label, "a mapping of names to texts")
        return tuple(sorted((key, Text().read(value, f"{label}.{key}")) for key, value in node.nodes.items()))

    def write(self, value: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the mapping."""
        return dict(value)

    def schema(self) -> Schema:
        """Return the schema."""
        return {"type": "object", "additionalProperties": {"type": "string"}}


@dataclass(frozen=True, slots=True)
class CoresKind:
    """`all`, or a number of cores."""

    def read(self, node: Node, label: str) -> int | str:
        """Return the number or `all`."""
        if isinstance(node, Leaf) and node.value == "all":
            return "all"
        if isinstance(node, Leaf) and isinstance(node.value, str):
            raise expected(node, label, "`all` or a number of cores")
        return Whole().read(node, label)

    def write(self, value: int | str) -> int | str:
        """Return the number or `all`."""
        return value

    def schema(self) -> Schema:
        """Return the schema."""
        return {"anyOf": [{"const": "all"}, {"type": "integer", "minimum": 1}]}


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a record: its name in the document, the attribute behind it, and its kind."""

    key: str
    attribute: str
    kind: Kind
    help: str


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping that makes one dataclass. Keys at their default are not written."""

    cls: Any
    table: tuple[Field, ...]
    help: str = ""

    def read(self, node: Node, label: str) -> Any:
        """Return the record."""
        if not isinstance(node, Entries):
            raise expected(node, label, f"a mapping with {', '.join(item.key for item in self.table[:4])}")
        return self.make(node, label, self.values(node, label, ()))

    def values(self, node: Entries, label: str, beside: tuple[str, ...]) -> dict[str, Any]:
        """Return the attributes that a mapping gives; keys in `beside` are read by someone else."""
        known = {item.key: item for item in self.table}
        for key in node.nodes:
            if key not in known and key not in beside:
                raise unknown_key(node, key, label, (*known, *beside))
        missing = [item.key for item in self.table if item.key not in node.nodes and item.attribute in self.required()]
        if missing:
            raise wrong(node.place, "invalid_document", named(label, f"expected the key {missing[0]!r}, found {show(node)}"))
        return {
            item.attribute: item.kind.read(node.nodes[item.key], _join(label, item.key)) for item in self.table if item.key in node.nodes
        }

    def make(self, node: Entries, label: str, values: Mapping[str, Any]) -> Any:
        """Return the dataclass; its own checks are reported at the key to blame."""
        try:
            return self.cls(**values)
        except InputError as error:
            raise placed(self._blamed(node, error), label, error) from error

    def _blamed(self, node: Entries, error: InputError) -> Node:
        for item in self.table:
            if error.message.startswith(f"{self.cls.__name__}.{item.attribute}") and item.key in node.nodes:
                return node.nodes[item.key]
        return node

    def required(self) -> set[str]:
        """Return the attributes that have no default."""
        return {item.name for item in fields(self.cls) if item.default is MISSING and item.default_factory is MISSING}

    def defaults(self) -> dict[str, Any]:
        """Return the default of each attribute that has one."""
        made = {item.name: item.default_factory() for item in fields(self.cls) if item.default_factory is not MISSING}
        return made | {item.name: item.default for item in fields(self.cls) if item.default is not MISSING}

    def write(self, value: Any) -> dict[str, Any]:
        """Return the keys whose values differ from their defaults."""
        defaults, unset = self.defaults(), object()
        changed = [item for item in self.table if getattr(value, item.attribute) != defaults.get(item.attribute, unset)]
        return {item.key: item.kind.write(getattr(value, item.attribute)) for item in changed}

    def schema(self) -> Schema:
        """Return the schema."""
        properties = {item.key: {**item.kind.schema(), "description": item.help} for item in self.table}
        required = [item.key for item in self.table if item.attribute in self.required()]
        about = {"description": self.help} if self.help else {}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **about}


@dataclass(frozen=True, slots=True)
class OneOf:
    """A mapping with exactly one key, which names what its value is."""

    kinds: Mapping[str, Record]

    def read(self, node: Node, label: str) -> Any:
        """Return what the only key names."""
        key, entries = only_key(node, label, self.kinds)
        return self.kinds[key].read(entries.nodes[key], _join(label, key))

    def write(self, value: Any) -> dict[str, Any]:
        """Return the value under the key of its class."""
        key = next(key for key, record in self.kinds.items() if type(value) is record.cls)
        return {key: self.kinds[key].write(value)}

    def schema(self) -> Schema:
        """Return the schema."""
        return {"oneOf": [_single(key, record.schema()) for key, record in self.kinds.items()]}


def only_key(node: Node, label: str, known: Iterable[str]) -> tuple[str, Entries]:
    """Return the only key of a mapping; raises `InputError` when there is another number of them or it is not known."""
    words = tuple(known)
    if not isinstance(node, Entries):
        raise expected(node, label, f"one of {', '.join(words)}")
    for key in node.nodes:
        if key not in words:
            raise unknown_key(node, key, label, words)
    if len(node.nodes) != 1:
        raise expected(node, label, f"exactly one of {', '.join(words)}")
    return next(iter(node.nodes)), node


def _single(key: str, schema: Schema) -> Schema:
    return {"type": "object", "properties": {key: schema}, "required": [key], "additionalProperties": False}


def _shape_record(cls: Any, of: str, helps: Mapping[str, str]) -> Record:
    """Return a shape's table: times lose their unit, levels take the strength's."""
    level = _level(of)
    kinds: dict[str, Kind] = {"duty": Quantity("fraction"), "levels": Listed(level, least=1), "function": Text()}
    table = []
    for item in fields(cls):
        if item.name == "factor":
            continue  # what `scaled` multiplies by, not what an author writes
        kind = kinds.get(item.name, Quantity("duration") if item.name.endswith("_s") else level)
        table.append(Field(_shape_key(item.name), item.name, kind, helps[item.name]))
    return Record(cls, tuple(table), (cls.__doc__ or "").strip())


def _level(of: str) -> Kind:
    """Return how one level of a strength is written."""
    return Whole() if of == "count" else Number() if of == "number" else Quantity(of)


def _shape_key(name: str) -> str:
    return {"peak_level": "peak"}.get(name, name.removesuffix("_s"))


_SHAPE_HELP: Final[Mapping[str, str]] = {
    "start": "level at the start",
    "end": "level from then on",
    "over_s": "how long the way from start to end takes",
    "levels": "the steps, in order",
    "each_s": "how long each step lasts",
    "low": "lowest level",
    "high": "highest level",
    "base": "level between peaks",
    "peak_level": "level within a peak",
    "period_s": "from one start to the next",
    "length_s": "how long each peak lasts",
    "duty": "share of the period spent high",
    "rate": "how much is added in each second",
    "function": "name of a shape that an installed package offers",
    "limit": "what no value may be above; it is what is reserved",
}


@dataclass(frozen=True, slots=True)
class Strength:
    """A load shape, or one level for a constant one. Levels are fractions (`60%`), sizes (`512MiB`), counts or plain numbers."""

    of: str

    def kinds(self) -> Mapping[str, Record]:
        """Return the table of shapes that can be written out."""
        return {name: _shape_record(cls, self.of, _SHAPE_HELP) for name, cls in shapes.KINDS.items() if cls is not shapes.Constant}

    def read(self, node: Node, label: str) -> Shape | float:
        """Return a shape or a level."""
        if isinstance(node, Leaf):
            level: float = _level(self.of).read(node, label)
            return level
        shape: Shape = OneOf(self.kinds()).read(node, label)
        return shape

    def write(self, value: Shape) -> Any:
        """Return the level of a constant shape, else the shape under its name."""
        if isinstance(value, shapes.Constant):
            return _level(self.of).write(value.level)
        return OneOf(self.kinds()).write(value)

    def schema(self) -> Schema:
        """Return the schema, by reference: it stands in several places."""
        return {"$ref": f"#/$defs/strength_{self.of}"}

    def definition(self) -> Schema:
        """Return what the reference stands for."""
        return {"anyOf": [_level(self.of).schema(), *OneOf(self.kinds()).schema()["oneOf"]]}


def _in_range(node: Node, label: str, value: float) -> float:
    try:
        return units.check_number(label, value, -units.DURATION_MAX_S * 1e12)
    except (InputError, OverflowError) as error:
        raise expected(node, label, "a finite number") from error


def _plain(value: float) -> float:
    return int(value) if value == int(value) and abs(value) < units.SIZE_MAX_BYTES else value


def _join(label: str, key: str) -> str:
    return f"{label}.{key}" if label else key
