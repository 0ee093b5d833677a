"""When all operations of a run were at target at once."""

from __future__ import annotations

import pytest

from cluster.dose import DoseWindow, at_target
from cluster.overlap import Overlap, joined, longest_overlap


def windows(begin: int, end: int) -> list[tuple[float, float]]:
    return [(float(at), float(at + 1)) for at in range(begin, end)]


@pytest.mark.parametrize(
    ("held", "want"),
    [
        pytest.param([windows(0, 12), windows(2, 14)], Overlap(2, 2.0, 10.0), id="two-that-hold-together"),
        pytest.param([windows(0, 5), windows(5, 10)], Overlap(2, 0.0, 0.0), id="one-after-the-other"),
        pytest.param(
            [windows(0, 12), windows(0, 12), windows(0, 5) + windows(6, 12)], Overlap(3, 6.0, 6.0), id="one-was-away-for-a-second"
        ),
        pytest.param([windows(0, 12), []], Overlap(2, 0.0, 0.0), id="one-that-was-never-there"),
        pytest.param([windows(0, 4)], Overlap(1, 0.0, 4.0), id="one-alone"),
        pytest.param([], Overlap(0, 0.0, 0.0), id="nothing-measured"),
    ],
)
def test_the_longest_time_together(held: list[list[tuple[float, float]]], want: Overlap) -> None:
    """What counts is the longest time in which every operation is at target; loads held in turn have none."""
    assert longest_overlap(held) == want
    assert longest_overlap(held[::-1]) == want


def test_windows_that_begin_a_little_apart_are_one_stretch() -> None:
    """Half a second between two windows is no gap, more is one."""
    assert joined([(0.0, 1.0), (1.4, 2.4), (3.0, 4.0)]) == [(0.0, 2.4), (3.0, 4.0)]


def test_only_what_was_asked_and_achieved_is_at_target() -> None:
    """A window that asks nothing, misses, or is cut by the operation's end does not count."""
    seen = [(100.0, 100.0), (100.0, 50.0), (0.0, 0.0), (100.0, 101.0), (100.0, 100.0)]
    found = at_target(
        [DoseWindow(float(at), asked, got) for at, (asked, got) in enumerate(seen)],
        unit="count",
        duration_s=4.5,
        tolerance=0.02,
        host_total=False,
        relative=True,
    )
    assert found == [(0.0, 1.0), (3.0, 4.0)]
