"""What a node records: its host, the doses of its operations measured from outside, and what its loads record themselves.

One stream a run, each with an outbox file of its own under STATE. Doses are read once a window, right before it closes: CPU as
the mean over the window, bytes as held at its end. Nothing here decides about load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from actors import pressure
from actors import shape as shapes
from actors.clock import SECOND_NS, Clock
from actors.disk import fill_paths
from actors.dose import OutsideMeter
from actors.errors import HarnessError, StressError
from actors.guardian import GuardianClient
from actors.host import BusyMeter
from actors.messages import Allocation, Capacity, Event, HostSnapshot, Operation, SlotTicket
from actors.metrics import Segment
from actors.metrics.policy import Mode, RecordingPolicy
from actors.metrics.registry import DOSE_UNITS
from actors.metrics.ring import SAMPLE_COLUMNS, Consumer, Ring
from actors.metrics.segment import check_policy_text
from actors.proc import cgroup_pids
from actors.simulator import absolute, whole_of

from .allocation import Moments
from .loads_cpu import LoadsCpu
from .metrics.cardinality import Caps
from .metrics.raw_samples import SampleReader
from .metrics.stream import MetricStream
from .outbox import Frames, Outbox, OutboxFullError, box_path, leftovers

UNIT_OF_OPERATION: Final = frozenset({"dose.requested", "dose.achieved", "dose.remaining"})
STEPS: Final = 20  # points at which a shape is read within a window
RING_SAMPLES: Final = 1 << 16  # single samples of one load that may wait for the next window: 1.5 MiB
PUSH_BYTES: Final = 1 << 20
PUSH_S: Final = 5.0
SEAL_TRIES: Final = 5  # how often the last window of a stream is tried, about a second apart

_Key = tuple[str, str]  # run, operation: runs that share a scenario have operations of the same name

Push = Callable[[str, str, str, Frames, float], int]


@dataclass(slots=True)
class Watched:
    """One live operation and how it is measured."""

    run: str
    operation: Operation
    capacity: Capacity
    slot: int
    generation: int
    meter: OutsideMeter
    shape: shapes.Shape  # in cores or bytes
    moments: Moments
    segment: Segment | None = None
    start_ns: int = 0
    counted: float | None = None  # what its meter said last, where that only grows
    others_s: float = 0.0

    @property
    def host_total(self) -> bool:
        """Tell whether it fills the host up to its share, whatever others use."""
        return self.operation.options.get("mode") == "host_total"


class NodeMetrics:
    """All streams of one node's agent. Methods may be called from any of its threads."""

    def __init__(self, node: str, incarnation: int, state_dir: Path, guardian: GuardianClient, clock: Clock, outbox_max_bytes: int) -> None:
        self._node, self._incarnation, self._state_dir = node, str(incarnation), state_dir
        self._guardian, self._clock, self._outbox_max_bytes = guardian, clock, outbox_max_bytes
        self._lock = threading.RLock()
        self._streams: dict[str, MetricStream] = {}
        self._orphans: dict[str, list[Outbox]] = {}
        self._delivered: set[str] = set()
        self._policies: dict[str, RecordingPolicy] = {}  # of the loads of each run
        self._sealed: set[str] = set()
        self._seal_tries: dict[str, int] = {}
        self._watched: dict[_Key, Watched] = {}
        self._segments: dict[_Key, Segment] = {}
        self._busy = BusyMeter()
        self._loads = LoadsCpu(guardian.stats)
        self._measured_ns = clock.boot_ns()
        self._busy_s = self._busy.read()[1]
        self._loads_s: dict[tuple[int, int], float] = {}
        self._delivering = threading.Lock()

    # ---- runs

    def begin(self, run: str, policy: RecordingPolicy, caps: Caps | None = None) -> None:
        """Open a run's stream and its outbox file; its loads and this agent record by `policy`, and this agent's series have `caps`."""
        path = box_path(self._state_dir, run, self._node, self._incarnation)
        box = Outbox(path, node=self._node, incarnation=self._incarnation, run=run, max_bytes=self._outbox_max_bytes)
        with self._lock:
            self._policies[run] = policy
            self._streams[run] = MetricStream(self._node, self._incarnation, run, box, self._clock, policy, caps)

    def seal(self, run: str) -> None:
        """Name the end of a run's stream, and of the streams that an earlier agent of this node left.

        Raises `OutboxFullError` while the last window finds no room: call again. After `SEAL_TRIES` the end is named without it:
        what was not sealed is lost, and the end says so.
        """
        if run not in self._orphans:
            self._orphans[run] = self._take_over(run)
        with self._lock:
            stream = self._streams.get(run)
            if stream is not None and run not in self._sealed:
                self._finish(run, stream)
            self._sealed.add(run)

    def _finish(self, run: str, stream: MetricStream) -> None:
        tries = self._seal_tries[run] = self._seal_tries.get(run, 0) + 1
        try:
            stream.finish()
        except OutboxFullError:
            if tries < SEAL_TRIES:
                raise
            stream.give_up()

    def _take_over(self, run: str) -> list[Outbox]:
        boxes = []
        for path in leftovers(self._state_dir / "outbox"):
            if (
                path.parent.name != run
                or not path.name.startswith(f"{self._node}-")
                or path.name == f"{self._node}-{self._incarnation}.box"
            ):
                continue
            try:
                box = Outbox(path)
                box.seal()
                boxes.append(box)
            except (HarnessError, OutboxFullError) as error:
                if isinstance(error, HarnessError) and error.code == "busy":  # the earlier agent has not gone yet: the next try finds it so
                    for opened in boxes:
                        opened.close()
                    raise
                self.event("outbox_unreadable", f"{path.name}: {error}", severity="error")
        return boxes

    def leftover_runs(self) -> set[str]:
        """Return the runs of which earlier agents of this node left undelivered metrics."""
        return {path.parent.name for path in leftovers(self._state_dir / "outbox") if path.name.startswith(f"{self._node}-")}

    def forget(self, run: str) -> None:
        """Drop a run that is delivered."""
        with self._lock:
            self._streams.pop(run, None)
            self._orphans.pop(run, None)
            self._delivered.discard(run)
            self._policies.pop(run, None)
            self._sealed.discard(run)
            self._seal_tries.pop(run, None)

    def runs(self) -> list[str]:
        """Return the runs that have something to deliver or to finish."""
        with self._lock:
            return [run for run in {*self._streams, *self._orphans} if run not in self._delivered]

    def delivered(self, run: str) -> bool:
        """Tell whether all of a sealed run has been acknowledged."""
        with self._lock:
            return run in self._delivered

    def deliver(self, run: str, push: Push) -> None:
        """Push what waits, oldest first, until nothing waits or nobody takes it. Raises what `push` raises."""
        with self._delivering:
            with self._lock:
                is_sealed = run in self._sealed  # before anything is read: an end that is named meanwhile is delivered by the next call
            for box in list(self._orphans.get(run, [])):
                self._drain(run, box.incarnation, box.unacked, box.ack, push)
            stream = self._streams.get(run)
            if stream is not None:
                self._drain_near(run, stream, push)
                self._drain(run, self._incarnation, stream.unacked, stream.ack, push)
            with self._lock:
                self._delivered |= {run} if is_sealed else set()

    def _drain(
        self,
        run: str,
        incarnation: str,
        unacked: Callable[[int], list[tuple[int, bytes]]],
        ack: Callable[[int], None],
        push: Push,
    ) -> None:
        while records := unacked(PUSH_BYTES):
            held = push(run, self._node, incarnation, records, PUSH_S)
            if held < records[0][0]:
                raise HarnessError("internal", f"the aggregator of {run} holds {held} of stream {incarnation} and refuses {records[0][0]}")
            ack(held)

    def _drain_near(self, run: str, stream: MetricStream, push: Push) -> None:
        """Push the places of records for as long as the aggregator can read them; what it cannot read is pushed as bytes."""
        while places := stream.places(PUSH_BYTES):
            held = push(run, self._node, stream.incarnation, places, PUSH_S)
            stream.set_near(is_near=held >= places[0][0])
            stream.ack(held)

    # ---- operations

    def open_segment(self, run: str, operation: Operation) -> str:
        """Make the memory that an operation's load records into, in detailed mode with a ring for single samples; return its path."""
        segment = Segment.create()
        with self._lock:
            policy, stream = self._policies.get(run, RecordingPolicy()), self._streams.get(run)
            self._segments[run, operation.id] = segment
            ring = self._ring() if stream is not None and policy.mode is Mode.DETAILED else None
            segment.publish(policy.to_json(), ring.ring.path if ring else None)
            if stream is not None:
                reader = SampleReader(segment, ring, operation.id, operation.phase) if ring else None
                stream.attach(segment, operation.id, operation.phase, reader)
        return segment.path

    def _ring(self) -> Consumer | None:
        """Return our side of a new ring, or None and an event where this machine has none: windows are recorded all the same."""
        try:
            return Consumer(Ring.create(RING_SAMPLES, SAMPLE_COLUMNS))
        except StressError as error:
            self.event("samples_unavailable", f"no single samples from {self._node}: {error}", "warning")
            return None

    def set_policy(self, run: str, policy: RecordingPolicy) -> None:
        """Let a run record by this policy: this agent from now on, loads that are there from their next drain on.

        A load that has a ring keeps it, and one that now needs one gets it. Raises `InputError` when the policy is too long.
        """
        text = policy.to_json()
        check_policy_text(text)
        with self._lock:
            stream = self._streams.get(run)
            if stream is not None:
                self._policies[run] = policy
                stream.set_policy(policy)
            for (of, _), segment in self._segments.items():
                if of == run:
                    lacks = stream is not None and policy.mode is Mode.DETAILED and not stream.has_samples(segment)
                    ring = self._ring() if lacks else None
                    if stream is not None and ring is not None:
                        stream.read_samples(segment, ring)
                    segment.publish(text, ring.ring.path if ring else None)

    def error(self, run: str, error: BaseException, worker: str = "", phase: str = "") -> None:
        """Count an error in a run's stream under its stable code."""
        with self._lock:
            stream = self._streams.get(run)
            if stream is not None and run not in self._sealed:
                stream.error(error, worker, phase)

    def watch(
        self, run: str, operation: Operation, capacity: Capacity, slot: int, generation: int, pids: Sequence[int], group: str = ""
    ) -> None:
        """Measure an operation from now on; its memory counts from what its processes hold now.

        `group` is its control group: where its processes are in it, their children's CPU time counts too.
        """
        paths: Sequence[Path] = ()
        if operation.kind == "DiskFill":
            paths = fill_paths(operation, SlotTicket(slot, generation), self._state_dir, self._guardian.hello["guardian_id"])
        inside = bool(pids) and set(pids) <= set(_members(group))
        meter = OutsideMeter(operation, pids, paths=paths, cgroup=Path(group) if inside else None)
        meter.set_baseline()
        with self._lock:
            shape, moments = absolute(operation, capacity), Moments(run, operation)
            watched = Watched(run, operation, capacity, slot, generation, meter, shape, moments)
            watched.counted = meter.read() if meter.cumulative else None  # so that the very next window counts, should the load begin in it
            self._loads_s = self._loads_s or (self._loads.read() if watched.host_total else {})
            self._watched[run, operation.id] = watched

    def started(self, run: str, operation_id: str, start_ns: int) -> None:
        """Note when an operation's shape begins."""
        with self._lock:
            watched = self._watched.get((run, operation_id))
            if watched is not None:
                if not watched.start_ns:
                    self._count_life(watched, "operation.started")
                watched.start_ns = start_ns

    def unwatch(self, run: str, operation_id: str, *, completed: bool = False) -> Allocation | None:
        """Measure an operation no longer; what its load recorded last is read now. `completed`: it ran to its planned end.

        Returns what it held, with what is left of it now, None for a load that holds nothing.
        """
        with self._lock:
            watched = self._watched.pop((run, operation_id), None)
            if watched is not None and watched.start_ns:
                self._count_life(watched, "operation.completed" if completed else "operation.failed")
                self._tell(watched.moments.end(watched.meter.read() or 0.0, self._elapsed_s(watched, self._clock.boot_ns())))
            segment = self._segments.pop((run, operation_id), None)
            stream = self._streams.get(run)
            if segment is not None and stream is not None:
                stream.detach(segment)
        if watched is not None:
            watched.meter.close()
        if segment is not None:
            segment.close()
        return watched.moments.seen if watched is not None else None

    def measure(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Read all doses since the last call; return (requested, achieved) by run and operation, in its own unit."""
        with self._lock:
            now_ns, busy_s = self._busy.read()
            loads = self._loads.read() if self._others_count() else {}
            elapsed_s = max(1e-6, (now_ns - self._measured_ns) / SECOND_NS)
            ours_s = sum(max(0.0, total - self._loads_s.get(load, total)) for load, total in loads.items())
            others_s = max(0.0, busy_s - self._busy_s - ours_s)
            found = {}
            for key, watched in self._watched.items():
                dose = self._dose(watched, now_ns, elapsed_s, others_s)
                if dose is not None:
                    found[key] = dose
            self._measured_ns, self._busy_s, self._loads_s = now_ns, busy_s, loads
            return found

    def _others_count(self) -> bool:
        """Tell whether some operation here needs to know what others use."""
        return any(watched.host_total for watched in self._watched.values())

    def _dose(self, watched: Watched, now_ns: int, elapsed_s: float, others_s: float) -> tuple[float, float] | None:
        read = watched.meter.read()
        cumulative = watched.meter.cumulative
        before, watched.counted = watched.counted, read if cumulative else None
        if not watched.start_ns or read is None or now_ns < watched.start_ns:
            return None
        operation = watched.operation
        whole = whole_of(operation, watched.capacity)
        if cumulative:
            if before is None:
                return None
            own = (read - before) / elapsed_s / whole
            achieved = own + (others_s / elapsed_s / watched.capacity.sharers / whole if watched.host_total else 0.0)
            requested = self._mean_requested(watched, now_ns, elapsed_s) / whole
            if watched.host_total:
                self._observe(watched, "dose.own", own)
        else:
            asked = self._asked(watched, now_ns)
            if asked and not self._asked(watched, self._clock.boot_ns()):
                return None  # it ended while this was read: nobody can say on which side of that
            achieved, requested = read / whole, asked / whole
            self._observe(watched, "dose.remaining", max(0.0, requested - achieved))
            self._tell(watched.moments.look(asked, read, whole, self._elapsed_s(watched, now_ns)))
        self._observe(watched, "dose.requested", requested)
        self._observe(watched, "dose.achieved", achieved)
        return requested, achieved

    def _count_life(self, watched: Watched, metric: str) -> None:
        operation, stream = watched.operation, self._streams.get(watched.run)
        if stream is not None:
            labels = {"simulator": operation.kind, "shape": operation.shape["kind"]}
            stream.observe(metric, 1.0, operation.id, operation.phase, labels)

    def _observe(self, watched: Watched, metric: str, value: float) -> None:
        stream = self._streams.get(watched.run)
        if stream is not None:
            operation = watched.operation
            stream.observe(
                metric, value, operation.id, operation.phase, unit=DOSE_UNITS[operation.unit] if metric in UNIT_OF_OPERATION else ""
            )

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self.add_event(event)

    @staticmethod
    def _elapsed_s(watched: Watched, at_ns: int) -> float:
        return (at_ns - watched.start_ns) / SECOND_NS

    def _asked(self, watched: Watched, at_ns: int) -> float:
        elapsed_s = self._elapsed_s(watched, at_ns)
        return watched.shape.value(elapsed_s) if 0.0 <= elapsed_s < watched.operation.duration_s else 0.0

    def _mean_requested(self, watched: Watched, now_ns: int, elapsed_s: float) -> float:
        begin_ns, step_ns = now_ns - elapsed_s * SECOND_NS, elapsed_s * SECOND_NS / STEPS
        return sum(self._asked(watched, round(begin_ns + (index + 0.5) * step_ns)) for index in range(STEPS)) / STEPS

    # ---- host and events

    def on_snapshot(self, host: HostSnapshot, level: int, ceilings: Mapping[str, float], lag_s: float) -> None:
        """Record a host snapshot and the safety verdict on it in every run's stream."""
        used = host.memory_limit_bytes - host.memory_available_bytes
        values: Mapping[str, float] = {
            "host.cpu.busy": host.cpu_busy_fraction,
            "host.memory.limit": host.memory_limit_bytes,
            "host.memory.used": used,
            "host.memory.pressure": pressure.category(pressure.level(used, host.memory_limit_bytes)),
            "host.memory.available": host.memory_available_bytes,
            "host.disk.free": host.disk_free_bytes,
            "host.descriptors.used": host.descriptors_used,
            "safety.verdict": level,
            "agent.tick.lag": lag_s,
            "host.load.average": host.load_average_1m,
            "host.disk.size": host.disk_total_bytes,
            "host.descriptors.limit": host.descriptors_limit,
        }
        with self._lock:
            self._observe_leases()
            for run, stream in self._streams.items():
                if run not in self._sealed:
                    for name, value in values.items():
                        stream.observe(name, float(value))
                    stream.observe("agent.outbox", float(stream.unacked_bytes))
                    for resource, ceiling in ceilings.items():
                        stream.observe("safety.ceiling", ceiling, labels={"resource": resource})

    def _observe_leases(self) -> None:
        now_ns = self._clock.boot_ns()
        for watched in self._watched.values():
            generation, deadline_ns = self._guardian.control.lease(watched.slot)
            if generation == watched.generation and deadline_ns:
                self._observe(watched, "agent.lease.remaining", (deadline_ns - now_ns) / SECOND_NS)

    def event(self, kind: str, message: str, severity: str = "info") -> None:
        """Add a line to every run's story."""
        self.add_event(Event(kind, message, severity))

    def add_event(self, event: Event) -> None:
        """Add an event to its run's story (`data["run"]`), or to every run's."""
        told = replace(event, node=self._node, wall_ns=self._clock.wall_ns())
        with self._lock:
            for run, stream in self._streams.items():
                if run not in self._sealed and event.data.get("run", run) == run:
                    stream.event(told)

    def close_windows(self) -> None:
        """Seal the open window of every stream that is not at its end."""
        with self._lock:
            for run, stream in self._streams.items():
                if run not in self._sealed:
                    stream.close_window(self._clock.wall_ns())

    def until_next_window_s(self, window_s: float) -> float:
        """Return how long to wait so that windows begin at whole multiples of their length."""
        window_ns = round(window_s * SECOND_NS)
        return max(0.01, (window_ns - self._clock.wall_ns() % window_ns) / SECOND_NS)


def _members(group: str) -> list[int]:
    try:
        return cgroup_pids(group) if group else []
    except OSError:
        return []
