"""What the judgement of a stepwise release takes for one, and what it does not: histories of counts every 5 ms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.stairs import Sample, assert_stairs

END_S, STEPS, INTERVAL_S, WHOLE = 10.0, 4, 0.25, 1500.0


def stepped(elapsed_s: float) -> float:
    return WHOLE * (STEPS - elapsed_s // INTERVAL_S) / STEPS


def history(held: Callable[[float], float]) -> list[Sample]:
    """Return the counts of a load that comes up to all of it, holds it, and gives back as `held` has it by seconds from its end."""
    held_s = [number * 0.005 for number in range(400)]
    return [(END_S - 1.0 + at_s, min(WHOLE, 4 * WHOLE * at_s) if at_s < 1.0 else min(WHOLE, max(0.0, held(at_s - 1.0)))) for at_s in held_s]


def judge(held: Callable[[float], float], margin: float = 1.0) -> None:
    assert_stairs(history(held), WHOLE, STEPS, INTERVAL_S, END_S, margin)


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(stepped, id="in-time"),
        pytest.param(lambda at_s: stepped(at_s - 0.08), id="a-little-late"),
        pytest.param(lambda at_s: stepped(at_s) + (0.5 if round(at_s * 1000) % 10 else -0.5), id="with-a-thing-of-its-own"),
    ],
)
def test_equal_steps_are_taken(held: Callable[[float], float]) -> None:
    """At their times, give or take a tenth of the whole, with a thing more or less at each look."""
    judge(held)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        pytest.param(lambda at_s: WHOLE * (1 - at_s), "are on none of", id="stepless"),
        pytest.param(lambda at_s: WHOLE * (8 - at_s // 0.125) / 8, "are on none of", id="in-twice-as-many-steps"),
        pytest.param(lambda at_s: stepped(at_s) - 2, "are on none of", id="always-two-less"),
        pytest.param(lambda _: 0.0, r"\[1500.0, 0.0\], not", id="all-at-once"),
        pytest.param(lambda at_s: WHOLE if at_s < 0.5 else stepped(at_s), r"\[1500.0, 750.0, 375.0\], not", id="one-twice-as-high"),
        pytest.param(lambda at_s: stepped(at_s * 2), "step 1 was due", id="in-half-the-time"),
        pytest.param(lambda at_s: stepped(at_s / 2), r"\[1500.0, 1125.0\], not", id="in-twice-the-time"),
        pytest.param(lambda at_s: stepped(at_s + 0.12), "step 1 was due", id="early"),
        pytest.param(lambda at_s: stepped(at_s - 0.12), "step 1 was due", id="late"),
        pytest.param(lambda at_s: stepped(at_s - (0.15 if 0.5 <= at_s < 0.65 else 0.0)), "step 2 was due", id="one-step-late"),
        pytest.param(lambda at_s: stepped(at_s) if at_s < 0.5 else stepped(at_s - 0.25), r"\[1500.0, 1125.0, 750.0\], not", id="one-twice"),
    ],
)
def test_anything_else_is_not(held: Callable[[float], float], words: str) -> None:
    """Without steps, with others, with the wrong sizes, or at the wrong times."""
    with pytest.raises(AssertionError, match=words):
        judge(held)


def test_nothing_that_was_seen_is_no_release() -> None:
    """A watch that slept through it shows nothing."""
    with pytest.raises(AssertionError, match=r"\[\], not"):
        assert_stairs(history(stepped)[:100], WHOLE, STEPS, INTERVAL_S, END_S, 1.0)
