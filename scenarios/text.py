"""Scenarios as text: YAML in, YAML out. Every complaint names its line and column and what was expected.

`load(dump(scenario)) == scenario`, and `dump(load(text))` is the canonical form, a fixed point. Comments are not kept.
"""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.errors import InputError

from . import document
from .document import Entries, Items, Node, Place, wrong
from .form import SCENARIO, json_schema
from .model import VERSION, Scenario, check_version
from .schema import placed

__all__ = ["apply_settings", "dump", "from_data", "json_schema", "load", "load_file", "to_data"]


def load(content: str | bytes, source: str = "<text>") -> Scenario:
    """Return the scenario of a YAML document.

    Raises `InputError` whose message begins with `source:line:column`; the code says what is wrong (`invalid_document`,
    `unknown_key`, `invalid_value`, `unknown_name`, `unsupported_version`).
    """
    return _from_node(document.read(content, source))


def from_data(data: Any, source: str = "<data>") -> Scenario:
    """Return the scenario of JSON-like data, as `to_data` gives it; raises `InputError` as `load` does, without lines."""
    return _from_node(document.from_data(data, Place(source)))


def _from_node(node: Node) -> Scenario:
    if not isinstance(node, Entries):
        raise wrong(node.place, "invalid_document", f"expected a scenario (version, name, plan), found {document.show(node)}")
    _check_version(node)
    scenario: Scenario = SCENARIO.read(node, "")
    return scenario


def _check_version(node: Entries) -> None:
    """Judge the version before anything else: another version may have other keys."""
    found = node.nodes.get("version")
    if found is None:
        raise wrong(
            node.place, "unsupported_version", f"expected the key version: {VERSION}", f"begin the document with version: {VERSION}"
        )
    try:
        check_version(found.value if isinstance(found, document.Leaf) else document.show(found))
    except InputError as error:
        raise placed(found, "", error) from error


def to_data(scenario: Scenario) -> dict[str, Any]:
    """Return the canonical document as JSON-like data: version, name and plan, and what differs from its default."""
    data = {"version": scenario.version, **SCENARIO.write(scenario)}
    return {key: value for key, value in data.items() if value != {}}


def dump(scenario: Scenario) -> str:
    """Return the canonical YAML of a scenario."""
    return document.write(to_data(scenario))


def load_file(name: str | Path) -> Scenario:
    """Return the scenario of a `.yaml` or `.yml` file, or of a `.py` file that has a `Scenario` named `scenario`.

    Raises `InputError` (`not_found`, or what is wrong in it). A Python file is executed.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".py"):
        raise InputError("invalid_value", f"{path}: a scenario is a .yaml or a .py file", "or a catalogue name, see `list scenarios`")
    content = _read(path)
    return _run_python(path) if path.suffix == ".py" else load(content, str(path))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(document.BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise InputError("not_found", f"{path} does not exist", "see `stress-cluster list scenarios` for the catalogue") from error
    except (OSError, ValueError) as error:
        raise InputError("not_found", f"{path} cannot be read: {error}") from error


def _run_python(path: Path) -> Scenario:
    try:
        found = runpy.run_path(str(path), run_name="stress_cluster_scenario").get("scenario")
    except InputError as error:
        raise InputError(error.code, f"{_line_in(path, error)}: {error.message}", error.hint) from error
    except (Exception, SystemExit) as error:
        what = f"{_line_in(path, error)}: {type(error).__name__}: {error}"
        raise InputError("invalid_document", what, "a scenario file must run without an error") from error
    if not isinstance(found, Scenario):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise InputError("invalid_document", f"{path}: expected a Scenario named `scenario`, found {kind}")
    return found


def _line_in(path: Path, error: BaseException) -> str:
    """Return the last line of the file that led to an error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno or 1}:{error.offset or 1}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def apply_settings(scenario: Scenario, settings: Sequence[str]) -> Scenario:
    """Return the scenario with `PATH=VALUE` settings applied to its canonical document.

    A path goes by keys and list indexes, as in `plan.together.0.CpuLoad.fraction=30%`; VALUE is YAML. Keys that the document
    leaves at their default may be set. Raises `InputError` (`invalid_setting`, or what the document complains of).
    """
    node = document.from_data(to_data(scenario), Place(f"scenario {scenario.name}"))
    for setting in settings:
        path, value = _split(setting)
        node = _put(node, path, value, setting)
    return _from_node(node)


def _split(setting: str) -> tuple[list[str], Node]:
    path, equals, value = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError("invalid_setting", f"--set {setting!r}: expected PATH=VALUE", "such as --set plan.CpuLoad.fraction=30%")
    try:
        node = document.read(value, "value")
    except InputError as error:
        raise InputError("invalid_setting", f"--set {setting!r}: {error.message}", error.hint) from error
    return keys, _moved(node, Place(f"--set {setting}"))


def _moved(node: Node, place: Place) -> Node:
    """Return the same tree, all of it at one place."""
    if isinstance(node, Entries):
        return Entries(place, {key: _moved(value, place) for key, value in node.nodes.items()}, dict.fromkeys(node.nodes, place))
    if isinstance(node, Items):
        return Items(place, tuple(_moved(value, place) for value in node.nodes))
    return document.Leaf(place, node.value)


def _put(node: Node | None, path: list[str], value: Node, setting: str) -> Node:
    """Return the tree with one part replaced or added."""
    if not path:
        return value
    place = value.place
    key, rest = path[0], path[1:]
    if node is None:
        node = Entries(place, {}, {})
    if isinstance(node, Items):
        if not key.isdecimal() or int(key) >= len(node.nodes):
            raise wrong(place, "invalid_setting", f"{key!r} is no index of a list of {len(node.nodes)}", "indexes begin at 0")
        nodes = list(node.nodes)
        nodes[int(key)] = _put(nodes[int(key)], rest, value, setting)
        return Items(node.place, tuple(nodes))
    if not isinstance(node, Entries):
        raise wrong(place, "invalid_setting", f"{key!r} leads into {document.show(node)}, which has no parts")
    known = dict(node.nodes)
    known[key] = _put(known.get(key), rest, value, setting)
    return Entries(node.place, known, {**node.keys, key: node.keys.get(key, place)})
