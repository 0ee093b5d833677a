"""Two runs want the last of the budget at the same moment: one gets it, the other is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
import watching
from fabric import Fabric


def memory_fraction(hosts: Fabric, size: int) -> str:
    """Return the share of the targets' memory that is so many bytes."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    return f"{size / (len(hosts.targets) * int(line.split()[1]) * 1024):.6f}"


@pytest.mark.parametrize("resource", ["nodes", *(pytest.param(one, marks=pytest.mark.soak) for one in ("memory", "disk"))])
def test_exactly_one_of_two_runs_is_admitted(hosts: Fabric, resource: str) -> None:
    """One run goes to its end, the other ends with 6, says which budget was short, and puts no load anywhere (memory: tests/ray too)."""
    settings = {
        "nodes": {"STRESS_CLUSTER_BUDGET__MAX_NODES": "1"},
        "memory": {"STRESS_CLUSTER_BUDGET__MEMORY_FRACTION": memory_fraction(hosts, 300 * runs.MIB)},
        "disk": {"STRESS_CLUSTER_BUDGET__DISK_BYTES": "80MiB"},
    }[resource]
    memory = "64MiB" if resource == "memory" else ""
    with watching.Watch(hosts.hosts) as watch:
        racing = []
        for name, host in (("first", "h2"), ("second", "h3")):
            targets = f"{{labels: {{host: {host}}}}}" if resource == "nodes" else "{}"
            racing.append(runs.Run(hosts, runs.scenario(name, 5, memory=memory, targets=targets), env=settings))
        ended = [run.wait(120) for run in racing]
    assert sorted(one.code == 6 for one in ended) == [False, True], [str(one) for one in ended]
    winner, loser = sorted(ended, key=lambda one: one.code == 6)
    assert winner.code in {0, 5}, str(winner)
    assert loser.document["error"]["code"] == "budget", loser.document
    assert {"nodes": "node", "memory": "memory", "disk": "disk"}[resource] in loser.message, str(loser)
    assert loser.document["error"]["hint"], loser.document
    for host in hosts.targets:
        expected = {"h2": ended[0], "h3": ended[1]}.get(host.name) is winner if resource == "nodes" else True
        kinds = (2 if memory else 1) if expected else 0
        assert len(watch.of(host)) == kinds, f"{host.name} saw {len(watch.of(host))} load processes"
    runs.assert_undone(hosts.hosts)


def test_two_runs_beside_each_other_are_both_measured(hosts: Fabric) -> None:
    """Runs of one scenario at the same time on the same nodes each get their own windows, doses and verdict."""
    both = [runs.Run(hosts, runs.scenario("beside", 6)) for _ in range(2)]
    ended = [run.wait(120) for run in both]
    for run, one in zip(both, ended, strict=True):
        assert one.code in {0, 5}, str(one)
        data = runs.assert_exact(run.out, gapless=("h2", "h3", "h4"))
        doses = [row for row in data.metrics.select(["metric", "worker"]).to_pylist() if row["metric"] == "dose.achieved"]
        assert len({row["worker"] for row in doses}) == 6, {row["worker"] for row in doses}
        assert len(doses) >= 6 * 4, len(doses)
    runs.assert_undone(hosts.hosts)
