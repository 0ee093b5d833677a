"""Values that are made when first asked for: of the simulators, those alone that a scenario names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import scenarios
from actors.on_demand import OnDemand
from actors.simulator import REGISTRY
from scenarios.kinds import KINDS


def test_a_value_is_made_once_and_only_when_asked_for():
    """Names, membership and length make nothing."""
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name.upper()

    found = OnDemand(("a", "b"), make)
    assert (list(found), len(found), "a" in found, "c" in found) == (["a", "b"], 2, True, False)
    assert made == []
    assert (found["b"], found["b"]) == ("B", "B")
    assert made == ["b"]
    with pytest.raises(KeyError):
        found["c"]


def test_each_simulator_is_named_as_its_record_and_its_class():
    """The names in the table of files are the records' own."""
    assert {name: record.name for name, record in REGISTRY.items()} == {name: name for name in REGISTRY}
    assert {name: cls.__name__ for name, cls in KINDS.items()} == {name: name for name in REGISTRY}
    assert set(KINDS) <= set(dir(scenarios))
    with pytest.raises(AttributeError, match="CpuLod"):
        _ = scenarios.CpuLod  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="CpuLod"):
        _ = scenarios.kinds.CpuLod  # type: ignore[attr-defined]


def test_a_scenario_loads_the_records_that_it_names():
    """A process that starts while a user waits reads one file and not all of them."""
    code = "import sys; from scenarios import CpuLoad; CpuLoad(0.5); print('actors.cpu' in sys.modules, 'actors.memory' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert found == ["True", "False"]
