"""Properties of plans, doses, policies and verdicts over generated clusters and scenarios."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.errors import RefusedError
from actors.messages import Amounts, Capacity, HostSnapshot, NodeSpec
from actors.simulator import peak_amounts
from cluster.dose import DoseWindow, reached
from cluster.safety.policies import OK, Level, Verdict, judge, next_ceiling, worst
from cluster.safety.profiles import PROFILES
from scenarios import CpuLoad, DiskFill, MemoryPressure, Scenario, Targets, hold, pause, sequence, together
from scenarios.plan import Plan, drift, peak_of, replay, resolve

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
level = st.floats(0.01, 0.4)
select = st.none() | st.builds(Targets, fraction=st.floats(0.1, 1), choice=st.sampled_from(("first", "seeded")))
load = st.one_of(
    st.builds(CpuLoad, level),
    st.builds(lambda part: MemoryPressure(fraction=part), level),
    st.builds(lambda size: MemoryPressure(bytes=size), st.integers(0, 1 << 40)),
    st.builds(lambda size: DiskFill(bytes=size), st.integers(1, 1 << 40)),
)
leaf = st.builds(lambda item, span, chosen: hold(item, span, targets=chosen), load, st.integers(1, 50).map(lambda n: n / 4), select)
branch = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner | st.just(pause(1)), min_size=1, max_size=3).map(lambda parts: sequence(leafy, *parts)),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: together(*parts)),
    ),
    max_leaves=5,
)
leafy = hold(MemoryPressure(bytes=1), 1)
names = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(lambda found: [NodeSpec(f"n{at}") for at in found])


def plan_of(tree, nodes, seed=0):
    try:
        return resolve(Scenario("x", tree), nodes, seed)
    except RefusedError as error:
        if error.code == "budget":
            return None
        raise


@given(branch, names, st.integers(0, 1 << 62), st.randoms(use_true_random=False))
@QUICK
def test_the_same_inputs_give_the_same_bytes(tree, nodes, seed, chance):
    """Scenario, seed and node names decide every byte; the order in which nodes are given does not."""
    shuffled = list(nodes)
    chance.shuffle(shuffled)
    plan, again = plan_of(tree, nodes, seed), plan_of(tree, shuffled, seed)
    assert plan == again
    if plan is not None:
        assert plan.to_json() == again.to_json()
        assert Plan.from_json(plan.to_json()) == plan


@given(branch, names, st.integers(0, 1 << 62))
@QUICK
def test_operations_are_unique_within_the_plan_and_of_its_targets(tree, nodes, seed):
    """Ids and seeds are unique, every operation lies within the duration and on a target."""
    plan = plan_of(tree, nodes, seed)
    if plan is None:
        return
    assert len({op.id for op in plan.operations}) == len(plan.operations) == len({op.seed for op in plan.operations})
    assert {op.node for op in plan.operations} == set(plan.targets) <= {node.name for node in nodes}
    assert all(op.start_s >= 0 and op.start_s + op.duration_s <= plan.duration_s + 1e-5 for op in plan.operations)


@given(branch, branch, names, st.integers(0, 1 << 62))
@QUICK
def test_a_branch_added_at_the_end_moves_no_other(tree, more, nodes, seed):
    """Each part derives its own seed, so operations of the first branches stay the same to the last field."""
    short, long = plan_of(together(tree), nodes, seed), plan_of(together(tree, more), nodes, seed)
    if short is not None and long is not None:
        assert set(map(repr, short.operations)) <= set(map(repr, long.operations))


@given(branch, names, st.integers(0, 1 << 62))
@QUICK
def test_replay_is_the_plan_without_the_nodes_that_are_gone(tree, nodes, seed):
    """A replay keeps every operation of the nodes that are there, and its drift names each node that is not."""
    plan = plan_of(tree, nodes, seed)
    if plan is None:
        return
    there = [node for node in nodes if node.name != plan.targets[0]]
    if len(plan.targets) > 1:
        again, found = replay(plan, there)
        assert again.operations == tuple(op for op in plan.operations if op.node != plan.targets[0])
        assert [item.data["node"] for item in found] == [plan.targets[0]]
    assert drift(plan, plan) == ()


@given(branch, names, st.integers(0, 1 << 62))
@QUICK
def test_reservations_cover_every_instant(tree, nodes, seed):
    """At any instant the sum of a node's live peaks is within its reservation, and reached at some instant."""
    plan = plan_of(tree, nodes, seed)
    if plan is None:
        return
    capacity = Capacity(4.0, 8 << 30, 100 << 30)
    reserved = plan.reservations(dict.fromkeys(plan.targets, capacity))
    chance = random.Random(seed)
    for node, operations in plan.by_node.items():
        for at_s in [op.start_s for op in operations] + [chance.uniform(0, plan.duration_s) for _ in range(5)]:
            total = Amounts()
            for op in operations:
                if op.start_s <= at_s < op.start_s + op.duration_s - 1e-6:
                    total = total.plus(peak_amounts(op, capacity))
            assert total.within(reserved[node])
        cpu = [op for op in operations if op.kind == "CpuLoad"]
        assert reserved[node].cpu_cores >= max((peak_of(op) * 4.0 for op in cpu), default=0.0)
        assert reserved[node].cpu_cores <= 4.0 + 1e-6


shares = st.floats(0, 1)
snapshots = st.builds(
    HostSnapshot,
    st.just("n1"),
    st.integers(0, 10**10),
    st.just(4.0),
    st.floats(0, 2) | st.just(float("nan")),
    st.integers(0, 1 << 45),
    st.integers(0, 1 << 45),
    st.integers(0, 1 << 50),
    st.integers(0, 1 << 50),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
profiles = st.sampled_from(list(PROFILES.values()))


@given(snapshots, profiles, st.integers(0, 10**10))
def test_policies_are_pure_and_never_raise(host, limits, now_ns):
    """The same snapshot gives the same verdict, whatever stands in it."""
    verdict = judge(host, limits, now_ns)
    assert verdict == judge(host, limits, now_ns)
    assert verdict.level is Level.OK or verdict.reason


@given(snapshots, profiles, st.integers(0, 1 << 45))
def test_less_free_memory_is_never_better(host, limits, less):
    """Taking memory away cannot improve the verdict."""
    worse = replace(host, memory_available_bytes=max(0, host.memory_available_bytes - less))
    assert judge(worse, limits, host.boot_ns).level >= judge(host, limits, host.boot_ns).level


@given(snapshots)
def test_stricter_profiles_never_judge_milder(host):
    """conservative is at least as strict as balanced, balanced as aggressive, on any snapshot."""
    levels = [judge(host, limits, host.boot_ns, 1).level for limits in PROFILES.values()]
    assert levels == sorted(levels, reverse=True)


@given(st.lists(st.builds(Verdict, st.sampled_from(Level), st.text(max_size=3))), st.randoms(use_true_random=False))
def test_the_worst_verdict_wins_in_any_order(verdicts, chance):
    """The level of the worst does not depend on the order."""
    shuffled = list(verdicts)
    chance.shuffle(shuffled)
    assert worst(verdicts).level == worst(shuffled).level == max((verdict.level for verdict in verdicts), default=Level.OK)


@given(shares, st.lists(st.sampled_from(Level), max_size=60))
def test_the_ceiling_stays_within_its_bounds(ceiling, levels):
    """Whatever the verdicts, the ceiling is within 0 to 1, falls on SHED and rises on OK only."""
    for item in levels:
        after = next_ceiling(ceiling, Verdict(item))
        assert 0.0 <= after <= 1.0
        assert after <= ceiling or item is Level.OK
        ceiling = after
    assert next_ceiling(1.0, OK) == 1.0


@given(st.lists(shares, min_size=3, max_size=40), st.floats(0, 0.049))
def test_a_load_within_tolerance_is_never_missed(asked, error):
    """Achieved values that stay within 5 points of the asked ones reach the dose, or are too few to judge."""
    windows = [DoseWindow(float(at), value, value + error) for at, value in enumerate(asked)]
    assert reached(windows).reached is not False


@given(st.lists(shares, min_size=8, max_size=40))
def test_no_load_at_all_never_reaches_a_dose(asked):
    """Where at least 10 % was asked all the time and nothing came, the dose is not reached."""
    windows = [DoseWindow(float(at), 0.1 + 0.9 * value, 0.0) for at, value in enumerate(asked)]
    assert reached(windows).reached is False
