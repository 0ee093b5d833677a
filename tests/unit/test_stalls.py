"""How long somebody waited, followed look by look: shares of a window, and what lies between two looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import SECOND_NS
from actors.errors import RefusedError
from actors.stalls import Stalls

STEP_NS = SECOND_NS // 100


@given(st.lists(st.floats(0.0, 0.01), min_size=2, max_size=200))
def test_a_share_is_of_the_window_and_what_grew_is_of_the_step(waited: list[float]) -> None:
    """After each look: the part of the last 0.1 s in which somebody waited; nothing at the first look, whatever the total is by then."""
    totals = [7.0]
    stalls = Stalls(lambda: totals[-1], 0.1, "", "")
    assert (tuple(stalls.look(0)), stalls.share) == ((0.0, 0.0), 0.0)
    for step, more in enumerate(waited, start=1):
        totals.append(totals[-1] + more)
        grown = stalls.look(step * STEP_NS)
        assert grown.elapsed_s == 0.01
        assert grown.waited_s == pytest.approx(more, abs=1e-9)
        seen = waited[max(0, step - 10) : step]
        assert stalls.share == pytest.approx(sum(seen) / (0.01 * len(seen)), abs=1e-6)


def test_a_kernel_that_does_not_tell_is_refused_with_what_would_have_it_tell() -> None:
    """At each look, for it may cease to."""
    totals = iter([1.0, None])
    stalls = Stalls(lambda: next(totals), 0.1, "it does not tell", "have it told")
    stalls.look(0)
    with pytest.raises(RefusedError, match="it does not tell") as caught:
        stalls.look(STEP_NS)
    assert (caught.value.code, caught.value.hint) == ("unsupported", "have it told")
