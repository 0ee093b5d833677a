"""The wait-for graph, the contention model and the findings of inversions, each beside something naive."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.contention_model import Simulated

from actors.clock import SECOND_NS, VirtualClock
from actors.concurrency.contest import contended_share
from actors.concurrency.detection import deadlocks, inversions
from actors.concurrency.inversion_model import Core, episode
from actors.concurrency.locks import Wait
from actors.concurrency.wait_graph import cycles

NAMES = "abcdefg"
graphs = st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.sampled_from(NAMES), max_size=4))
one_lock_each = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES))


def naive(waits):
    """Return every simple cycle, by trying all orders of all sets of tasks."""
    found = set()
    for size in range(1, len(waits) + 1):
        for circle in itertools.permutations(sorted(waits), size):
            closed = all(after in waits[task] for task, after in zip(circle, (*circle[1:], circle[0]), strict=True))
            if closed and circle[0] == min(circle):
                found.add(circle)
    return found


@given(graphs)
def test_what_is_found_are_cycles_and_some_is_found_wherever_there_is_one(waits):
    """Each finding is a cycle of the naive finder, no two share a task, and none is found only where the naive one finds none."""
    found, real = cycles(waits), naive(waits)
    assert set(found) <= real
    assert len(set(itertools.chain(*found))) == sum(map(len, found))
    assert bool(found) == bool(real)
    assert found == cycles(dict(reversed(waits.items())))


@given(one_lock_each)
def test_where_each_waits_for_one_lock_all_cycles_are_found(waits):
    """With one holder for each waiting task the cycles are exactly the naive finder's."""
    assert set(cycles({task: (holder,) for task, holder in waits.items()})) == naive({task: {holder} for task, holder in waits.items()})


@given(one_lock_each)
def test_breaking_what_is_found_leaves_nothing_to_find(waits):
    """Once each victim waits no more there is no deadlock, and who came last is the victim."""
    seen = {task: Wait(f"of-{holder}", holder, at) for at, (task, holder) in enumerate(waits.items())}
    found = deadlocks(seen)
    for one in found:
        assert seen[one.victim].since_ns == one.since_ns == max(seen[task].since_ns for task in one.circle)
        assert all(f"{task} waits for of-{seen[task].holder} held by {seen[task].holder}" in one.text for task in one.circle)
    left = {task: wait for task, wait in seen.items() if task not in {one.victim for one in found}}
    assert deadlocks(left) == ()


@pytest.mark.parametrize(("contenders", "contention"), [(2, 0.5), (3, 0.2), (4, 0.5), (8, 0.1), (5, 0.9)])
def test_the_contention_model_is_what_a_simulation_gives(contenders, contention):
    """The share of contended acquisitions of the model is that of 200,000 simulated ones, within 2 %."""
    simulated = Simulated(contenders, contention, seed=7).contended_share(200_000)
    assert simulated == pytest.approx(contended_share(contenders, contention), rel=0.02)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_contention_model_is_a_share_that_grows(contenders, contention):
    """From 0 alone to at most the contention itself; more contenders never wait less."""
    share = contended_share(contenders, contention)
    assert 0.0 <= share <= contended_share(contenders + 1, contention) <= contention
    assert contended_share(1, contention) == 0.0
    assert contended_share(2, 1.0) == 1.0


@given(st.integers(0, 30), st.booleans(), st.floats(0.001, 0.05), st.floats(0.2, 2.0))
def test_so_many_inversions_are_found_as_were_planted_and_none_with_inheritance(count, inheritance, hold_s, burst_s):
    """On one simulated core N planted inversions give N findings; with inheritance none, and the high task waits for the hold at most."""
    scripts = [one for number in range(count) for one in episode(number, number * 10.0, hold_s, burst_s)]
    log = Core(VirtualClock(), inheritance).run(scripts)
    found = inversions(log, bound_s=0.1)
    assert len(found) == (0 if inheritance else count)
    assert [(one.waiter, one.holder, one.between) for one in found] == [
        (f"{number}.high", f"{number}.low", f"{number}.medium") for number in range(len(found))
    ]
    asked = {event.task: event.at_ns for event in log if event.kind == "asked"}
    waits_s = [(event.at_ns - asked[event.task]) / SECOND_NS for event in log if event.kind == "got" and event.task.endswith(".high")]
    assert len(waits_s) == count
    assert all(wait_s <= hold_s if inheritance else wait_s >= burst_s for wait_s in waits_s)


@given(st.integers(1, 20), st.sampled_from(["nobody_between", "short", "no_holder"]))
def test_a_long_wait_alone_is_no_inversion(count, kind):
    """A wait is none where nobody of between runs, where it is within the bound, or where the lock was free."""
    hold_s, burst_s = (0.5, 0.0) if kind == "nobody_between" else (0.02, 0.05)
    scripts = [one for number in range(count) for one in episode(number, number * 10.0, hold_s, burst_s)]
    if kind == "no_holder":
        scripts = [one for one in scripts if not one.task.endswith(".low")]
    log = Core(VirtualClock(), inheritance=False).run(scripts)
    assert inversions(log, bound_s=0.1) == ()
    if kind == "short":
        assert len(inversions(log, bound_s=0.01)) == count
