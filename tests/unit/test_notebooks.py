"""Notebooks: stored without outputs, and every code cell runs, in order, on a small run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.asked import RUN, make_run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# As a notebook does it: one name space, and the value of a cell's last expression is shown.
RUNNER = """
import ast, json, sys
space = {"__name__": "__main__"}
for at, cell in enumerate(json.load(sys.stdin)):
    tree = ast.parse(cell, f"cell {at}")
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {at}", "exec"), space)
    shown = eval(compile(last, f"cell {at}", "eval"), space) if last else None
    if shown is not None:
        print(shown._repr_html_() if hasattr(shown, "_repr_html_") else repr(shown))
"""


def test_there_are_notebooks() -> None:
    """The folder is where these tests look."""
    assert [path.name for path in NOTEBOOKS] == ["read_a_run.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    """No output, no count of executions, nothing of the machine it was written on: a diff shows what somebody wrote."""
    document = json.loads(path.read_text())
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None and cell["metadata"] == {} for cell in cells)
    assert document["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_in_order(path: Path, tmp_path: Path) -> None:
    """In a process of its own, from a folder with runs/, with warnings as errors; it finds what the run has."""
    make_run(tmp_path / "runs" / RUN)
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-c", RUNNER]
    done = subprocess.run(
        command, input=json.dumps(cells), capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert f"{RUN} passed" in done.stdout
    assert "pearson: r = 1.00 at 3 s" in done.stdout
    assert "<polyline" in done.stdout
