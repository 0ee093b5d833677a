"""The path of each record to each of its destinations: the stages it reached, when, with how many rows, in which batch. Bounded.

A record is what a node sealed when it closed a window. (node, incarnation, record) name it in the node's outbox, in the aggregator's log
and here, so tracing puts nothing into records or rows. Rows are counted, not marked: `cluster.traced` says what became of a single one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

HOPS_MAX: Final = 64
KEPT: Final = 20_000


class Hop(NamedTuple):
    """A stage that rows of a record reached, when (ns of boot time), and in which batch (the number of the call of write) or 0."""

    stage: str
    at_ns: int
    rows: int
    batch: int = 0


class Origin(NamedTuple):
    """A record with rows. `part` names a file of the run directory whose records were read at once; then only it and `rows` are told.

    `time_us` is the start of its window by the node's clock, `taken_ns` when the aggregator had it on disk, in boot time.
    """

    node: str = ""
    incarnation: str = ""
    record: int = 0
    time_us: int = 0
    window_s: float = 0.0
    rows: int = 0
    taken_ns: int = 0
    part: str = ""


@dataclass(slots=True)
class Path:
    """One record on its way to one destination. Hops past the bound are counted, not listed, but for those that end rows."""

    origin: Origin
    exporter: str
    hops: list[Hop] = field(default_factory=list)
    open_rows: int = 0  # behind the rules, without an outcome yet
    unlisted: int = 0

    def hop(self, stage: str, at_ns: int, rows: int, batch: int = 0) -> None:
        """Add a stage."""
        if len(self.hops) < HOPS_MAX:
            self.hops.append(Hop(stage, at_ns, rows, batch))
        else:
            self.unlisted += 1

    def end(self, stage: str, at_ns: int, rows: int, batch: int = 0) -> None:
        """Add what became of rows in the end."""
        self.hops.append(Hop(stage, at_ns, rows, batch))
        self.open_rows -= rows


@dataclass(slots=True)
class Mark:
    """Rows of a path in a lane, by the lane's numbers; `left` of them have no outcome."""

    first: int
    after: int
    left: int
    path: Path


class Tracer:
    """Holds the paths that are under way until they are collected: at most `kept`; more are counted as `untraced`. 0: traces none."""

    def __init__(self, kept: int = KEPT) -> None:
        assert kept >= 0, "kept is at least 0"
        self._kept = kept
        self._paths: list[Path] = []
        self.untraced = 0

    def begin(self, origin: Origin, exporter: str) -> Path | None:
        """Return a new path, None when there are too many."""
        if len(self._paths) >= self._kept:
            self.untraced += self._kept > 0
            return None
        path = Path(origin, exporter)
        self._paths.append(path)
        return path

    def collect(self, *, whole: bool = True) -> list[Path]:
        """Return and forget the paths whose rows all have an outcome; with `whole` false, the others too."""
        found = [path for path in self._paths if not (whole and path.open_rows)]
        self._paths = [path for path in self._paths if whole and path.open_rows]
        return found
