"""For how long somebody waited, as the kernel's pressure stall information counts it, followed look by look. Never reads a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .clock import SECOND_NS
from .errors import RefusedError


class Grown(NamedTuple):
    """What lies between two looks: how long that is, and for how much of it somebody waited; both in seconds."""

    elapsed_s: float = 0.0
    waited_s: float = 0.0


class Stalls:
    """Follows a total of seconds waited; `share` is which part of the last `window_s` somebody has waited."""

    def __init__(self, total_s: Callable[[], float | None], window_s: float, lacks: str, allow: str) -> None:
        """`lacks` and `allow` say what is so where the kernel does not tell the total, and what would have it told."""
        self._total_s, self._window_ns = total_s, round(window_s * SECOND_NS)
        self._lacks, self._allow = lacks, allow
        self._seen: deque[tuple[int, float]] = deque(maxlen=64)
        self.share = 0.0

    def look(self, now_ns: int) -> Grown:
        """Return what was waited since the last look, nothing at the first. Raises `RefusedError` (`unsupported`)."""
        total_s = self._total_s()
        if total_s is None:
            raise RefusedError("unsupported", self._lacks, self._allow)
        seen = self._seen
        before_ns, before_s = seen[-1] if seen else (now_ns, total_s)
        seen.append((now_ns, total_s))
        while len(seen) > 2 and seen[1][0] <= now_ns - self._window_ns:
            seen.popleft()
        self.share = (total_s - seen[0][1]) * SECOND_NS / max(1, now_ns - seen[0][0])
        return Grown(max(0, now_ns - before_ns) / SECOND_NS, total_s - before_s)
