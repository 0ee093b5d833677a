"""A holder against a kernel that refuses as it likes: never more than asked, never a leak, and what it tells is what is so."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import SECOND_NS, VirtualClock
from actors.exhaustion import tuning
from actors.exhaustion.disk_io import RatePacer
from actors.exhaustion.holder import Holding, next_step
from actors.messages import Capacity, Operation
from actors.release import Release, release_level

CAPACITY = Capacity(4.0, 1 << 34, 1 << 40, 1, 10_000, 10_000, 10_000, 10_000, 10_000)
small = st.integers(0, 200)


class World:
    """A stock with a limit that changes each second, and a watch with a ceiling that does too."""

    def __init__(self, limits: list[int], ceilings: list[float]) -> None:
        self.clock, self.limits, self.ceilings = VirtualClock(), limits, ceilings
        self.held, self.short, self.wrong = 0, (0, 0, 0), []
        self.asked = 0.0
        self.begun_ns = self.clock.boot_ns()

    def _now(self, of: list) -> float:
        return of[int((self.clock.boot_ns() - self.begun_ns) / SECOND_NS) % len(of)]

    # the stock
    def open(self) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}

    def take(self, count: int) -> None:
        for _ in range(count):
            if self.held >= self._now(self.limits):
                raise OSError(errno.EMFILE, "no more")
            self.held += 1

    def give_back(self, count: int) -> None:
        assert 0 <= count <= self.held
        self.held -= count

    # the watch
    def first_slice(self) -> None: ...

    def may_go_on(self) -> bool:
        return True

    def ceiling(self) -> float:
        return self._now(self.ceilings)

    def shortfall(self, code: int, requested: int, allocated: int) -> None:
        self.short = (code, requested, allocated)

    def report(self, *, asked: float, own: float, **_: float) -> None:
        self.clock.advance(0.001)
        if own != self.held:
            self.wrong.append((own, self.held))
        if asked == self.asked and own > asked + 1e-6 and own > self.before:
            self.wrong.append((own, asked))
        self.asked, self.before = asked, own

    before = 0.0


@given(
    levels=st.lists(small, min_size=1, max_size=4),
    limits=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    ceilings=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
    batch=st.integers(1, 64),
    spare=st.integers(0, 20),
    steps=st.integers(1, 5),
    allow_partial=st.booleans(),
)
def test_a_holder_never_takes_more_than_asked_and_leaves_nothing(
    levels: list[int], limits: list[int], ceilings: list[float], batch: int, spare: int, steps: int, allow_partial: bool
) -> None:
    """Whatever the limits do, it reports what it holds, grows no further than asked, tells a shortfall in full, and ends with nothing."""
    world = World(limits, ceilings)
    options = {"batch": batch, "spare": spare, "release_steps": steps, "allow_partial": allow_partial, "retry_s": 0.5}
    shape = {"kind": "steps", "levels": levels, "each_s": 1.0}
    operation = Operation("0", "Descriptors", "n1", 0.0, float(len(levels)), "count", shape, options)
    load = Holding(world, operation, CAPACITY, world)
    load.warm_up()
    world.begun_ns = world.clock.boot_ns()
    load.run(world.begun_ns)
    assert world.wrong == []
    assert world.held == 0
    code, requested, allocated = world.short
    assert (code == 0) == (requested == 0)
    assert allocated < requested or (code, requested, allocated) == (0, 0, 0)
    if max(levels) <= min(limits):
        assert world.short == (0, 0, 0)


@given(asked=small, held=small, most=small, batch=st.integers(1, 64))
def test_a_step_goes_towards_its_aim_and_ends_there(asked: int, held: int, most: int, batch: int) -> None:
    """Repeated, steps reach the asked within the limit in the fewest batches, and stay."""
    aim, count = min(asked, most), 0
    needed = -(-abs(aim - held) // batch)
    while (step := next_step(asked, held, most, batch)) and count < 1000:
        assert abs(step) <= batch
        held, count = held + step, count + 1
    assert (held, count) == (aim, needed)


@given(held=st.integers(0, 10_000), steps=st.integers(1, 100))
def test_release_steps_are_equal_within_one(held: int, steps: int) -> None:
    """k falls, none more than one larger than another, from all to nothing."""
    levels = [release_level(held, steps, done) for done in range(steps + 1)]
    falls = [before - after for before, after in itertools.pairwise(levels)]
    assert levels[0] == held
    assert levels[-1] == 0
    assert max(falls) - min(falls) <= 1


@given(
    held=st.integers(0, 1000),
    steps=st.integers(1, 20),
    interval_s=st.floats(0.05, 5.0),
    cut=st.integers(0, 30),
    asked_during=st.sampled_from(["wait", "lower"]),
)
def test_a_release_lowers_in_time_until_somebody_asks_for_the_end(
    held: int, steps: int, interval_s: float, cut: int, asked_during: str
) -> None:
    """Level by level, one each interval; where the end is asked for, nothing more is waited for or lowered."""
    clock, lowered, begun_ns = VirtualClock(), [], 7 * SECOND_NS
    clock.now_ns = begun_ns

    def wait_until(at_ns: int) -> bool:
        clock.now_ns = at_ns
        return asked_during != "wait" or len(lowered) < cut

    def lower_to(level: int) -> bool:
        lowered.append((level, (clock.now_ns - begun_ns) / SECOND_NS))
        return asked_during != "lower" or len(lowered) < cut

    Release(steps, interval_s).follow(held, begun_ns, wait_until, lower_to)
    whole = [(release_level(held, steps, done), pytest.approx(done * interval_s, abs=1e-6)) for done in range(1, steps)]
    assert lowered == (whole[: max(cut, 1) if asked_during == "lower" else cut] if held else [])
    if held and steps > 1 and cut > steps:
        assert (clock.now_ns - begun_ns) / SECOND_NS == pytest.approx(steps * interval_s, abs=1e-6)


@given(rate=st.floats(0.0, 1e9), pauses=st.lists(st.floats(0.0001, 0.5), min_size=1, max_size=60), block=st.integers(512, 1 << 20))
def test_a_rate_is_never_passed_by_more_than_what_is_owed(rate: float, pauses: list[float], block: int) -> None:
    """Over any while the bytes moved are at most what was asked in it, with what was owed before."""
    pacer, moved, elapsed = RatePacer(block), 0, 0.0
    for pause in pauses:
        pacer.grow(rate, pause)
        elapsed += pause
        while pacer.pause_s(rate) == 0.0:
            pacer.pay(block)
            moved += block
    assert moved <= rate * elapsed * (1 + 1e-9) + 1e-6
    assert pacer.debt_bytes <= max(tuning.used.forget_s * rate, block)
