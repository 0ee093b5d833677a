"""A slab gives every block to one user at a time, whatever the order, and finds a block that is given back twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InputError
from actors.metrics.slab import Slab


@given(st.integers(1, 8), st.lists(st.one_of(st.none(), st.integers(-2, 12)), max_size=100))
def test_a_block_has_one_user(blocks: int, steps: list[int | None]) -> None:
    """For any order of taking (None) and giving back: no block is given out twice, none is lost, a wrong one changes nothing."""
    slab, used = Slab(blocks, 4), {}
    for step in steps:
        if step is None:
            if len(used) == blocks:
                assert slab.take() is None
                continue
            number = slab.take()
            assert number is not None
            assert number not in used
            used[number] = float(len(used) + 1)
            slab.block(number)[:] = used[number]
        elif step in used:
            assert (slab.block(step) == used.pop(step)).all()
            slab.give(step)
        else:
            with pytest.raises(InputError, match="given back twice, or never taken"):
                slab.give(step)
        assert slab.in_use == len(used)
    assert all((slab.block(number) == value).all() for number, value in used.items())
    assert {slab.take() for _ in range(blocks - len(used))} | set(used) == set(range(blocks))


@pytest.mark.parametrize("operations", [100_000, pytest.param(10_000_000, marks=pytest.mark.soak)])
def test_a_slab_that_was_used_for_long_is_as_good_as_new(operations: int) -> None:
    """After many takes and gives in random order nothing has leaked, and all free blocks can be had: there is no fragment to lose."""
    slab, chance, live = Slab(64, 8), np.random.default_rng(2), list[int]()
    choices = chance.random(operations).tolist()
    for choice in choices:
        if choice < 0.5 and len(live) < 64:
            number = slab.take()
            assert number is not None
            live.append(number)
        elif live:
            at = int(choice * 997) % len(live)
            live[at], live[-1] = live[-1], live[at]
            slab.give(live.pop())
    assert slab.in_use == len(live)
    rest = {slab.take() for _ in range(64 - len(live))}
    assert rest | set(live) == set(range(64))
    assert slab.take() is None


@pytest.mark.parametrize(("blocks", "size"), [(0, 1), (1, 0), (-1, 4)])
def test_a_slab_of_nothing_is_refused(blocks: int, size: int) -> None:
    """Blocks and words are at least one each."""
    with pytest.raises(InputError):
        Slab(blocks, size)


def test_blocks_do_not_overlap() -> None:
    """Blocks are apart, and fill the memory without holes."""
    slab = Slab(5, 7)
    for number in range(5):
        slab.block(number)[:] = number
    whole = np.concatenate([slab.block(number) for number in range(5)])
    assert whole.tolist() == [float(number) for number in range(5) for _ in range(7)]
    starts = sorted(slab.block(number).__array_interface__["data"][0] for number in range(5))
    assert {later - earlier for earlier, later in itertools.pairwise(starts)} == {56}
