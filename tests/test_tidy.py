"""The rules of the house, each a function from the files to its violations; each is shown to find a bad sample as well."""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OF = {"actors": {"actors"}, "scenarios": {"actors", "scenarios"}, "cluster": {"actors", "scenarios", "cluster"}}
RAY_FILES = {"actors/shell.py", "cluster/ray_port.py"}
PURE_TESTS = ("tests/unit/", "tests/property/", "tests/simulation/")
GUARDIAN_ROOTS = ("actors/guardian/", "actors/guardian.py", "actors/undo.py", "actors/control.py", "actors/proc.py")
FUNCTION_LINES, FILE_LINES, TEST_FILE_LINES, EXPORTS = 70, 500, 800, 12  # test files hold tables of cases

# Files that may read a clock by other means than `actors.clock`, and why.
CLOCK_FILES = {
    "actors/clock.py": "it is the clock",
}
# Files that map memory and may name 4096, and why.
PAGE_FILES = {
    "actors/memory_access.py": "so many indexes of a pattern are compared",
    "actors/metrics/ring.py": "its header takes so much in the format of the file, whatever a page is",
    "actors/metrics/segment.py": "its header takes so much in the format of the file, whatever a page is",
}
PAGE_BYTES = {1 << 12, 1 << 14, 1 << 16}  # pages of 4, 16 and 64 KiB
# Functions that may be longer, and why.
LONG_FUNCTIONS: dict[str, str] = {}
# Files that may be longer, and why.
LONG_FILES: dict[str, str] = {
    "cluster/ray_port.py": "the only file of its package that may import Ray: every Ray call and every actor class is here",
    "cluster/metrics/store.py": "the log and Parquet forms of one directory share their coverage arithmetic",
}

BROAD = {"Exception", "BaseException"}

# Pieces, so that this file does not break its own rules.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error"]) + r")\b")
REGISTRIES = re.compile(r"pypi\.(org|python)|pythonhosted|npmjs\.|anaconda\.(org|com)|crates\.io|index-url")
MACHINE_PATHS = re.compile(r"(?<![\w.}>*])/(root|Users|home(?!/ray\b))/[\w.]|" + re.escape(f"{ROOT}/"))


@dataclass(frozen=True)
class Source:
    """One text file, named by its path from the root."""

    name: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def package(self) -> str:
        return self.name.partition("/")[0] if self.name.partition("/")[0] in LEFT_OF else ""

    def imports(self) -> Iterator[tuple[int, str, int]]:
        """Give (line, dotted name, level) of each import anywhere in the file; by `import_module` too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, 0) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                if node.module:
                    yield node.lineno, node.module, node.level
                else:
                    yield from ((node.lineno, alias.name, node.level) for alias in node.names)
            elif isinstance(node, ast.Call) and _called(node) in ("importlib.import_module", "import_module", "__import__"):
                yield from ((node.lineno, arg.value, 0) for arg in node.args[:1] if isinstance(arg, ast.Constant))


@dataclass(frozen=True)
class Repository:
    """The text files that are, or would be, committed under a folder."""

    root: Path
    sources: tuple[Source, ...] = field(default=())

    @classmethod
    def read(cls, root: Path) -> Repository:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, check=False)
        if listed.returncode == 0 and (root / ".git").exists():
            paths = [root / name for name in listed.stdout.decode().split("\0") if name]
        else:
            hidden = (".venv", ".git", "__pycache__", "build", "runs", ".mypy_cache", ".ruff_cache", ".hypothesis")
            paths = [path for path in root.rglob("*") if not set(path.relative_to(root).parts) & set(hidden)]
        found = []
        for path in sorted(paths):
            data = path.read_bytes() if path.is_file() else b"\0"
            if b"\0" not in data:
                found.append(Source(path.relative_to(root).as_posix(), data.decode("utf-8", errors="replace")))
        return cls(root, tuple(found))

    def python(self, *starts: str) -> Iterator[Source]:
        yield from (source for source in self.sources if source.name.endswith(".py") and source.name.startswith(starts or ("",)))

    def packages(self) -> Iterator[Source]:
        yield from (source for source in self.python() if source.package)

    def prose(self) -> Iterator[Source]:
        yield from (source for source in self.sources if source.name not in ("tests/test_tidy.py", "LICENSE"))


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _calls(source: Source) -> Iterator[tuple[int, str, ast.Call]]:
    yield from ((node.lineno, _called(node), node) for node in ast.walk(source.tree) if isinstance(node, ast.Call))


def imports_point_left(repository: Repository) -> Iterator[str]:
    """actors <- scenarios <- cluster; relative inside a package, absolute across; tests are imported by nobody."""
    for source in repository.packages():
        for line, name, level in source.imports():
            top = name.partition(".")[0]
            if level == 0 and top == source.package:
                yield f"{source.name}:{line} imports its own package {name} absolutely"
            elif level == 0 and top in (*LEFT_OF, "tests", "support") and top not in LEFT_OF[source.package]:
                yield f"{source.name}:{line} imports {name}, which lies to the right"
            elif level > len(Path(source.name).parts) - 1:
                yield f"{source.name}:{line} leaves its package with a relative import"


def ray_in_two_files(repository: Repository) -> Iterator[str]:
    """Ray is imported by the one shell of each package that has one."""
    for source in repository.packages():
        for line, name, level in source.imports():
            if level == 0 and name.partition(".")[0] == "ray" and source.name not in RAY_FILES:
                yield f"{source.name}:{line} imports {name}"


def clock_in_one_file(repository: Repository) -> Iterator[str]:
    """Time comes from `actors.clock`, so that it can be virtual."""
    for source in repository.packages():
        if source.name in CLOCK_FILES:
            continue
        yield from (f"{source.name}:{line} imports time" for line, name, level in source.imports() if level == 0 and name == "time")
        for line, name, _ in _calls(source):
            if re.search(r"\b(datetime|date)\.(now|utcnow|today)$|(^|\.)clock_gettime(_ns)?$|^os\.times$", name):
                yield f"{source.name}:{line} reads a clock by {name}"


def no_sleep_in_pure_tests(repository: Repository) -> Iterator[str]:
    """Unit, property and simulation tests wait for nothing."""
    for source in repository.python(*PURE_TESTS):
        for line, name, node in _calls(source):
            yielding = name == "asyncio.sleep" and ast.unparse(node.args[0]) == "0" if node.args else False
            if name in ("time.sleep", "sleep", "asyncio.sleep") and not yielding:
                yield f"{source.name}:{line} sleeps"


def guardian_is_standard_library(repository: Repository) -> Iterator[str]:
    """What the guardian process loads runs without site-packages: its modules, and all that they import of ours."""
    known = {source.name: source for source in repository.packages()}
    todo = [name for name in known if name.startswith(GUARDIAN_ROOTS)]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line, module, level in known[name].imports():
            if level == 0 and module.partition(".")[0] not in sys.stdlib_module_names:
                yield f"{name}:{line} imports {module}, which is not in the standard library"
            base = "/".join([*Path(name).parts[: len(Path(name).parts) - level], *module.split(".")])
            todo += [path for path in (f"{base}.py", f"{base}/__init__.py") if level and path in known]


def functions_are_short(repository: Repository) -> Iterator[str]:
    """A function past the bound wants a reason in LONG_FUNCTIONS."""
    for source in repository.python():
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES and f"{source.name}:{node.name}" not in LONG_FUNCTIONS:
                    yield f"{source.name}:{node.lineno} {node.name} has {lines} lines, at most {FUNCTION_LINES}"


def files_are_short(repository: Repository) -> Iterator[str]:
    """A file past the bound wants a reason in LONG_FILES."""
    for source in repository.python():
        lines = len(source.text.splitlines())
        bound = TEST_FILE_LINES if source.name.rpartition("/")[2].startswith("test_") else FILE_LINES
        if lines > bound and source.name not in LONG_FILES:
            yield f"{source.name} has {lines} lines, at most {bound}"


def nothing_unfinished(repository: Repository) -> Iterator[str]:
    """What is not built is an issue, not a mark in a file."""
    for source in repository.prose():
        for number, line in enumerate(source.text.splitlines(), 1):
            if found := UNFINISHED.search(line):
                yield f"{source.name}:{number} has {found[0]}"


def _does_nothing(handler: ast.ExceptHandler) -> bool:
    """Whether a handler is empty, or merely goes on after any error whatever."""
    names = {ast.unparse(part) for part in ast.walk(handler.type)} if handler.type else set()
    constant = (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant) for step in handler.body)
    if all(isinstance(step, ast.Pass) or still for step, still in zip(handler.body, constant, strict=True)):
        return True
    return bool(names & BROAD) and all(isinstance(step, (ast.Continue, ast.Break)) for step in handler.body)


def no_error_is_silent(repository: Repository) -> Iterator[str]:
    """An error is handled, reported, or suppressed by its narrow name."""
    for source in repository.python():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or _does_nothing(node)):
                yield f"{source.name}:{node.lineno} drops an error; use contextlib.suppress(NarrowError) and say why"
        for line, name, node in _calls(source):
            if name in ("contextlib.suppress", "suppress") and any(ast.unparse(arg) in BROAD for arg in node.args):
                yield f"{source.name}:{line} suppresses everything"


def modules_say_what_they_are(repository: Repository) -> Iterator[str]:
    """Every module but those that hold only tests, which speak for themselves, begins with a docstring."""
    for source in repository.python():
        if not source.name.rpartition("/")[2].startswith("test_") and not ast.get_docstring(source.tree):
            yield f"{source.name} has no docstring"


def every_test_says_what_it_holds(repository: Repository) -> Iterator[str]:
    """A test's docstring is the property in one sentence."""
    for source in repository.python("tests/"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node):
                yield f"{source.name}:{node.lineno} {node.name} has no docstring"


def no_test_file_hides_another(repository: Repository) -> Iterator[str]:
    """Test folders are no packages, so two test files of one name would hide each other."""
    seen: dict[str, str] = {}
    for source in repository.python("tests/"):
        base = source.name.rpartition("/")[2]
        if base == "__init__.py" and source.name != "tests/support/__init__.py":
            yield f"{source.name}: test folders are no packages; tests/ray would hide Ray"
        elif base.startswith("test_") and base in seen:
            yield f"{source.name} has the name of {seen[base]}"
        seen[base] = source.name


def packages_export_little(repository: Repository) -> Iterator[str]:
    """About ten names per `__init__` (its `__all__`, or what it defines and takes from our modules); the rest is private."""
    for source in repository.packages():
        if not source.name.endswith("/__init__.py"):
            continue
        names: set[str] = set()
        for node in source.tree.body:
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] in LEFT_OF):
                names |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = {ast.unparse(part) for part in (node.targets if isinstance(node, ast.Assign) else [node.target])}
                if "__all__" in targets:
                    names = set(ast.literal_eval(node.value)) if node.value else names
                    break
                names |= targets
        public = sorted(name for name in names if not name.startswith("_"))
        if len(public) > EXPORTS:
            yield f"{source.name} has {len(public)} public names, at most {EXPORTS}: {', '.join(public)}"


def nothing_of_one_machine(repository: Repository) -> Iterator[str]:
    """No package registry and no path of somebody's machine is written anywhere."""
    for source in repository.prose():
        for number, line in enumerate(source.text.splitlines(), 1):
            if found := REGISTRIES.search(line) or MACHINE_PATHS.search(line):
                yield f"{source.name}:{number} has {found[0]!r}"


def _anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown file's headings, as its viewers make them."""
    titles = re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links_resolve(repository: Repository) -> Iterator[str]:
    """A relative link in Markdown leads to a file, and its anchor to a heading."""
    for source in repository.sources:
        if not source.name.endswith(".md"):
            continue
        text = re.sub(r"^```.*?^```|`[^`\n]+`", "", source.text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", text):
            path, _, anchor = target.partition("#")
            here = repository.root / source.name
            there = (here.parent / path).resolve() if path else here
            if re.match(r"[a-z]+:", target):
                continue
            if not there.exists():
                yield f"{source.name} links to {target}, which is not there"
            elif anchor and there.suffix == ".md" and anchor not in _anchors(there.read_text()):
                yield f"{source.name} links to {target}, which has no such heading"


def wheel_holds_three_packages(repository: Repository) -> Iterator[str]:
    """What setuptools finds is exactly our three packages, whole, with every file that they need."""
    tools = tomllib.loads((repository.root / "pyproject.toml").read_text())["tool"]["setuptools"]
    include = tools["packages"]["find"]["include"]
    folders = {Path(source.name).parent.as_posix().replace("/", ".") for source in repository.sources if "/" in source.name}
    found = {folder for folder in folders if any(fnmatch.fnmatchcase(folder, pattern) for pattern in include)}
    if (tops := {folder.partition(".")[0] for folder in found}) != set(LEFT_OF):
        yield f"the wheel would hold {sorted(tops)}"
    names = {source.name for source in repository.sources}
    yield from (f"{folder} has no __init__.py" for folder in sorted(found) if f"{folder.replace('.', '/')}/__init__.py" not in names)
    data = [pattern for patterns in tools.get("package-data", {}).values() for pattern in patterns]
    for source in repository.sources:
        if source.package and not source.name.endswith(".py") and not any(fnmatch.fnmatch(source.name, f"*{pattern}") for pattern in data):
            yield f"{source.name} would be missing in the wheel: name it in [tool.setuptools.package-data]"


def page_size_is_asked(repository: Repository) -> Iterator[str]:
    """What maps memory asks for the size of a page (`mmap.PAGESIZE`): none is a literal beside `mmap` calls or named a page."""
    for source in repository.packages():
        if source.name in PAGE_FILES or not any(name == "mmap" for _, name, level in source.imports() if level == 0):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named = any("page" in ast.unparse(target).lower() for target in targets)
                if named and node.value is not None and _integer(node.value) in PAGE_BYTES:
                    yield f"{source.name}:{node.lineno} says how large a page is; ask mmap.PAGESIZE"
            elif isinstance(node, (ast.Constant, ast.BinOp)) and _integer(node) == 1 << 12:
                yield f"{source.name}:{node.lineno} has the literal 4096; ask mmap.PAGESIZE"


def _integer(node: ast.expr) -> int | None:
    """Return the value of a whole number that is written as it is or as a shift, None for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        left, right = _integer(node.left), _integer(node.right)
        return None if left is None or right is None else left << right
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


CHECKS: tuple[Callable[[Repository], Iterator[str]], ...] = (
    imports_point_left,
    ray_in_two_files,
    clock_in_one_file,
    no_sleep_in_pure_tests,
    guardian_is_standard_library,
    functions_are_short,
    files_are_short,
    nothing_unfinished,
    no_error_is_silent,
    modules_say_what_they_are,
    every_test_says_what_it_holds,
    no_test_file_hides_another,
    packages_export_little,
    nothing_of_one_machine,
    links_resolve,
    wheel_holds_three_packages,
    page_size_is_asked,
)


@pytest.fixture(scope="module")
def repository() -> Repository:
    """Read the repository once."""
    return Repository.read(ROOT)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_rule_of_the_house(repository: Repository, check: Callable[[Repository], Iterator[str]]) -> None:
    """No file breaks this rule."""
    assert not (broken := list(check(repository))), "\n".join(broken)


FIND = '[tool.setuptools.packages.find]\ninclude = ["actors*", "scenarios*", "cluster*"]\n'
BAD = [
    (imports_point_left, "actors/a.py", "from cluster import settings"),
    (imports_point_left, "scenarios/a.py", "def f():\n    import cluster.dose"),
    (imports_point_left, "cluster/a.py", "from cluster.dose import x"),
    (imports_point_left, "actors/a.py", "from support import waiting"),
    (imports_point_left, "actors/a.py", "from ..cluster import settings"),
    (ray_in_two_files, "cluster/driver.py", "def f():\n    from ray.util import state"),
    (ray_in_two_files, "actors/a.py", "importlib.import_module('ray')"),
    (clock_in_one_file, "actors/a.py", "from time import monotonic"),
    (clock_in_one_file, "cluster/a.py", "import time"),
    (clock_in_one_file, "cluster/a.py", "import datetime as d\nd.datetime.now(d.UTC)"),
    (no_sleep_in_pure_tests, "tests/unit/test_a.py", "import time\ntime.sleep(1)"),
    (no_sleep_in_pure_tests, "tests/simulation/test_a.py", "async def f():\n    await asyncio.sleep(0.1)"),
    (guardian_is_standard_library, "actors/guardian/core.py", "import psutil"),
    (guardian_is_standard_library, "actors/undo.py", "from .other import x"),
    (functions_are_short, "cluster/a.py", "def f():\n" + "    x = 1\n" * 70),
    (files_are_short, "cluster/a.py", "x = 1\n" * 501),
    (nothing_unfinished, "cluster/a.py", "x = 1  # TO" + "DO: later"),
    (nothing_unfinished, "Makefile", "# FIX" + "ME"),
    (no_error_is_silent, "cluster/a.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (no_error_is_silent, "cluster/a.py", "try:\n    f()\nexcept:\n    g()"),
    (no_error_is_silent, "cluster/a.py", "for x in y:\n    try:\n        f()\n    except Exception:\n        continue"),
    (no_error_is_silent, "cluster/a.py", "with contextlib.suppress(Exception):\n    f()"),
    (modules_say_what_they_are, "cluster/a.py", "x = 1"),
    (packages_export_little, "cluster/__init__.py", "__all__ = " + repr([f"n{i}" for i in range(13)])),
    (every_test_says_what_it_holds, "tests/unit/test_a.py", "class TestA:\n    def test_a(self):\n        assert 1"),
    (no_test_file_hides_another, "tests/ray/test_twice.py", ""),
    (no_test_file_hides_another, "tests/ray/__init__.py", ""),
    (packages_export_little, "actors/__init__.py", "from .a import " + ", ".join(f"n{i}" for i in range(13))),
    (nothing_of_one_machine, "docs/a.md", "pip install -i https://pypi" + ".org/simple"),
    (nothing_of_one_machine, "cluster/a.py", f"x = '{ROOT}/actors'"),
    (nothing_of_one_machine, "Makefile", "\tcd /home" + "/jane/src"),
    (links_resolve, "docs/a.md", "see [b](b.md)"),
    (links_resolve, "docs/a.md", "# Some title\n\nsee [it](#other-title)"),
    (page_size_is_asked, "actors/a.py", "import mmap\nmap = mmap.mmap(-1, 4096)"),
    (page_size_is_asked, "actors/a.py", "import mmap\ndef f(size=4 << 10): ..."),
    (page_size_is_asked, "actors/a.py", "import mmap\nPAGE = 1 << 14"),
    (wheel_holds_three_packages, "actors_old/a.py", ""),
    (wheel_holds_three_packages, "actors/inner/a.py", ""),
    (wheel_holds_three_packages, "cluster/page.html", "<html>"),
]


@pytest.mark.parametrize(("check", "name", "text"), BAD, ids=lambda part: getattr(part, "__name__", ""))
def test_rule_finds_a_bad_sample(tmp_path: Path, check: Callable[[Repository], Iterator[str]], name: str, text: str) -> None:
    """The rule holds in a clean repository, and one bad file breaks it."""
    clean = {"pyproject.toml": FIND, "actors/other.py": '"""Not for the guardian."""\nimport numpy', "tests/unit/test_twice.py": '"""A."""'}
    clean |= {f"{package}/__init__.py": '"""A package."""' for package in LEFT_OF}
    for path, content in clean.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert list(check(Repository.read(tmp_path))) == []
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    assert list(check(Repository.read(tmp_path)))


@pytest.mark.parametrize(("package", "but"), [("scenarios", ""), ("actors", "actors.shell")])
def test_importing_a_package_loads_no_ray(package: str, but: str) -> None:
    """All modules of the package import without Ray being loaded, but for the shell that is its door to Ray."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        f"names = [m.name for m in pkgutil.walk_packages(package.__path__, {package + '.'!r}) if m.name != {but!r}]\n"
        "[importlib.import_module(name) for name in names if not name.endswith('__main__')]\n"
        "print(len(names), sorted(name for name in sys.modules if name.partition('.')[0] == 'ray')[:3])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.split(
        " ", 1
    )
    assert int(said[0]) > 0
    assert said[1].strip() == "[]"
