"""No code is there twice: the same statements, whatever their local names, docstrings and annotations, are found across all three packages.

What is compared are runs of neighbouring statements in one block, of at least `LINES` lines when each simple statement is one. Imports and
values that a class or a module states are no code.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "scenarios", "cluster")
LINES = 6
STATED = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
ANNOTATIONS = ("annotation", "returns", "type_comment", "ctx", "kind")

Span = tuple[str, int, int]  # file, first and last line


def is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """Yield each run of neighbouring statements that are code."""
    for node in ast.walk(tree):
        states = isinstance(node, (ast.Module, ast.ClassDef))
        for name in ("body", "orelse", "finalbody"):
            found: list[ast.stmt] = []
            part = getattr(node, name, None)
            for statement in part if isinstance(part, list) else ():
                if states and isinstance(statement, STATED):
                    yield found
                    found = []
                elif not is_docstring(statement):
                    found.append(statement)
            yield found


def lines(statement: ast.stmt) -> int:
    """Return how many lines a statement has when every simple one, and every head of a block, is one line."""
    inner = [one for one in ast.walk(statement) if isinstance(one, (ast.stmt, ast.ExceptHandler, ast.match_case))]
    return sum(not (isinstance(one, ast.stmt) and is_docstring(one)) for one in inner)


def form(statements: Sequence[ast.stmt]) -> tuple[object, ...]:
    """Return what statements do, with local names counted in the order in which they come."""
    names: dict[str, int] = {}
    found: list[object] = []

    def add(value: object) -> None:
        if isinstance(value, ast.AST):
            found.append(type(value).__name__)
            for name, part in ast.iter_fields(value):
                if name in ("id", "arg") and isinstance(part, str) and not isinstance(value, ast.keyword):
                    found.append(names.setdefault(part, len(names)))
                elif name not in ANNOTATIONS:
                    add(part)
        elif isinstance(value, list):
            found.append(len(value))
            for part in value:
                if not (isinstance(part, ast.stmt) and is_docstring(part)):
                    add(part)
        else:
            found.append(value)

    for statement in statements:
        add(statement)
    return tuple(found)


def runs(name: str, source: str) -> Iterator[tuple[tuple[object, ...], Span]]:
    """Yield each smallest run of statements that has enough lines."""
    for block in blocks(ast.parse(source)):
        sizes = [lines(statement) for statement in block]
        for first in range(len(block)):
            last, size = first, sizes[first]
            while size < LINES and last + 1 < len(block):
                last += 1
                size += sizes[last]
            if size >= LINES:
                yield form(block[first : last + 1]), (name, block[first].lineno, block[last].end_lineno or 0)


def duplicates(sources: dict[str, str]) -> list[list[Span]]:
    """Return every run that is in more than one place, as those places."""
    places: dict[tuple[object, ...], set[Span]] = defaultdict(set)
    for name, source in sources.items():
        for key, span in runs(name, source):
            places[key].add(span)
    return sorted(sorted(spans) for spans in places.values() if len(spans) > 1)


def test_no_code_is_there_twice() -> None:
    """Neither in two files nor twice in one."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 100
    assert duplicates({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}) == []


ONE = '''
def read(path):
    """Return how much is there."""
    found = 0
    with open(path) as file:
        for line in file:
            if line.startswith("total"):
                found += int(line.split()[1])
    return found
'''
CALLED_OTHERWISE = """
class Reader:
    limit: int = 5
    def used(self, place: str) -> int:
        total: int
        first(self)
        total = 0
        with open(place) as rows:
            for row in rows:
                if row.startswith("total"):
                    total += int(row.split()[1])
        return total
"""


@pytest.mark.parametrize(
    ("other", "found"),
    [
        pytest.param(ONE, True, id="the-same"),
        pytest.param(CALLED_OTHERWISE, True, id="with-other-names-inside-another"),
        pytest.param(ONE.replace("[1]", "[2]"), False, id="another-number"),
        pytest.param(ONE.replace("startswith", "endswith"), False, id="another-method"),
        pytest.param(ONE.replace("found += int", "path += int"), False, id="another-name-of-the-two"),
        pytest.param("import a\nimport b\nA = 1\nB: int = 2\nC = 3\nD = 4\nE = 5\n", False, id="values-are-no-code"),
    ],
)
def test_what_is_found(other: str, found: int) -> None:
    """Copies with other names are found; what does something else is not."""
    assert bool(duplicates({"a.py": ONE, "b.py": other})) is found
