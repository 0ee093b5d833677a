"""What do floods of Ray do? Each strategy at twice what is served, tasks at 100, at 1,000 and at the most a node does, on a Ray of its own.

Goals: a rate that a node can do is done within 5 %, beyond it the most; no more than may be is outstanding; every count is exact.
Loads are simulators' actors under a real guardian; rates are read from shared memory that the serving processes write.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "tests"))

from machine import store

FOR_S = 5.0
SERVED_PER_S = 100.0  # of one actor with 10 ms of work
TASKS_OUTSTANDING = 1000  # the default
TASK_RATES = (100.0, 1000.0, 20_000.0)


def creator() -> Any:
    """Return how a simulator's actor is made."""
    import ray

    from actors.shell import SimulatorActor

    def create(*args: Any) -> Any:
        handle = SimulatorActor.remote(*args)

        def call(method: str, *given: Any) -> Any:
            group = {} if method == "prepare" else {"concurrency_group": "control"}
            return ray.get(getattr(handle, method).options(**group).remote(*given), timeout=60)

        return call

    return create


def flood(agent: Any, folder: Path, operation: Any) -> dict[str, float]:
    """Run one flood and return its rate as seen from outside, and what it recorded."""
    from support.leasing import Recorded

    from actors.dose import OutsideMeter

    recorded = Recorded(folder, operation.id)
    one = agent.prepare(operation, recorded.path)
    one.until("ready", 90)
    agent.start(one)
    one.until("running", 10)
    time.sleep(1.0)
    meter = OutsideMeter(operation, one.status().pids)
    before, begun_s = meter.read() or 0.0, time.monotonic()
    time.sleep(FOR_S)
    rate = ((meter.read() or 0.0) - before) / (time.monotonic() - begun_s)
    meter.close()
    one.call("stop", 1.0)
    agent.let_go(one)
    rows = recorded.rows()
    counts = {dict(row["labels"])["fate"]: row["sum"] for row in rows if row["metric"] == "flood.calls"}
    by_name = {row["metric"]: row for row in rows}
    return {
        "served_per_s": round(rate, 1),
        "outstanding_max": by_name["flood.outstanding"]["max"],
        "response_mean_ms": round(1000 * by_name["flood.response"]["sum"] / by_name["flood.response"]["count"], 1),
        "response_max_ms": round(1000 * by_name["flood.response"]["max"], 1),
        "blocked_s": round(by_name["flood.blocked"]["sum"], 2),
        **counts,
    }


def exact(found: dict[str, float]) -> bool:
    """Tell whether every offer has its fate and every accepted call its end."""
    fates = {name: found.get(name, 0.0) for name in ("offered", "accepted", "dropped", "rejected", "finished", "failed", "cancelled")}
    offers = fates["offered"] == fates["accepted"] + fates["dropped"] + fates["rejected"]
    return offers and fates["accepted"] == fates["finished"] + fates["failed"] + fates["cancelled"]


def measured(agent: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Run all floods, one after another."""
    from actors.messages import Operation
    from actors.ray_loads.flow import Strategy

    base = Operation("calls", "MailboxFlood", "n1", 0.0, 600.0, "per_second", {"kind": "constant", "level": 2 * SERVED_PER_S})
    found = {}
    for strategy in Strategy:
        options = {"actors": 1, "outstanding": 50, "waiting": 50, "tokens_per_s": 0.9 * SERVED_PER_S, "burst": 10, "work": 0.01}
        found[str(strategy)] = flood(agent, folder, replace(base, id=str(strategy), options={**options, "backpressure": str(strategy)}))
    for rate in TASK_RATES:
        tasks = replace(base, id=f"tasks-{rate:g}", kind="TaskExplosion", shape={"kind": "constant", "level": rate})
        found[tasks.id] = flood(agent, folder, tasks)
    return found


def main() -> int:
    """Start Ray, flood, print and store."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import ray
    from support.leasing import Leasing

    with tempfile.TemporaryDirectory(prefix="sc-flood-") as folder:
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, _temp_dir=f"{folder}/ray", log_to_driver=False)
        try:
            with Leasing(Path(folder) / "state", creator()) as agent:
                found = measured(agent, Path(folder))
        finally:
            ray.shutdown()
    strategies = {name: one for name, one in found.items() if not name.startswith("tasks")}
    tasks = {rate: found[f"tasks-{rate:g}"] for rate in TASK_RATES}
    full = {rate: one["outstanding_max"] >= TASKS_OUTSTANDING and one["blocked_s"] > 0 for rate, one in tasks.items()}
    goals = {
        "every offer has one fate, every accepted call one end": (1.0, all(map(exact, found.values()))),
        "calls outstanding at twice what is served": (50.0, all(one["outstanding_max"] <= 50 for one in strategies.values())),
        "share of a rate of tasks, or as many outstanding as may be and told as blocked": (
            0.95,
            all(one["served_per_s"] >= 0.95 * rate or full[rate] for rate, one in tasks.items()),
        ),
    }
    return store("flood", found, goals, ("ray",))


if __name__ == "__main__":
    raise SystemExit(main())
