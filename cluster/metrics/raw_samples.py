"""Single samples of one load, as its agent reads them: a ring drained into batches for the files, or records with names for a `Feed`."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from actors.metrics.raw import columns
from actors.metrics.registry import find
from actors.metrics.ring import Block, Consumer
from actors.metrics.segment import Segment

from .windows import SAMPLES


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

    @property
    def produced(self) -> int:
        """Samples that were given to the ring so far: `dropped`, read, or waiting in it. Exact once its load is gone."""
        return self._consumer.ring.state().offered

    @property
    def waiting(self) -> int:
        """Samples that wait in the ring."""
        return self._consumer.ring.state().buffered

    def batch(self, node: str, boot_to_wall_ns: int, limit: int) -> pa.RecordBatch:
        """Return up to `limit` samples with the columns of `SAMPLES`; `boot_to_wall_ns` added to a boot time gives UTC."""
        values, rows, weights, times = columns(self._drained(limit))
        at, size = pa.array(rows), len(values)
        found = {
            "time": pa.array((times + boot_to_wall_ns) // 1000).cast(SAMPLES.field("time").type),
            "metric": pa.array([name for name, _ in self._series], pa.string()).take(at),
            "unit": pa.array([find(name).unit for name, _ in self._series], pa.string()).take(at),
            "labels": pa.array([list(labels) for _, labels in self._series], SAMPLES.field("labels").type).take(at),
            "value": pa.array(values),
            "weight": pa.array(weights),
        }
        for name, text in (("node", node), ("worker", self._worker), ("phase", self._phase)):
            found[name] = pa.repeat(pa.scalar(text), size)
        return pa.RecordBatch.from_arrays([found[column.name] for column in SAMPLES], schema=SAMPLES)

    def close(self) -> None:
        """Give up the ring: its memory goes when its load has ended too."""
        self._consumer.close()
        self._consumer.ring.close()

    def _drained(self, limit: int) -> Block:
        block = self._consumer.drain(limit)
        self._series.extend(
            (name, labels) for _, _, name, labels in self._segment.series(len(self._series))
        )  # claimed before it was pushed
        return block

    def read(self, limit: int = 100_000) -> list[LiveSample]:
        """Return up to `limit` samples in the order in which they were drained."""
        block = self._drained(limit)
        values, rows, weights, times = (column.tolist() for column in columns(block))
        found = []
        for value, row, weight, boot_ns in zip(values, rows, weights, times, strict=True):
            name, labels = self._series[row]
            found.append(LiveSample(name, self._worker, self._phase, labels, value, weight, boot_ns))
        return found
