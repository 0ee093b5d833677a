"""The path of one row from its recording to its destinations: a few rows are marked, each stage adds a hop with its time. Bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

HOPS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Hop:
    """A stage that the row reached, and when, in ns of boot time."""

    stage: str
    at_ns: int


@dataclass(slots=True)
class Trace:
    """One row on its way to one destination. Retries past the bound are counted, not listed."""

    trace_id: str
    row: dict[str, Any]  # time, metric, node, worker, phase, labels
    exporter: str = ""
    hops: list[Hop] = field(default_factory=list)
    unlisted: int = 0

    def hop(self, stage: str, at_ns: int) -> None:
        """Add a stage."""
        if len(self.hops) < HOPS_MAX or stage.startswith(("delivered", "dropped", "folded")):
            self.hops.append(Hop(stage, at_ns))
        else:
            self.unlisted += 1

    def towards(self, exporter: str) -> Trace:
        """Return the part of this path that leads to one destination, with the hops so far."""
        return Trace(self.trace_id, self.row, exporter, list(self.hops))

    def lines(self) -> list[str]:
        """Return the path as text: ms since the first hop, and the stage."""
        start = self.hops[0].at_ns if self.hops else 0
        head = f"{self.trace_id} {self.row.get('metric', '')} [{self.row.get('node', '')}] -> {self.exporter or '-'}"
        more = [f"  ({self.unlisted} further hops)"] if self.unlisted else []
        return [head, *(f"  {(hop.at_ns - start) / 1e6:10.3f} ms  {hop.stage}" for hop in self.hops), *more]


class Tracer:
    """Chooses one row in `every` (0: none), and those that were asked for; keeps the newest paths up to `kept`."""

    def __init__(self, every: int = 10_000, kept: int = 256) -> None:
        assert every >= 0 < kept, "every is at least 0, kept at least 1"
        self._every = every
        self._seen = 0
        self._made = 0
        self._wanted: deque[tuple[str, str]] = deque(maxlen=kept)  # metric, node
        self.paths: deque[Trace] = deque(maxlen=kept)

    def ask(self, metric: str, node: str = "") -> None:
        """Trace the next row of a metric (and node)."""
        self._wanted.append((metric, node))

    @property
    def is_asked(self) -> bool:
        """Whether rows have to be looked at one by one."""
        return bool(self._wanted)

    def sampled(self, rows: int) -> list[int]:
        """Return the positions of sampled rows among the next `rows`."""
        if not self._every:
            return []
        found = list(range(-self._seen % self._every, rows, self._every))
        self._seen = (self._seen + rows) % self._every
        return found

    def asked(self, metrics: list[str], nodes: list[str]) -> list[int]:
        """Return the positions of rows that were asked for; each request is met once."""
        found = []
        for wanted in list(self._wanted):
            for at, (metric, node) in enumerate(zip(metrics, nodes, strict=True)):
                if metric == wanted[0] and wanted[1] in ("", node):
                    found.append(at)
                    self._wanted.remove(wanted)
                    break
        return sorted(set(found))

    def begin(self, row: dict[str, Any], now_ns: int) -> Trace:
        """Return a new path."""
        self._made += 1
        trace = Trace(f"t{self._made:08x}", row)
        trace.hop("received", now_ns)
        return trace
