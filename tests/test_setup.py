"""Set-up: the pins cover what is asked for, and the make targets fail with a message that helps."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


@pytest.mark.parametrize(
    "line", [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
)
def test_every_dependency_is_pinned_within_its_bounds(line: str) -> None:
    """constraints.txt has an exact version of each dependency, and it fulfils pyproject.toml."""
    wanted = Requirement(line)
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)], prereleases=True)


def make(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run make with our Makefile in another folder, as if no make ran around it: `make test` hands on its own level and variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST_ARGS", "ARGS"))}
    argv = ("make", "-f", str(ROOT / "Makefile"), *argv)
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with only what make compares."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


@pytest.mark.parametrize("python", ["old", "absent"])
def test_make_says_so_when_python_is_too_old_or_absent(clone: Path, python: str) -> None:
    """Without a Python of 3.11 or newer nothing is made, and the message tells how to name another."""
    if python == "old":
        (clone / "old").write_text("#!/bin/sh\nexit 1\n")
        (clone / "old").chmod(0o755)
    done = make(clone, "run", f"PYTHON=./{python}")
    assert done.returncode == 2
    assert "is missing or older than 3.11; name another: make PYTHON=" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        pytest.param("run", 'run "burst" --nodes 3', id="run-is-burst-on-three-nodes"),
        pytest.param("test", "-m pytest", id="test"),
        pytest.param("check", "-m ruff format --check .", id="check"),
        pytest.param("soak", "--soak -m soak", id="soak"),
        pytest.param("bench", "for bench in benchmarks/bench_*.py", id="bench"),
        pytest.param("simulate", 'tests/simulation --seeds "200"', id="simulate"),
    ],
)
def test_a_second_make_installs_nothing(clone: Path, target: str, says: str) -> None:
    """With fresh stamps a target goes straight to its command; after a change of the pins it installs first."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed", ".installed-test", ".installed-bench"):
        (clone / ".venv" / name).touch()
    assert says in (fresh := make(clone, "-n", target).stdout)
    assert "pip install" not in fresh
    (clone / ".venv" / ".installed").unlink()
    (clone / ".venv" / ".installed-test").unlink()
    (clone / ".venv" / ".installed-bench").unlink()
    assert "pip install" in make(clone, "-n", target).stdout


def installed(clone: Path, python: str) -> None:
    """Put a fresh environment into the clone whose Python is this script."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").write_text(f"#!/bin/sh\n{python}\n")
    (clone / ".venv" / "bin" / "python").chmod(0o755)
    for name in (".installed", ".installed-test", ".installed-bench"):
        (clone / ".venv" / name).touch()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param([], 'run "burst" --nodes 3', id="three-raylets"),
        pytest.param(["NODES=5"], 'run "burst" --nodes 5', id="as-many-as-said"),
        pytest.param(["ARGS=--seed 7"], 'run "burst" --nodes 3 --seed 7', id="other-options-stand-beside-it"),
        pytest.param(["ARGS=--nodes 2"], 'run "burst"  --nodes 2', id="nodes-once"),
        pytest.param(["ARGS=--nodes=2"], 'run "burst"  --nodes=2', id="nodes-once-with-equals"),
        pytest.param(["ARGS=--yes --address auto"], 'run "burst"  --yes --address auto', id="a-cluster-has-its-own-nodes"),
        pytest.param(["ARGS=--address=auto"], 'run "burst"  --address=auto', id="a-cluster-with-equals"),
    ],
)
def test_make_run_asks_for_raylets_only_where_nothing_else_is_said(clone: Path, given: list[str], says: str) -> None:
    """`--nodes` is a default of `make run`: an address or a number of nodes in ARGS takes its place."""
    installed(clone, "exit 0")
    assert make(clone, "-n", "run", *given).stdout.rstrip().endswith(says)


@pytest.mark.parametrize(
    ("untimed", "paired", "timed", "is_good"),
    [
        (0, 0, 0, True),
        (5, 0, 0, True),
        (0, 5, 5, True),
        (5, 5, 0, True),
        (5, 5, 5, False),
        (1, 0, 0, False),
        (0, 1, 0, False),
        (0, 0, 1, False),
        (2, 5, 5, False),
        (0, 130, 0, False),
    ],
)
def test_make_test_runs_all_parts_and_fails_with_any(clone: Path, untimed: int, paired: int, timed: int, is_good: bool) -> None:
    """A part of which the arguments choose nothing is no failure; a part that fails keeps the others from nothing."""
    parts = {'*"worksteal tests "*': ("untimed", untimed), "*worksteal*": ("paired", paired), "*tests/hosts*": ("timed", timed)}
    cases = "".join(f"{words}) echo {name}; exit {code};; " for words, (name, code) in parts.items())
    installed(clone, f'case "$*" in {cases}esac')
    done = make(clone, "--silent", "test", "PYTEST_ARGS=-k some")
    assert done.stdout.split() == ["untimed", "paired", "timed"]
    assert (done.returncode == 0) is is_good


@pytest.mark.parametrize("folder", ["load", "hosts", "ray", "death"])
def test_each_test_is_in_one_part(clone: Path, folder: str) -> None:
    """What waits for most of its time is left out of both other parts, and what runs alone of the first: no test runs twice or never."""
    installed(clone, 'case "$*" in *pytest*) echo "$@";; esac')
    parts = [line.split() for line in make(clone, "--silent", "test").stdout.splitlines()]
    assert len(parts) == 3
    for path in sorted((ROOT / "tests" / folder).glob("test_*.py")):
        name = str(path.relative_to(ROOT))
        above = {name, f"tests/{folder}", "tests"}
        assert sum(bool(above & set(words)) and not {f"--ignore={one}" for one in above} & set(words) for words in parts) == 1, name


def test_make_test_runs_named_tests_as_they_are_named(clone: Path) -> None:
    """Paths among the arguments take the place of the whole suite."""
    installed(clone, 'case "$*" in *pytest*) echo "$@";; esac')
    done = make(clone, "--silent", "test", "PYTEST_ARGS=tests/unit -k lease")
    assert done.stdout.strip() == "-m pytest -rfEs tests/unit -k lease"


def test_make_bench_runs_all_and_names_what_failed(clone: Path) -> None:
    """A benchmark that fails keeps none from running; make fails at the end and names it."""
    installed(clone, 'echo "ran $1"; case $1 in *bad*) exit 3;; esac')
    (clone / "benchmarks").mkdir()
    for name in ("bench_a.py", "bench_bad.py", "bench_c.py"):
        (clone / "benchmarks" / name).touch()
    done = make(clone, "bench")
    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == [
        f"ran benchmarks/{name}" for name in ("bench_a.py", "bench_bad.py", "bench_c.py")
    ]
    assert done.returncode == 2
    assert "failed: benchmarks/bench_bad.py" in done.stderr
    (clone / "benchmarks" / "bench_bad.py").unlink()
    assert make(clone, "bench").returncode == 0


def test_ci_script_parses_and_can_be_run() -> None:
    """.ci/run is an executable bash script without syntax errors."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)
