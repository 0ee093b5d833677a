"""Set-up: the pins cover what is asked for, and the make targets fail with a message that helps."""

from __future__ import annotations

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


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
def test_every_dependency_is_pinned_within_its_bounds(line: str) -> None:
    """constraints.txt has an exact version of each dependency, and it fulfils pyproject.toml."""
    wanted = Requirement(line)
    assert PINS[canonicalize_name(wanted.name)] in wanted.specifier


def make(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run make with our Makefile in another folder."""
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), *argv], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


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
        pytest.param("simulate", 'tests/simulation --seeds "200"', id="simulate"),
    ],
)
def test_a_second_make_installs_nothing(clone: Path, target: str, says: str) -> None:
    """With fresh stamps a target goes straight to its command; after a change of the pins it installs first."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed", ".installed-test"):
        (clone / ".venv" / name).touch()
    assert says in (fresh := make(clone, "-n", target).stdout)
    assert "pip install" not in fresh
    (clone / ".venv" / ".installed").unlink()
    (clone / ".venv" / ".installed-test").unlink()
    assert "pip install" in make(clone, "-n", target).stdout


def test_ci_script_parses_and_can_be_run() -> None:
    """.ci/run is an executable bash script without syntax errors."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)
