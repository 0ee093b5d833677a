from __future__ import annotations

import pytest

from actors import control
from actors.clock import SECOND_NS, VirtualClock
from actors.control import ControlWriter, StatsPage
from actors.lease import BASELINE, NOTE_NICE_REFUSED, NOTE_NO_POPULATE, NOTES, LeaseWatch, Order
from actors.lifecycle import EXIT_GATE, EXIT_LEASE
from actors.waiting import GATE_S, LEASE_S, GaveUpError, pause_before, wait_for_gate, wait_for_start

SLOT, GENERATION = 5, 9


class Left(Exception):
    pass


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def page() -> ControlWriter:
    page = ControlWriter.create()[0]
    page.reset_slot(SLOT, GENERATION, 1, 1)
    return page


@pytest.fixture
def watch(page: ControlWriter, clock: VirtualClock) -> LeaseWatch:
    def leave(code: int) -> None:
        raise Left(code)

    return LeaseWatch(page, StatsPage.create()[0], SLOT, GENERATION, clock, leave=leave)


def grant(page: ControlWriter, clock: VirtualClock, lease_s: float) -> None:
    page.write_lease(SLOT, GENERATION, clock.boot_ns() + round(lease_s * SECOND_NS))


def test_a_lease_lives_to_its_deadline(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch) -> None:
    """A load waits without a lease, loads under one, and leaves at the deadline with the code of a lease's end."""
    assert watch.look() is Order.WAIT
    grant(page, clock, 2.0)
    assert watch.may_go_on()
    clock.advance(1.999)
    assert watch.look() is Order.GO
    clock.advance(0.001)
    with pytest.raises(Left) as left:
        watch.may_go_on()
    assert left.value.args == (EXIT_LEASE,)


def test_expired_is_terminal(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch) -> None:
    """A lease that comes after the end changes nothing."""
    grant(page, clock, 1.0)
    clock.advance(1.5)
    assert watch.look() is Order.DEAD
    grant(page, clock, 5.0)
    assert watch.look() is Order.DEAD


@pytest.mark.parametrize(
    ("word", "want"),
    [
        pytest.param((GENERATION, control.STOP_DRAIN), Order.DRAIN, id="drain"),
        pytest.param((GENERATION, control.STOP_KILL), Order.DEAD, id="kill"),
        pytest.param((GENERATION - 1, control.STOP_KILL), Order.GO, id="meant-for-another-generation"),
    ],
)
def test_stop_words(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch, word: tuple[int, int], want: Order) -> None:
    """A stop counts for the generation it was written for."""
    grant(page, clock, 1.0)
    page.write_stop(SLOT, *word)
    assert watch.look() is want


@pytest.mark.parametrize("lease_s", [0.0, 5.0])
def test_a_slot_given_to_another_is_dead(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch, lease_s: float) -> None:
    """A load of an older generation never lives on another's lease."""
    page.write_lease(SLOT, GENERATION + 1, clock.boot_ns() + round(lease_s * SECOND_NS))
    assert watch.look() is Order.DEAD


def test_a_lease_taken_back_is_dead(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch) -> None:
    """A deadline of zero is "not yet" only before the first lease."""
    grant(page, clock, 1.0)
    assert watch.look() is Order.GO
    page.write_lease(SLOT, GENERATION, 0)
    assert watch.look() is Order.DEAD


@pytest.mark.parametrize(("word", "want"), [(0.25, 0.25), (1.0, 1.0), (1.5, 0.0), (float("nan"), 0.0), (-1.0, 0.0)])
def test_a_ceiling_out_of_range_loads_nothing(page: ControlWriter, watch: LeaseWatch, word: float, want: float) -> None:
    """The throttle is 0..1; whatever else stands there is no permission."""
    page.write_ceiling(SLOT, word)
    assert watch.ceiling() == want


def test_the_load_waits_for_the_start(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch) -> None:
    """The start is met from above, within a fraction of a millisecond, and signs of life stop just before it."""
    grant(page, clock, 5.0)
    start_ns = clock.boot_ns() + SECOND_NS
    page.write(SLOT, control.START, start_ns)
    seen: list[int] = []
    assert wait_for_start(watch, lambda: seen.append(clock.boot_ns())) == start_ns
    assert 0 <= clock.boot_ns() - start_ns < 200_000
    assert len(seen) >= 8
    assert seen[-1] < start_ns - 40_000_000


def test_every_wait_ends(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch) -> None:
    """Without a gate, a lease or a further wish for load the process ends by itself."""
    born_ns = clock.boot_ns()
    with pytest.raises(GaveUpError) as gate:
        wait_for_gate(watch)
    with pytest.raises(GaveUpError) as lease:
        wait_for_start(watch, lambda: None)
    assert (gate.value.exit_code, lease.value.exit_code) == (EXIT_GATE, EXIT_LEASE)
    assert clock.boot_ns() - born_ns < (GATE_S + LEASE_S + 1) * SECOND_NS
    assert wait_for_start(watch, lambda: None, lambda: True) is None
    grant(page, clock, 1.0)
    with pytest.raises(Left):
        wait_for_start(watch, lambda: None)


@pytest.mark.parametrize(("left_ns", "most_s"), [(10 * SECOND_NS, 0.005), (1_500_000, 0.0001), (40_000, 0.00004), (-5, 0.001)])
def test_no_sleep_passes_the_start(left_ns: int, most_s: float) -> None:
    """Each sleep ends before the start, however near it is."""
    assert 0 < pause_before(SECOND_NS + left_ns, SECOND_NS) <= most_s + 1e-12


def test_what_a_load_says_of_itself(page: ControlWriter, clock: VirtualClock, watch: LeaseWatch) -> None:
    """Figures and notes land in the load's own slot, and the first slice is told once."""
    watch.first_slice()
    first_ns = clock.boot_ns()
    clock.advance(1.0)
    watch.first_slice()
    watch.report(asked=0.5, own=0.25, cpu_ns=7, operations=3)
    watch.baseline(4096)
    watch.note(NOTE_NICE_REFUSED)
    watch.note(NOTE_NO_POPULATE)
    found = watch.stats.read(SLOT)
    assert (found.first_slice_ns, found.asked, found.own, found.cpu_ns, found.operations) == (first_ns, 0.5, 0.25, 7, 3)
    assert (watch.stats.word(SLOT, BASELINE), watch.stats.word(SLOT, NOTES)) == (4096, NOTE_NICE_REFUSED | NOTE_NO_POPULATE)
