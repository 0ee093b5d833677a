"""Two runs want the last of the budget at the same moment: one gets it, the other is refused with the reason."""

from __future__ import annotations

import pytest
import runs
from fabric import Fabric


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"STRESS_CLUSTER_BUDGET__MAX_NODES": "3"}, "node"), ({"STRESS_CLUSTER_BUDGET__DISK_BYTES": "80MiB"}, "disk")],
    ids=["nodes", "disk"],
)
def test_exactly_one_of_two_runs_is_admitted(hosts: Fabric, settings: dict[str, str], reason: str) -> None:
    """One run goes to its end, the other ends with 6, says which budget was short, and puts no load anywhere."""
    racing = [runs.Run(hosts, runs.scenario(name, 5), env=settings) for name in ("first", "second")]
    ended = [run.wait(120) for run in racing]
    codes = sorted(one.code for one in ended)
    assert codes[1] == 6, [str(one) for one in ended]
    assert codes[0] in {0, 5}, [str(one) for one in ended]
    loser = next(one for one in ended if one.code == 6)
    assert loser.document["error"]["code"] == "budget", loser.document
    assert reason in loser.message, str(loser)
    assert loser.document["error"]["hint"], loser.document
    runs.assert_undone(hosts.hosts)
    runs.assert_nothing_left(hosts.hosts, 60)
