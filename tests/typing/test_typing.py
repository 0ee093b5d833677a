"""What users write type-checks under `mypy --strict`, and what is wrong does not: the files beside this one say what is which."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("test_"))
EXPECTED = re.compile(r"# E: \[([a-z, -]+)\]\s*$")
REPORTED = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<message>.*?)\s+\[(?P<code>[a-z-]+)\]$")

Errors = Mapping[tuple[str, int], set[str]]


def expected(path: Path) -> Errors:
    """Return which codes a file's comments ask for, by line."""
    lines = enumerate(path.read_text().splitlines(), start=1)
    return {(path.name, number): set(found[1].split(", ")) for number, line in lines if (found := EXPECTED.search(line))}


def collect(told: str) -> Errors:
    """Return which codes mypy reported, by file and line; fails on an error that has no code."""
    found: dict[tuple[str, int], set[str]] = {}
    for line in told.splitlines():
        if ": error: " in line:
            seen = REPORTED.match(line)
            assert seen, line
            found.setdefault((Path(seen["file"]).name, int(seen["line"])), set()).add(seen["code"])
    return found


@pytest.fixture(scope="module")
def reported() -> Errors:
    """Check all files in one run, with the configuration of the repository (it only says which libraries have no types)."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-pretty",
        "--show-error-codes",
        *(str(path.relative_to(ROOT)) for path in FILES),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 2: mypy itself failed
    return collect(done.stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_right_passes_and_what_is_wrong_is_named_at_its_line(reported: Errors, path: Path) -> None:
    """Each marked line has the errors that its comment names, and no other line has any."""
    wanted = expected(path)
    assert len(wanted) >= 5, "this file has too little that is wrong"
    assert {place: codes for place, codes in reported.items() if place[0] == path.name} == wanted


def test_no_other_file_is_reported(reported: Errors) -> None:
    """What users import brings no error of its own."""
    assert {name for name, _ in reported} <= {path.name for path in FILES}


@pytest.mark.parametrize("package", ["actors", "scenarios", "cluster"])
def test_installed_packages_say_that_they_are_typed(package: str) -> None:
    """Without the marker a type checker takes everything of an installed package for Any; it goes into the wheel."""
    assert (ROOT / package / "py.typed").is_file()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data[package]
