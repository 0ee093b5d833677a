"""The memory load's segments, as the kernel lists their pages: huge while whole, exact to the grain when a part is given back."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import memory
from actors.memory import GRAIN_BYTES, HUGE_BYTES, MIB, SEGMENT_BYTES, Segment

KPF_THP, KPF_ZERO_PAGE = 1 << 22, 1 << 24  # admin-guide/mm/pagemap.rst
PAGE = 4096
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HAS_HUGE = THP.exists() and "[never]" not in THP.read_text()


@pytest.fixture
def whole() -> Iterator[Segment]:
    made = Segment(SEGMENT_BYTES, whole=True)
    made.resize(SEGMENT_BYTES)
    yield made
    made.close()


ADDRESS = memory._address


def resident(segment: Segment) -> list[int]:
    """Return the page entries (pagemap) of a segment that are present."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek((ADDRESS(segment._map) + segment._offset) // PAGE * 8)
        entries = struct.unpack(f"{SEGMENT_BYTES // PAGE}Q", file.read(SEGMENT_BYTES // PAGE * 8))
    return [entry for entry in entries if entry >> 63]


def flags(segment: Segment) -> list[int]:
    """Return the flags of each resident page (kpageflags); only who may see page numbers can know."""
    frames = [entry & ((1 << 55) - 1) for entry in resident(segment)]
    if not any(frames):
        pytest.skip("page numbers are told to root alone")
    with Path("/proc/kpageflags").open("rb", buffering=0) as file:
        return [struct.unpack("Q", os.pread(file.fileno(), 8, frame * 8))[0] for frame in frames]


def huge(segment: Segment) -> int:
    """Return how many resident pages are part of a huge one."""
    return sum(bool(one & KPF_THP) for one in flags(segment))


@pytest.mark.skipif(not HAS_HUGE, reason="this kernel gives no huge pages")
def test_a_whole_segment_is_of_huge_pages_alone(whole: Segment) -> None:
    """It begins at a multiple of 2 MiB: a segment that did not would have ordinary pages at both ends."""
    assert (ADDRESS(whole._map) + whole._offset) % HUGE_BYTES == 0
    assert len(resident(whole)) == SEGMENT_BYTES // PAGE
    assert huge(whole) >= SEGMENT_BYTES // PAGE * 0.75  # of eight, two may have found no free block


def test_a_kernel_that_does_not_align_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where mappings begin a page after a multiple of 2 MiB, there is room for the next multiple; held is what was asked."""
    monkeypatch.setattr(memory, "_address", lambda mapping: ADDRESS(mapping) // HUGE_BYTES * HUGE_BYTES + PAGE)
    segment = Segment(SEGMENT_BYTES, whole=True)
    try:
        assert (len(segment._map), segment._offset) == (SEGMENT_BYTES + HUGE_BYTES, HUGE_BYTES - PAGE)
        segment.resize(SEGMENT_BYTES)
        assert len(resident(segment)) == SEGMENT_BYTES // PAGE
        segment.resize(GRAIN_BYTES)
        assert len(resident(segment)) == GRAIN_BYTES // PAGE
    finally:
        segment.close()


@pytest.mark.parametrize("used_bytes", [SEGMENT_BYTES - GRAIN_BYTES, 5 * MIB, 4 * MIB, HUGE_BYTES // 2 + GRAIN_BYTES, GRAIN_BYTES])
def test_what_is_given_back_is_free_and_what_is_kept_stays(whole: Segment, used_bytes: int) -> None:
    """No huge page is left of which a part is held, for the kernel would keep all of it; splitting it loses no page of what is held."""
    whole.resize(used_bytes)
    assert len(resident(whole)) == used_bytes // PAGE
    assert huge(whole) <= used_bytes // HUGE_BYTES * HUGE_BYTES // PAGE
    assert not any(one & KPF_ZERO_PAGE for one in flags(whole)), "a page that all share holds nothing"
    whole.resize(SEGMENT_BYTES)
    assert len(resident(whole)) == SEGMENT_BYTES // PAGE
