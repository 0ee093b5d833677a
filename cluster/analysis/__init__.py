"""What a run says: reading it, and what is made of it. Works without Ray and on every platform."""

from __future__ import annotations

from .live import follow
from .load import RunData, find_run, load

__all__ = ["RunData", "find_run", "follow", "load"]
