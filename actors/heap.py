"""How many resident bytes stand behind each live one: of a mapping of ours, and of the C library's own heap. Asks, changes nothing.

    smaps       resident bytes of a mapping by /proc/self/smaps (Rss), live ones as its owner counts them
    mallinfo2   the C library's heap: bytes got from the kernel and bytes in use (man 3 mallinfo2, glibc since 2.33)

Where a source is not there the figure says `unavailable` and why; it is never guessed.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Source = Literal["smaps", "mallinfo2", "unavailable"]
SOURCES: Final = ("smaps", "mallinfo2", "unavailable")
SMAPS: Final = Path("/proc/self/smaps")
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


def mapping_figure(address: int, size_bytes: int, live_bytes: int, smaps: Path = SMAPS) -> HeapFigure:
    """Return the figure of one mapping of this process with the live bytes that its owner counts."""
    try:
        text = smaps.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        return unavailable(f"{smaps} cannot be read: {error.strerror}")
    return HeapFigure(resident_within(text, address, size_bytes), live_bytes, "smaps")


def resident_within(smaps: str, address: int, size_bytes: int) -> int:
    """Return the resident bytes of all areas that lie within a range. Form: man 5 proc_pid_smaps."""
    total, is_inside = 0, False
    for line in smaps.splitlines():
        first = line.partition(" ")[0]
        if "-" in first and not first.endswith(":"):
            start, _, end = first.partition("-")
            is_inside = int(start, 16) >= address and int(end, 16) <= address + size_bytes
        elif is_inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total
