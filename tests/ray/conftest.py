"""A head and three raylets of this machine, for tests of Ray calls. Tests of the embedded Ray start theirs through the product."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import census, documents
from support.observe import Meter, Reading, Witness
from support.terminal import Ended, Terminal, terminal

OBJECT_STORE_BYTES = 80_000_000
TARGETS = ("n1", "n2", "n3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `-m 'not ray'` leaves them out."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ray)


@dataclass(frozen=True, slots=True)
class Raylets:
    """A head and three targets as raylets of this machine, all in a private temp folder."""

    cluster: Any
    address: str
    folder: Path

    def node_id(self, name: str) -> str:
        """Return Ray's id of a node by its name; a driver must be connected."""
        import ray

        return str(next(node["NodeID"] for node in ray.nodes() if node["NodeName"] == name and node["Alive"]))


@contextlib.contextmanager
def private_temp(folder: Path) -> Iterator[None]:
    """Let Ray write its address file here and not in its default folder; only while its processes are started and ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        yield


@pytest.fixture(scope="session")
def raylets() -> Iterator[Raylets]:
    """Start head, n1, n2 and n3 once; assert afterwards that none of their processes is left."""
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="sc-ray-"))
    before = census.Comparison(lambda: census.take(census.Scope(marks=(str(folder),))))
    common = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES}
    (folder / "ray").mkdir()
    cluster = Cluster()
    try:
        with private_temp(folder):
            cluster.add_node(node_name="head", include_dashboard=False, **common)
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


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run on an embedded Ray of three raylets, and what was seen of it from outside: one meter reading per second and load."""

    terminal: Terminal
    scenario: str
    ended: Ended
    folder: Path
    cpu: dict[int, list[Reading]]
    memory_bytes: list[int]
    fills_bytes: int
    before: census.Comparison
    temporary: set[str]


def temporary_names() -> set[str]:
    """Return what lies in the places where Ray and we make folders, less the STATEs of test sessions."""
    places = (Path("/tmp"), Path("/var/tmp"))
    named = ("sc-*", "ray*", "pymp-*")
    found = {str(path) for place in places for name in named for path in place.glob(name)}
    return {path for path in found if not Path(path).name.startswith(("sc-state-", "sc-ray-"))}


@pytest.fixture(scope="session")
def finished() -> Iterator[FinishedRun]:
    """Run the small scenario once on an embedded Ray of three target raylets, watched from outside; most tests here read its results.

    Its dose is judged by the product's own tolerance, so it is run once more where this machine's cores stood still meanwhile.
    """
    with terminal() as here:
        with Witness() as witness:
            made = run_watched(here)
        if made.ended.code != 5 or not witness.stalls:
            yield made
            return
        print(f"repeated once: {len(witness.stalls)} stalls of this machine; {made.ended.document['message']}")
    with terminal() as here:
        yield run_watched(here)


def run_watched(here: Terminal) -> FinishedRun:
    """Run the small scenario to its end and meter each load process meanwhile."""
    temporary = here.folder / "tmp"
    temporary.mkdir()
    here.settings["TMPDIR"] = str(temporary)
    folders = (here.home, temporary, Path("/tmp/ray"), Path.home() / ".ray")
    names = temporary_names()
    before = census.Comparison(lambda: census.take(census.Scope(marks=(str(here.state),), folders=folders)))
    hypotheses = (documents.MEMORY_STAYS, documents.ACTORS_ANSWER)
    scenario = documents.write(
        here.folder, documents.document(for_s=10, hypotheses=hypotheses, seed=3, tolerance=None, profile="aggressive")
    )
    command = here.start("run", scenario, "--nodes", "3", "--json")
    here.await_load(6)
    pids = here.loads()
    fills = 0
    with contextlib.ExitStack() as stack:
        meters = {pid: stack.enter_context(Meter(lambda pid=pid: [pid])) for pid in pids}
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            fills = max([fills, sum(path.stat().st_blocks * 512 for path in here.fills())])
            time.sleep(0.25)
    ended = command.wait(60)
    cpu = {pid: meter.readings for pid, meter in meters.items()}
    memory = [max([reading.memory_bytes for reading in readings], default=0) for readings in cpu.values()]
    return FinishedRun(here, scenario, ended, here.run_dir(), cpu, memory, fills, before, names)


@pytest.fixture
def standing(raylets: Raylets) -> Iterator[Terminal]:
    """Return a terminal for the standing cluster, with its STATE: `--address` is in the environment."""
    ray_settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    with terminal(
        shared_state=Path(os.environ["STRESS_CLUSTER_STATE_DIR"]), settings={**ray_settings, "RAY_ADDRESS": raylets.address}
    ) as here:
        yield here
