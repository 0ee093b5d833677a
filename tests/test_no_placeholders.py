"""Every test asserts, or calls what does; none is empty, a placeholder, put out by a comment, or skipped without a reason.

Each rule is a function from the files of the tests to what breaks it, and each is shown to find planted examples.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from test_tidy import ROOT, Repository, Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
# What pytest and the standard library have that fails a test where something is not so.
ASSERTING = {"raises", "warns", "deprecated_call", "fail"}
STOOD_IN = re.compile(r"placeholder|dummy|not_?(yet_?)?(implemented|written)|(^|_)(todo|tbd)(_|$)", re.IGNORECASE)
PUT_OUT = re.compile(r"^\s*#+\s*(async\s+)?def\s+test_|^\s*#+\s*@pytest\.mark", re.MULTILINE)


def found_in(source: Source) -> Iterator[Function]:
    """Give the tests of a file: functions of its own and of its classes."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield node


def files_of_tests(sources: Iterable[Source]) -> Iterator[Source]:
    """Give the files that hold tests."""
    yield from (source for source in sources if source.name.rpartition("/")[2].startswith("test_"))


def _nothing(step: ast.stmt) -> bool:
    """Whether a step does nothing: `pass`, a docstring, `...`."""
    return isinstance(step, ast.Pass) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))


def _steps(function: ast.AST) -> Iterator[ast.AST]:
    """Give all within a function, but for what follows a `return` or `raise` in the same block: that is never run."""
    for _, value in ast.iter_fields(function):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _steps(child)
                if isinstance(child, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
                    break


def _says_something(test: ast.expr) -> bool:
    """Whether an assertion can fail: no constant, no tuple, nothing compared with itself, no `or True`."""
    if isinstance(test, (ast.Constant, ast.JoinedStr)) or (
        isinstance(test, (ast.Tuple, ast.List, ast.Dict)) and bool(ast.unparse(test)[1:-1])
    ):
        return False
    if isinstance(test, ast.Compare):
        return any(ast.unparse(one) != ast.unparse(test.left) for one in test.comparators)
    if isinstance(test, ast.BoolOp):
        return all(map(_says_something, test.values)) if isinstance(test.op, ast.Or) else any(map(_says_something, test.values))
    return True


def _called(node: ast.AST) -> str:
    """Return the last name of what is called, "" for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""


def _asserts(function: Function, helpers: set[str]) -> bool:
    """Whether a function asserts, raises an error of an assertion, or calls what does."""
    for node in _steps(function):
        if isinstance(node, ast.Assert) and _says_something(node.test):
            return True
        if isinstance(node, ast.Raise) and node.exc is not None and "AssertionError" in ast.unparse(node.exc):
            return True
        if isinstance(node, ast.Call):
            name, whole = _called(node), ast.unparse(node.func)
            if name in helpers or (name in ASSERTING and whole == f"pytest.{name}"):
                return True
    return False


def helpers_of(sources: Iterable[Source]) -> set[str]:
    """Return the names of functions and methods of the tests' own that assert, themselves or by others."""
    functions = [
        node
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("test_")
    ]
    known: set[str] = set()
    while found := {one.name for one in functions if one.name not in known and _asserts(one, known)}:
        known |= found
    return known


def every_test_asserts(sources: tuple[Source, ...]) -> Iterator[str]:
    """A test asserts something that could be otherwise, in a place that is reached."""
    helpers = helpers_of(sources)
    for source in files_of_tests(sources):
        for one in found_in(source):
            if not _asserts(one, helpers):
                yield f"{source.name}:{one.lineno} {one.name} asserts nothing"


def no_test_is_empty(sources: tuple[Source, ...]) -> Iterator[str]:
    """A test does something, and a file of tests has one."""
    for source in files_of_tests(sources):
        if not any(found_in(source)) and "TestCase" not in source.text:
            yield f"{source.name} has no test"
        yield from (f"{source.name}:{one.lineno} {one.name} is empty" for one in found_in(source) if all(map(_nothing, one.body)))


def no_test_stands_in_for_another(sources: tuple[Source, ...]) -> Iterator[str]:
    """No test is a placeholder by its name, and none was put out by making it a comment."""
    for source in files_of_tests(sources):
        yield from (
            f"{source.name}:{one.lineno} {one.name} stands in for a test" for one in found_in(source) if STOOD_IN.search(one.name[5:])
        )
        yield from (
            f"{source.name}:{source.text.count(chr(10), 0, found.end()) + 1} has a test in a comment"
            for found in PUT_OUT.finditer(source.text)
        )


def _reason(node: ast.Call, position: int) -> ast.expr | None:
    """Return what a call gives as its reason."""
    named = next((one.value for one in node.keywords if one.arg == "reason"), None)
    return named if named is not None else node.args[position] if len(node.args) > position else None


def every_skip_has_a_reason(sources: tuple[Source, ...]) -> Iterator[str]:
    """Whatever skips a test, or lets it fail, says why in words."""
    positions = {
        "pytest.skip": 0,
        "pytest.xfail": 0,
        "unittest.skip": 0,
        "pytest.mark.skip": 0,
        "pytest.mark.skipif": 9,
        "pytest.mark.xfail": 9,
    }
    for source in sources:
        called = {id(node.func) for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
        for node in ast.walk(source.tree):
            name = ast.unparse(node.func if isinstance(node, ast.Call) else node) if isinstance(node, (ast.Call, ast.Attribute)) else ""
            if name not in positions or id(node) in called:
                continue
            reason = _reason(node, positions[name]) if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Attribute) and ".mark." not in name:
                continue  # the function itself, handed on
            if reason is None or (isinstance(reason, ast.Constant) and len(str(reason.value or "").split()) < 2):
                yield f"{source.name}:{node.lineno} {name} gives no reason"


RULES: tuple[Callable[[tuple[Source, ...]], Iterator[str]], ...] = (
    every_test_asserts,
    no_test_is_empty,
    no_test_stands_in_for_another,
    every_skip_has_a_reason,
)


@pytest.fixture(scope="module")
def sources() -> tuple[Source, ...]:
    """Read the files of the tests once."""
    return tuple(Repository.read(ROOT).python("tests/"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_test_is_one(sources: tuple[Source, ...], rule: Callable[[tuple[Source, ...]], Iterator[str]]) -> None:
    """No test of this repository breaks the rule."""
    assert len(sources) > 100
    assert not (broken := list(rule(sources))), "\n".join(broken)


HELPER = "def checked(x):\n    assert x > 1\n\ndef twice(x):\n    checked(x)\n    return x\n\ndef plain(x):\n    return x\n"
GOOD = [
    "def test_a(x):\n    assert x",
    "def test_a(x):\n    with pytest.raises(OSError):\n        x()",
    "def test_a(x):\n    twice(x)",
    "def test_a(one):\n    one.checked(2)",
    "async def test_a(x):\n    for y in x:\n        if y:\n            assert y == x",
    "@pytest.mark.skipif(WINDOWS, reason='needs a kernel of Linux')\ndef test_a(x):\n    assert x",
    "def test_a(x):\n    pytest.skip(x.reason)\n    assert x",
    "def test_a(x):\n    if not x:\n        pytest.skip('no room here')\n    assert x()",
]
BAD = [
    (every_test_asserts, "def test_a(x):\n    x()"),
    (every_test_asserts, "def test_a(x):\n    plain(x)"),
    (every_test_asserts, "def test_a(x):\n    assert True"),
    (every_test_asserts, "def test_a(x):\n    assert (x, 'is so')"),
    (every_test_asserts, "def test_a(x):\n    assert x == x"),
    (every_test_asserts, "def test_a(x):\n    assert x() or True"),
    (every_test_asserts, "def test_a(x):\n    return\n    assert x"),
    (every_test_asserts, "class TestA:\n    def test_a(self):\n        print(self)"),
    (every_test_asserts, "def test_a(x):\n    try:\n        x()\n    except OSError:\n        print('failed')"),
    (every_test_asserts, "def test_a(x):\n    other.raises(x)"),
    (no_test_is_empty, "def test_a():\n    pass"),
    (no_test_is_empty, 'def test_a():\n    """It holds."""'),
    (no_test_is_empty, "async def test_a():\n    ..."),
    (no_test_is_empty, "import pytest\n"),
    (no_test_stands_in_for_another, "def test_placeholder(x):\n    assert x"),
    (no_test_stands_in_for_another, "def test_of_floods_todo(x):\n    assert x"),
    (no_test_stands_in_for_another, "def test_not_yet_written(x):\n    assert x"),
    (no_test_stands_in_for_another, "def test_a(x):\n    assert x\n\n# def test_b(x):\n#     assert x"),
    (no_test_stands_in_for_another, "def test_a(x):\n    assert x\n\n    # async def test_b(x):"),
    (every_skip_has_a_reason, "@pytest.mark.skip\ndef test_a(x):\n    assert x"),
    (every_skip_has_a_reason, "@pytest.mark.skip()\ndef test_a(x):\n    assert x"),
    (every_skip_has_a_reason, "@pytest.mark.skipif(x > 1)\ndef test_a(x):\n    assert x"),
    (every_skip_has_a_reason, "@pytest.mark.xfail\ndef test_a(x):\n    assert x"),
    (every_skip_has_a_reason, "@pytest.mark.xfail(strict=True)\ndef test_a(x):\n    assert x"),
    (every_skip_has_a_reason, "@pytest.mark.skip(reason='')\ndef test_a(x):\n    assert x"),
    (every_skip_has_a_reason, "def test_a(x):\n    pytest.skip()\n    assert x"),
    (every_skip_has_a_reason, "def test_a(x):\n    pytest.skip('flaky')\n    assert x"),
    (every_skip_has_a_reason, "CASES = [pytest.param(1, marks=pytest.mark.xfail)]\ndef test_a(x):\n    assert x"),
]


def planted(text: str) -> tuple[Source, ...]:
    """Return a file of tests with this, and one of helpers."""
    return Source("tests/support/helping.py", HELPER), Source("tests/unit/test_a.py", text)


@pytest.mark.parametrize(("rule", "text"), BAD, ids=lambda part: getattr(part, "__name__", ""))
def test_a_rule_finds_what_is_planted(rule: Callable[[tuple[Source, ...]], Iterator[str]], text: str) -> None:
    """Each example breaks its rule, and the message says where."""
    assert [message for message in rule(planted(text)) if message.startswith("tests/unit/test_a.py")]


@pytest.mark.parametrize("text", GOOD)
def test_no_rule_finds_what_is_in_order(text: str) -> None:
    """Tests that assert, by themselves or by others, and skips that say why, break none."""
    assert [message for rule in RULES for message in rule(planted(text))] == []


def test_what_is_read_is_the_repository() -> None:
    """All files of tests are seen, those in folders too, and this one."""
    names = {source.name for source in files_of_tests(Repository.read(ROOT).python("tests/"))}
    assert names == {path.relative_to(ROOT).as_posix() for path in Path(ROOT, "tests").rglob("test_*.py")}
