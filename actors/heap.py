"""How many resident bytes stand behind each live one: of an allocator in this process, and of the C library's own heap. Changes nothing.

    rss_anon    anonymous resident bytes of this process above a baseline (/proc/self/status); live ones as the allocator counts them
    mallinfo2   the C library's heap: bytes got from the kernel and bytes in use (man 3 mallinfo2, glibc since 2.33)

Where a source is not there the figure says `unavailable` and why; it is never guessed.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from . import procfs

Source = Literal["rss_anon", "mallinfo2", "unavailable"]
SOURCES: Final[tuple[Source, ...]] = ("rss_anon", "mallinfo2", "unavailable")
STATUS: Final = Path("/proc/self/status")
_FIELDS: Final = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


@dataclass(frozen=True, slots=True)
class HeapFigure:
    """Resident and live bytes with their source; `reason` says why there is none."""

    resident_bytes: int
    live_bytes: int
    source: Source
    reason: str = ""

    @property
    def ratio(self) -> float:
        """Resident bytes for each live one; 0.0 where it is unavailable or nothing is live."""
        return self.resident_bytes / self.live_bytes if self.live_bytes > 0 and self.source != "unavailable" else 0.0


def unavailable(reason: str) -> HeapFigure:
    """Return the figure that is none."""
    return HeapFigure(0, 0, "unavailable", reason)


class _MallInfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]  # as ctypes asks for it


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def library_heap(library: object = None) -> HeapFigure:
    """Return the figure of the C library's heap in this process: what it got from the kernel for what is in use."""
    call = getattr(library if library is not None else _library(), "mallinfo2", None)
    if call is None:
        return unavailable("this C library has no mallinfo2 (glibc has it since 2.33)")
    call.restype = _MallInfo2
    found = call()
    return HeapFigure(int(found.arena) + int(found.hblkhd), int(found.uordblks) + int(found.hblkhd), "mallinfo2")


def process_heap(live_bytes: int, baseline_bytes: int, status: Path = STATUS) -> HeapFigure:
    """Return the figure of an allocator that holds all of this process's anonymous memory above a baseline."""
    try:
        resident_bytes = procfs.size_bytes(status.read_text(encoding="ascii", errors="replace"), "RssAnon")
    except OSError as error:
        return unavailable(f"{status} cannot be read: {error.strerror}")
    if resident_bytes is None:
        return unavailable(f"{status} has no RssAnon (before Linux 4.5)")
    return HeapFigure(max(0, resident_bytes - baseline_bytes), live_bytes, "rss_anon")
