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
