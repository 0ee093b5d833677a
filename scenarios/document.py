"""YAML as a small tree whose every part knows its line and column. Refuses what a scenario has no use for.

Reads the events of the YAML parser, never its objects: no tags, no anchors, no aliases, so nothing is constructed or
multiplied. Size, depth and parts are bounded while reading. Pure: text in, tree out.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml import events as yaml_events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from actors.errors import InputError

BYTES_MAX: Final = 1 << 20
DEPTH_MAX: Final = 60
PARTS_MAX: Final = 20_000
SCALAR_MAX: Final = 10_000
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,40}\Z")
_FLOAT: Final = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
_MEANINGS: Final[tuple[tuple[float | bool | None, tuple[str, ...]], ...]] = (
    (None, ("", "~", "null", "Null", "NULL")),
    (True, ("true", "True", "TRUE")),
    (False, ("false", "False", "FALSE")),
    (math.inf, (".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF")),
    (-math.inf, ("-.inf", "-.Inf", "-.INF")),
    (math.nan, (".nan", ".NaN", ".NAN")),
)
_FIXED: Final[dict[str, float | bool | None]] = {word: meaning for meaning, words in _MEANINGS for word in words}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a source, and line and column from 1 (0: the source has no lines)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar: text, number, truth value or nothing, by the core schema of YAML 1.2."""

    place: Place
    value: str | float | bool | None


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping with words as keys; `keys` says where each key stands."""

    place: Place
    nodes: Mapping[str, Node]
    keys: Mapping[str, Place]


Node = Leaf | Items | Entries


def wrong(place: Place, code: str, message: str, hint: str = "") -> InputError:
    """Return an `InputError` that begins with its place."""
    return InputError(code, f"{place}: {message}", hint)


def show(node: Node) -> str:
    """Return what a node is, in words for a message."""
    if isinstance(node, Entries):
        return f"a mapping with {', '.join(list(node.nodes)[:3])}" if node.nodes else "an empty mapping"
    if isinstance(node, Items):
        return f"a list of {len(node.nodes)}"
    if node.value is None:
        return "nothing"
    if isinstance(node.value, str):
        return f"the text {node.value[:60]!r}"
    return f"{node.value!r}"


def read(content: str | bytes, source: str) -> Node:
    """Return the tree of one YAML document; raises `InputError` (`invalid_document`) with the place."""
    text = _decode(content, source)
    builder = _Builder(source)
    try:
        return builder.document(YAML(typ="safe", pure=True).parse(io.StringIO(text)))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source)
        raise wrong(place, "invalid_document", f"this is not YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise wrong(Place(source), "invalid_document", f"this is not YAML: {str(error).splitlines()[0][:200]}") from error


def _decode(content: str | bytes, source: str) -> str:
    place = Place(source)
    if len(content) > BYTES_MAX:
        raise wrong(place, "invalid_document", f"the document has {len(content)} bytes, at most {BYTES_MAX} are read")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1 if isinstance(content, bytes) else 0
        message = f"byte {error.start} is not UTF-8; a scenario is text"
        raise wrong(Place(source, line, 1), "invalid_document", message) from error
    strange = next((char for char in text if char in _FORBIDDEN), None)
    if strange is not None:
        at = text.index(strange)
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise wrong(Place(source, line, column), "invalid_document", f"expected text, found the character {strange!a}")
    return text


_FORBIDDEN: Final = frozenset(chr(code) for code in range(32) if chr(code) not in "\t\n\r") | {chr(0x7F), "\ufffe", "\uffff"}


class _Builder:
    """Builds the tree from events and counts what it takes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.parts = 0

    def document(self, events: Iterator[Any]) -> Node:
        """Return the root of the only document."""
        root: Node | None = None
        for event in events:
            if isinstance(event, yaml_events.DocumentStartEvent) and root is not None:
                raise wrong(self._place(event), "invalid_document", "expected one document, found a second")
            if isinstance(event, yaml_events.NodeEvent):
                root = self._node(event, events, 1)
        if root is None or (isinstance(root, Leaf) and root.value is None):
            raise wrong(Place(self.source), "invalid_document", "the document is empty", "see `stress-cluster schema`")
        return root

    def _place(self, event: Any) -> Place:
        mark = event.start_mark
        return Place(self.source, mark.line + 1, mark.column + 1)

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        self.parts += 1
        self._check(event, depth)
        if isinstance(event, yaml_events.ScalarEvent):
            return Leaf(self._place(event), event.value if event.style else resolve(event.value))
        if isinstance(event, yaml_events.SequenceStartEvent):
            inner = iter(lambda: next(events), None)
            ends = yaml_events.SequenceEndEvent
            nodes = []
            for item in inner:
                if isinstance(item, ends):
                    break
                nodes.append(self._node(item, events, depth + 1))
            return Items(self._place(event), tuple(nodes))
        return self._entries(event, events, depth)

    def _entries(self, start: Any, events: Iterator[Any], depth: int) -> Entries:
        nodes: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        for event in events:
            if isinstance(event, yaml_events.MappingEndEvent):
                break
            key = self._node(event, events, depth + 1)
            if not isinstance(key, Leaf) or not isinstance(key.value, str):
                raise wrong(key.place, "invalid_document", f"a key must be a word, found {show(key)}")
            if key.value in nodes:
                raise wrong(key.place, "invalid_document", f"the key {key.value!r} stands here twice, first at {keys[key.value]}")
            keys[key.value] = key.place
            nodes[key.value] = self._node(next(events), events, depth + 1)
        return Entries(self._place(start), nodes, keys)

    def _check(self, event: Any, depth: int) -> None:
        place = self._place(event)
        if depth > DEPTH_MAX:
            raise wrong(place, "invalid_document", f"this is nested deeper than {DEPTH_MAX} levels")
        if self.parts > PARTS_MAX:
            raise wrong(place, "invalid_document", f"the document has more than {PARTS_MAX} parts")
        if event.anchor is not None:
            raise wrong(place, "invalid_document", f"anchors and aliases are not read, found {event.anchor!r}", "write the value out")
        if getattr(event, "tag", None) is not None:
            raise wrong(place, "invalid_document", f"tags are not read, found {event.tag!s}", "leave the tag out")
        if isinstance(event, yaml_events.ScalarEvent) and len(event.value) > SCALAR_MAX:
            raise wrong(place, "invalid_document", f"this text is longer than {SCALAR_MAX} characters")


def resolve(text: str) -> str | float | bool | None:
    """Return what an unquoted scalar means: the core schema of YAML 1.2 without octal and hexadecimal."""
    if text in _FIXED:
        return _FIXED[text]
    if _INTEGER.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def from_data(data: Any, place: Place) -> Node:
    """Return JSON-like data as a tree whose parts all stand at one place; raises `InputError` for any other data."""
    if data is None or isinstance(data, (str, bool, int, float)):
        return Leaf(place, data)
    if isinstance(data, Mapping):
        if not all(isinstance(key, str) for key in data):
            raise wrong(place, "invalid_document", "keys must be words")
        nodes = {key: from_data(value, place) for key, value in data.items()}
        return Entries(place, nodes, dict.fromkeys(nodes, place))
    if isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray)):
        return Items(place, tuple(from_data(value, place) for value in data))
    raise wrong(place, "invalid_document", f"expected JSON-like data, found {type(data).__name__}")


def write(data: Mapping[str, Any]) -> str:
    """Return JSON-like data as block YAML; the same data gives the same text."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1 << 20
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its annotation says None only
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()
