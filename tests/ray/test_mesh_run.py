"""A mesh of actors over three nodes by command: at rest, and with a node that is killed in mid-flood."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raylets import OBJECT_STORE_BYTES, Raylets, private_temp
from support import documents
from support.leasing import marked
from support.terminal import Terminal
from support.waiting import until

from actors.shell import NAMESPACE_OF_RUN
from cluster.analysis import load

FATES = ("acknowledged", "failed", "lost", "unread")


def scenario(targets: list[str], levels: list[float], each_s: float, **fields: Any) -> dict[str, Any]:
    steps = {"steps": {"levels": levels, "each": f"{each_s:g}s"}}
    hold = {"ActorMesh": {"per_second": steps, "actors": 1, "outstanding": 30}, "for": f"{each_s * len(levels):g}s", "tolerance": "100%"}
    plan = {"together": [hold]}
    return {"version": 1, "limits": {"stale": "20s"}, "name": "mesh", "targets": {"names": targets}, "plan": plan, **fields}


def figures(folder: Path) -> dict[str, Counter[str]]:
    """Return what each node's sender counted: messages by fate, latencies by path, restarts; and calls by fate."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in load(folder).metrics.to_pylist():
        labels = dict(row["labels"])
        if row["metric"] in {"mesh.messages", "mesh.restarts"}:
            found[row["node"]][labels.get("fate", "restarts")] += round(row["sum"])
        if row["metric"] == "mesh.latency":
            found[row["node"]][labels["path"]] += row["count"]
            assert 0.0 < row["min"] <= row["p50"] <= row["max"] < 30.0
        if row["metric"] == "flood.calls":
            found[row["node"]][f"calls {labels['fate']}"] += round(row["sum"])
    return found


def test_a_mesh_over_three_nodes(standing: Terminal) -> None:
    """Each sender's messages go to all three nodes in equal parts; all are acknowledged and known to their receivers at the end."""
    ended = standing.run("run", documents.write(standing.folder, scenario(["n1", "n2", "n3"], [60.0], 4)), "--yes", "--json", within_s=150)
    assert ended.code == 0, str(ended)
    folder = Path(ended.document["run_dir"])
    found = figures(folder)
    assert found.keys() == {"n1", "n2", "n3"}
    for counts in found.values():
        assert counts["acknowledged"] == counts["calls finished"] > 150, counts
        assert counts["acknowledged"] + counts["calls cancelled"] == counts["calls accepted"]  # what was on its way at the end
        assert 2 * counts["same_node"] == pytest.approx(counts["cross_node"], abs=4)
        assert counts["same_node"] + counts["cross_node"] == counts["acknowledged"]
        assert (counts["failed"], counts["lost"], counts["unread"], counts["restarts"]) == (0, 0, 0, 0)
    assert [node["clean"] for node in ended.document["nodes"]] == [True] * 3
    assert marked() == []


@pytest.fixture
def fourth(driver: Raylets) -> Iterator[Any]:
    """Return a function that kills a further raylet, n4; afterwards one of its name takes its place for a `recover`, and goes."""
    ours = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "include_log_monitor": False, "node_name": "n4"}
    with private_temp(driver.folder):
        nodes = [driver.cluster.add_node(**ours)]

    def kill() -> None:
        with private_temp(driver.folder):
            driver.cluster.remove_node(nodes.pop(), allow_graceful=False)
            nodes.append(driver.cluster.add_node(**ours))

    yield kill
    with private_temp(driver.folder):
        driver.cluster.remove_node(nodes.pop(), allow_graceful=True)


class Receivers:
    """The members of the mesh of the only run, asked by a driver of Ray's that is no part of the product."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def names(self) -> dict[str, Any]:
        """Return the living members by home, index and incarnation."""
        import ray

        found = ray.util.list_named_actors(all_namespaces=True)
        ours = (one for one in found if one["namespace"].startswith(NAMESPACE_OF_RUN))
        return {one["name"].partition("/")[2]: self._handle(one["name"], one["namespace"]) for one in ours}

    def _handle(self, name: str, namespace: str) -> Any:
        import ray

        if name not in self._handles:
            self._handles[name] = ray.get_actor(name, namespace=namespace)
        return self._handles[name]

    def known(self, senders: list[str]) -> Counter[str]:
        """Return how many messages of each sender the living members have."""
        import ray

        found: Counter[str] = Counter()
        for member in self.names().values():
            for sender in senders:
                found[sender] += sum(end - start for start, end in ray.get(member.known.remote(sender), timeout=20))
        return found


def test_a_node_killed_in_mid_flood(standing: Terminal, fourth: Any) -> None:
    """Another node takes its member in, once; what it had acknowledged is counted as lost, exactly: the receivers know all of the rest."""
    targets = ["n1", "n2", "n4"]
    made = scenario(targets, [60.0, 0.0], 6, on_node_lost="continue")
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    receivers, survivors = Receivers(), ["n1", "n2"]
    until(lambda: len(receivers.names()) == 3, 90, lambda: f"{receivers.names()}; it said: {command.text()}")
    until(lambda: min(receivers.known(survivors).values()) > 60, 60, lambda: f"{receivers.known(targets)}")
    fourth()
    until(lambda: set(receivers.names()) == {"n1/0/0", "n2/0/0", "n4/0/1"}, 20, lambda: f"{receivers.names()}; {command.text()}")
    known: list[Counter[str]] = []
    until(lambda: known.append(receivers.known(survivors)) or known[-3:].count(known[-1]) == 3, 20, lambda: f"{known}", 0.4)
    ended = command.wait(90)
    found = figures(Path(ended.document["run_dir"]))
    print(
        f"code {ended.code}: {ended.document['message']}; known at the end {dict(known[-1])}; { ({n: dict(c) for n, c in found.items()}) }"
    )
    assert ended.code in {3, 5}, str(ended)
    for node in survivors:
        counts = found[node]
        assert counts["acknowledged"] - counts["lost"] == known[-1][node], node
        assert counts["lost"] > 10, node
        assert counts["acknowledged"] + counts["failed"] + counts["calls cancelled"] == counts["calls accepted"]
        assert counts["acknowledged"] == counts["same_node"] + counts["cross_node"]
        assert min(counts["same_node"], counts["cross_node"]) > 30
        assert counts["unread"] == 0
    assert sum(found[node]["restarts"] for node in survivors) == 1
    assert standing.run("recover", "--json").code == 0
    assert marked() == []
