"""Single samples of one load, as its agent reads them: a ring drained into records with names, for a `Feed` of live samples."""

from __future__ import annotations

from typing import NamedTuple

from actors.metrics.raw import columns
from actors.metrics.ring import Consumer
from actors.metrics.segment import Segment


class LiveSample(NamedTuple):
    """One sample. `weight` says how many it stands for; `boot_ns` is when its process drained it, at most a tick after it was recorded."""

    metric: str
    worker: str
    phase: str
    labels: tuple[tuple[str, str], ...]
    value: float
    weight: int
    boot_ns: int


class SampleReader:
    """Reads the ring of one load. Each sample is `read` once, or counted in `dropped`; one thread at a time."""

    def __init__(self, segment: Segment, consumer: Consumer, worker: str, phase: str) -> None:
        self._segment, self._consumer, self._worker, self._phase = segment, consumer, worker, phase
        self._series: list[tuple[str, tuple[tuple[str, str], ...]]] = []

    @property
    def dropped(self) -> int:
        """Samples for which the ring had no room so far."""
        return self._consumer.ring.state().dropped

    def read(self, limit: int = 100_000) -> list[LiveSample]:
        """Return up to `limit` samples in the order in which they were drained."""
        block = self._consumer.drain(limit)
        self._series.extend(
            (name, labels) for _, _, name, labels in self._segment.series(len(self._series))
        )  # claimed before it was pushed
        values, rows, weights, times = (column.tolist() for column in columns(block))
        found = []
        for value, row, weight, boot_ns in zip(values, rows, weights, times, strict=True):
            name, labels = self._series[row]
            found.append(LiveSample(name, self._worker, self._phase, labels, value, weight, boot_ns))
        return found
