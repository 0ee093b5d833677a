"""A load and a simulator that a signal stops while they load: flagged within five seconds, shown by `status`, ended by the lease."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from support import documents
from support.by_command import NODES, lives_of
from support.observe import boot_s
from support.terminal import Terminal
from support.waiting import until

from cluster.analysis import load

LEASE_S = 8.0  # longer than a flag may take, so that the flag is not the end
FLAGGED_S = 5.0


def health(standing: Terminal) -> dict[str, str]:
    """Return how the loads of the run that lives do, by node, as `status` tells."""
    told: dict[str, Any] = standing.run("status", "--json").document
    return {one["node"]: one["health"] for run in told["runs"] for one in run.get("operations") or ()}


def test_what_is_stopped_is_flagged_in_time_and_ended_by_the_lease(standing: Terminal) -> None:
    """Each does what is asked first; then one node's load and the other's simulator hang: a warning of each, "silent", and the end."""
    standing.settings["STRESS_CLUSTER_LEASE_S"] = f"{LEASE_S:g}"
    held = {"MemoryPressure": {"bytes": "32MiB"}, "for": "60s"}
    made = {"version": 1, "name": "stopped", "targets": {"names": list(NODES)}, "limits": {"stale": "20s"}, "plan": held}
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    command.await_text("run is running", 90)
    until(lambda: health(standing) == dict.fromkeys(NODES, "well"), 20, lambda: str(health(standing)))
    stopped, other = standing.belonging("load")
    at_s, wall_s = boot_s(), time.time()
    for pid in (stopped.pid, other.parent):  # a load, and the simulator that started the other
        os.kill(pid, signal.SIGSTOP)
    until(lambda: health(standing) == dict.fromkeys(NODES, "silent"), LEASE_S, lambda: str(health(standing)))
    until(lambda: not standing.loads(), LEASE_S + 1.0 - (boot_s() - at_s), lambda: f"loads: {standing.loads()}")
    ended = command.wait(60)
    assert ended.code == 3, str(ended)
    assert "sign of life" in ended.document["message"]
    run = load(Path(ended.document["run_dir"]))
    assert lives_of(run)["failed"] == {(node, "MemoryPressure", "constant"): 1 for node in NODES}
    events = run.events.to_pylist()
    told = {one["node"]: one["time"].timestamp() - wall_s for one in events if one["kind"] == "silent"}
    print(f"flagged after { ({node: round(seconds, 2) for node, seconds in told.items()}) } s")
    assert told.keys() == set(NODES)
    assert all(0 < seconds <= FLAGGED_S for seconds in told.values()), told
