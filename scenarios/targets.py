"""Which nodes a scenario may harm: selectors over what a plan knows of a node, and the protection of the head. Pure.

Selection ranks the nodes and takes the first of them, so that a node that goes changes no other choice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from actors.errors import InputError, RefusedError
from actors.messages import NodeSpec

from .units import check_choice, check_number, check_text, check_whole

ROLES: Final = ("any", "worker", "head")
CHOICES: Final = ("first", "seeded")
LIST_MAX: Final = 10_000
_DIGITS: Final = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class Targets:
    """Selectors; a node must match all that are given. `count` or `fraction` then bounds how many are taken.

    `labels` may be given as a mapping and is kept as sorted pairs. `choice`: `first` by name, or `seeded` by the run's seed.
    """

    role: str = "any"
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] | Mapping[str, str] = ()
    count: int | None = None
    fraction: float | None = None
    choice: str = "first"

    def __post_init__(self) -> None:
        check_choice("Targets.role", self.role, ROLES)
        check_choice("Targets.choice", self.choice, CHOICES)
        object.__setattr__(self, "names", _words("Targets.names", self.names))
        object.__setattr__(self, "addresses", _words("Targets.addresses", self.addresses))
        object.__setattr__(self, "labels", label_tuples("Targets.labels", self.labels))
        if self.count is not None:
            object.__setattr__(self, "count", check_whole("Targets.count", self.count, 1, LIST_MAX))
        if self.fraction is not None:
            check_number("Targets.fraction", self.fraction, 0.0, 1.0)
            if not self.fraction:
                raise InputError("invalid_value", "Targets.fraction must be above 0, got 0", "leave the scenario out instead")
        if self.count is not None and self.fraction is not None:
            raise InputError("invalid_value", "Targets.count and Targets.fraction exclude each other")


def derive_seed(seed: int, *path: object) -> int:
    """Return a branch's own seed from the run's seed and the branch's path: 63 bits, the same on every machine."""
    text = "\x1f".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts n2 before n10."""
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in _DIGITS.split(name) if part)


def is_named(node: NodeSpec, targets: Targets) -> bool:
    """Tell whether these selectors name this very node, which lifts the head's protection."""
    return node.name in targets.names or node.address in targets.addresses or (node.is_head and targets.role == "head")


def is_protected(node: NodeSpec, targets: Targets, node_count: int) -> bool:
    """Tell whether the node is a head node that must not be harmed: neither named nor the only one."""
    return node.is_head and node_count > 1 and not is_named(node, targets)


def select(targets: Targets, nodes: Sequence[NodeSpec], seed: int, *, allow_head: bool = False) -> tuple[NodeSpec, ...]:
    """Return the nodes that these selectors take of a cluster, in natural order of their names.

    Raises `RefusedError`: `no_target` when fewer match than are asked for or a named node is missing, `protected` when only
    the protected head matches.
    """
    _check_present(targets, nodes)
    matched = [node for node in nodes if _matches(node, targets)]
    free = [node for node in matched if allow_head or not is_protected(node, targets, len(nodes))]
    if matched and not free:
        names = ", ".join(node.name for node in matched)
        raise RefusedError("protected", f"only the protected head node {names} matches the targets", "name it, or pass --allow-head")
    return _take(targets, free, len(nodes), seed)


def narrow(targets: Targets, within: Sequence[NodeSpec], seed: int) -> tuple[NodeSpec, ...]:
    """Return the nodes that a branch's own selectors take of those the scenario may harm; raises as `select` does."""
    _check_present(targets, within)
    return _take(targets, [node for node in within if _matches(node, targets)], len(within), seed)


def _take(targets: Targets, found: list[NodeSpec], of: int, seed: int) -> tuple[NodeSpec, ...]:
    wanted = _how_many(targets, len(found))
    if not found or wanted > len(found):
        asked = f"{wanted} nodes" if wanted > 1 else "a node"
        raise RefusedError(
            "no_target",
            f"the targets ask for {asked} with {describe(targets)}; {len(found)} of {of} nodes match",
            "change the targets, or see `stress-cluster doctor` for the cluster's nodes and labels",
        )
    ranked = sorted(found, key=lambda node: (derive_seed(seed, node.name), node.name)) if targets.choice == "seeded" else _sorted(found)
    return tuple(_sorted(ranked[:wanted]))


def _how_many(targets: Targets, found: int) -> int:
    if targets.count is not None:
        return targets.count
    if targets.fraction is not None:
        return max(1, int(targets.fraction * found + 1e-9))
    return max(1, found)


def _sorted(nodes: Iterable[NodeSpec]) -> list[NodeSpec]:
    return sorted(nodes, key=lambda node: natural_key(node.name))


def _matches(node: NodeSpec, targets: Targets) -> bool:
    return not mismatch(node, targets)


def mismatch(node: NodeSpec, targets: Targets) -> str:
    """Return in which way a node is not what the selectors ask for, or nothing where it is."""
    if targets.role != "any" and (targets.role == "head") != node.is_head:
        return f"it is not of role {targets.role}"
    if targets.names and node.name not in targets.names:
        return f"it is not named {', '.join(targets.names)}"
    if targets.addresses and node.address not in targets.addresses:
        return f"it is not at address {', '.join(targets.addresses)}"
    for key, value in label_pairs(targets):
        found = node.labels.get(key)
        if found != value:
            return f"it has no label {key}={value}" + ("" if found is None else f", but {key}={found}")
    return ""


def label_pairs(targets: Targets) -> tuple[tuple[str, str], ...]:
    """Return the labels as sorted pairs."""
    assert isinstance(targets.labels, tuple), "labels are pairs once checked"
    return targets.labels


def describe(targets: Targets) -> str:
    """Return the selectors in words."""
    words = [] if targets.role == "any" else [f"role {targets.role}"]
    words += [f"label {key}={value}" for key, value in label_pairs(targets)]
    words += [f"name {', '.join(targets.names)}"] if targets.names else []
    words += [f"address {', '.join(targets.addresses)}"] if targets.addresses else []
    return " and ".join(words) or "any role"


def _check_present(targets: Targets, nodes: Sequence[NodeSpec]) -> None:
    for kind, wanted, have in (
        ("named", targets.names, {node.name for node in nodes}),
        ("at address", targets.addresses, {node.address for node in nodes}),
    ):
        missing = [word for word in wanted if word not in have]
        if missing:
            raise RefusedError("no_target", f"no node {kind} {', '.join(missing)} is among the nodes that may be targets")


def _words(label: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise InputError("invalid_value", f"{label} must be a list of names, got {value!r}")
    words = tuple(_word(f"{label}[{at}]", word) for at, word in enumerate(value))
    if len(set(words)) != len(words):
        raise InputError("invalid_value", f"{label} holds a name twice")
    return words


def _word(label: str, value: object) -> str:
    word = check_text(label, value)
    if not word or "\n" in word:
        raise InputError("invalid_value", f"{label} must be one line of text, got {word!r}")
    return word


def label_tuples(label: str, value: object) -> tuple[tuple[str, str], ...]:
    """Return a mapping of names to values as sorted pairs; raises `InputError` (`invalid_value`)."""
    items = value.items() if isinstance(value, Mapping) else value
    if not isinstance(items, Iterable) or isinstance(items, str):
        raise InputError("invalid_value", f"{label} must be a mapping of names to values, got {value!r}")
    pairs = []
    for item in items:
        if not isinstance(item, tuple) or len(item) != 2:
            raise InputError("invalid_value", f"{label} must be a mapping of names to values, got {item!r}")
        pairs.append((_word(f"{label} key", item[0]), check_text(f"{label} value", item[1])))
    if len({key for key, _ in pairs}) != len(pairs):
        raise InputError("invalid_value", f"{label} holds a name twice")
    return tuple(sorted(pairs))
