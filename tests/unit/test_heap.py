"""Resident bytes for each live one: each figure names its source, or says that there is none."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from actors.heap import HeapFigure, library_heap, mapping_figure, resident_within

SMAPS = """\
7f0000000000-7f0000010000 rw-p 00000000 00:00 0
Size:                 64 kB
Rss:                  64 kB
Pss:                  64 kB
7f0000010000-7f0000030000 rw-p 00000000 00:00 0
Rss:                  96 kB
7f0000030000-7f0000040000 rw-p 00000000 00:00 0 [heap]
Rss:                  64 kB
"""
SPLIT = """
import ctypes
from actors.heap import library_heap
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = library_heap()
blocks = [c.malloc(64 << 10) for _ in range(1000)]
full = library_heap()
for block in blocks[::2]:
    c.free(block)
split = library_heap()
print(before.source, full.live_bytes - before.live_bytes, full.live_bytes - split.live_bytes, full.resident_bytes - split.resident_bytes)
print(full.ratio < 1.2 < split.ratio, split.ratio)
"""


def test_resident_bytes_of_a_range() -> None:
    """Areas that lie within the range count, neighbours do not."""
    assert resident_within(SMAPS, 0x7F0000010000, 0x20000) == 96 << 10
    assert resident_within(SMAPS, 0x7F0000000000, 0x30000) == 160 << 10
    assert resident_within(SMAPS, 0x7F0000010000, 0x10000) == 0


def test_a_mapping_names_smaps(tmp_path: Path) -> None:
    """Resident by the kernel, live by its owner."""
    smaps = tmp_path / "smaps"
    smaps.write_text(SMAPS)
    figure = mapping_figure(0x7F0000010000, 0x20000, 48 << 10, smaps)
    assert (figure.source, figure.ratio, figure.reason) == ("smaps", 2.0, "")
    assert mapping_figure(0x7F0000010000, 0x20000, 0, smaps).ratio == 0.0


def test_what_is_not_there_is_unavailable_with_a_reason(tmp_path: Path) -> None:
    """Neither a kernel without smaps nor a C library without mallinfo2 gives a number."""
    missing = mapping_figure(0, 4096, 10, tmp_path / "smaps")
    assert (missing.source, missing.ratio) == ("unavailable", 0.0)
    assert "smaps" in missing.reason
    bare = library_heap(object())
    assert (bare.source, bare.ratio) == ("unavailable", 0.0)
    assert "mallinfo2" in bare.reason
    assert HeapFigure(5, 1, "unavailable").ratio == 0.0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library has no mallinfo2")
def test_the_librarys_heap_keeps_what_was_freed_between_blocks() -> None:
    """1,000 blocks of 64 KiB, every second one freed: live bytes halve, those got from the kernel stay."""
    done = subprocess.run([sys.executable, "-c", SPLIT], capture_output=True, text=True, check=True, timeout=60)
    source, grown, freed, given_back = done.stdout.splitlines()[0].split()
    assert source == "mallinfo2"
    assert int(grown) >= 1_000 * (64 << 10)
    assert int(freed) == pytest.approx(int(grown) / 2, rel=0.01)
    assert int(given_back) == 0
    assert done.stdout.splitlines()[1].startswith("True"), done.stdout
