"""What a load records about its own work: slices and work units. Never the dose, which is measured outside."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .errors import StressError

if TYPE_CHECKING:
    from .metrics.reporter import Recordable, Reporter


class LoadMeters:
    """The series of one load, in whatever reporter. `record_slice` is safe from any thread; `tick` at least every 100 ms."""

    def __init__(self, reporter: Reporter, *, is_kept: bool = True) -> None:
        self.is_kept = is_kept
        self._reporter = reporter
        self._cores: dict[int, Recordable] = {}
        self._slice = reporter.histogram("load.slice").record
        self._operations = reporter.counter("load.operations").record
        self.tick = reporter.tick
        self.close = reporter.close

    def record_slice(self, duration_s: float, operations: int) -> None:
        """Record one slice between two looks at the lease: its length on the clock and its work units."""
        self._slice(duration_s)
        self._operations(operations)

    def record_core(self, core: int, share: float) -> None:
        """Record which share of a CPU, named by its number, the thread that stays on it has used since the last time. For one thread."""
        if core not in self._cores:
            self._cores[core] = self._reporter.gauge("load.core.busy", core=str(core))
        self._cores[core].record(share)


def open_meters(segment_path: str, seed: int) -> LoadMeters:
    """Return meters that record into the agent's segment; where there is none, or the agent is gone, they keep nothing.

    What is chosen by chance when samples are thinned follows from `seed`.
    """
    reporter, is_kept = open_reporter(segment_path, seed)
    return LoadMeters(reporter, is_kept=is_kept)


def open_reporter(segment_path: str, seed: int) -> tuple[Reporter, bool]:
    """Return the reporter of a load, and whether it keeps what it takes; see `open_meters`."""
    from .metrics import Recorder, Segment  # noqa: PLC0415  # numpy is loaded only where something is recorded
    from .metrics.reporter import NullReporter  # noqa: PLC0415

    with contextlib.suppress(OSError, ValueError, StressError):  # a load without figures is bounded still
        if segment_path:
            return Recorder(Segment.open(segment_path), seed=seed), True
    return NullReporter(), False
