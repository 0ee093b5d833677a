"""Limits, policies and the ceiling."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import pytest

from actors.clock import SECOND_NS
from actors.errors import InputError, RefusedError
from actors.messages import Amounts, Capacity, HostSnapshot, NodeSpec
from cluster.safety import policies
from cluster.safety.policies import OK, POLICIES, Level, Verdict, busy_since, judge, next_ceiling, worst
from cluster.safety.profiles import HELP, PLANNED, PROFILES, Limits, below_monitor, check_planned, checked, limits_for, listing
from scenarios import CpuLoad, Scenario, hold
from scenarios.catalogue import get
from scenarios.model import PROFILES as NAMES
from scenarios.model import LimitOverrides
from scenarios.plan import resolve

GIB, MIB = 1 << 30, 1 << 20
NOW = 100 * SECOND_NS
LIMITS = limits_for("balanced")
FINE = HostSnapshot("n1", NOW, 4.0, 0.5, 8 * GIB, 4 * GIB, 100 * GIB, 60 * GIB, 1_000, 100_000)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        pytest.param({}, Level.OK, id="fine"),
        pytest.param({"memory_available_bytes": 1024 * MIB}, Level.OK, id="memory-at-the-margin"),
        pytest.param({"memory_available_bytes": 1023 * MIB}, Level.HOLD, id="memory-within-the-margin"),
        pytest.param({"memory_available_bytes": 820 * MIB}, Level.HOLD, id="memory-at-the-reserve"),
        pytest.param({"memory_available_bytes": 819 * MIB}, Level.SHED, id="memory-under-the-reserve"),
        pytest.param({"memory_available_bytes": 410 * MIB}, Level.SHED, id="memory-at-half-of-it"),
        pytest.param({"memory_available_bytes": 409 * MIB}, Level.ABORT, id="memory-under-half-of-it"),
        pytest.param({"memory_available_bytes": 0}, Level.ABORT, id="no-memory"),
        pytest.param({"memory_available_bytes": float("nan")}, Level.ABORT, id="memory-unknown"),
        pytest.param({"memory_limit_bytes": 256 * GIB, "memory_available_bytes": 5 * GIB}, Level.OK, id="large-host-keeps-a-cap"),
        pytest.param({"memory_limit_bytes": 256 * GIB, "memory_available_bytes": 3 * GIB}, Level.SHED, id="large-host-sheds"),
        pytest.param({"disk_free_bytes": 5 * GIB}, Level.OK, id="disk-at-the-margin"),
        pytest.param({"disk_free_bytes": 4 * GIB}, Level.HOLD, id="disk-at-the-reserve"),
        pytest.param({"disk_free_bytes": 4 * GIB - 1}, Level.SHED, id="disk-under-the-reserve"),
        pytest.param({"disk_free_bytes": 2 * GIB - 1}, Level.ABORT, id="disk-under-half-of-it"),
        pytest.param({"disk_total_bytes": 10 * GIB, "disk_free_bytes": 2 * GIB}, Level.OK, id="small-disk"),
        pytest.param({"disk_total_bytes": 10 * GIB, "disk_free_bytes": 511 * MIB}, Level.ABORT, id="small-disk-full"),
        pytest.param({"descriptors_used": 64_000}, Level.OK, id="descriptors-at-the-margin"),
        pytest.param({"descriptors_used": 80_000}, Level.HOLD, id="descriptors-at-the-limit"),
        pytest.param({"descriptors_used": 80_001}, Level.SHED, id="descriptors-over"),
        pytest.param({"descriptors_used": 90_001}, Level.ABORT, id="descriptors-nearly-gone"),
        pytest.param({"descriptors_limit": 0}, Level.OK, id="no-limit-of-descriptors"),
        pytest.param({"boot_ns": NOW - 2 * SECOND_NS}, Level.OK, id="as-old-as-allowed"),
        pytest.param({"boot_ns": NOW - 2 * SECOND_NS - 1}, Level.ABORT, id="stale"),
        pytest.param({"boot_ns": NOW + 3 * SECOND_NS}, Level.ABORT, id="from-the-future"),
        pytest.param({"cpu_busy_fraction": 0.97}, Level.OK, id="cpu-at-the-limit"),
        pytest.param({"cpu_busy_fraction": 0.98}, Level.HOLD, id="cpu-over-for-no-time-yet"),
        pytest.param({"cpu_busy_fraction": 1.0, "boot_ns": 0}, Level.ABORT, id="stale-beats-everything"),
        pytest.param({"memory_available_bytes": 500 * MIB, "descriptors_used": 95_000}, Level.ABORT, id="the-worst-wins"),
    ],
)
def test_policies_judge_both_sides_of_each_limit(change, want):
    """Each policy gives its level at the limit and beyond it, with a reason that names the node."""
    verdict = judge(replace(FINE, **change), LIMITS, NOW)
    assert verdict.level is want
    assert verdict is OK if want is Level.OK else verdict.reason.startswith("n1: ")


@pytest.mark.parametrize(("busy_s", "want"), [(0, Level.HOLD), (10.0, Level.HOLD), (10.1, Level.SHED), (3600, Level.SHED)])
def test_a_busy_host_sheds_after_a_while_and_never_aborts(busy_s, want):
    """Only a host that is over its limit for longer than allowed sheds; CPU alone aborts nothing."""
    busy = replace(FINE, cpu_busy_fraction=1.0)
    assert judge(busy, LIMITS, NOW, NOW - round(busy_s * SECOND_NS)).level is want


def test_a_planned_burst_is_left_alone():
    """A host at 60 % for an hour is what was asked for under every profile."""
    host = replace(FINE, cpu_busy_fraction=0.6)
    for limits in PROFILES.values():
        assert judge(host, limits, NOW, busy_since(0, host, limits)) is OK


def test_busy_since_follows_the_host():
    """The time of being busy starts with the first snapshot over the limit and ends with the first that is not."""
    busy = replace(FINE, cpu_busy_fraction=1.0)
    assert busy_since(0, FINE, LIMITS) == 0
    assert busy_since(0, busy, LIMITS) == busy.boot_ns
    assert busy_since(7, busy, LIMITS) == 7
    assert busy_since(7, FINE, LIMITS) == 0


def broken(situation, limits):
    raise RuntimeError("no idea")


@pytest.mark.parametrize("policy", [broken, lambda situation, limits: None, lambda situation, limits: True, lambda: OK])
def test_a_policy_that_cannot_judge_denies(policy):
    """An exception, a wrong answer or a wrong signature of a plug-in aborts; it never passes."""
    verdict = judge(FINE, LIMITS, NOW, policies=(*POLICIES, policy))
    assert verdict.level is Level.ABORT
    assert "denies" in verdict.reason


def test_worst_takes_the_first_of_equals():
    """The worst verdict wins, ties keep their order, and nothing is OK."""
    first, second = Verdict(Level.SHED, "a"), Verdict(Level.SHED, "b")
    assert worst([OK, first, second]) is first
    assert worst([]) is OK


def test_every_policy_of_the_module_is_used():
    """No policy can be written and forgotten."""
    named = {name for name, item in vars(policies).items() if inspect.isfunction(item) and name.endswith(("_headroom", "_snapshot"))}
    assert {policy.__name__ for policy in POLICIES} == named


def test_the_ceiling_falls_fast_and_rises_slowly():
    """Shedding leaves about a third after a second; all is back after ten; holding changes nothing; abort is nothing."""
    ceiling = 1.0
    for _ in range(10):
        ceiling = next_ceiling(ceiling, Verdict(Level.SHED))
    assert 0.3 < ceiling < 0.4
    assert next_ceiling(ceiling, Verdict(Level.HOLD)) == ceiling
    assert next_ceiling(ceiling, Verdict(Level.ABORT)) == 0.0
    for _ in range(100):
        ceiling = next_ceiling(ceiling, OK)
    assert ceiling == 1.0


def test_shedding_ends_at_nothing():
    """A host that stays over its limit is left alone in the end."""
    ceiling = 1.0
    for _ in range(60):
        ceiling = next_ceiling(ceiling, Verdict(Level.SHED))
    assert ceiling == 0.0
    assert next_ceiling(ceiling, OK) > 0.0


def test_profiles_are_ordered_in_every_limit():
    """conservative <= balanced <= aggressive holds for each limit, and the words are those of the scenario."""
    assert tuple(PROFILES) == NAMES
    for item in fields(Limits):
        low, middle, high = (getattr(limits, item.name) for limits in PROFILES.values())
        assert low <= middle <= high, item.name


def test_every_limit_of_a_profile_is_explained_and_can_be_set_in_a_scenario():
    """Limits, their help, their listing and the scenario's keys are the same set."""
    names = {item.name for item in fields(Limits)}
    assert set(HELP) == names == {row["name"] for row in listing()}
    assert {item.name for item in fields(LimitOverrides)} == {name for name in names if not name.endswith("_max")}


@pytest.mark.parametrize("name", [item.name for item in fields(LimitOverrides) if item.name not in PLANNED.values()])
def test_each_measured_limit_flips_a_verdict(name):
    """Every limit that is measured decides something: the strictest value turns a fine host into one that is not."""
    host = replace(
        FINE,
        boot_ns=NOW - SECOND_NS,
        cpu_busy_fraction=0.975,
        memory_available_bytes=600 * MIB,
        disk_total_bytes=20 * GIB,
        disk_free_bytes=1200 * MIB,
        descriptors_used=85_000,
    )
    since = NOW - 5 * SECOND_NS
    lenient = limits_for("aggressive", LimitOverrides(cpu_busy_for_s=60))
    strict = {
        "stale_s": (lenient, 0.5),
        "cpu_busy_fraction": (lenient, 0.5),
        "cpu_busy_for_s": (replace(lenient, cpu_busy_fraction=0.9), 1.0),
        "memory_abort_fraction": (replace(lenient, memory_used_fraction=0.9), 0.9),
        "disk_abort_fraction": (replace(lenient, disk_used_fraction=0.9), 0.9),
        "descriptors_abort_fraction": (replace(lenient, descriptors_fraction=0.8), 0.8),
    }
    before, value = strict.get(name, (lenient, 0.1))
    seen = [
        policy(policies.Situation(host, NOW, since), limits).level
        for limits in (before, replace(before, **{name: value}))
        for policy in POLICIES
    ]
    assert seen[:5] != seen[5:], name


def test_a_scenarios_limits_replace_the_profiles():
    """Given limits count, the others stay the profile's, and starving is allowed for what is planned only."""
    limits = limits_for("conservative", LimitOverrides(memory_fraction=0.2, stale_s=1))
    assert (limits.memory_fraction, limits.stale_s, limits.cpu_fraction) == (0.2, 1.0, PROFILES["conservative"].cpu_fraction)
    starved = limits_for("balanced", allow_starve=True)
    assert (starved.cpu_fraction, starved.memory_fraction, starved.disk_fraction) == (1.0, 1.0, 1.0)
    assert starved.memory_abort_fraction == LIMITS.memory_abort_fraction


def test_a_fraction_that_a_scenario_sets_counts_in_full():
    """The cap of what must stay free is the profile's; a scenario that asks for half of a large host free gets it."""
    host = replace(FINE, memory_limit_bytes=256 * GIB, memory_available_bytes=100 * GIB)
    assert judge(host, LIMITS, NOW) is OK
    assert judge(host, limits_for("balanced", LimitOverrides(memory_used_fraction=0.5)), NOW).level is Level.SHED
    assert limits_for("balanced", LimitOverrides(memory_used_fraction=0.5)).disk_reserve_bytes_max == LIMITS.disk_reserve_bytes_max


def test_limits_that_contradict_each_other_are_refused():
    """Load is shed before a run is aborted, never the other way round; an unknown profile is named."""
    with pytest.raises(InputError, match="lies above"):
        limits_for("balanced", LimitOverrides(memory_used_fraction=0.99))
    with pytest.raises(InputError, match="no profile"):
        limits_for("brave")


CAPACITY = Capacity(cpu_cores=2.0, memory_bytes=4 * GIB, disk_bytes=100 * GIB)


@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        pytest.param(Amounts(1.8, int(2.8 * GIB), 60 * GIB), "", id="at-the-limits"),
        pytest.param(Amounts(cpu_cores=1.81), "1.81 cores of CPU on n1, its limit is 1.80 (limits.cpu_fraction)", id="cpu"),
        pytest.param(Amounts(memory_bytes=10 << 40), "10TiB of memory on n1", id="ten-tebibytes"),
        pytest.param(Amounts(disk_bytes=61 * GIB), "61GiB of disk on n1, its limit is 60GiB", id="disk"),
    ],
)
def test_a_plan_that_starves_a_node_is_refused(amounts, words):
    """What passes a node's limits is refused with amount, limit and what to do."""
    if not words:
        check_planned({"n1": amounts}, {"n1": CAPACITY}, LIMITS)
        return
    with pytest.raises(RefusedError) as caught:
        check_planned({"n1": amounts}, {"n1": CAPACITY}, LIMITS)
    assert caught.value.code == "budget"
    assert words in caught.value.message
    check_planned({"n1": Amounts(1.99)}, {"n1": CAPACITY}, limits_for("balanced", allow_starve=True))


def test_a_node_without_capacity_is_refused():
    """Nothing is planned on a node that nobody has measured."""
    with pytest.raises(RefusedError, match="n2"):
        check_planned({"n2": Amounts()}, {"n1": CAPACITY}, LIMITS)


def test_burst_is_within_the_strictest_profile():
    """The catalogue's first scenario needs no flag under any profile, on three raylets of a small machine."""
    share = Capacity(cpu_cores=2 / 3, memory_bytes=2 * GIB, disk_bytes=10 * GIB, sharers=3)
    plan = resolve(get("burst"), [NodeSpec(f"n{at}") for at in range(3)])
    capacities = dict.fromkeys(plan.targets, share)
    check_planned(plan.reservations(capacities), capacities, limits_for("conservative"))
    heavy = resolve(Scenario("x", hold(CpuLoad(0.8), 5)), [NodeSpec("n0")])
    with pytest.raises(RefusedError):
        check_planned(heavy.reservations({"n0": share}), {"n0": share}, limits_for("conservative"))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("total", [2 * GIB, 8 * GIB, 256 * GIB, 2048 * GIB])
def test_load_is_shed_before_ray_ends_workers(profile, total):
    """On a host of any size, under any profile: where Ray's monitor would act, load is already shed; well below it nothing is."""
    limits = checked(below_monitor(limits_for(profile), 0.95, total))
    at = lambda used: judge(replace(FINE, memory_limit_bytes=total, memory_available_bytes=round((1.0 - used) * total)), limits, NOW).level
    assert at(0.9499) >= Level.SHED
    assert at(0.5) is Level.OK


def test_without_a_monitor_or_against_a_scenarios_word_limits_stay():
    """Nothing to stay below where Ray ends none; what a scenario sets itself counts."""
    limits = limits_for("aggressive")
    assert below_monitor(limits, 1.0, 8 * GIB) is limits
    own = limits_for("aggressive", LimitOverrides(memory_used_fraction=0.97, memory_abort_fraction=0.99))
    assert below_monitor(own, 0.95, 8 * GIB) is own
