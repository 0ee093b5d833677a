"""The table of error codes is closed in both directions: what is raised is listed, and what is listed is raised."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from actors.errors import CODES

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("actors", "scenarios", "cluster") for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}
MAKERS = {"Ended": 0, "_refuse": 1, "wrong": 1}  # our functions that make an error of a code: where the code stands among their arguments


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def error_classes(trees: dict[str, ast.Module]) -> set[str]:
    """Return the names of StressError and all that descends from it."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"StressError"}
    while more := {name for name, its in bases.items() if its & found} - found:
        found |= more
    return found


def codes_given(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Return each code that is given to an error when it is made, with one place: constants only, also both branches of a choice."""
    classes, found = error_classes(trees), dict[str, str]()
    for place, tree in trees.items():
        for node in ast.walk(tree):
            given: list[ast.expr] = []
            if isinstance(node, ast.Call):
                at = 0 if name_of(node.func) in classes else MAKERS.get(name_of(node.func))
                given = node.args[at : at + 1] if at is not None else []
            elif isinstance(node, ast.keyword) and node.arg == "error" and isinstance(node.value, ast.Tuple):
                given = node.value.elts[:1]  # what an effect answers; the guardian refuses with it
            for one in given:
                for value in [one.body, one.orelse] if isinstance(one, ast.IfExp) else [one]:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                        found.setdefault(value.value, f"{place}:{node.value.lineno if isinstance(node, ast.keyword) else node.lineno}")
    return found


GIVEN = codes_given(TREES)


@pytest.mark.parametrize("code", CODES)
def test_every_listed_code_is_raised_somewhere(code: str) -> None:
    """`list errors` lists nothing that no program can meet."""
    assert code in GIVEN, f"{code} is in actors/errors.py and nothing raises it: remove it, or raise it"


def test_every_raised_code_is_listed() -> None:
    """A code that users may match is in the table."""
    assert {code: place for code, place in GIVEN.items() if code not in CODES} == {}


def test_a_code_in_words_alone_counts_as_dead() -> None:
    """The search sees errors being made, in all their forms, and not the word in a docstring, a comparison or another call."""
    source = '''
class Ours(HarnessError):
    """Of lost things."""

def f(error, busy):
    """Raise expired."""
    if error.code == "foreign" or error in {"halted"}:
        print("timeout", "protected")
    raise Ours("busy" if busy else "internal", "budget")
    _refuse(error, "os", "")
    return Applied(1, error=("journal", "capability"))
'''
    assert set(codes_given({"errors": TREES["actors/errors.py"], "x": ast.parse(source)})) == {"busy", "internal", "os", "journal"}
