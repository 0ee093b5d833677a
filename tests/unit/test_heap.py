"""Resident bytes for each live one: each figure names its source, or says that there is none."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from actors.heap import HeapFigure, library_heap, process_heap

STATUS = "Name:\tx\nRssAnon:\t     144 kB\nRssFile:\t 7 kB\n"
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


def test_an_allocator_of_ours_names_its_source(tmp_path: Path) -> None:
    """Resident by the kernel and above the baseline, live by its owner; nothing live is no ratio."""
    status = tmp_path / "status"
    status.write_text(STATUS)
    figure = process_heap(48 << 10, 48 << 10, status)
    assert (figure.source, figure.ratio, figure.reason) == ("rss_anon", 2.0, "")
    assert process_heap(0, 0, status).ratio == 0.0
    assert process_heap(1, 200 << 10, status).resident_bytes == 0


def test_what_is_not_there_is_unavailable_with_a_reason(tmp_path: Path) -> None:
    """Neither a kernel without the figure nor a C library without mallinfo2 gives a number."""
    status = tmp_path / "status"
    missing = process_heap(10, 0, status)
    status.write_text("Name:\tx\n")
    for figure, word in ((missing, "No such file"), (process_heap(10, 0, status), "RssAnon"), (library_heap(object()), "mallinfo2")):
        assert (figure.source, figure.ratio) == ("unavailable", 0.0)
        assert word in figure.reason
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
