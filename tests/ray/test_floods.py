"""Floods on real Ray: their dose and their end are seen from outside, by the kernel and by Ray's own counts."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raylets import Raylets
from support.contention_model import Simulated
from support.leasing import Leased, Leasing, Recorded, marked
from support.waiting import never, until

from actors.dose import OutsideMeter
from actors.errors import StressError
from actors.messages import Operation
from actors.ray_loads import board
from actors.ray_loads.ray_work import name_over_nodes

CALLS = Operation("m@n1", "MailboxFlood", "n1", 0.0, 60.0, "per_second", {"kind": "constant", "level": 100.0})
TASKS = replace(CALLS, id="t@n1", kind="TaskExplosion")
MESH = replace(CALLS, id="0.ActorMesh@n1", kind="ActorMesh", options={"actors": 1})


def creator(raylets: Raylets) -> Callable[..., Any]:
    """Return how a simulator's actor is made on the node of its operation."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.shell import SimulatorActor

    def create(operation: Operation, *args: Any) -> Callable[..., Any]:
        here = NodeAffinitySchedulingStrategy(raylets.node_id(operation.node), soft=False)
        handle = SimulatorActor.options(scheduling_strategy=here).remote(operation, *args)

        def call(method: str, *given: Any) -> Any:
            group = {} if method == "prepare" else {"concurrency_group": "control"}
            return ray.get(getattr(handle, method).options(**group).remote(*given), timeout=60)

        return call

    return create


@pytest.fixture
def agent(driver: Raylets, tmp_path: Path) -> Iterator[Leasing]:
    with Leasing(tmp_path, creator(driver)) as made:
        yield made
    until(lambda: not marked(), 10, lambda: f"left behind: {marked()}")


def begin(agent: Leasing, *operations: Operation, segment: str = "") -> list[Leased]:
    """Prepare, wait until all are ready, start them together."""
    leased = [agent.prepare(operation, segment) for operation in operations]
    for one in leased:
        one.until("ready", 60)
    agent.start(*leased)
    for one in leased:
        one.until("running", 10)
    return leased


def rate(leased: Leased, for_s: float) -> float:
    """Return how many calls a second are served, read from outside."""
    meter = OutsideMeter(leased.operation, leased.status().pids)
    before, begun_s = meter.read(), time.monotonic()
    time.sleep(for_s)
    after, spent_s = meter.read(), time.monotonic() - begun_s
    meter.close()
    assert before is not None
    assert after is not None
    return (after - before) / spent_s


def board_of(pid: int) -> int:
    """Return a descriptor of the board that a simulator's process holds, which stays readable after its end."""
    found = (path for path in Path(f"/proc/{pid}/fd").iterdir() if str(path.readlink()).startswith(board.LINK))
    return os.open(next(found), os.O_RDONLY)


def served_by(leased: Leased) -> float:
    """Return how many calls of a load are served so far, read from outside."""
    meter = OutsideMeter(leased.operation, leased.status().pids)
    try:
        return meter.read() or 0.0
    finally:
        meter.close()


def fates(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["labels"]["fate"]: row["sum"] for row in rows if row["metric"] == "flood.calls"}


def test_a_rate_is_served_on_two_nodes(agent: Leasing) -> None:
    """Actors of two nodes and tasks and a mesh of one are loaded at once, each at its rate; after the stop no process of them is left."""
    loads = begin(agent, replace(CALLS, shape={"kind": "constant", "level": 200.0}), replace(CALLS, id="m@n2", node="n2"), TASKS, MESH)
    until(lambda: all(served_by(one) > 50 for one in loads), 20, lambda: f"calls of all: {[served_by(one) for one in loads]}")
    seen = [rate(one, 2.0) for one in loads]
    assert seen == pytest.approx([200.0, 100.0, 100.0, 100.0], rel=0.2), [one.status() for one in loads]
    assert len(marked()) >= 2 + 2 + 2 + 1
    for one in loads:
        assert one.call("stop", 1.0).phase == "done"
    assert marked() == []


def test_twice_what_is_served_is_refused_and_counted(agent: Leasing, tmp_path: Path) -> None:
    """One actor that serves 50 a second is offered 100: it is kept busy, the rest is rejected, and every offer has its fate."""
    recorded = Recorded(tmp_path, "m")
    options = {"actors": 1, "outstanding": 20, "work": 0.02, "backpressure": "reject"}
    (one,) = begin(agent, replace(CALLS, options=options), segment=recorded.path)
    until(lambda: served_by(one) > options["outstanding"], 20, "more is served than may wait")
    served = rate(one, 2.0)
    shared = board_of(one.status().pids[0])
    until(lambda: board.total(shared) > 60, 30)
    one.call("stop", 1.0)
    rows = recorded.rows()
    counts = fates(rows)
    assert counts["finished"] <= board.total(shared) <= counts["accepted"]  # what was cancelled may have been served
    os.close(shared)
    assert 0 < served < 51
    assert counts["offered"] == counts["accepted"] + counts["rejected"]
    assert counts["accepted"] == counts["finished"] + counts["cancelled"]
    assert counts["rejected"] > 0.3 * counts["offered"]
    assert counts["finished"] > 40
    assert counts["cancelled"] <= 20
    outstanding = next(row for row in rows if row["metric"] == "flood.outstanding")
    assert (outstanding["max"], outstanding["last"]) == (20.0, 0.0), outstanding
    response = next(row for row in rows if row["metric"] == "flood.response")
    assert response["count"] == counts["finished"]
    assert response["max"] > 10 * 0.02  # it waited behind others


def test_tasks_at_the_nodes_maximum(agent: Leasing, tmp_path: Path) -> None:
    """Asked for more than a node can do, what is done is its maximum: as many outstanding as may be, and the rest is told."""
    recorded = Recorded(tmp_path, "t")
    asked = replace(TASKS, shape={"kind": "constant", "level": 50_000.0}, options={"outstanding": 200})
    (one,) = begin(agent, asked, segment=recorded.path)
    until(lambda: served_by(one) > 200, 20, "more is served than may be outstanding")
    served = rate(one, 2.0)
    one.call("stop", 1.0)
    rows = recorded.rows()
    counts, figures = fates(rows), {row["metric"]: row for row in rows}
    assert 100 < served < 50_000
    assert counts["accepted"] == counts["finished"] + counts["cancelled"]
    assert figures["flood.outstanding"]["max"] <= 200
    assert figures["flood.blocked"]["sum"] + counts.get("missed", 0) / 50_000 > 1.5


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_nothing_outlives_the_simulators_actors(agent: Leasing, how: str) -> None:
    """Killed, Ray ends what they own; frozen, the guardian ends at the lease's end what Ray does not know to be over.

    What Ray starts in place of those that the guardian ended has no work and gets none; it is ended with the slot.
    """
    loads = begin(agent, *(replace(one, options={**one.options, "work": 0.05}) for one in (CALLS, TASKS, MESH)))
    holders, victims = [one.status().pids[0] for one in loads], marked()
    assert len(victims) >= 5
    boards = [board_of(holder) for holder in holders]
    begun_s = time.monotonic()
    for one, holder in zip(loads, holders, strict=True):
        os.kill(holder, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        agent.let_go(one)
    until(lambda: not set(victims) & set(marked()), 20, lambda: f"left: {set(victims) & set(marked())}")
    print(f"{how}: gone after {time.monotonic() - begun_s:.2f} s")
    served = [board.total(one) for one in boards]
    never(lambda: [board.total(one) for one in boards] != served, 1.0, "a call more is served")
    for holder in holders:
        with contextlib.suppress(ProcessLookupError):  # it was killed
            os.kill(holder, signal.SIGKILL)
    for one in boards:
        os.close(one)


class Told:
    """The totals of all that a load has recorded so far."""

    def __init__(self, folder: Path, name: str) -> None:
        self.recorded = Recorded(folder, name)
        self._totals = defaultdict[tuple[str, str], float](float)
        self.fates: dict[str, float] = defaultdict(float)

    def __call__(self, metric: str, figure: str) -> float:
        for row in self.recorded.rows():
            if row["metric"] == "flood.calls":
                self.fates[row["labels"]["fate"]] += row["sum"]
            self._totals[row["metric"], "sum"] += row["sum"]
            self._totals[row["metric"], "count"] += row["count"]
            self._totals[row["metric"], "last"] = row["last"]
        return self._totals[metric, figure]


LOCK = replace(CALLS, id="l@n1", kind="ClusterLock", shape={"kind": "constant", "level": 2000.0})


def contend(agent: Leasing, folder: Path, **options: float) -> tuple[Leased, Told]:
    """Have contenders take locks as fast as they can; return the load, and how to ask for a figure of all that it recorded."""
    told = Told(folder, "l")
    (one,) = begin(agent, replace(LOCK, options=options), segment=told.recorded.path)
    return one, told


def test_a_lock_is_held_by_one_at_a_time(agent: Leasing, tmp_path: Path) -> None:
    """Four contenders hold it for 10 ms each: all their holds take no longer than the time there is, and what it guards counts them."""
    one, told = contend(agent, tmp_path, contenders=4, contention=1.0, hold=0.01)
    begun_s = time.monotonic()
    until(lambda: told("flood.lock.shared", "sum") >= 150, 20)
    one.call("stop", 1.0)
    elapsed_s, turns = time.monotonic() - begun_s, told("load.operations", "sum")
    assert told("flood.lock.hold", "count") == told("flood.lock.shared", "sum") == told("flood.lock.guarded", "last") == turns
    assert told("flood.lock.hold", "sum") < elapsed_s + 1.0
    assert told("flood.lock.lost", "sum") == 0
    assert told("flood.lock.contended", "sum") == told("flood.lock.wait", "count") > 0.9 * turns


def test_the_share_of_contended_turns_is_the_models(agent: Leasing, tmp_path: Path) -> None:
    """Of a thousand turns as many found the lock held as the model has it, within 5 %, given what calls take of each turn."""
    contenders, contention, hold_s = 3, 0.9, 0.005
    one, told = contend(agent, tmp_path, contenders=contenders, contention=contention, hold=hold_s)
    begun_s, before = time.monotonic(), told("load.operations", "sum")
    until(lambda: told("load.operations", "sum") >= 1000, 90)
    cycle_s = contenders * (time.monotonic() - begun_s) / (told("load.operations", "sum") - before)
    one.call("stop", 1.0)
    assert_as_modelled([told], contenders, contention, hold_s, cycle_s)


def assert_as_modelled(told: list[Told], contenders: int, contention: float, hold_s: float, cycle_s: float) -> None:
    """Assert that the share of contended turns is that of the model, whose contenders take a turn each `cycle_s`."""

    def total(metric: str, figure: str) -> float:
        return sum(one(metric, figure) for one in told)

    turns = total("load.operations", "sum")
    assert total("flood.lock.shared", "sum") / turns == pytest.approx(contention, abs=0.03)
    call_s = total("flood.lock.hold", "sum") / total("flood.lock.hold", "count") - hold_s
    apart_s = cycle_s - total("flood.lock.wait", "sum") / turns - hold_s - contention * call_s
    expected = Simulated(contenders, contention, 7, hold_s, call_s, apart_s).contended_share(100_000)
    print(f"{turns:g} turns; a hold takes {call_s * 1000:.1f} ms longer, a turn {apart_s * 1000:.1f} ms: contended share {expected:.3f}")
    assert total("flood.lock.contended", "sum") / turns == pytest.approx(expected, rel=0.05)


def contend_over_nodes(agent: Leasing, folder: Path, **options: Any) -> tuple[list[Leased], list[Told]]:
    """Have contenders of two nodes want one lock; return both loads and what they tell."""
    told = [Told(folder, name) for name in ("n1", "n2")]
    leased = []
    for number, (node, one) in enumerate(zip(("n1", "n2"), told, strict=True)):
        wanted = replace(LOCK, id=f"0.l@{node}", node=node, seed=number, options={**options, "scope": "cluster"})
        leased.append(agent.prepare(wanted, one.recorded.path))
        leased[-1].until("ready", 60)
    agent.start(*leased)
    for load in leased:
        load.until("running", 10)
    return leased, told


def stop(leased: list[Leased]) -> None:
    """Stop them at once, as a run does."""
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda one: one.call("stop", 2.0), leased))
    assert [one.phase for one in ended] == ["done"] * len(leased), ended


def test_one_lock_over_two_nodes(agent: Leasing, tmp_path: Path) -> None:
    """One holder at a time of both nodes' contenders, and as many turns are contended as the model has it for all of them together."""
    contenders, contention, hold_s = 4, 0.6, 0.005
    leased, told = contend_over_nodes(agent, tmp_path, contenders=contenders // 2, contention=contention, hold=hold_s)

    def total(metric: str, figure: str = "sum") -> float:
        return sum(one(metric, figure) for one in told)

    begun_s, before = time.monotonic(), total("load.operations")
    until(lambda: total("load.operations") - before >= 700, 90)
    elapsed_s = time.monotonic() - begun_s
    cycle_s = contenders * elapsed_s / (total("load.operations") - before)
    stop(leased)
    assert marked() == []
    assert min(one("flood.lock.shared", "sum") for one in told) > 0.3 * total("flood.lock.shared")
    untold = max(one("flood.lock.guarded", "last") for one in told) - total("flood.lock.shared") + total("flood.lock.lost")
    assert 0 <= untold <= sum(one.fates["cancelled"] for one in told)  # what was cut off may have raised the number
    assert total("flood.lock.keepers") == 1
    assert total("flood.lock.hold") < elapsed_s + 3.0
    assert_as_modelled(told, contenders, contention, hold_s, cycle_s)


def test_a_node_that_is_lost_keeps_the_lock_from_nobody(agent: Leasing, tmp_path: Path) -> None:
    """The simulator that found the keeper is killed while its contenders hold and wait: the others wait for one lease, not for each."""
    lease_s = 3.0
    (first, second), told = contend_over_nodes(agent, tmp_path, contenders=4, contention=1.0, hold=0.01, lease=lease_s)
    until(lambda: min(one("load.operations", "sum") for one in told) > 20, 20)
    os.kill(second.status().pids[0], signal.SIGKILL)
    agent.let_go(second)
    last_s, turns, longest_s = time.monotonic(), told[0]("load.operations", "sum"), 0.0
    end_s = last_s + 3 * lease_s
    while time.monotonic() < end_s:
        time.sleep(0.02)
        longest_s = max(longest_s, time.monotonic() - last_s)
        if (now := told[0]("load.operations", "sum")) != turns:
            last_s, turns = time.monotonic(), now
    print(f"the others waited for {longest_s:.1f} s")
    assert longest_s < 2 * lease_s
    assert first.status().phase == "running"
    stop([first])
    assert told[0]("flood.lock.keepers", "sum") == 1
    until(lambda: not marked(), 10, lambda: f"left: {marked()}")


@pytest.mark.parametrize("dies", ["keeper", "simulator"])
def test_a_lock_over_nodes_goes_on_with_the_next_keeper(agent: Leasing, tmp_path: Path, dies: str) -> None:
    """The keeper's process is killed, or the simulator that made it: the next one is made, and no load of those that live is broken."""
    import ray

    (first, second), told = contend_over_nodes(agent, tmp_path, contenders=2, contention=1.0, hold=0.01, lease=1.0)

    def keepers() -> dict[str, int]:
        """Return the process of each living keeper, by its term."""
        found = {}
        for one in ray.util.list_named_actors(all_namespaces=True):
            if one["name"].startswith(name_over_nodes(first.operation)):
                with contextlib.suppress(ValueError, ray.exceptions.ActorDiedError):  # it has ended meanwhile
                    found[one["name"].partition("/")[2]] = ray.get(ray.get_actor(**one).pid.remote(), timeout=20)
        return found

    until(lambda: min(one("load.operations", "sum") for one in told) > 20, 20)
    (before,) = keepers().items()
    assert before[0] == "0"
    os.kill(before[1] if dies == "keeper" else first.status().pids[0], signal.SIGKILL)
    if dies == "simulator":
        agent.let_go(first)
    until(lambda: list(keepers()) == ["1"], 20, lambda: f"keepers {keepers()}")
    living = [(second, told[1])] if dies == "simulator" else [(first, told[0]), (second, told[1])]
    for load, one in living:
        turns = one("load.operations", "sum")
        until(lambda one=one, turns=turns: one("load.operations", "sum") > turns + 20, 30, "turns with the next keeper")
        assert load.status().phase == "running"
    stop([load for load, _ in living])
    until(lambda: not marked(), 10, lambda: f"left: {marked()}")
    for _, one in living:
        one("flood.calls", "sum")
        assert 0 < one.fates["failed"] <= 4 * 2, "a turn of each contender, and what was sent until the end was known"
        assert one.fates["accepted"] == one.fates["finished"] + one.fates["failed"] + one.fates["cancelled"]
    print(f"{dies}: fates {[dict(one.fates) for one in told]}")


def test_what_passes_the_budget_is_refused_before_anything_starts(agent: Leasing) -> None:
    """A typed error of the guardian's ledger, for each; no slot, no record and no process is there afterwards."""
    agent.capacity = replace(agent.capacity, memory_bytes=200 << 20)
    for kind in ("MailboxFlood", "TaskExplosion", "ClusterLock", "ActorMesh"):
        with pytest.raises(StressError) as refused:
            agent.prepare(replace(CALLS, kind=kind))
        assert refused.value.code == "budget"
        assert "memory" in str(refused.value)
    status = agent.client.call("status")
    assert (status["slots"], status["records"], marked()) == ([], [], [])


def test_a_victim_that_is_killed_ends_the_load_with_a_reason(agent: Leasing) -> None:
    """As the kernel does when memory runs out: the load ends as broken, and says of what."""
    (one,) = begin(agent, CALLS)
    os.kill(one.status().pids[1], signal.SIGKILL)
    assert "a call failed: ActorDiedError" in one.until("failed", 20).reason


def test_large_messages_keep_to_their_budget(agent: Leasing, driver: Raylets, tmp_path: Path) -> None:
    """Of 10 MB messages the object store holds no more than the budget, and spills nothing; without a budget it holds more, and spills.

    Both are read from this node's raylet by a driver of our own. What is spilled is what the load counts; nobody is killed for memory.
    Copies that are let go of are freed by Ray a second later, so what counts is what it may not evict, in memory or spilled.
    """
    import ray
    from ray._private.internal_api import node_stats

    node = next(node for node in ray.nodes() if node["NodeName"] == "n1")

    def held() -> tuple[int, int, int]:
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
        return stats.object_store_bytes_primary_copy, stats.spilled_bytes_total, stats.object_store_bytes_used

    def most(name: str, budget_bytes: int, outstanding: int) -> tuple[int, int, int]:
        """Return the most that was held at once, what was spilled, and what the load counts as spilled."""
        recorded = Recorded(tmp_path, name)
        options = {
            "actors": 1,
            "payload_bytes": 10_000_000,
            "in_flight_bytes": budget_bytes,
            "work": 0.2,
            "outstanding": outstanding,
        }
        before = held()[1]
        (one,) = begin(agent, replace(CALLS, id=f"{name}@n1", options=options), segment=recorded.path)
        pids, end_s, used = one.status().pids, time.monotonic() + 2.5, 0
        assert len(pids) == 2
        while time.monotonic() < end_s or (budget_bytes > 1 << 30 and held()[1] == before and time.monotonic() < end_s + 20):
            used = max(used, held()[0])
            time.sleep(0.01)
        assert (one.status().phase, all(Path(f"/proc/{pid}").exists() for pid in pids)) == ("running", True)
        assert one.call("stop", 20.0).phase == "done"
        counted = next(row["sum"] for row in recorded.rows() if row["metric"] == "flood.spilled")
        return used, held()[1] - before, counted

    used, spilled, counted = most("within", 50_000_000, 12)
    assert 20_000_000 <= used <= 50_100_000
    assert spilled == counted == 0
    used, spilled, counted = most("without", 1 << 40, 12)
    print(f"without a budget: {used:,} bytes held at most, {spilled:,} spilled, {counted:,} counted as spilled")
    assert used > 55_000_000
    assert used + spilled > 100_000_000
    assert 0 < counted <= spilled
    assert counted == pytest.approx(spilled, rel=0.1)
