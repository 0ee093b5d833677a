"""What a load records about its own work: slices and work units, in the agent's segment. Never the dose, which is measured outside."""

from __future__ import annotations

from .errors import StressError


class LoadMeters:
    """The handles of one load process. `record_slice` is safe from any thread; `tick` at least every 100 ms."""

    def __init__(self, segment_path: str, seed: int) -> None:
        from .metrics import Recorder, Segment  # noqa: PLC0415  # numpy is loaded only where something is recorded

        self._recorder = Recorder(Segment.open(segment_path), seed=seed)
        self._slice = self._recorder.histogram("load.slice").record
        self._operations = self._recorder.counter("load.operations").record
        self.tick = self._recorder.tick
        self.close = self._recorder.close

    def record_slice(self, duration_s: float, operations: int) -> None:
        """Record one slice between two looks at the lease: its length on the clock and its work units."""
        self._slice(duration_s)
        self._operations(operations)


def open_meters(segment_path: str, seed: int) -> LoadMeters | None:
    """Return the meters, or None when there is no segment or its agent is gone: a load without figures is still bounded.

    What is chosen by chance when samples are thinned follows from `seed`.
    """
    if not segment_path:
        return None
    try:
        return LoadMeters(segment_path, seed)
    except (OSError, ValueError, StressError):
        return None
