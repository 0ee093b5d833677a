"""How many page faults a load owes: what was asked, whatever the steps of time, and never a burst of what was missed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InputError
from actors.vm_pressure import FORGET_S, Debt, verify


@given(st.floats(0, 1e5), st.lists(st.floats(1e-4, 0.1), min_size=1, max_size=100))
def test_what_is_paid_is_what_was_asked(rate: float, steps: list[float]) -> None:
    """Over any steps of time the faults made are rate times time, to one whole fault."""
    debt, done = Debt(), 0
    for elapsed_s in steps:
        owed = debt.due(rate, elapsed_s)
        debt.pay(owed)
        done += owed
    assert rate * sum(steps) - 1 - 1e-6 <= done <= rate * sum(steps) + 1e-6


@given(st.floats(1, 1e5), st.lists(st.floats(1e-3, 10), min_size=1, max_size=20))
def test_what_could_not_be_done_is_no_burst_later(rate: float, steps: list[float]) -> None:
    """Whatever was missed, at most the faults of 0.2 s are owed."""
    debt = Debt()
    assert all(debt.due(rate, elapsed_s) <= max(1.0, rate * FORGET_S) for elapsed_s in steps)


class Pages:
    """A file of which touches and reclaims are counted."""

    def __init__(self) -> None:
        self.touched = self.given_up = 0

    def touch(self) -> int:
        self.touched += 1
        return 0

    def give_up(self) -> int:
        self.given_up += 1
        return 0


def test_pages_that_stay_are_found() -> None:
    """Each page faults again, or the folder is refused."""
    pages = Pages()
    verify(pages, lambda: pages.touched)
    assert pages.given_up == 2
    with pytest.raises(InputError, match="still in memory"):
        verify(Pages(), lambda: 0)
