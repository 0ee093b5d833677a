"""What do floods of Ray do? Strategies at twice what is served, tasks at three rates, floods alone and together, on a Ray of its own.

Goals: a rate that a node can do is done within 5 %, beyond it as much as a bare loop of Ray gets done of the same tasks with as many
outstanding (in turn with the flood, the median of the rounds counts); no more than may be is outstanding, and no more memory is taken than
that; every count is exact; two floods at once do 80 % of what each does alone. What a bare loop does of tasks of nothing is told beside it:
a flood's tasks count themselves where the meter reads them.
Loads are simulators' actors under a real guardian. Rates are read from shared memory that the serving processes write; memory from /proc
(what the process that floods grows by once it has flooded for a second); of the object store, from its raylet, what it may not evict.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "tests"))

from machine import at_commit, store

MIB = 1 << 20
FOR_S, LOOK_S = 5.0, 0.25
SERVED_PER_S = 100.0  # of one actor with 10 ms of work
TASKS_OUTSTANDING = 1000  # the default
TASK_RATES = (100.0, 1000.0)
MOST_PER_S, ROUNDS = 20_000.0, 5  # more than any node does; a round differs from the next by a tenth
TOGETHER_PER_S = 400.0  # of each
PAYLOAD_BYTES, IN_FLIGHT_BYTES = 128 << 10, 8 * MIB  # through the object store
GROWTH_BYTES = 16 * MIB
Figures = dict[str, float]


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


class BareLoop:
    """An actor that does nothing but submit tasks, a flood's or ones of nothing, as a simulator's actor could at best."""

    def per_s(self, outstanding: int, for_s: float, of_nothing: bool) -> float:
        """Return how many tasks a second end, from a second after the first on."""
        import ray

        from actors.ray_loads.board import Board
        from actors.ray_loads.victims import serve

        board = Board()
        path = board.path
        task = ray.remote(num_cpus=1, max_retries=0)((lambda: None) if of_nothing else (lambda: serve(path, b"", 0.0)))
        under_way: list[Any] = []
        begun_s, done = time.monotonic() + 1.0, 0
        while (now_s := time.monotonic()) < begun_s + for_s:
            under_way += [task.remote() for _ in range(outstanding - len(under_way))]
            ended, under_way = ray.wait(under_way, num_returns=64)
            ray.get(ended)  # who floods has to know that none failed, too
            done += len(ended) if now_s >= begun_s else 0
        ray.get(under_way)
        board.close()
        return done / for_s


def bare_per_s(*, of_nothing: bool = False) -> float:
    """Return what a bare loop gets done, in a process of its own as a flood has."""
    import ray

    loop = ray.remote(num_cpus=0)(BareLoop).remote()
    try:
        found = loop.per_s.remote(TASKS_OUTSTANDING, FOR_S, of_nothing)
        while not ray.wait([found], timeout=LOOK_S)[0]:
            object_store()  # what looks at a flood costs is paid here too
        return ray.get(found)
    finally:
        ray.kill(loop)


def object_store() -> tuple[int, int]:
    """Return what the object store may not evict, and what it has spilled so far."""
    import ray
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    found = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
    return found.object_store_bytes_primary_copy, found.spilled_bytes_total


def flood(agent: Any, folder: Path, *operations: Any) -> list[Figures]:
    """Run floods at once and return of each its rate and its memory as seen from outside, and what it recorded."""
    from support.held import resident_bytes
    from support.leasing import Recorded

    from actors.dose import OutsideMeter

    recorded = [Recorded(folder, operation.id) for operation in operations]
    leased = [agent.prepare(operation, one.path) for operation, one in zip(operations, recorded, strict=True)]
    for one in leased:
        one.until("ready", 90)
    flooders = [one.status().pids[0] for one in leased]
    spilled = object_store()[1]
    agent.start(*leased)
    for one in leased:
        one.until("running", 10)
    resident: list[list[int]] = []
    in_store = 0

    def look() -> None:
        nonlocal in_store
        resident.append([resident_bytes(pid) for pid in flooders])
        in_store = max(in_store, object_store()[0])

    rates = served_per_s([OutsideMeter(one.operation, one.status().pids) for one in leased], look)
    in_store += object_store()[1] - spilled
    for one in leased:
        one.call("stop", 1.0)
    for one in leased:
        agent.close(one)
    memory = [{"resident_bytes": max(seen), "resident_growth_bytes": max(seen) - seen[0]} for seen in zip(*resident, strict=True)]
    return [
        {"served_per_s": round(rate, 1), **told(one.rows()), **grown, "store_bytes": in_store}
        for rate, one, grown in zip(rates, recorded, memory, strict=True)
    ]


def served_per_s(meters: list[Any], look: Callable[[], None]) -> list[float]:
    """Return what is served a second by each meter, from a second on, with looks at other things meanwhile."""
    time.sleep(1.0)
    look()
    before, begun_s = [meter.read() or 0.0 for meter in meters], time.monotonic()
    while time.monotonic() < begun_s + FOR_S:
        time.sleep(LOOK_S)
        look()
    after, spent_s = [meter.read() or 0.0 for meter in meters], time.monotonic() - begun_s
    for meter in meters:
        meter.close()
    return [(late - early) / spent_s for late, early in zip(after, before, strict=True)]


def told(rows: list[dict[str, Any]]) -> Figures:
    """Return what a flood recorded of its calls."""
    counts = {dict(row["labels"])["fate"]: row["sum"] for row in rows if row["metric"] == "flood.calls"}
    by_name = {row["metric"]: row for row in rows}
    return {
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


def strategies(agent: Any, folder: Path, base: Any) -> dict[str, Figures]:
    """Run each strategy at twice what is served."""
    from actors.ray_loads.flow import Strategy

    options = {"actors": 1, "outstanding": 50, "waiting": 50, "tokens_per_s": 0.9 * SERVED_PER_S, "burst": 10, "work": 0.01}
    options |= {"payload_bytes": PAYLOAD_BYTES, "in_flight_bytes": IN_FLIGHT_BYTES}
    found = {}
    for one in map(str, Strategy):
        (found[one],) = flood(agent, folder, replace(base, id=one, options={**options, "backpressure": one}))
        print(one, found[one], flush=True)
    return found


def most_tasks(agent: Any, folder: Path, tasks: Any) -> dict[str, Any]:
    """Run a flood of more tasks than a node does in turn with a bare loop: what each gets done, and the share."""
    bare, of_nothing, floods = [], [], []
    for number in range(ROUNDS):
        of_nothing.append(bare_per_s(of_nothing=True))
        bare.append(bare_per_s())
        floods += flood(agent, folder, at(tasks, MOST_PER_S, f"most-{number}"))
        print(f"bare {bare[-1]:.0f}/s, of nothing {of_nothing[-1]:.0f}/s, flood {floods[-1]}", flush=True)
    shares = [one["served_per_s"] / maximum for one, maximum in zip(floods, bare, strict=True)]
    return {
        "bare_per_s": [round(one, 1) for one in bare],
        "of_nothing_per_s": [round(one, 1) for one in of_nothing],
        "floods": floods,
        "shares": shares,
        "share": statistics.median(shares),
    }


def at(operation: Any, per_s: float, name: str) -> Any:
    """Return a flood at another rate."""
    return replace(operation, id=name, shape={"kind": "constant", "level": per_s})


def together(agent: Any, folder: Path, *operations: Any) -> dict[str, Any]:
    """Run floods one by one, then at once: what each does, and the share of alone that is left together."""
    alone = [flood(agent, folder, at(one, TOGETHER_PER_S, f"{one.id}-alone"))[0] for one in operations]
    at_once = flood(agent, folder, *(at(one, TOGETHER_PER_S, f"{one.id}-together") for one in operations))
    found = {}
    for operation, solo, both in zip(operations, alone, at_once, strict=True):
        found[operation.kind] = {"alone": solo, "together": both, "share": both["served_per_s"] / solo["served_per_s"]}
        print(operation.kind, found[operation.kind], flush=True)
    return found


def measured(agent: Any, folder: Path) -> dict[str, Any]:
    """Run all floods."""
    from actors.messages import Operation

    calls = Operation("calls", "MailboxFlood", "n1", 0.0, 600.0, "per_second", {"kind": "constant", "level": 2 * SERVED_PER_S})
    tasks = replace(calls, id="tasks", kind="TaskExplosion")
    return {
        "strategies": strategies(agent, folder, calls),
        "tasks": {f"{rate:g}": flood(agent, folder, at(tasks, rate, f"tasks-{rate:g}"))[0] for rate in TASK_RATES},
        "most": most_tasks(agent, folder, tasks),
        "together": together(agent, folder, calls, tasks),
    }


def goals_of(found: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """Return the goals, and whether each is reached."""
    by_strategy, most, by_rate = found["strategies"].values(), found["most"], found["tasks"]
    a_node_does = statistics.median(most["bare_per_s"])
    shares = [one["served_per_s"] / min(float(rate), a_node_does) for rate, one in by_rate.items()] + [most["share"]]
    both = [one[how] for one in found["together"].values() for how in ("alone", "together")]
    every = [*by_strategy, *by_rate.values(), *most["floods"], *both]
    grown, in_store = (max(one[name] for one in by_strategy) for name in ("resident_growth_bytes", "store_bytes"))
    return {
        "every offer has one fate, every accepted call one end": (1.0, all(map(exact, every))),
        "calls outstanding at twice what is served": (50.0, all(one["outstanding_max"] <= 50 for one in by_strategy)),
        "bytes that the process that floods grows by": (GROWTH_BYTES, grown <= GROWTH_BYTES),
        "bytes in the object store and spilled": (IN_FLIGHT_BYTES, in_store <= IN_FLIGHT_BYTES),
        "share of a rate of tasks, or of what a bare loop does of the same where that is less": (0.95, min(shares) >= 0.95),
        "tasks outstanding": (TASKS_OUTSTANDING, all(one["outstanding_max"] <= TASKS_OUTSTANDING for one in most["floods"])),
        "at the most a node does it is told as blocked": (1.0, all(one["blocked_s"] > 0 for one in most["floods"])),
        "share of alone that each does together": (0.8, all(one["share"] >= 0.8 for one in found["together"].values())),
    }


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
    return store("flood", {"commit": at_commit(), **found}, goals_of(found), ("ray",))


if __name__ == "__main__":
    raise SystemExit(main())
