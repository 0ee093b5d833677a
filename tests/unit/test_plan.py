"""The plan: timeline, sums, budget, drift, replay."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from actors.errors import InputError, RefusedError
from actors.messages import Amounts, Capacity, NodeSpec
from actors.shape import Burst, Square
from scenarios import Budget, CpuLoad, DiskFill, MemoryPressure, Scenario, Targets, hold, pause, sequence, together
from scenarios.catalogue import get
from scenarios.plan import Plan, check_budget, drift, replay, resolve

MIB, GIB = 1 << 20, 1 << 30
HEAD = NodeSpec("head", is_head=True, address="10.0.0.1")
WORKERS = tuple(NodeSpec(f"n{at}", address=f"10.0.0.{at + 1}") for at in range(1, 4))
NODES = (HEAD, *WORKERS)
CAPACITY = Capacity(cpu_cores=4.0, memory_bytes=8 * GIB, disk_bytes=100 * GIB)


def scenario(*parts, **fields):
    return Scenario("x", parts[0] if len(parts) == 1 else sequence(*parts), **fields)


def cpu(fraction, for_s=10, **options):
    return hold(CpuLoad(fraction), for_s, **options)


def test_operations_stand_on_the_timeline():
    """A sequence adds up, what is together starts together, and ids come from path, kind and node."""
    plan = resolve(
        scenario(
            cpu(0.5, 10, phase="warm"),
            pause(2.5),
            together(hold(MemoryPressure(bytes=MIB), 20), sequence(pause(5), cpu(0.25, 3, targets=Targets(names=("n2",)))), phase="press"),
            cpu(0.1, 1),
        ),
        WORKERS[:2],
    )
    rows = [(op.id, op.start_s, op.duration_s, op.phase) for op in plan.operations]
    assert rows == [
        ("0.0.CpuLoad@n1", 0.0, 10.0, "warm"),
        ("0.0.CpuLoad@n2", 0.0, 10.0, "warm"),
        ("0.2.0.MemoryPressure@n1", 12.5, 20.0, "press"),
        ("0.2.0.MemoryPressure@n2", 12.5, 20.0, "press"),
        ("0.2.1.1.CpuLoad@n2", 17.5, 3.0, "press"),
        ("0.3.CpuLoad@n1", 32.5, 1.0, ""),
        ("0.3.CpuLoad@n2", 32.5, 1.0, ""),
    ]
    assert plan.duration_s == 33.5
    assert plan.targets == ("n1", "n2")
    assert [op.id for op in plan.by_node["n1"]] == ["0.0.CpuLoad@n1", "0.2.0.MemoryPressure@n1", "0.3.CpuLoad@n1"]


def test_a_single_hold_has_the_root_path():
    """A plan of one simulator is path 0, and its tolerance and options travel."""
    plan = resolve(scenario(hold(CpuLoad(0.5, mode="host_total", cores=2), 5, tolerance=0.1)), WORKERS[:1])
    (operation,) = plan.operations
    assert operation.id == "0.CpuLoad@n1"
    given = {"mode": "host_total", "kernel": "integer", "cores": 2}
    assert operation.options == {**given, "affinity": "free", "heat_limit_c": 85}
    assert operation.tolerance == 0.1
    assert operation.shape == {"kind": "constant", "level": 0.5}


def test_the_head_is_left_out_of_a_plan():
    """No operation stands on a protected head."""
    assert resolve(get("burst"), NODES).targets == ("n1", "n2", "n3")
    assert resolve(get("burst"), NODES, allow_head=True).targets == ("head", "n1", "n2", "n3")
    assert resolve(get("burst"), (HEAD,)).targets == ("head",)


def test_the_seed_of_the_call_replaces_the_scenarios():
    """--seed changes operations' seeds and seeded choices, and is stored."""
    targets = Targets(count=1, choice="seeded")
    plans = [resolve(scenario(cpu(0.5), targets=targets), WORKERS, seed) for seed in range(20)]
    assert {plan.seed for plan in plans} == set(range(20))
    assert {plan.targets for plan in plans} == {("n1",), ("n2",), ("n3",)}
    with pytest.raises(InputError):
        resolve(scenario(cpu(0.5)), WORKERS, -1)


@pytest.mark.parametrize(
    ("plan", "total"),
    [
        pytest.param(together(cpu(0.6), cpu(0.5)), "110%", id="two-cpu-loads"),
        pytest.param(
            together(hold(MemoryPressure(fraction=0.6), 9), hold(MemoryPressure(fraction=0.41), 3)), "101%", id="two-memory-loads"
        ),
        pytest.param(together(cpu(Square(0.0, 0.6, 10)), cpu(Square(0.0, 0.6, 10))), "120%", id="peaks-count"),
        pytest.param(together(cpu(0.6, 10), sequence(pause(9.9), cpu(0.6, 1))), "120%", id="a-tenth-of-a-second-of-overlap"),
        pytest.param(together(hold(DiskFill(fraction=0.6), 9), hold(DiskFill(fraction=0.6), 9)), "120%", id="two-disk-fills"),
    ],
)
def test_more_than_all_of_a_node_is_refused(plan, total):
    """Fractions that pass 100 % on one node at an instant are refused with node, instant and operations."""
    with pytest.raises(RefusedError) as caught:
        resolve(scenario(plan), WORKERS)
    assert caught.value.code == "budget"
    assert f"ask {total} of" in str(caught.value)
    assert "on n1" in str(caught.value)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(together(cpu(0.6), cpu(0.4)), id="exactly-all"),
        pytest.param(sequence(cpu(0.6), cpu(0.6)), id="one-after-the-other"),
        pytest.param(together(*[cpu(0.1)] * 10), id="ten-tenths"),
        pytest.param(together(cpu(0.6), hold(MemoryPressure(fraction=0.6), 10)), id="different-resources"),
        pytest.param(together(cpu(0.6, targets=Targets(names=("n1",))), cpu(0.6, targets=Targets(names=("n2",)))), id="different-nodes"),
    ],
)
def test_what_fits_a_node_is_planned(plan):
    """100 % fits, and so does what meets neither in time nor in place."""
    assert resolve(scenario(plan), WORKERS).operations


def test_one_overloaded_node_among_many_is_found():
    """The check sees each node's own set of operations."""
    plan = together(cpu(0.6), cpu(0.6, targets=Targets(names=("n3",))))
    with pytest.raises(RefusedError, match="on n3"):
        resolve(scenario(plan), WORKERS)


def test_reservations_are_the_highest_sums_at_an_instant():
    """What overlaps adds up, what follows does not, and fractions become cores and bytes of each node's capacity."""
    plan = resolve(
        scenario(
            together(
                cpu(Burst(0.1, 0.5, 10, 2), 20), cpu(0.2, 5), hold(MemoryPressure(fraction=0.25), 20), hold(MemoryPressure(bytes=MIB), 5)
            ),
            together(hold(DiskFill(bytes=3 * MIB), 5), hold(DiskFill(fraction=0.1), 5), hold(MemoryPressure(bytes=GIB), 5)),
        ),
        WORKERS[:2],
    )
    other = replace(CAPACITY, cpu_cores=2.0)
    reserved = plan.reservations({"n1": CAPACITY, "n2": other})
    assert reserved["n1"] == Amounts(0.7 * 4, 2 * GIB + MIB, 10 * GIB + 3 * MIB)
    assert reserved["n2"].cpu_cores == 0.7 * 2
    with pytest.raises(RefusedError, match="n2"):
        plan.reservations({"n1": CAPACITY})


@pytest.mark.parametrize(
    ("budget", "fits"),
    [
        pytest.param(Budget(nodes_max=3), True, id="nodes-at-the-bound"),
        pytest.param(Budget(nodes_max=2), False, id="one-node-too-many"),
        pytest.param(Budget(memory_bytes_max=3 * MIB), True, id="memory-at-the-bound"),
        pytest.param(Budget(memory_bytes_max=3 * MIB - 1), False, id="one-byte-too-many"),
        pytest.param(Budget(disk_bytes_max=6 * MIB), True, id="disk-at-the-bound"),
        pytest.param(Budget(disk_bytes_max=5 * MIB), False, id="too-much-disk"),
    ],
)
def test_a_plan_keeps_the_budget_that_it_can_see(budget, fits):
    """Nodes at once and bytes in all are checked when the plan is made, on both sides of the bound."""
    plan = together(hold(MemoryPressure(bytes=MIB), 5), hold(DiskFill(bytes=2 * MIB), 5))
    if fits:
        assert resolve(scenario(plan, budget=budget), WORKERS)
    else:
        with pytest.raises(RefusedError, match="budget"):
            resolve(scenario(plan, budget=budget), WORKERS)


def test_nodes_count_at_once_not_in_all():
    """Two nodes one after the other are one node at once."""
    plan = sequence(*(cpu(0.5, targets=Targets(names=(name,))) for name in ("n1", "n2")))
    assert resolve(scenario(plan, budget=Budget(nodes_max=1)), WORKERS).targets == ("n1", "n2")


def test_the_budget_in_cores_needs_capacities():
    """With the nodes' capacities the sum over all of them is held against the budget."""
    plan = resolve(scenario(cpu(0.5)), WORKERS)
    capacities = dict.fromkeys(plan.targets, CAPACITY)
    check_budget(plan, Budget(cpu_cores_max=6.0), capacities)
    with pytest.raises(RefusedError, match=r"6 cores, its budget is 5\.9"):
        check_budget(plan, Budget(cpu_cores_max=5.9), capacities)
    with pytest.raises(RefusedError, match="bytes of memory"):
        check_budget(resolve(scenario(hold(MemoryPressure(fraction=0.5), 5)), WORKERS), Budget(memory_bytes_max=11 * GIB), capacities)


def test_ten_tebibytes_are_planned_and_refused_by_the_cluster_only():
    """10 TiB is a good document; only a cluster can say that it does not fit."""
    plan = resolve(scenario(hold(MemoryPressure(bytes=10 << 40), 5)), WORKERS)
    assert plan.reservations(dict.fromkeys(plan.targets, CAPACITY))["n1"].memory_bytes == 10 << 40


def test_a_plan_survives_its_json():
    """plan.json reads back as the same plan, with the same bytes and digest."""
    plan = resolve(get("burst"), NODES)
    again = Plan.from_json(plan.to_json())
    assert (again, again.to_json(), again.digest) == (plan, plan.to_json(), plan.digest)
    assert len(plan.digest) == 16


def test_a_plan_holds_nothing_of_the_machine():
    """Addresses, labels that were not asked for, and the order of nodes leave no trace in plan.json."""
    moved = [replace(node, address="192.168.0.9", labels={"secret": "label"}) for node in reversed(NODES)]
    assert resolve(get("burst"), NODES).to_json() == resolve(get("burst"), moved).to_json()
    assert b"10.0.0" not in resolve(get("burst"), NODES).to_json()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"null",
        b'{"schema":2}',
        b'{"schema":1}',
        b"[" * 100_000,
        lambda body: body.pop("seed"),
        lambda body: body.update(seed=-1),
        lambda body: body.update(targets=3),
        lambda body: body.update(targets=["n9"]),
        lambda body: body["operations"][0].pop("shape"),
        lambda body: body["operations"][0].update(shape={"kind": "spiral"}),
        lambda body: body["operations"][0].update(start_s=-1),
        lambda body: body["operations"][0].update(kind="Reboot"),
        lambda body: body["operations"][0].update(command="rm"),
        lambda body: body["scenario"].update(version=2),
        lambda body: body.update(operations=[3]),
    ],
)
def test_a_damaged_plan_is_an_input_error(content):
    """Any other content than a plan is refused, never half read."""
    if callable(content):
        body = json.loads(resolve(get("burst"), NODES).to_json())
        content(body)
        content = json.dumps(body).encode()
    with pytest.raises(InputError):
        Plan.from_json(content)


def test_the_same_plan_has_no_drift():
    """A plan resolved twice differs in nothing."""
    assert drift(resolve(get("burst"), NODES), resolve(get("burst"), NODES)) == ()


def test_fewer_nodes_are_reported_as_drift():
    """On fewer nodes, drift names the node that is gone and what is not run, once for the node."""
    old = resolve(get("burst"), NODES)
    found = drift(old, resolve(get("burst"), NODES[:3]))
    assert [(item.kind, item.data) for item in found] == [("node_missing", {"node": "n3", "operations": 3})]
    assert found[0].message == "n3 is gone: 3 operations are not run"
    assert [item.kind for item in drift(resolve(get("burst"), NODES[:3]), old)] == ["node_added"]


def test_changes_of_scenario_and_seed_are_reported_as_drift():
    """Seed, scenario, duration, and each operation's changed fields are named."""
    old = resolve(scenario(cpu(0.5, 10)), WORKERS[:1], 1)
    new = resolve(scenario(cpu(0.25, 12), cpu(0.1, 1)), WORKERS[:1], 2)
    kinds = {item.kind for item in drift(old, new)}
    assert kinds == {"seed_changed", "scenario_changed", "duration_s_changed", "operation_missing", "operation_added"}
    (_, changed, *_) = drift(resolve(scenario(cpu(0.5)), WORKERS[:1]), resolve(scenario(cpu(0.4)), WORKERS[:1]))
    assert (changed.kind, changed.data["operation"]) == ("operation_changed", "0.CpuLoad@n1")
    assert "shape was" in changed.message


def test_replay_runs_what_is_still_there():
    """A replay on fewer nodes keeps every byte of the operations that remain and reports the rest."""
    old = resolve(get("burst"), NODES)
    new, found = replay(Plan.from_json(old.to_json()), (HEAD, WORKERS[2]))
    assert new.operations == tuple(op for op in old.operations if op.node == "n3")
    assert [item.data["node"] for item in found] == ["n1", "n2"]
    assert replay(old, NODES) == (old, ())
    with pytest.raises(RefusedError, match="none of the plan's nodes"):
        replay(old, (NodeSpec("other"),))


def test_replay_protects_a_node_that_became_the_head():
    """A target of the old plan that is the head now is refused unless allowed."""
    old = resolve(get("burst"), NODES)
    nodes = (replace(WORKERS[0], is_head=True), WORKERS[1])
    with pytest.raises(RefusedError) as caught:
        replay(old, nodes)
    assert caught.value.code == "protected"
    assert replay(old, nodes, allow_head=True)[0].targets == ("n1", "n2")


def test_names_that_are_not_unique_are_refused():
    """Two nodes of one name cannot be told apart in a plan."""
    with pytest.raises(RefusedError, match="two nodes are called n1"):
        resolve(get("burst"), (WORKERS[0], WORKERS[0]))
