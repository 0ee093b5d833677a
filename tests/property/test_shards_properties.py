"""How a fragmented load splits what it holds: for every way up and down, and every size of blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InputError
from actors.memory import GRAIN_BYTES, SEGMENT_BYTES
from actors.memory_fragment import BLOCK_MAX_BYTES, BLOCK_MIN_BYTES, SPLIT_MAX, Shards, block_bytes, holes

MIB = 1 << 20
held = st.integers(0, 3 * SEGMENT_BYTES // GRAIN_BYTES).map(lambda grains: grains * GRAIN_BYTES)
block = st.integers(BLOCK_MIN_BYTES // 16, BLOCK_MAX_BYTES // 16).map(lambda units: units * 16)


@given(block, st.lists(st.tuples(held, st.booleans()), max_size=6))
def test_books_balance(size: int, steps: list[tuple[int, bool]]) -> None:
    """Live and free bytes are what is held, allocated less freed blocks are live; split, no hole is larger than a block."""
    shards = Shards(size)
    for held_bytes, is_split in steps:
        shards.lay(held_bytes)
        if is_split:
            shards.split()
            assert shards.is_split
            assert shards.largest_hole_bytes <= size
            assert not shards.can_place(size + 1)
        assert shards.live_bytes + shards.free_bytes == held_bytes
        blocks = sum(len(arena.blocks) for arena in shards._arenas)
        assert shards.allocated - shards.freed == blocks
        shards.lay(held_bytes)  # nothing new is held: nothing changes
        assert sum(len(arena.blocks) for arena in shards._arenas) == blocks


@given(block, st.floats(0, SPLIT_MAX), held)
def test_blocks_are_small_enough_for_the_share(asked: int, split: float, peak: int) -> None:
    """At the peak every second block is free, and the asked share of what is free is out of reach; or it is refused before."""
    try:
        size = block_bytes(asked, split, peak)
    except InputError:
        assert holes(2 * BLOCK_MIN_BYTES, peak) * (1 - split) < 1
        return
    shards = Shards(size)
    shards.lay(peak)
    assert (shards.fragmentation, shards.live_bytes) == (0.0, peak)
    shards.split()
    assert size <= asked
    assert shards.freed == holes(size, peak)
    assert shards.fragmentation >= split - 1e-8
    assert shards.live_bytes >= peak / 2


def test_what_is_too_small_to_be_split_is_refused() -> None:
    """With what would do."""
    with pytest.raises(InputError, match=r"cannot be split to 99.0%") as caught:
        block_bytes(64 << 10, 0.99, MIB)
    assert caught.value.hint == f"about {200 * BLOCK_MIN_BYTES} bytes can"
    assert block_bytes(64 << 10, 0.99, 202 * BLOCK_MIN_BYTES) == BLOCK_MIN_BYTES
