"""A head and three raylets of this machine, for tests of Ray calls. Tests of the embedded Ray start theirs through the product."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylets import OBJECT_STORE_BYTES, Raylets, private_temp
from support import census
from support.embedded import FinishedRun, run_watched
from support.observe import Witness
from support.terminal import Terminal, terminal

TARGETS = ("n1", "n2", "n3")
LEASE_S = "20"  # Ray starts many processes at once here, and leases are not what is asked, where a test does not set its own
HEALTH_CHECK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 4}  # a killed raylet, which refuses, is dead within 5 s


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `-m 'not ray'` leaves them out."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def raylets() -> Iterator[Raylets]:
    """Start head, n1, n2 and n3 once; assert afterwards that none of their processes is left."""
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="sc-ray-"))
    before = census.Comparison(lambda: census.take(census.Scope(marks=(str(folder),))))
    common = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "include_log_monitor": False}
    (folder / "ray").mkdir()
    cluster = Cluster()
    try:
        with private_temp(folder):
            cluster.add_node(node_name="head", include_dashboard=False, _system_config=HEALTH_CHECK, **common)
            for name in TARGETS:
                cluster.add_node(node_name=name, **common)
        yield Raylets(cluster, cluster.address, folder)
    finally:
        with private_temp(folder):
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    assert not [line for line in before.left_behind() if line.startswith("process")]


@pytest.fixture(scope="module")
def driver(raylets: Raylets) -> Iterator[Raylets]:
    """Connect this process as a driver for the tests of one module."""
    import ray

    ray.init(address=raylets.address, log_to_driver=False)
    try:
        yield raylets
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def finished() -> Iterator[FinishedRun]:
    """Run the small scenario once on an embedded Ray of three target raylets, watched from outside; most tests here read its results.

    Its dose is judged by the product's own tolerance, so it is run once more where nothing but that was missed beside others' work.
    """
    with terminal() as here:
        with Witness() as witness:
            made = run_watched(here)
        if made.ended.code != 5:
            yield made
            return
        print(f"repeated once, with {len(witness.stalls)} stalls of this machine; {made.ended.document['message']}")
    with terminal() as here:
        yield run_watched(here)


@pytest.fixture
def standing(raylets: Raylets) -> Iterator[Terminal]:
    """Return a terminal for the standing cluster, with its STATE: `--address` is in the environment, and this code on every node.

    Its runs have one lease, so that orchestrator and agents serve one after another: those of other settings are replaced.
    """
    ray_settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    ours = {"RAY_ADDRESS": raylets.address, "STRESS_CLUSTER_SHIP": "never", "STRESS_CLUSTER_LEASE_S": LEASE_S}
    with terminal(shared_state=Path(os.environ["STRESS_CLUSTER_STATE_DIR"]), settings={**ray_settings, **ours}) as here:
        yield here
