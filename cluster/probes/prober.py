"""The prober of one run: calls an actor on each place on the intended schedule and records what came back.

A plain class: Ray is behind `ProbePort`. It delivers its windows like an agent does, from an outbox of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import StressError
from actors.metrics import Recorder, Segment

from ..metrics.stream import MetricStream
from ..outbox import Frames, Outbox
from .schedule import OpenLoop, Sample

WORKER = "prober"
STEP_S = 0.02
DRAIN_S = 2.0


class ProbePort(Protocol):
    """What a prober needs of the cluster around it."""

    def call(self, node: str) -> Future[Any]:
        """Call the probe's actor on a node without waiting; the future fails when the call does."""
        ...

    def push(self, run: str, node: str, incarnation: str, records: Frames, timeout_s: float) -> int:
        """Hand records to the run's aggregator; returns the last sequence that it has made durable."""
        ...


@dataclass(slots=True)
class _Lane:
    """One probe on one node."""

    probe: str
    node: str
    loop: OpenLoop


class Prober:
    """Probes from `start_in_s` on until `finish`."""

    def __init__(
        self,
        run: str,
        node: str,
        probes: Sequence[Mapping[str, Any]],
        places: Mapping[str, Sequence[str]],
        start_in_s: float,
        state_dir: Path,
        port: ProbePort,
        clock: Clock | None = None,
        window_s: float = 1.0,
    ) -> None:
        self._run, self._node, self._port, self._clock = run, node, port, clock or SystemClock()
        start_ns = self._clock.boot_ns() + round(start_in_s * SECOND_NS)
        self._incarnation = f"{WORKER}-{self._clock.boot_ns()}"
        self._lanes = [
            _Lane(probe["name"], place, OpenLoop(probe["rate_hz"], start_ns, probe["timeout_s"]))
            for probe in probes
            for place in places[probe["target"]]
        ]
        self._ended: queue.SimpleQueue[tuple[_Lane, int, int, str]] = queue.SimpleQueue()
        self._segment = Segment.create()
        self._recorder = Recorder(self._segment, self._clock)
        box = state_dir / "outbox" / run / f"{node}-{self._incarnation}.box"
        self._stream = MetricStream(
            node, self._incarnation, run, Outbox(box, node=node, incarnation=self._incarnation, run=run), self._clock
        )
        self._stream.attach(self._segment, worker=WORKER, phase="")
        self._window_ns = round(window_s * SECOND_NS)
        self._window_end_ns = self._clock.boot_ns() + self._window_ns
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="prober", daemon=True)
        self._thread.start()

    def incarnation(self) -> str:
        """Return the name of this prober's stream."""
        return self._incarnation

    def finish(self) -> dict[str, Any]:
        """Stop calling, wait for the answers under way, deliver everything; returns {"delivered"}."""
        self._stop.set()
        self._thread.join(timeout=DRAIN_S + 5.0)
        self._stream.finish()
        deadline_ns = self._clock.boot_ns() + 10 * SECOND_NS
        while self._clock.boot_ns() < deadline_ns and not self._deliver():
            self._clock.sleep(0.1)
        delivered = not self._stream.unacked(1)
        if delivered:
            self._stream.outbox.remove()
        return {"delivered": delivered, "incarnation": self._incarnation}

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._turn()
            self._stop.wait(self._pause_s())
        ended_ns = self._clock.boot_ns()
        while self._clock.boot_ns() - ended_ns < DRAIN_S * SECOND_NS and any(lane.loop.flying for lane in self._lanes):
            self._collect()
            self._clock.sleep(STEP_S)
        self._collect()
        for lane in self._lanes:
            for sample in lane.loop.abandon(self._clock.boot_ns()):
                self._record(lane, sample)
        self._recorder.close()
        self._stream.close_window(self._clock.wall_ns())

    def _pause_s(self) -> float:
        due_ns = min(lane.loop.next_due_ns() for lane in self._lanes)
        return min(STEP_S, max(0.0, (due_ns - self._clock.boot_ns()) / SECOND_NS))

    def _turn(self) -> None:
        now_ns = self._clock.boot_ns()
        for lane in self._lanes:
            send, refused = lane.loop.take_due(now_ns)
            for number in send:
                self._call(lane, number)
            for sample in refused:
                self._record(lane, sample)
        self._collect()
        self._recorder.tick()
        if now_ns >= self._window_end_ns:
            self._window_end_ns += self._window_ns * max(1, 1 + (now_ns - self._window_end_ns) // self._window_ns)
            self._stream.close_window(self._clock.wall_ns())
            self._deliver()

    def _call(self, lane: _Lane, number: int) -> None:
        self._recorder.counter("probe.requests", probe=lane.probe).record(1)
        try:
            future = self._port.call(lane.node)
        except StressError as error:
            self._ended.put((lane, number, self._clock.boot_ns(), error.code))
            return
        future.add_done_callback(self._noting(lane, number))

    def _noting(self, lane: _Lane, number: int) -> Callable[[Future[Any]], None]:
        def note(future: Future[Any]) -> None:
            failure = "" if future.cancelled() or future.exception() is None else "failed"
            self._ended.put((lane, number, self._clock.boot_ns(), failure))

        return note

    def _collect(self) -> None:
        while not self._ended.empty():
            lane, number, at_ns, failure = self._ended.get()
            sample = lane.loop.done(number, at_ns, failure)
            if sample is not None:
                self._record(lane, sample)
        for lane in self._lanes:
            for sample in lane.loop.take_late(self._clock.boot_ns()):
                self._record(lane, sample)

    def _record(self, lane: _Lane, sample: Sample) -> None:
        if sample.failure == "not_sent":
            self._recorder.counter("probe.requests", probe=lane.probe).record(1)
        if sample.failure:
            self._recorder.counter("probe.failures", probe=lane.probe, reason=sample.failure).record(1)
        self._recorder.histogram("probe.response", probe=lane.probe).record(sample.response_s)
        if sample.failure != "not_sent":
            self._recorder.histogram("probe.service", probe=lane.probe).record(sample.service_s)

    def _deliver(self) -> bool:
        """Push what waits; tell whether nothing waits any more."""
        records = self._stream.unacked(1 << 20)
        if not records:
            return True
        try:
            self._stream.ack(self._port.push(self._run, self._node, self._incarnation, records, 5.0))
        except StressError:
            return False  # kept in the outbox and sent again
        return not self._stream.unacked(1)
