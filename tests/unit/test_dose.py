"""Dose reached: the contract's rule, row by row."""

from __future__ import annotations

import pytest

from cluster.dose import DoseWindow, reached
from cluster.words import amount

MIB = 1 << 20
NAN = float("nan")


def steady(achieved, count=30, requested=0.5, **fields):
    return [DoseWindow(float(at), requested, achieved(at) if callable(achieved) else achieved, **fields) for at in range(count)]


@pytest.mark.parametrize(
    ("achieved", "want"),
    [
        pytest.param(0.5, True, id="exact"),
        pytest.param(0.45, True, id="five-points-under"),
        pytest.param(0.55, True, id="five-points-over"),
        pytest.param(0.449, False, id="a-little-more-under"),
        pytest.param(0.551, False, id="a-little-more-over"),
        pytest.param(0.0, False, id="nothing"),
        pytest.param(NAN, False, id="nan"),
        pytest.param(lambda at: 0.0 if at < 2 else 0.5, True, id="two-seconds-to-settle"),
        pytest.param(lambda at: 0.0 if at < 5 else 0.5, False, id="five-seconds-to-settle"),
        pytest.param(lambda at: 0.0 if at == 9 else 0.5, True, id="1-of-28-missed"),
        pytest.param(lambda at: 0.0 if at in (9, 19) else 0.5, False, id="2-of-28-missed"),
    ],
)
def test_cpu_is_judged_by_five_points(achieved, want):
    """At least 95 % of the settled windows must be within 5 points of the node's CPU."""
    assert reached(steady(achieved)).reached is want


@pytest.mark.parametrize(("misses", "want"), [(1, True), (2, False)])
def test_nineteen_of_twenty_is_enough(misses, want):
    """95 % is the bound: 19 of 20 settled windows reach the dose, 18 do not."""
    result = reached(steady(lambda at: 0.0 if at >= 22 - misses else 0.5, count=22))
    assert (result.windows, result.reached) == (20, want)


@pytest.mark.parametrize(
    ("asked", "achieved", "want"),
    [
        pytest.param(1000 * MIB, 980 * MIB, True, id="2-percent-under"),
        pytest.param(1000 * MIB, 979 * MIB, False, id="2.1-percent-under"),
        pytest.param(1000 * MIB, 1021 * MIB, False, id="2.1-percent-over"),
        pytest.param(10 * MIB, 9 * MIB, True, id="a-mebibyte-of-a-little"),
        pytest.param(1 * MIB, 0, False, id="nothing-of-a-mebibyte"),
        pytest.param(0, 1 * MIB, True, id="nothing-asked"),
        pytest.param(0, 2 * MIB, False, id="nothing-asked-yet-held"),
    ],
)
def test_bytes_are_judged_by_two_percent(asked, achieved, want):
    """2 % of the asked bytes, at least 1 MiB."""
    assert reached(steady(achieved, requested=asked), unit="bytes").reached is want


@pytest.mark.parametrize(
    ("unit", "asked", "achieved", "want"),
    [
        pytest.param("count", 1000, 980, True, id="2-percent-fewer"),
        pytest.param("count", 1000, 979, False, id="2.1-percent-fewer"),
        pytest.param("count", 10, 12, True, id="two-more-than-ten"),
        pytest.param("count", 10, 13, False, id="three-more-than-ten"),
        pytest.param("count", 2, 1, True, id="one-of-two"),
        pytest.param("count", 2, 0, False, id="none-of-two"),
        pytest.param("count", 1, 0, False, id="none-of-one"),
        pytest.param("count", 0, 2, True, id="two-where-none-is-asked"),
        pytest.param("per_second", 1, 0, False, id="never-instead-of-once-a-second"),
        pytest.param("per_second", 1000, 1020, True, id="2-percent-faster"),
        pytest.param("per_second", 10, 8, False, id="two-a-second-slower"),
    ],
)
def test_counts_and_rates_are_judged_by_two_percent(unit, asked, achieved, want):
    """2 % of the asked number or rate, at least two things or one a second; the worst window is told in the unit's words."""
    result = reached(steady(achieved, requested=asked), unit=unit)
    assert result.reached is want
    assert want or amount(achieved, unit) in result.reason


@pytest.mark.parametrize(
    ("achieved", "want"),
    [
        pytest.param(0.246, True, id="1.6-percent-under"),
        pytest.param(0.244, False, id="2.4-percent-under"),
        pytest.param(0.256, False, id="2.4-percent-over"),
        pytest.param(0.0, False, id="nothing"),
    ],
)
def test_memory_asked_as_a_fraction_is_judged_by_two_percent_of_it(achieved, want):
    """A fraction of memory or disk is held to 2 % of the asked bytes, not to 5 points of the capacity."""
    assert reached(steady(achieved, requested=0.25), relative=True).reached is want
    assert reached(steady(0.0005, requested=0.0), relative=True).reached


def test_a_scenario_may_set_the_tolerance():
    """The scenario's own tolerance replaces the default, in points or as a share of the bytes."""
    assert reached(steady(0.42), tolerance=0.1).reached
    assert not reached(steady(0.47), tolerance=0.02).reached
    assert reached(steady(900 * MIB, requested=1000 * MIB), unit="bytes", tolerance=0.1).reached


def square(at):
    return 0.5 if at % 10 < 5 else 0.25


def test_windows_after_each_change_are_left_out():
    """A step in the asked value unsettles the two seconds from it on."""
    late = [DoseWindow(float(at), square(at), square(at - 1 if at else 0)) for at in range(30)]
    result = reached(late)
    assert (result.reached, result.windows) == (True, 18)
    later = [DoseWindow(float(at), square(at), square(at - 3 if at > 2 else 0)) for at in range(30)]
    assert reached(later).reached is False


def test_windows_that_a_change_cuts_are_left_out():
    """A window in which the asked value changed has a mean of both; it and the next 2 s do not count."""
    asked = [0.25] * 5 + [0.375] + [0.5] * 8
    result = reached([DoseWindow(at + 0.5, value, value) for at, value in enumerate(asked)])
    assert result.windows == 3 + 6


def test_windows_at_the_edges_are_left_out():
    """Windows that begin before the operation, end after it, or are not whole do not count."""
    windows = [DoseWindow(at - 0.4, 0.5, 0.5) for at in range(12)]
    spoiled = [DoseWindow(-0.4, 0.5, 0.0), *windows[1:], DoseWindow(9.6, 0.5, 0.0), DoseWindow(5.5, 0.5, 0.0, window_s=0.3)]
    result = reached(spoiled, duration_s=10.0)
    assert (result.reached, result.windows) == (True, 7)


def test_a_gap_in_the_windows_unsettles():
    """Nobody knows what happened in a gap, so two seconds after it do not count."""
    windows = [window for window in steady(0.5, count=20) if not 8 <= window.start_s < 12]
    assert reached(windows).windows == (8 - 2) + (20 - 14)


def test_lost_first_windows_do_not_settle_early():
    """The operation's start is a change even where its first windows are missing."""
    assert reached([DoseWindow(1.0, 0.5, 0.0), *steady(0.5)[2:]]).windows == 28


def test_order_does_not_matter():
    """Windows may arrive in any order."""
    assert reached(list(reversed(steady(0.5)))) == reached(steady(0.5))


@pytest.mark.parametrize(
    ("own", "others", "want"),
    [
        pytest.param(0.3, 0.2, True, id="fills-up"),
        pytest.param(0.0, 0.9, True, id="others-excess"),
        pytest.param(0.04, 0.9, True, id="others-excess-and-a-little-own"),
        pytest.param(0.5, 0.4, False, id="own-excess"),
        pytest.param(0.1, 0.2, False, id="too-little"),
    ],
)
def test_in_host_total_mode_others_excess_is_no_miss(own, others, want):
    """What others take beyond the asked level is forgiven, what we take beyond what they left is not."""
    assert reached(steady(own + others, own=own), host_total=True).reached is want


def beside(others, own):
    """Return 30 windows that ask 50 % beside others, whose use and our own are given by second."""
    return [DoseWindow(float(at), 0.5, others(at) + own(at), own=own(at)) for at in range(30)]


@pytest.mark.parametrize(
    ("others", "own", "want"),
    [
        pytest.param(lambda at: 0.4 * (at // 5 % 2), lambda at: 0.5 - 0.4 * ((at - 1) // 5 % 2), True, id="follows-within-a-second"),
        pytest.param(lambda at: 0.4 * (at // 5 % 2), lambda at: 0.5 - 0.4 * ((at - 3) // 5 % 2), False, id="follows-after-three-seconds"),
        pytest.param(lambda at: 0.4 * (at // 5 % 2), lambda _: 0.5, False, id="adds-up"),
        pytest.param(lambda at: 0.4 * (at % 2), lambda at: 0.5 - 0.4 * (at % 2), None, id="others-never-rest"),
        pytest.param(lambda at: 0.4 * (at // 5 % 2), lambda at: 0.5 - 0.4 * (min(at + 1, 29) // 5 % 2), True, id="moves-late"),
        pytest.param(
            lambda at: 0.4 * (at // 5 % 2), lambda at: 0.5 - 0.4 * (min(at + 2, 29) // 5 % 2), False, id="gives-way-two-seconds-early"
        ),
        pytest.param(lambda _: 0.2, lambda at: 0.0 if at == 9 else 0.3, True, id="calm-and-1-of-28-missed"),
    ],
)
def test_seconds_beside_a_move_of_others_do_not_count(others, own, want):
    """What is judged is whether the rest is filled once others are steady for a window; without such windows nothing is judged."""
    assert reached(beside(others, own), host_total=True).reached is want


def test_an_excess_is_a_miss_outside_host_total_mode():
    """Own-share mode has nobody else to blame."""
    assert reached(steady(0.9, own=0.0)).reached is False


def test_a_slow_shape_is_judged_window_by_window():
    """A ramp slower than the tolerance per window is settled, and tracking it counts."""
    ramp = [DoseWindow(float(at), 0.02 * at, 0.02 * at) for at in range(30)]
    assert reached(ramp).windows == 28
    flat = [DoseWindow(float(at), 0.02 * at, 0.1) for at in range(30)]
    assert reached(flat).reached is False


def saw(at):
    return 0.2 if at % 2 else 0.6


@pytest.mark.parametrize(("factor", "want"), [(1.0, True), (0.7, False)])
def test_a_shape_that_never_rests_is_judged_by_its_mean(factor, want):
    """Without a settled window the means over all moving windows from 2 s on are compared."""
    result = reached([DoseWindow(float(at), saw(at), saw(at) * factor) for at in range(20)])
    assert result.reached is want
    assert "judged by means" in result.reason


@pytest.mark.parametrize("windows", [[], steady(0.5, count=1), [DoseWindow(float(at), saw(at), saw(at)) for at in range(6)]])
def test_too_few_windows_are_not_judged(windows):
    """With no settled and fewer than five moving windows there is no verdict, and so no pass."""
    result = reached(windows)
    assert result.reached is None
    assert "no settled window" in result.reason


def test_the_result_names_what_was_asked_and_achieved():
    """The result carries means over the judged windows and, where missed, the worst window."""
    result = reached(steady(lambda at: 0.1 if at == 7 else 0.3), operation="0.CpuLoad@n1", node="n1")
    assert (result.operation, result.node, result.unit, result.requested) == ("0.CpuLoad@n1", "n1", "fraction", pytest.approx(0.5))
    assert result.achieved == pytest.approx((27 * 0.3 + 0.1) / 28)
    assert "worst: asked 50.0%, achieved 10.0% at 7 s" in result.reason


@pytest.mark.parametrize(("asked", "achieved", "want"), [(2.0, 2.0, True), (2.0, 1.0, False), (1.5, 2.0, True), (0.0, 1.0, False)])
def test_where_few_are_counted_each_is_told(asked, achieved, want):
    """With a floor of a half one of two is a miss, and the rounding of a step that is not whole is none."""
    assert reached(steady(achieved, requested=asked), unit="count", floor=0.5).reached is want
