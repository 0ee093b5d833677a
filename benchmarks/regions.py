"""Functions of a source file as pieces of a measurement: their lines, what they are counted by, and a digest that tells of a change.

A stored figure names the digest of each piece it was measured on. A piece that is another today was not measured: `still_measured` counts
all of it as not run, so that a figure stands as long as what changed since could not have brought it under its goal.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES: Final = (ast.If, ast.For, ast.AsyncFor, ast.While)
Counts = tuple[int, int, int, int]  # lines, those that were run, branches, those that were run


@dataclass(frozen=True, slots=True)
class Region:
    """A function, or with name "" all that is outside of functions. Comments, empty lines and docstrings are no part of `digest`."""

    name: str
    lines: frozenset[int]
    digest: str
    statements: int
    branches: int


def regions_of(text: str) -> tuple[Region, ...]:
    """Return the regions of a source; a line is of the innermost function around it, and a name that is there twice has a number."""
    tree = ast.parse(text)
    spans = list(_functions(tree, ""))
    owner = dict.fromkeys(range(1, len(text.splitlines()) + 1), "")
    for name, node in spans:  # outer ones come first
        owner.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), name))
    told = _docstring_lines(tree)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno not in told]
    return tuple(_region(name, owner, told, text, nodes) for name in ("", *(name for name, _ in spans)))


def measured(text: str, one: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest and the counts (in the order of `Counts`) of each region of a file, in words, by a report of coverage.

    Regions in which nothing is counted have none.
    """
    found = {}
    for region in regions_of(text):
        run, not_run = (sum(line in region.lines for line in one[key]) for key in ("executed_lines", "missing_lines"))
        taken, not_taken = (sum(origin in region.lines for origin, _ in one[key]) for key in ("executed_branches", "missing_branches"))
        if run + not_run:
            found[region.name] = f"{region.digest} {run + not_run} {run} {taken + not_taken} {taken}"
    return found


def still_measured(text: str, stored: Mapping[str, str]) -> tuple[Counts, list[str]]:
    """Return the counts of a file as it is now, with whatever was not measured as it is counted as not run, and the names of that."""
    total, changed = [0, 0, 0, 0], []
    for region in regions_of(text):
        digest, *counts = stored.get(region.name, f"none {region.statements} 0 {region.branches} 0").split()
        if digest != region.digest and region.statements:
            counts = [str(region.statements), "0", str(region.branches), "0"]
            changed.append(region.name or "outside of functions")
        total = [a + int(b) for a, b in zip(total, counts, strict=True)]
    return (total[0], total[1], total[2], total[3]), changed


def _functions(node: ast.AST, outer: str, taken: set[str] | None = None) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    taken = set() if taken is None else taken
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", "") if isinstance(child, (*_FUNCTIONS, ast.ClassDef)) else ""
        full = ".".join(filter(None, (outer, name)))
        if isinstance(child, _FUNCTIONS):
            full = next(one for one in _numbered(full) if one not in taken)
            taken.add(full)
            yield full, child
        yield from _functions(child, full, taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}#{number}" for number in range(2, 1000))


def _docstring_lines(tree: ast.AST) -> set[int]:
    first = (node.body[0] for node in ast.walk(tree) if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)) and node.body)
    texts = (one for one in first if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str))
    return {line for one in texts for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)}


def _region(name: str, owner: Mapping[int, str], told: set[int], text: str, nodes: Iterable[ast.stmt]) -> Region:
    lines = frozenset(line for line, of in owner.items() if of == name and line not in told)
    written = (line.strip() for at, line in enumerate(text.splitlines(), 1) if at in lines)
    kept = "\n".join(line for line in written if line and not line.startswith("#"))
    ours = [node for node in nodes if node.lineno in lines]
    branches = sum(2 for node in ours if isinstance(node, _BRANCHES))
    return Region(name, lines, hashlib.sha256(kept.encode()).hexdigest()[:12], len(ours), branches)
