"""What is recorded is what is documented: each part records what it can, and all of it together is the catalogue, no more and no less."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from actors.breaker import BreakerPolicy
from actors.clock import SECOND_NS, SystemClock, VirtualClock
from actors.errors import InputError
from actors.exhaustion.connections import Pairs
from actors.exhaustion.holder import HolderFigures
from actors.exhaustion.refusal import ERRNOS
from actors.memory import StepMeters
from actors.memory_access import Figures
from actors.memory_fragment import Shards, Teller
from actors.messages import Capacity, NodeSpec, Operation
from actors.meters import open_meters, open_reporter
from actors.metrics import Histogram, Recorder, Segment
from actors.metrics.labels import strange
from actors.metrics.policy import Filter, Mode, RecordingPolicy
from actors.metrics.registry import CATALOGUE, Verbosity
from actors.metrics.reporter import MemoryReporter
from actors.metrics.ring import Consumer, Ring
from actors.ray_loads.figures import Figures as FloodFigures
from actors.ray_loads.figures import LockFigures, MeshFigures, SpreadFigures, StoreFigures
from actors.ray_loads.flow import Bounds, Flow, Outcome, Strategy
from actors.ray_loads.lock_actors import Turn
from actors.ray_loads.mesh_account import Sums
from actors.ray_loads.ray_work import StoreUse
from actors.ray_loads.service_graph import Failure
from actors.ray_loads.service_graph import tell as tell_spread
from actors.ray_loads.service_lane import Fate
from actors.ray_loads.store_holder import StoreTurn
from actors.shape import Constant
from actors.stress_ng import rules
from actors.stress_ng.load import tell
from actors.vm_pressure import FaultMeters
from cluster import cli
from cluster.aggregator_shell import AggregatorShell
from cluster.conclusion import Ending
from cluster.exporters.base import Health
from cluster.exporters.figures import ExporterReport, PipelineReport, rows_of
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits
from cluster.exporters.rules import ChainCounts
from cluster.metrics.anomaly_watch import AnomalyWatch
from cluster.metrics.cardinality import Caps
from cluster.metrics.raw_samples import SampleReader
from cluster.metrics.store import Entry, read_run
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import EVENTS, unseal
from cluster.node_metrics import NodeMetrics
from cluster.outbox import Kind, Outbox, parse
from cluster.probes.prober import Prober
from scenarios import catalogue
from scenarios import plan as plans
from tests.simulation.world.agent_host import quiet
from tests.support.asked import rows
from tests.support.contests import driven
from tests.support.windows import record

RUN = "20261101-120000-all-0001"
OPERATION = Operation("0.CpuLoad@n", "CpuLoad", "n", 0.0, 60.0, "fraction", Constant(0.1).to_spec(), options={"mode": "host_total"})
HOLDS = Operation("1.Descriptors@n", "Descriptors", "n", 0.0, 60.0, "count", Constant(5.0).to_spec())
Series = set[tuple[str, tuple[tuple[str, str], ...]]]


def series_of(records: Iterable[tuple[int, bytes]]) -> Series:
    """Return metrics and labels of sealed windows."""
    found = [parse(data) for _, data in records]
    tables = [unseal(one.payload)[0] for one in found if one.kind is Kind.WINDOW]
    return {(row["metric"], tuple(row["labels"])) for table in tables for row in table.to_pylist()}


def of_an_agent(folder: Path) -> Series:
    """A load in host-total mode and one that holds on a node that throttles: doses, lease, host, safety, lives, and the agent itself."""
    clock = SystemClock()
    control = SimpleNamespace(lease=lambda _: (4, clock.boot_ns() + SECOND_NS))
    guardian = SimpleNamespace(control=control, stats=SimpleNamespace(read=lambda _: SimpleNamespace(pid=0, state=0)))
    metrics = NodeMetrics("n", 7, folder, guardian, clock, 1 << 20)
    metrics.begin(RUN, RecordingPolicy(level=Verbosity.VERBOSE))
    for operation in (OPERATION, HOLDS):
        metrics.watch(RUN, operation, Capacity(2.0, 1 << 30, 1 << 30), 3, 4, [os.getpid()])
        metrics.started(RUN, operation.id, clock.boot_ns())
    assert len(metrics.measure()) == 2
    metrics.on_snapshot(replace(quiet("n"), boot_ns=clock.boot_ns()), 2, {"cpu_cores": 0.5}, 0.001)
    metrics.error(RUN, OSError(5, "planted"))
    for completed in (False, True):
        metrics.unwatch(RUN, OPERATION.id, completed=completed)
        metrics.watch(RUN, OPERATION, Capacity(2.0, 1 << 30, 1 << 30), 3, 4, [os.getpid()])
        metrics.started(RUN, OPERATION.id, clock.boot_ns())
    metrics.close_windows()
    return series_of(metrics._streams[RUN].unacked(1 << 20))


def of_a_load(folder: Path) -> Series:
    """A load in detailed mode that fills its ring and dies, and an agent whose own series are filtered, invalid, too many, and idle."""
    clock = VirtualClock()
    box = Outbox(folder / RUN / "n-a.box", node="n", incarnation="a", run=RUN)
    rules = (Filter(include=False, name="host.disk.free"),)
    policy = RecordingPolicy(level=Verbosity.VERBOSE, filters=rules, mode=Mode.DETAILED)
    stream = MetricStream("n", "a", RUN, box, clock, policy, Caps(series=4, idle_s=60.0))
    segment, ring = Segment.create(), Ring.create(64, 3)
    segment.publish(policy.to_json(), ring.path)
    stream.attach(segment, OPERATION.id, "main", SampleReader(segment, Consumer(ring), OPERATION.id, "main"))
    meters = open_meters(str(segment.path), 7)
    assert meters is not None
    for _ in range(100):
        meters.record_slice(0.01, 5)
    meters.record_core(0, 0.5)
    meters.tick()
    stream.observe("host.disk.free", 1.0)
    stream.observe("host.cpu.busy", math.nan)
    for worker in range(6):
        stream.observe("host.cpu.busy", 0.5, f"w{worker}")
    assert stream.close_window(clock.wall_ns())
    clock.advance(120.0)
    stream.detach(segment)
    assert stream.close_window(clock.wall_ns())
    return series_of(stream.unacked(1 << 20))


def of_stress_ng(_: Path) -> Series:
    """An instance of stress-ng that ended."""
    segment = Segment.create()
    reporter = Recorder(segment)
    tell(reporter, "vm", rules.Figures(10.0, 5.0, 1.0, 0.5, 4096.0))
    reporter.close()
    found = {(metric, labels) for _, _, metric, labels in segment.series()}
    segment.close()
    return found


def of_exhaustion(_: Path) -> Series:
    """A load that is refused for each reason there is, and leaves connections in TIME_WAIT."""
    reporter = MemoryReporter()
    figures = HolderFigures(reporter)
    figures.moved(0.001, 5)
    for word in ERRNOS:
        figures.refused(word)
    for name, value in Pairs.measured(0).items():
        reporter.gauge(name).record(value)
    return {(one.name, one.labels) for one in reporter.series()}


def of_memory_loads(folder: Path) -> Series:
    """A fragmented load, before and after its split, one that reads a working set, steps of one that holds, and faults."""
    reporter, shards = MemoryReporter(), Shards(1 << 16)
    StepMeters(reporter).record(1 << 16, 0.001)
    FaultMeters(reporter).record(3, 0.001, 1 << 12)
    teller = Teller(reporter, shards, 0)
    shards.lay(1 << 20)
    teller.tell()
    shards.split()
    teller.tell()
    figures = Figures(reporter, "random")
    for series in (figures.access, figures.bandwidth, figures.sequence):
        series.record(1.0)
    return {(one.name, one.labels) for one in reporter.series()}


def of_concurrency(folder: Path) -> Series:
    """One load of each kind that contends at locks, as it is at its end."""
    found: Series = set()
    for kind, count, options, name in (
        ("LockContention", 3, {"hold_s": 0.001}, "concurrency.lock.wait"),
        ("LockConvoy", 4, {"every_s": 0.1, "stall_s": 0.05}, "concurrency.convoy.clearing"),
        ("Deadlock", 1, {"hold_s": 0.0}, "concurrency.deadlock.detection"),
        ("Livelock", 1, {}, "concurrency.livelock.tries"),
        ("PriorityInversion", 1, {"hold_s": 0.002, "burst_s": 0.005}, "concurrency.lock.wait"),
    ):
        with driven(kind, count, **options) as one:
            one.until(lambda one=one, name=name: bool(one.reporter.samples(name)))
        found |= {(series.name, series.labels) for series in one.reporter.series()}
    return found


class Port:
    """Answers every second call, and keeps what is pushed."""

    def __init__(self) -> None:
        self.calls, self.pushed = 0, []
        self.both = threading.Event()

    def call(self, node: str) -> Future:
        answer: Future = Future()
        self.calls += 1
        answer.set_exception(OSError("no")) if self.calls % 2 else answer.set_result(None)
        if self.calls >= 2:
            self.both.set()
        return answer

    def push(self, run: str, node: str, incarnation: str, records: list[tuple[int, bytes]], timeout_s: float) -> int:
        self.pushed += records
        return records[-1][0]


def of_a_flood(folder: Path) -> Series:
    """A flood with a call of each fate."""
    clock = VirtualClock()
    box = Outbox(folder / RUN / "n-f.box", node="n", incarnation="f", run=RUN)
    stream = MetricStream("n", "f", RUN, box, clock, RecordingPolicy())
    segment = Segment.create()
    stream.attach(segment, OPERATION.id, "main")
    reporter, _ = open_reporter(str(segment.path), 7)
    figures, flow = FloodFigures(reporter), Flow(Bounds(3, Strategy.REJECT), 1)
    lock = LockFigures(reporter)
    lock.keepers(1)
    lock.record(Turn(0.1, 0.2, kept=False, guarded=0))
    mesh = MeshFigures(reporter)
    mesh.record(Sums(4, 3, 1, 0, 2, 1), 1)
    for same_node in (False, True):
        mesh.answered(0.001, same_node=same_node)
    flow.step(10.0, 100.0, 64)
    flow.counts.dropped += 1
    for outcome in Outcome:
        flow.end(outcome)
    figures.record(flow, 1024)
    figures.spilled(10)
    figures.response(0.1)
    figures.close()
    stream.detach(segment)
    assert stream.close_window(clock.wall_ns())
    return series_of(stream.unacked(1 << 20))


def of_a_cascade(_: Path) -> Series:
    """One of two services that has failed for the other one, after a call of each fate and both answers to clients."""
    reporter = MemoryReporter()
    figures = SpreadFigures(reporter)
    failures = {"s00": Failure("s00", "", 1), "s31": Failure("s31", "s00", 2)}
    spread = tell_spread(list(failures.values()), 2, 1.0)
    figures.spread(spread)
    figures.order(spread, failures)
    figures.calls("s31", {"s00": {str(fate): 1 for fate in Fate}})
    for is_taken in (True, False):
        figures.answered(is_taken=is_taken)
    return {(one.name, one.labels) for one in reporter.series()}


def of_an_object_store(_: Path) -> Series:
    """Pressure on an object store that put and read, and spilled meanwhile."""
    reporter = MemoryReporter()
    figures = StoreFigures(reporter)
    figures.turn(StoreTurn(1, (0.1,), (0.2,)))
    figures.store(StoreUse(), StoreUse(1, 2, 3, 4), 5, 6)
    return {(one.name, one.labels) for one in reporter.series()}


def of_a_prober(folder: Path) -> Series:
    """Probes of which some fail."""
    port = Port()
    probes = [{"name": "front", "target": "t", "rate_hz": 200.0, "timeout_s": 5.0}]
    prober = Prober(RUN, "head", probes, {"t": ["n"]}, 0.0, folder, port)
    assert port.both.wait(30)
    prober.finish()
    return series_of(port.pushed)


def of_exporters(folder: Path) -> Series:
    """A destination that fails once and then refuses."""
    lane = Lane(Limits(), BreakerPolicy())
    lane.offer(pa.RecordBatch.from_pydict({"a": [1, 2]}), 0)
    assert lane.take(0, at_once=True) is not None
    lane.rejected(0, "no")
    report = ExporterReport("a", lane.snapshot(), ChainCounts(), 0, 0, Histogram.of([]), Health(ok=True), 0, 0)
    made = rows_of(PipelineReport(2, 0, {"a": report}), None, {"a": Histogram.of([0.1])})
    return {(row.metric, row.labels) for row in made}


def of_anomaly_hooks(folder: Path) -> Series:
    """A hook that finds something and one that raises."""

    def broken(_: object) -> str:
        raise RuntimeError

    watch = AnomalyWatch({"odd": lambda _: "odd", "broken": broken}, 1.0, VirtualClock())
    events = pa.RecordBatch.from_pylist([], schema=EVENTS)
    for at in range(1, 4):
        payload = parse(record("n1", at, rows=rows("n1", at))[1]).payload
        watch.take([Entry(("n1", "a"), at, unseal(payload)[0], events)])
    watch.end(30.0)
    return {(row.metric, row.labels) for row in watch.news()[0]}


def of_the_end(folder: Path) -> Series:
    """A run that was halted."""
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    shell = AggregatorShell(RUN, lambda: None)
    shell.begin({"run": RUN}, plan.to_json(), "127.0.0.1", None)
    shell.conclude(Ending(RUN, (), (), (), 0, 12.0, 5.0))
    found = {(row["metric"], tuple(row["labels"])) for row in read_run(shell.directory).metrics.to_pylist()}
    shell.leave()
    return found


PARTS = (
    *(of_an_agent, of_a_load, of_stress_ng, of_exhaustion, of_memory_loads, of_concurrency),
    *(of_a_flood, of_a_cascade, of_an_object_store, of_a_prober, of_exporters, of_anomaly_hooks, of_the_end),
)


def test_the_recorded_set_is_the_documented_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of a run together record every metric that the reference has; labels are declared, and their words known."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    found: Series = set()
    for part in PARTS:
        folder = tmp_path / part.__name__
        folder.mkdir()
        found |= part(folder)
    assert {metric for metric, _ in found} == CATALOGUE.keys()
    assert strange((metric, dict(labels)) for metric, labels in found) == []


def test_the_command_lists_what_each_metric_is(capsys: pytest.CaptureFixture[str]) -> None:
    """`list metrics --json` and `describe` say of every metric kind, unit, labels, a sentence, and what each of its points says."""
    assert cli.main(["list", "metrics", "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)["metrics"]}
    assert told.keys() == CATALOGUE.keys()
    for name, metric in CATALOGUE.items():
        assert (told[name]["unit"], told[name]["kind"], told[name]["labels"]) == (metric.unit, metric.kind, list(metric.labels))
        assert told[name]["help"] == metric.help
        assert metric.help.endswith(".")
        assert {"run", "scenario", "node"} <= set(told[name]["context"])
    with pytest.raises(InputError, match="unknown metric"):
        Recorder(Segment.create(), VirtualClock()).counter("probe.nothing")
    assert cli.main(["describe", "host.memory.used", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["context"]) == ("bytes", ["run", "scenario", "node", "worker", "phase"])
