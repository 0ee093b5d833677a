"""The arena against a naive model: a list with one owner for each 16 bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.arena import ALIGN_BYTES, Arena
from actors.errors import InputError

UNITS = 24
KIB = 1 << 10


class Cells:
    """One cell for each 16 bytes: the number of its block, or None."""

    def __init__(self, units: int) -> None:
        self.cells: list[int | None] = [None] * units
        self.next = 0

    def runs(self) -> list[tuple[int, int]]:
        """Return the free runs as (first cell, cells)."""
        found, start = [], None
        for at, owner in enumerate([*self.cells, 0]):
            if owner is None and start is None:
                start = at
            elif owner is not None and start is not None:
                found.append((start, at - start))
                start = None
        return found

    def allocate(self, size_bytes: int) -> int | None:
        units = -(-size_bytes // ALIGN_BYTES)
        for start, length in self.runs():
            if length >= units:
                self.next += 1
                self.cells[start : start + units] = [self.next] * units
                return start * ALIGN_BYTES
        return None

    def free(self, offset: int) -> None:
        owner = self.cells[offset // ALIGN_BYTES]
        self.cells = [None if cell == owner else cell for cell in self.cells]


class ArenaMachine(RuleBasedStateMachine):
    """Any order of allocations and frees."""

    def __init__(self) -> None:
        super().__init__()
        self.arena, self.model = Arena(UNITS * ALIGN_BYTES), Cells(UNITS)
        self.live: list[int] = []

    @rule(size_bytes=st.integers(1, 8 * ALIGN_BYTES))
    def allocate(self, size_bytes: int) -> None:
        found = self.arena.allocate(size_bytes)
        assert found == self.model.allocate(size_bytes)
        if found is not None:
            self.live.append(found)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: Any) -> None:
        offset = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.arena.free(offset)
        self.model.free(offset)
        with pytest.raises(InputError):
            self.arena.free(offset)

    @invariant()
    def agrees(self) -> None:
        runs = self.model.runs()
        free, largest = sum(length for _, length in runs), max((length for _, length in runs), default=0)
        assert self.arena.holes == [(start * ALIGN_BYTES, length * ALIGN_BYTES) for start, length in runs]
        assert sorted(self.arena.blocks) == sorted(self.live)
        assert (self.arena.free_bytes, self.arena.largest_hole_bytes) == (free * ALIGN_BYTES, largest * ALIGN_BYTES)
        assert self.arena.fragmentation == pytest.approx(1 - largest / free if free else 0.0)


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("order", [1, -1], ids=["upwards", "downwards"])
def test_every_second_of_a_thousand_blocks_freed(order: int) -> None:
    """1,000 blocks of 64 KiB: each hole is one block, what is larger is refused although there is room, and joined again it is one hole."""
    block = 64 * KIB
    arena = Arena(1_000 * block)
    blocks = [arena.allocate(block) for _ in range(1_000)]
    assert blocks == [at * block for at in range(1_000)]
    assert (arena.free_bytes, arena.fragmentation, arena.allocate(1)) == (0, 0.0, None)
    for offset in blocks[::2]:
        arena.free(offset)
    assert arena.fragmentation == pytest.approx(1 - block / (500 * block), abs=0.01)
    assert (arena.free_bytes, arena.live_bytes) == (500 * block, 500 * block)
    assert arena.allocate(block + 1) is None
    assert arena.live_bytes == 500 * block
    for offset in blocks[1::2][::order]:
        arena.free(offset)
    assert (arena.fragmentation, arena.holes) == (0.0, [(0, 1_000 * block)])
    assert arena.allocate(1_000 * block) == 0


@pytest.mark.parametrize("size_bytes", [0, -16, 17])
def test_an_arena_of_no_size_is_refused(size_bytes: int) -> None:
    """A size must be a multiple of 16 above 0; so must a block have a byte."""
    with pytest.raises(InputError):
        Arena(size_bytes)
    with pytest.raises(InputError):
        Arena(16).allocate(min(size_bytes, 0))
