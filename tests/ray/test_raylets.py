"""The shared Ray of these tests: nodes by name, and pinning to them."""

from __future__ import annotations

from typing import Any

import pytest


def test_actors_land_on_the_node_they_are_pinned_to(driver: Any) -> None:
    """An actor pinned by node id runs on the node of that name."""
    import ray

    @ray.remote(num_cpus=0)
    class Where:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    wanted = {name: driver.node_id(name) for name in ("n1", "n3")}
    actors = {name: Where.options(label_selector={"ray.io/node-id": node}).remote() for name, node in wanted.items()}
    assert {name: ray.get(actor.node.remote(), timeout=30) for name, actor in actors.items()} == wanted


def test_nodes_have_names_of_their_own(driver: Any) -> None:
    """A name that no node has is an error, not a guess."""
    assert len({driver.node_id(name) for name in ("head", "n1", "n2", "n3")}) == 4
    with pytest.raises(StopIteration):
        driver.node_id("n9")
