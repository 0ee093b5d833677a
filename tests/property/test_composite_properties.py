"""Laws of the words that combine parts: what a plan does to each node at each instant of a virtual clock, and who decides it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from actors import shape as shapes
from actors.clock import VirtualClock
from actors.errors import InputError, RefusedError
from actors.messages import NodeSpec
from scenarios import CpuLoad, MemoryPressure, Scenario, Targets, hold, pause, sequence, text, together
from scenarios.combinators import placed
from scenarios.composites import Composite, choose, limited, repeat, scaled, stretched, weighted, where
from scenarios.plan import Plan, resolve

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NODES = [NodeSpec(f"n{at}", {"disk": "ssd" if at % 2 else "hdd"}) for at in range(1, 5)]
SSD, HDD = Targets(labels={"disk": "ssd"}), Targets(labels={"disk": "hdd"})
NONE = Targets(labels={"disk": "tape"})
TICK_S = 0.125  # all spans are multiples of it, so that instants are exact

span = st.integers(4, 40).map(lambda n: n * TICK_S * 2)
level = st.integers(0, 16).map(lambda n: n / 64)
curve = st.one_of(
    level,
    st.builds(shapes.Ramp, level, level, span),
    st.builds(lambda levels, each: shapes.Steps(tuple(levels), each), st.lists(level, min_size=1, max_size=3), span),
    st.builds(lambda low, more, period: shapes.Square(low, low + more, period), level, level, span),
    st.builds(lambda start, rate: shapes.Leak(start, rate / 64), level, level),
)
leaf = st.one_of(
    st.builds(lambda one, for_s: hold(CpuLoad(one), for_s), curve, span),
    st.builds(lambda size, for_s: hold(MemoryPressure(bytes=size), for_s), st.integers(0, 1 << 30), span),
)
rest = span.map(pause)
part = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner | rest, min_size=1, max_size=3).map(lambda parts: sequence(*parts, LAST)),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: together(*parts)),
        st.lists(st.tuples(st.integers(1, 9), inner), min_size=1, max_size=3).map(lambda parts: weighted(*parts)),
        st.lists(st.tuples(st.integers(1, 9), inner), min_size=1, max_size=2).map(lambda parts: choose(*parts)),
        st.tuples(st.sampled_from((SSD, HDD)), inner, st.none() | inner).map(lambda given: where(*given)),
        st.tuples(inner, st.integers(1, 3)).map(lambda given: repeat(*given)),
        st.tuples(inner, st.sampled_from((0.5, 1.0))).map(lambda given: scaled(*given)),
        st.tuples(inner, st.sampled_from((1.0, 2.0))).map(lambda given: stretched(*given)),
        st.tuples(inner, span).map(lambda given: limited(*given)),
        st.tuples(inner, span).map(lambda given: hold(Composite("mix", given[0]), given[1])),
    ),
    max_leaves=4,
)
LAST = hold(MemoryPressure(bytes=1), 1)
seeds = st.integers(0, 1 << 62)
factor = st.sampled_from((0.25, 0.5, 1.0))  # exact in every product


def plan_of(tree, seed: int = 0) -> Plan:
    """Return the plan; what asks more than 100 % of a node, or that no node runs, is not what these laws are about."""
    if not any(True for _ in placed(tree)):
        reject()
    try:
        return resolve(Scenario("x", tree), NODES, seed)
    except RefusedError as error:
        if error.code in ("budget", "no_target"):
            reject()
        raise


def run(tree, seed: int = 0) -> list[dict[tuple[str, str], float]]:
    """Return what each node bears at each tick of a virtual clock, as (node, kind) -> sum of its operations' levels."""
    plan, clock, seen = plan_of(tree, seed), VirtualClock(), []
    begin_ns = clock.boot_ns()
    while (now_s := (clock.boot_ns() - begin_ns) / 1e9) < plan.duration_s:
        bears: dict[tuple[str, str], float] = {}
        for one in plan.operations:
            if one.start_s <= now_s < one.start_s + one.duration_s - 1e-6:
                value = shapes.from_spec(one.shape).value(now_s - one.start_s)
                bears[one.node, one.kind] = bears.get((one.node, one.kind), 0.0) + value
        seen.append({key: value for key, value in bears.items() if value})
        clock.advance(TICK_S)
    return seen


def spans(tree, seed: int = 0, *, seeded: bool = False):
    """Return who does what when, without paths; with the seeds where those are to be the same as well."""
    return sorted(
        (one.start_s, one.node, one.kind, one.duration_s, str(one.shape), one.phase, one.seed if seeded else 0)
        for one in plan_of(tree, seed).operations
    )


def same(left, right) -> bool:
    return len(left) == len(right) and all(one == pytest.approx(other, abs=1e-9) for one, other in zip(left, right, strict=True))


@given(part, part, part, seeds)
@QUICK
def test_sequence_and_together_are_associative(a, b, c, seed):
    """It does not matter how parts are bracketed: the same loads at the same instants (chance aside, which goes by paths)."""
    assume(not any(word in repr((a, b, c)) for word in ("Choose", "seeded")))
    for word in (sequence, together):
        flat = spans(word(a, b, c), seed)
        assert spans(word(word(a, b), c), seed) == flat == spans(word(a, word(b, c)), seed)
        assert word(word(a, b), c).duration_s == word(a, b, c).duration_s


@given(part, seeds)
@QUICK
def test_each_word_has_an_identity(a, seed):
    """One part alone, once, at full strength, at its own pace, cut at its end, on a condition that all meet: the part itself."""
    plain = spans(a, seed, seeded=True)
    everyone = Targets(role="worker")
    for same_part in (
        repeat(a, 1) if "Choose" not in repr(a) else a,
        scaled(a, 1.0),
        stretched(a, 1.0),
        limited(a, a.duration_s),
        where(everyone, a),
        where(NONE, LAST, otherwise=a) if a.duration_s >= 1 and "Choose" not in repr(a) else a,
    ):
        assert same_part.duration_s == a.duration_s
        assert [one[:6] for one in spans(same_part, seed)] == [one[:6] for one in spans(a, seed)]
    for kept in (scaled(a, 1.0), stretched(a, 1.0), limited(a, a.duration_s), where(everyone, a)):
        assert spans(kept, seed, seeded=True) == plain  # no seed moves
    if "Choose" not in repr(a):
        assert spans(sequence(a)) == spans(together(a)) == spans(weighted((3, a))) == spans(choose((2, a))) == spans(a)


@given(part, part, span, st.integers(1, 4), st.sampled_from((0.5, 1.0, 2.0)))
@QUICK
def test_durations(a, b, for_s, times, by):
    """Each word's duration is what its definition says, and no operation outlasts it."""
    longer = max(a.duration_s, b.duration_s)
    wanted = [
        (sequence(a, b), a.duration_s + b.duration_s),
        (together(a, b), longer),
        (weighted((1, a), (2, b)), longer),
        (choose((1, a), (2, b)), longer),
        (where(SSD, a, b), longer),
        (where(NONE, a, b), longer),
        (repeat(a, times), times * a.duration_s),
        (scaled(a, 0.5), a.duration_s),
        (stretched(a, by), by * a.duration_s),
        (limited(a, for_s), min(for_s, a.duration_s)),
        (hold(Composite("mix", a), for_s), for_s),
    ]
    for tree, duration_s in wanted:
        assert tree.duration_s == duration_s
        assert all(one.start_s + one.hold.for_s <= duration_s + 1e-5 for one in placed(tree))


@given(part, st.integers(1, 4), seeds)
@QUICK
def test_repeat_is_the_sequence_of_copies(a, times, seed):
    """The same to the last byte but the scenario: paths and seeds are those of the sequence."""
    assert plan_of(repeat(a, times), seed).operations == plan_of(sequence(*[a] * times), seed).operations


@given(part, factor, factor, seeds)
@QUICK
def test_scaled_and_stretched_compose_and_commute(a, one, two, seed):
    """Twice is once with the product, also where whole numbers are rounded; and which comes first does not matter.

    With factors whose products with anything are exact: what others round depends on the order, by the last bit.
    """
    assert spans(scaled(scaled(a, one), two), seed, seeded=True) == spans(scaled(a, one * two), seed, seeded=True)
    long, twice = 2.0, 4.0
    assert spans(stretched(stretched(a, long), twice), seed) == spans(stretched(a, long * twice), seed)
    assert spans(stretched(scaled(a, one), long), seed) == spans(scaled(stretched(a, long), one), seed)
    assert spans(scaled(sequence(a, a), one)) == spans(sequence(scaled(a, one), scaled(a, one)))
    assert limited(limited(a, 3), 5).duration_s == limited(a, 3).duration_s
    assert spans(limited(limited(a, 3), 5)) == spans(limited(limited(a, 5), 3)) == spans(limited(a, 3))


@given(part, seeds)
@QUICK
def test_what_is_stretched_does_the_same_later(a, seed):
    """At twice the time it bears what the part bears at once the time, whatever is within."""
    plain, slow, slower = run(a, seed), run(stretched(a, 2.0), seed), run(sequence(pause(1), stretched(stretched(a, 2.0), 2.0)), seed)
    assume("Choose" not in repr(a))
    assert same(slow[::2], plain)
    assert same(slower[round(1 / TICK_S) :: 4], plain)


@given(curve, span, st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 1 << 40))
@QUICK
def test_weights_share_one_strength(one, for_s, weights, size):
    """The sum of equal parts is one part's strength at every instant; whole bytes lack less than one for each part; and only the
    ratio of the weights counts."""
    whole = run(hold(CpuLoad(one), for_s))
    assert same(run(weighted(*[(weight, hold(CpuLoad(one), for_s)) for weight in weights])), whole)
    assert same(run(weighted(*[(weight * 7, hold(CpuLoad(one), for_s)) for weight in weights])), whole)
    shares = [step[key] for step in run(weighted(*[(w, hold(MemoryPressure(bytes=size), 1)) for w in weights])) for key in step]
    assert all(size - len(weights) < value <= size for value in shares)
    first = next(placed(weighted(*[(weight, hold(CpuLoad(0.5), 1)) for weight in weights])))
    assert first.hold.simulator.fraction.level == pytest.approx(0.5 * weights[0] / sum(weights))


@given(part, part, seeds)
@QUICK
def test_a_condition_is_the_part_or_a_pause(a, b, seed):
    """Where it holds the part itself; where not, nothing for the same time, or the other part; and the plan says why."""
    assume("Choose" not in repr((a, b)) and "Where" not in repr((a, b)) and any(True for _ in placed(a)))
    after = sequence(where(SSD, a), LAST)
    for name, bears in (("n1", run(sequence(a, LAST), seed)), ("n2", run(sequence(pause(a.duration_s), LAST), seed))):
        mine = [{key: value for key, value in step.items() if key[0] == name} for step in run(after, seed)]
        assert same(mine, [{key: value for key, value in step.items() if key[0] == name} for step in bears])
    plan = plan_of(after, seed)
    assert {one.node for one in plan.skipped} == {"n2", "n4"}
    assert {one.reason for one in plan.skipped} == {"it has no label disk=ssd, but disk=hdd"}
    assert Plan.from_json(plan.to_json()) == plan
    assert spans(where(SSD, a, otherwise=b)) == spans(together(where(SSD, a), where(HDD, b)))


@given(part, seeds, seeds)
@QUICK
def test_each_node_runs_one_of_the_parts_it_chooses_among(a, seed, other):
    """Every node runs one part and no other; the draw follows from seed, path and node alone."""
    assume(not any(word in repr(a) for word in ("Choose", "Where")))
    first, second = hold(CpuLoad(0.1), 1), hold(MemoryPressure(bytes=1), 1)
    plan = plan_of(choose((1, first), (3, second)), seed)
    assert sorted(one.node for one in plan.operations) == [node.name for node in NODES]
    assert len(plan.skipped) == len(NODES)
    more = plan_of(together(choose((1, first), (3, second)), a), seed)
    alone = plan_of(together(choose((1, first), (3, second))), seed)
    assert set(map(repr, alone.operations)) <= set(map(repr, more.operations))
    fewer = resolve(plan.scenario, NODES[:2], seed)
    assert fewer.operations == tuple(one for one in plan.operations if one.node in ("n1", "n2"))
    assert plan_of(choose((1, first), (3, second)), other).seed == other


def test_nodes_choose_in_the_ratio_of_the_weights():
    """Over many nodes the share of a part is its weight's, within four standard deviations."""
    many = [NodeSpec(f"n{at}") for at in range(4000)]
    plan = resolve(Scenario("x", choose((1, hold(CpuLoad(0.1), 1)), (3, LAST))), many, 7)
    share = sum(one.kind == "CpuLoad" for one in plan.operations) / len(many)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(many)) ** 0.5


@given(part, st.integers(1, 3), seeds)
@QUICK
def test_a_composite_is_held_like_a_simulator(a, rounds, seed):
    """For its own duration it is its parts, seeds too; for longer it begins again; for less it is a prefix; and it nests."""
    assume("Choose" not in repr(a))
    composite = Composite("mix", a)
    once = [one[:5] + one[6:] for one in spans(hold(composite, a.duration_s), seed, seeded=True)]
    assert once == [one[:5] + one[6:] for one in spans(a, seed, seeded=True)]
    assert same(run(hold(composite, rounds * a.duration_s), seed), run(repeat(a, rounds), seed))
    half_s = max(1.0, a.duration_s // 2)
    whole = run(hold(composite, a.duration_s), seed)
    assume(half_s <= a.duration_s and any(one.start_s < half_s for one in plan_of(a, seed).operations))
    assert same(run(hold(composite, half_s), seed), whole[: int(half_s / TICK_S)])
    assert same(run(hold(Composite("outer", hold(composite, half_s)), half_s), seed), whole[: int(half_s / TICK_S)])
    assert spans(hold(replace(composite, strength=0.5), half_s)) == spans(scaled(hold(composite, half_s), 0.5))


def test_a_composite_has_targets_tolerance_phase_and_options_of_its_own():
    """What stands beside a simulator may stand beside a composite; what a part says itself counts first."""

    def web_peak(share: float, size: int) -> Composite:
        own = hold(MemoryPressure(bytes=size), 2, phase="heap", tolerance=0.2)
        return Composite("web-peak", together(hold(CpuLoad(share), 2), own))

    plan = plan_of(sequence(hold(web_peak(0.5, 4096), 2, targets=Targets(count=1), tolerance=0.1), hold(web_peak(0.2, 1), 2, phase="late")))
    told = [(one.start_s, one.node, one.kind, one.phase, one.tolerance) for one in plan.operations if one.node == "n1"]
    assert told == [
        (0.0, "n1", "CpuLoad", "web-peak", 0.1),
        (0.0, "n1", "MemoryPressure", "heap", 0.2),
        (2.0, "n1", "CpuLoad", "late", None),
        (2.0, "n1", "MemoryPressure", "heap", 0.2),
    ]
    assert {one.node for one in plan.operations if one.start_s == 0} == {"n1"}


@given(part, seeds)
@QUICK
def test_operations_stay_unique(a, seed):
    """Whatever is combined, ids and seeds are unique and every operation lies within the plan."""
    plan = plan_of(a, seed)
    assert len({one.id for one in plan.operations}) == len(plan.operations) == len({one.seed for one in plan.operations})
    assert all(one.start_s + one.duration_s <= plan.duration_s + 1e-5 for one in plan.operations)


@given(part)
@QUICK
def test_text_is_an_inverse(a):
    """Scenario -> YAML -> Scenario is equality, and the YAML a fixed point."""
    scenario = Scenario("x", sequence(a, LAST))
    assert text.load(text.dump(scenario)) == scenario
    assert text.dump(text.load(text.dump(scenario))) == text.dump(scenario)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scenario("x", scaled(hold(CpuLoad(0.6), 1), 2)), "part 0: CpuLoad.fraction must be at least 0 and at most 1, got 1.2"),
        (
            lambda: Scenario("x", stretched(hold(CpuLoad(shapes.Custom("f", 0.5)), 1), 2)),
            "the time of the function 'f' cannot be stretched",
        ),
        (lambda: Scenario("x", sequence(LAST, stretched(hold(CpuLoad(0.5), 1), 0.01))), "Hold.for_s must be at least 0.1"),
        (lambda: Scenario("x", repeat(repeat(repeat(LAST, 1000), 1000), 1000)), "at most 16 levels and 1000 parts"),
        (lambda: Scenario("x", hold(Composite("c", LAST), 86_400)), "at most 16 levels and 1000 parts"),
        (lambda: Scenario("x", limited(sequence(pause(5), LAST), 2)), "holds no load"),
        (lambda: weighted((0, LAST)), "Share.weight must be above 0"),
        (lambda: weighted(LAST), "must be a pair of weight and part"),
        (choose, "at least one part"),
        (lambda: where(Targets(count=1), LAST), "must say what a node is"),
        (lambda: repeat("x", 2), "Repeat.part must be made of hold"),
        (lambda: Composite("", LAST), "Composite.name must not be empty"),
        (lambda: hold("CpuLoad", 2), "Hold.simulator must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    """The message names the part and what it may be."""
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)


def test_a_plan_that_no_node_runs_is_refused():
    """A condition that holds nowhere is no error beside other parts, and one where nothing is left; the reason is told."""
    with pytest.raises(RefusedError) as caught:
        resolve(Scenario("x", where(NONE, LAST)), NODES)
    assert caught.value.code == "no_target"
    assert "part 0 not on n1, because it has no label disk=tape, but disk=ssd" in str(caught.value)
