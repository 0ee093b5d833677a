"""The catalogue: every metric there is, with kind, unit, help, labels and level. A name that is not here cannot be recorded.

Names are dotted and carry no unit; the unit is a column of its own and a suffix of the Prometheus family. Most metrics
have one unit. The doses have one of four, by the operation they belong to, so each unit is a family of its own:
`dose.requested` gives `stress_cluster_dose_requested_ratio` and `stress_cluster_dose_requested_bytes`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ..errors import InputError

PREFIX: Final = "stress_cluster"
CONTEXT: Final = ("run", "scenario", "node", "worker", "phase")  # what each point that leaves a run says of itself, whatever its metric
RESERVED_LABELS: Final = (*CONTEXT, "le")
# Operation.unit -> unit of its dose
DOSE_UNITS: Final = {"fraction": "ratio", "bytes": "bytes", "count": "objects", "per_second": "per_second"}


class Kind(StrEnum):
    """How values of a series combine."""

    COUNTER = "counter"  # increases; add up
    GAUGE = "gauge"  # states; the last one counts
    HISTOGRAM = "histogram"  # distributions; merge


class Level(StrEnum):
    """Which metrics a run records: `core` always, `detail` when asked for."""

    CORE = "core"
    DETAIL = "detail"


class Verbosity(StrEnum):
    """How much a process records; each one contains those before it. Changed while it runs by a `RecordingPolicy`."""

    MINIMAL = "minimal"  # vital metrics, and the few that say what a load did
    NORMAL = "normal"  # all of level `core`
    VERBOSE = "verbose"  # all

    def records(self, metric: Metric) -> bool:
        """Tell whether a metric exists at this verbosity; a vital one does at each."""
        if metric.vital or self is Verbosity.VERBOSE:
            return True
        return metric.name in MINIMAL if self is Verbosity.MINIMAL else metric.level is Level.CORE


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry of the catalogue. `other_units` are units that a series may have instead of `unit`.

    `buckets` are the upper bounds of a histogram's classic buckets, ascending, in `unit`; none are those of the unit.
    `vital` ones tell of failures, of safety or of the dose: no level, filter or sampling takes them away.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    level: Level = Level.CORE
    other_units: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    vital: bool = False

    def family(self, unit: str = "") -> str:
        """Return the name of the Prometheus family for a unit (default: the metric's own)."""
        parts = [PREFIX, *self.name.split(".")]
        suffix = unit or self.unit
        if suffix:
            parts.append(suffix)
        if self.kind is Kind.COUNTER:
            parts.append("total")
        return "_".join(parts)

    def checked_unit(self, unit: str) -> str:
        """Return the unit of a series: the given one, or the metric's own for "". Raises `InputError` for another."""
        if unit in ("", self.unit):
            return self.unit
        if unit not in self.other_units:
            known = ", ".join((self.unit, *self.other_units))
            raise InputError("invalid_value", f"metric {self.name!r} has no unit {unit!r}", f"known: {known}")
        return unit

    def checked_labels(self, labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
        """Return labels as sorted pairs of text. Raises `InputError` for one that the metric does not declare."""
        for name in labels:
            if name not in self.labels:
                raise InputError(
                    "unknown_key", f"metric {self.name!r} has no label {name!r}", f"declared: {', '.join(self.labels) or 'none'}"
                )
        return tuple(sorted((name, str(value)) for name, value in labels.items()))


C, G, H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

_TABLE: Final = (
    # the dose: asked and achieved strength of each operation, measured from outside its processes
    Metric(
        "dose.requested",
        G,
        "ratio",
        "Strength that the scenario asks of an operation, before any ceiling.",
        other_units=("bytes", "objects", "per_second"),
        vital=True,
    ),
    Metric(
        "dose.achieved",
        G,
        "ratio",
        "Strength achieved by an operation, measured from outside its processes.",
        other_units=("bytes", "objects", "per_second"),
        vital=True,
    ),
    Metric(
        "dose.remaining",
        G,
        "ratio",
        "Strength asked of an operation that holds something and not achieved yet; 0 once all of it is held.",
        other_units=("bytes", "objects", "per_second"),
    ),
    Metric("dose.own", G, "ratio", "The part of dose.achieved that is our own load; differs from it in host-total mode only.", vital=True),
    # the host, with the container's limits as denominators
    Metric("host.cpu.busy", G, "ratio", "Busy share of the node's CPU capacity."),
    Metric("host.load.average", G, "", "Load average of the last minute.", level=Level.DETAIL),
    Metric("host.memory.limit", G, "bytes", "Memory that this node may use: machine or container, the smaller."),
    Metric("host.memory.used", G, "bytes", "Memory limit less what is available."),
    Metric("host.memory.pressure", G, "", "How full that is: 0 low, 1 moderate (from 50 %), 2 high (from 70 %), 3 critical (from 85 %)."),
    Metric("host.memory.available", G, "bytes", "Memory that can be had without swapping."),
    Metric("host.disk.size", G, "bytes", "Size of the file system that holds the state folder.", level=Level.DETAIL),
    Metric("host.disk.free", G, "bytes", "Free space of the file system that holds the state folder."),
    Metric("host.descriptors.used", G, "", "Open file descriptors on the machine."),
    Metric("host.descriptors.limit", G, "", "File descriptors that the machine may open.", level=Level.DETAIL),
    # the life of operations, as their node's agent sees it; started = completed + failed once they are over
    Metric("operation.started", C, "", "Operations that got their start time.", ("simulator", "shape"), vital=True),
    Metric("operation.completed", C, "", "Operations whose load ran to its planned end.", ("simulator", "shape"), vital=True),
    Metric(
        "operation.failed",
        C,
        "",
        "Operations that ended before their time: failed, stopped, halted, or out of their lease.",
        ("simulator", "shape"),
        vital=True,
    ),
    # what loads say of themselves
    Metric("load.operations", C, "", "Units of work that a load finished."),
    Metric("load.core.busy", G, "ratio", "Share of a CPU that the thread of a load that stays on it uses.", ("core",), level=Level.DETAIL),
    Metric("load.slice", H, "seconds", "Length of one slice of load between two looks at the lease."),
    # floods of Ray's actors and tasks
    Metric(
        "flood.calls",
        C,
        "",
        "Calls by fate: offered; of these accepted, dropped, rejected; of the accepted finished, failed, cancelled; and missed.",
        ("fate",),
    ),
    Metric("flood.outstanding", G, "", "Calls that Ray has accepted and that have not ended: what lies in the mailboxes."),
    Metric("flood.waiting", G, "", "Offers that wait to be accepted."),
    Metric("flood.payload", G, "bytes", "Payloads of the calls that have not ended."),
    Metric("flood.response", H, "seconds", "Time from when an accepted call fell due to when its end was seen, to 5 ms."),
    Metric("flood.blocked", C, "seconds", "Time that the source stood still because too many calls were outstanding."),
    Metric("flood.spilled", C, "bytes", "Bytes that this node's object store wrote to disk meanwhile, as its raylet counts them."),
    Metric("flood.lock.shared", C, "", "Turns of the shared lock; all others are of locks that nobody else wants."),
    Metric("flood.lock.contended", C, "", "Turns that found the shared lock held or others waiting for it."),
    Metric("flood.lock.wait", H, "seconds", "Time that a contended turn waited for the lock, as its keeper saw it."),
    Metric("flood.lock.hold", H, "seconds", "Time that a contender held the shared lock, as its keeper saw it."),
    Metric(
        "flood.lock.guarded",
        G,
        "",
        "The number that the shared lock guards, as a holder here last wrote it: a turn that is not lost adds one.",
    ),
    Metric("flood.lock.lost", C, "", "Turns whose holder came back after its lease, and so had lost the lock."),
    Metric("flood.lock.keepers", C, "", "Keepers of the lock that were made here: the first one, and each that took a dead one's place."),
    # what pressure on an object store says
    Metric("store.put", H, "seconds", "Time to put an object into the object store, with the wait for others to be spilled."),
    Metric("store.get", H, "seconds", "Time to read an object back, from disk where it was spilled."),
    Metric("store.held", G, "bytes", "Objects that a load holds, in memory or spilled."),
    Metric("store.used", G, "bytes", "Bytes in use in the node's object store, everybody's, as its raylet counts them."),
    Metric("store.files", G, "bytes", "Files in the node's spill folder, less what was there before the load."),
    Metric("store.spilled", C, "bytes", "Bytes that the node's object store wrote to disk meanwhile, as its raylet counts them."),
    Metric("store.restored", C, "bytes", "Bytes that the node's object store read back from disk meanwhile, as its raylet counts them."),
    # what a cascade of failures says of the services that it failed
    Metric("cascade.depth", G, "", "Longest chain of services that failed because of one another; 0 for the first one alone."),
    Metric("cascade.time", G, "seconds", "Time from the first failure to the last one."),
    Metric("cascade.failed", G, "", "Services that have failed, the first one included."),
    Metric("cascade.blast.radius", G, "ratio", "Services that have failed, of all that there are."),
    Metric(
        "cascade.round",
        G,
        "",
        "The round in which a service failed: 0 is the first, and who failed about at once has the same.",
        ("service",),
    ),
    Metric("cascade.after", G, "seconds", "How long after the first failure a service failed.", ("service",)),
    Metric(
        "cascade.calls", C, "", "Calls between services by what became of them, and requests answered without one (degraded).", ("fate",)
    ),
    Metric("cascade.requests", C, "", "Requests of clients that were answered, by whether the service took them.", ("fate",)),
    # a mesh of actors over nodes
    Metric(
        "mesh.latency",
        H,
        "seconds",
        "Time from when a message was sent to the arrival of its answer, by whether its receiver was on the sender's node.",
        ("path",),
    ),
    Metric(
        "mesh.messages",
        C,
        "",
        "Messages by fate: acknowledged by their receiver; failed, which it may have got; of the acknowledged those lost with a receiver "
        "that died, and those unread because nobody could be asked at the end.",
        ("fate",),
        vital=True,
    ),
    Metric("mesh.restarts", C, "", "Members that were made anew, where they were or in place of a lost node's.", vital=True),
    # what loads that use something up say of it
    Metric(
        "load.refused", C, "", "Times that the kernel refused a load one more of what it holds, by error number.", ("errno",), vital=True
    ),
    Metric("load.sockets.waiting", G, "", "Sockets that a load's connections left in TIME_WAIT when it had closed both of their ends."),
    # what loads of concurrency count at their locks, and what they plant and find there
    Metric("concurrency.lock.acquisitions", C, "", "Locks that were acquired, whether after a wait or not."),
    Metric("concurrency.lock.contended", C, "", "Locks that were asked for while they were held or others waited for them."),
    Metric("concurrency.lock.wait", H, "seconds", "Time waited for a lock that was contended, until it was given or refused."),
    Metric("concurrency.lock.hold", H, "seconds", "Time for which a lock was held."),
    Metric("concurrency.lock.waiters", G, "", "Tasks that wait for a lock now, of the first 16 locks of a load.", ("lock",)),
    Metric("concurrency.lock.holder", G, "", "Kernel's number of the thread or process that holds a lock now, 0 for none.", ("lock",)),
    Metric("concurrency.lock.held", G, "seconds", "For how long its present holder has a lock, 0 while it is free.", ("lock",)),
    Metric("concurrency.deadlock.planted", C, "", "Cycles of waiting that a load closed."),
    Metric("concurrency.deadlock.detected", C, "", "Rounds of pairs in which a cycle was named and resolved.", vital=True),
    Metric("concurrency.deadlock.timeouts", C, "", "Rounds of pairs that only the timeout ended.", vital=True),
    Metric("concurrency.deadlock.completed", C, "", "Rounds of pairs in which both threads got both locks."),
    Metric("concurrency.deadlock.cut", C, "", "Cycles that the end of their load cut short: planted, neither detected nor timed out."),
    Metric("concurrency.deadlock.detection", H, "seconds", "Time from a cycle's closing to its being named."),
    Metric("concurrency.livelock.tries", C, "", "Tries of threads for their second lock."),
    Metric("concurrency.livelock.progress", C, "", "Tries that succeeded."),
    Metric("concurrency.livelock.detected", C, "", "Pairs found to try for a second without any progress, once each time.", vital=True),
    Metric("concurrency.convoy.stalls", C, "", "Holders that stalled with their lock."),
    Metric("concurrency.convoy.formed", C, "", "Stalls at whose end at least half of the threads waited."),
    Metric("concurrency.convoy.length", H, "", "Threads that waited at the end of a stall."),
    Metric("concurrency.convoy.clearing", H, "seconds", "Time from a stall's end until fewer than half of the threads waited."),
    Metric("concurrency.inversion.planted", C, "", "Episodes in which a priority inversion was planted."),
    Metric(
        "concurrency.inversion.detected",
        C,
        "",
        "Waits of urgent threads, longer than allowed, for a less urgent holder while one of between ran.",
        vital=True,
    ),
    # what memory loads say of their blocks and of their accesses
    Metric("memory.populated", C, "bytes", "Bytes that a memory load populated."),
    Metric("memory.released", C, "bytes", "Bytes that a memory load gave back while it ran."),
    Metric("memory.step", H, "seconds", "Time to populate or to give back at most 16 MiB."),
    Metric("memory.faults", C, "", "Pages that a load read again after the kernel had given them up."),
    Metric("memory.fault", H, "seconds", "Time of one such page: the mean of a slice."),
    Metric("memory.reclaimed", C, "bytes", "Bytes that the kernel was told to give up, and that were touched before."),
    Metric("memory.live", G, "bytes", "Bytes in blocks that a fragmented load has not freed."),
    Metric("memory.free", G, "bytes", "Bytes in the holes of a fragmented load: freed, and still resident."),
    Metric("memory.hole", G, "bytes", "Largest hole of a fragmented load: the most that one request can get without growth."),
    Metric("memory.fragmentation", G, "ratio", "Which share of the free bytes one request cannot get: 1 less largest hole by free bytes."),
    Metric("memory.overhead", G, "ratio", "Resident bytes for each live one, by what it was read from.", ("source",)),
    Metric("memory.allocated", C, "", "Blocks that a fragmented load allocated."),
    Metric("memory.freed", C, "", "Blocks that a fragmented load freed."),
    Metric("memory.refused", C, "", "Requests of fewer than the free bytes that found no hole and were not met by growth."),
    Metric("memory.access", H, "seconds", "Time of one read of a working set: the mean of a slice.", ("pattern",)),
    Metric("memory.bandwidth", G, "bytes_per_second", "Bytes that a load reads of its working set in a second.", ("pattern",)),
    Metric(
        "memory.sequence",
        G,
        "",
        "Hash of the first 4096 indexes that a load reads: alike wherever pattern, working set, stride and seed are.",
        ("pattern",),
    ),
    # what stress-ng says of each instance when that ends
    Metric("stressng.bogo.operations", C, "", "Bogo operations of an instance of stress-ng, told when it ends.", ("stressor",)),
    Metric("stressng.bogo.rate", H, "per_second", "Bogo operations of an instance a second of real time.", ("stressor",)),
    Metric("stressng.cpu.user", C, "seconds", "CPU time of an instance in user mode, as stress-ng counts it.", ("stressor",)),
    Metric("stressng.cpu.system", C, "seconds", "CPU time of an instance in the kernel, as stress-ng counts it.", ("stressor",)),
    Metric("stressng.memory.max", H, "bytes", "Largest resident size of an instance's processes, as stress-ng counts it.", ("stressor",)),
    # probes: response time counts from the intended start, service time from the real one
    Metric("probe.response", H, "seconds", "Time from a probe's intended start to its answer.", ("probe",)),
    Metric("probe.service", H, "seconds", "Time from a probe's real start to its answer.", ("probe",)),
    Metric("probe.requests", C, "", "Probe calls that were due, sent or not.", ("probe",)),
    Metric("probe.failures", C, "", "Probe calls without a right answer, by reason.", ("probe", "reason"), vital=True),
    # safety
    Metric("safety.verdict", G, "", "Worst verdict of the node's policies: 0 ok, 1 hold, 2 shed, 3 abort.", vital=True),
    Metric("safety.ceiling", G, "ratio", "Ceiling that the node's policies put on operations, by resource.", ("resource",), vital=True),
    # the harness itself
    Metric("agent.lease.remaining", G, "seconds", "Time until the operation's lease ends."),
    Metric("agent.tick.lag", H, "seconds", "How late a tick of the agent began."),
    Metric("agent.outbox", G, "bytes", "Sealed windows on disk that wait for the aggregator.", level=Level.DETAIL),
    Metric("metrics.dropped", C, "", "Samples that were not recorded, by reason.", ("reason",), vital=True),
    Metric("metrics.filtered", C, "", "Samples that a level or a filter left out on purpose, by reason.", ("reason",), vital=True),
    Metric(
        "metrics.series.rejected",
        C,
        "",
        "Values that went into the overflow series of their metric, for it or its run has too many series.",
        ("metric",),
        vital=True,
    ),
    Metric(
        "metrics.series.pruned", C, "", "Series that got no value for long and were forgotten; one that comes back begins anew.", vital=True
    ),
    Metric("metrics.unflushed", C, "", "Recorders that died before their last drain: up to 100 ms of samples each are lost.", vital=True),
    Metric("samples.produced", C, "", "Single samples that loads gave away in detailed mode: written or dropped.", vital=True),
    Metric("samples.dropped", C, "", "Single samples that are in no file, by reason.", ("reason",), vital=True),
    Metric("errors.seen", C, "", "Errors of loads and of the harness, by stable code and category.", ("code", "category"), vital=True),
    Metric("errors.rate", G, "", "Errors a second in the last window; 0 once they stop.", ("code", "category"), vital=True),
    # exporters: what waits, what went, and what was lost on the way
    Metric("export.queue", G, "", "Rows in memory that wait for a destination.", ("exporter",)),
    Metric("export.queue.size", G, "bytes", "Size of the rows in memory that wait for a destination.", ("exporter",)),
    Metric("export.spilled", G, "", "Rows on disk that wait for a destination.", ("exporter",)),
    Metric("export.breaker", G, "", "Circuit breaker of a destination: 0 closed, 1 half-open, 2 open.", ("exporter",)),
    Metric("export.delivered", C, "", "Rows that a destination has taken.", ("exporter",)),
    Metric("export.delivered.size", C, "bytes", "Size in memory of the rows that a destination has taken.", ("exporter",)),
    Metric("export.batches", C, "", "Batches that were offered to a destination, retries included.", ("exporter",)),
    Metric("export.successes", C, "", "Batches that a destination has taken.", ("exporter",)),
    Metric("export.failures", C, "", "Batches that a destination did not take, by reason.", ("exporter", "reason"), vital=True),
    Metric("export.dropped", C, "", "Rows that will not reach a destination, by reason.", ("exporter", "reason"), vital=True),
    Metric("export.unrouted", C, "", "Rows that no rule sends anywhere."),
    Metric("export.write", H, "seconds", "Time that a destination takes for a batch, taken or not.", ("exporter",)),
    Metric("anomaly.found", C, "", "Windows that an anomaly hook found odd, told as an event or not.", ("hook",)),
    Metric(
        "anomaly.failures",
        C,
        "",
        "Windows that an anomaly hook did not judge, and hooks given up, by reason.",
        ("hook", "reason"),
        vital=True,
    ),
    Metric("start.skew", G, "seconds", "Latest less earliest first slice of load after the start barrier."),
    Metric("halt.latency", G, "seconds", "From the decision to halt to the last load gone.", vital=True),
)

MINIMAL: Final = frozenset({"load.operations", "probe.requests"})  # beside what is vital

CATALOGUE: Final[dict[str, Metric]] = {metric.name: metric for metric in _TABLE}


def find(name: str) -> Metric:
    """Return the catalogue entry. Raises `InputError` with the nearest known name."""
    metric = CATALOGUE.get(name)
    if metric is None:
        close = difflib.get_close_matches(name, CATALOGUE, n=1)
        raise InputError("unknown_name", f"unknown metric {name!r}", f"did you mean {close[0]!r}?" if close else "see `list metrics`")
    return metric
