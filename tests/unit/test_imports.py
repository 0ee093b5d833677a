"""What the processes of a run import: each of them starts while a user waits, most of them at the same moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = frozenset({"ray", "numba", "llvmlite", "numpy", "pyarrow", "pandas", "pydantic", "scenarios", "cluster", "prometheus_client"})


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        pytest.param("actors.load", set(), id="load"),
        pytest.param("actors.guardian.main", set(), id="guardian"),
        pytest.param("actors.shell", {"ray"}, id="simulator"),
        pytest.param("cluster.ray_port", {"ray", "cluster", "scenarios", "numpy"}, id="whoever-calls-an-actor"),
        pytest.param("cluster.agent_shell", {"cluster", "scenarios", "numpy", "pyarrow"}, id="agent"),
        pytest.param("cluster.orchestrator_shell", {"cluster", "scenarios", "numpy"}, id="orchestrator"),
        pytest.param("cluster.driver_main", {"cluster", "scenarios", "numpy"}, id="driver"),
        pytest.param("cluster.client", {"cluster", "scenarios", "numpy"}, id="commands"),
    ],
)
def test_a_process_imports_only_what_it_needs(module: str, allowed: set[str]) -> None:
    """None of what takes a tenth of a second and more, unless it is its work; the code's own digest included."""
    code = f"import sys, {module}; from actors.origin import code_id; code_id(); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert HEAVY & set(found) <= allowed, HEAVY & set(found) - allowed


@pytest.mark.parametrize("module", ["cluster.agent_shell", "cluster.aggregator_shell", "cluster.analysis.page"])
def test_a_process_of_ours_does_without_pandas(module: str) -> None:
    """Also where it is installed, and pyarrow looks for it at its first conversion."""
    pytest.importorskip("pandas")
    work = "import pyarrow, pyarrow.parquet; pyarrow.RecordBatch.from_pylist([{'a': 1}]).to_pylist()"
    code = f"import sys; from cluster.lean import leave_out; leave_out(); import {module}; {work}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "pyarrow" in found
    assert "pandas" not in found
