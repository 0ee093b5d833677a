"""The actors' classes: thin, so that who holds a handle imports nothing of what runs behind it, and complete."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from raylets import Raylets

from actors.errors import HarnessError
from cluster import ray_port
from cluster.agent_shell import AgentShell
from cluster.aggregator_shell import AggregatorShell
from cluster.orchestrator_shell import OrchestratorShell
from cluster.probes.prober import Prober

INSIDE = {
    AggregatorShell: {"evaluate", "windows", "outstanding", "roll"},  # what the conclusion asks, and what it does by itself
    Prober: {"incarnation"},
}


def public(kind: type) -> set[str]:
    """Return the names of a class's public methods."""
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("actor", "shell"),
    [
        (ray_port._AgentActor, AgentShell),
        (ray_port._AggregatorActor, AggregatorShell),
        (ray_port._OrchestratorActor, OrchestratorShell),
        (ray_port._ProberActor, Prober),
    ],
)
def test_an_actor_has_every_method_of_its_shell_that_others_call(actor: type, shell: type) -> None:
    """And none that the shell lacks."""
    assert public(actor) == public(shell) - INSIDE.get(shell, set())


@pytest.mark.parametrize("actor", [ray_port._AgentActor, ray_port._AggregatorActor, ray_port._OrchestratorActor, ray_port._ProberActor])
def test_an_actors_class_is_found_by_name(actor: type) -> None:
    """Pickled by reference: a handle needs this port and no more."""
    assert getattr(ray_port, actor.__name__) is actor
    assert actor.__bases__ == (object,)


def test_a_node_without_our_code_is_named_so(driver: Raylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor whose module its node lacks cannot begin: the error says what is missing and what to do, not that a call was lost."""
    made = tmp_path / "gone_from_the_nodes.py"
    made.write_text("class Lacking:\n    def hello(self):\n        return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    lacking = importlib.import_module(made.stem).Lacking
    made.unlink()
    actor = ray_port.create(lacking, "lacking", driver.node_id("n1"), (), detached=False)
    with pytest.raises(HarnessError, match=r"No module named 'gone_from_the_nodes'") as raised:
        actor.call("hello", timeout_s=60)
    assert raised.value.code == "code_mismatch"
    assert "ship" in raised.value.hint
