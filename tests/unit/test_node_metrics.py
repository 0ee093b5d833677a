"""What a node's agent records, and how a stream's end is named when its outbox is full."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from actors.clock import SECOND_NS, SystemClock
from actors.errors import HarnessError, InputError
from actors.memory import StepMeters
from actors.messages import Capacity, Event, Operation
from actors.meters import open_reporter
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Filter, Mode, RecordingPolicy
from actors.metrics.registry import Verbosity
from actors.shape import Constant
from cluster import node_metrics
from cluster.metrics.cardinality import Caps
from cluster.metrics.windows import unseal, unseal_samples
from cluster.near import NearFiles
from cluster.node_metrics import SEAL_TRIES, NodeMetrics
from cluster.outbox import Kind as RecordKind
from cluster.outbox import Outbox, OutboxFullError, Place, parse
from tests.simulation.world.agent_host import quiet

OPERATION = Operation("0.CpuLoad@n", "CpuLoad", "n", 0.0, 60.0, "fraction", Constant(0.1).to_spec())
CAPACITY = Capacity(2.0, 1 << 30, 1 << 30, 1, 1 << 20, 1 << 15, 1 << 20, 1 << 16, 1 << 15, object_store_bytes=1 << 30)


def made(folder, max_bytes=1 << 20, deadline_ns=0):
    control = SimpleNamespace(lease=lambda slot: (4, deadline_ns) if slot == 3 else (0, 0))
    stats = SimpleNamespace(read=lambda _: SimpleNamespace(pid=0, state=0))
    guardian = SimpleNamespace(control=control, stats=stats, hello={"guardian_id": "g"})
    metrics = NodeMetrics("n", 7, folder, guardian, SystemClock(), max_bytes)
    metrics.begin("r", RecordingPolicy())
    return metrics


class Seen:
    """A stream that only notes what it is told."""

    unacked_bytes = 0

    def __init__(self):
        self.told = []

    def observe(self, metric, value, worker="", phase="", labels=None, *, unit=""):
        self.told.append((metric, value, worker))


@pytest.mark.parametrize(
    ("used", "category"),
    [
        pytest.param(0.4999, 0, id="low"),
        pytest.param(0.50, 1, id="moderate"),
        pytest.param(0.70, 2, id="high"),
        pytest.param(0.85, 3, id="critical"),
    ],
)
def test_what_a_host_has_is_recorded_as_its_snapshot_says(tmp_path, used, category):
    """Each figure with its value: the denominator is the container's limit, and the category is that of the share which is used of it."""
    metrics, limit = made(tmp_path), 10_000 << 20
    host = replace(quiet("n"), memory_limit_bytes=limit, memory_available_bytes=limit - round(used * limit), descriptors_used=321)
    metrics.on_snapshot(replace(host, cpu_busy_fraction=0.25, disk_free_bytes=77 << 30), 2, {"memory_bytes": 0.5}, 0.002)
    metrics.close_windows()
    found = {row["metric"]: (row["sum"], row["unit"]) for row in rows_of(metrics) if row["metric"] != "metrics.filtered"}
    assert found == {
        "host.cpu.busy": (0.25, "ratio"),
        "host.memory.limit": (limit, "bytes"),
        "host.memory.used": (round(used * limit), "bytes"),
        "host.memory.available": (limit - round(used * limit), "bytes"),
        "host.memory.pressure": (category, ""),
        "host.disk.free": (77 << 30, "bytes"),
        "host.descriptors.used": (321, ""),
        "safety.verdict": (2, ""),
        "safety.ceiling": (0.5, "ratio"),
        "agent.tick.lag": (0.002, "seconds"),
    }


def test_what_is_read_while_a_load_ends_is_no_dose(tmp_path):
    """A reading that began before the end and came back after it would say that nothing was held where something was asked."""
    metrics = made(tmp_path)
    holder = Operation("1.Descriptors@n", "Descriptors", "n", 0.0, 60.0, "count", Constant(40.0).to_spec())
    metrics.watch("r", holder, CAPACITY, 3, 4, [os.getpid()])
    began_ns = SystemClock().boot_ns() - 30 * SECOND_NS
    metrics.started("r", holder.id, began_ns)
    assert metrics.measure()["r", holder.id][0] == 40
    for later_s, want in ((0.0, 40), (29.0, 40), (31.0, None)):  # what a stall adds between clock and answer
        metrics._clock = SimpleNamespace(boot_ns=lambda later_s=later_s: SystemClock().boot_ns() + round(later_s * SECOND_NS))
        assert metrics.measure().get(("r", holder.id), (None,))[0] == want


def test_what_is_held_is_told_and_recorded_as_it_is_counted(tmp_path):
    """Descriptors of this process: asked, achieved and what remains at each look, and the three moments with the counts of then."""
    metrics, held = made(tmp_path), []
    holder = Operation("1.Descriptors@n", "Descriptors", "n", 0.0, 60.0, "count", Constant(40.0).to_spec())
    metrics.watch("r", holder, CAPACITY, 3, 4, [os.getpid()])
    metrics.started("r", holder.id, SystemClock().boot_ns())
    for more in (10, 30):
        held += [os.open(os.devnull, os.O_RDONLY) for _ in range(more)]
        metrics.measure()
        metrics.close_windows()
    for fd in held:
        os.close(fd)
    allocation = metrics.unwatch("r", holder.id, completed=True)
    metrics.close_windows()
    doses = {
        name: [row["last"] for row in rows_of(metrics) if row["metric"] == f"dose.{name}" and row["worker"] == holder.id]
        for name in ("requested", "achieved", "remaining")
    }
    assert doses == {"requested": [40, 40], "achieved": [10, 40], "remaining": [30, 0]}
    windows = [unseal(parse(data).payload)[1].to_pylist() for _, data in metrics._streams["r"].unacked(1 << 30)]
    told = [(event["kind"], event["worker"], json.loads(event["data"])["counted"]) for events in windows for event in events]
    assert told == [("allocate", holder.id, 10), ("hold", holder.id, 40), ("release", holder.id, 0)]
    assert (allocation.allocate, allocation.hold, allocation.peak, allocation.release) == (10, 40, 40, 0)


def test_a_full_outbox_ends_as_a_named_loss(tmp_path):
    """The last window is tried several times; then the end says that it is not clean, and the stream is delivered like any other."""
    metrics = made(tmp_path, max_bytes=300)
    metrics.add_event(Event("noise", "x" * 500))
    for _ in range(SEAL_TRIES - 1):
        with pytest.raises(OutboxFullError):
            metrics.seal("r")
        assert not metrics.delivered("r")
    metrics.seal("r")
    pushed = []

    def push(run, node, incarnation, records, timeout_s):
        pushed.extend(records)
        return records[-1][0]

    metrics.deliver("r", push)
    assert metrics.delivered("r")
    assert parse(pushed[-1][1]).payload == b'{"clean": false}'


def test_an_end_that_is_named_while_windows_are_on_their_way_is_delivered_too(tmp_path):
    """A stream counts as delivered only once its end was acknowledged."""
    metrics = made(tmp_path)
    metrics.add_event(Event("k", "a window"))
    metrics.close_windows()
    pushed = []

    def push(run, node, incarnation, records, timeout_s):
        pushed.extend(records)
        return records[-1][0]

    drain = metrics._drain

    def sealed_after(*args):
        drain(*args)
        metrics.seal("r")

    metrics._drain = sealed_after
    metrics.deliver("r", push)
    assert (len(pushed), metrics.delivered("r")) == (1, False)
    metrics.deliver("r", push)
    assert parse(pushed[-1][1]).payload == b'{"clean": true}'
    assert metrics.delivered("r")


def test_what_an_earlier_agent_still_holds_is_waited_for(tmp_path):
    """Its stream is sealed and delivered once it is gone; until then the run does not count as sealed."""
    metrics = made(tmp_path)
    earlier = Outbox(tmp_path / "outbox" / "r" / "n-6.box", node="n", incarnation="6", run="r")
    with pytest.raises(HarnessError, match="has an owner"):
        metrics.seal("r")
    metrics.deliver("r", lambda *_: 1)
    assert not metrics.delivered("r")
    earlier.close()
    metrics.seal("r")
    ends = []

    def push(run, node, incarnation, records, timeout_s):
        ends.extend(incarnation for _, data in records if parse(data).payload.startswith(b'{"clean"'))
        return records[-1][0]

    metrics.deliver("r", push)
    assert sorted(ends) == ["6", "7"]
    assert metrics.delivered("r")


def test_room_that_comes_back_loses_nothing(tmp_path):
    """A seal that failed once and then finds room ends clean."""
    metrics = made(tmp_path, max_bytes=300)
    metrics.add_event(Event("noise", "x" * 500))
    with pytest.raises(OutboxFullError):
        metrics.seal("r")
    metrics._streams["r"].outbox._max_bytes = 1 << 20
    metrics.seal("r")
    assert metrics._streams["r"].outbox.ended
    assert parse(metrics._streams["r"].unacked(1 << 20)[-1][1]).payload == b'{"clean": true}'


@pytest.mark.parametrize(("generation", "told"), [(4, True), (5, False)])
def test_the_time_that_is_left_of_a_lease_is_recorded(tmp_path, generation, told):
    """For each operation by its own slot; a slot of another generation says nothing."""
    clock = SystemClock()
    metrics = made(tmp_path, deadline_ns=clock.boot_ns() + 100 * SECOND_NS)
    metrics.watch("r", OPERATION, CAPACITY, 3, generation, [os.getpid()])
    seen = metrics._streams["r"] = Seen()
    metrics.on_snapshot(replace(quiet("n"), boot_ns=clock.boot_ns()), 0, {}, 0.0)
    found = [(value, worker) for metric, value, worker in seen.told if metric == "agent.lease.remaining"]
    assert len(found) == told
    assert all(90 < value <= 100 and worker == OPERATION.id for value, worker in found)


@pytest.mark.parametrize(
    ("members", "counts"),
    [
        pytest.param([os.getpid(), 99], True, id="in-its-group"),
        pytest.param([99], False, id="could-not-enter"),
        pytest.param([], False, id="no-such-group"),
    ],
)
def test_a_group_counts_only_where_its_processes_are_in_it(tmp_path, monkeypatch, members, counts):
    """A group that the load could not enter would say that it used nothing."""
    (tmp_path / "cpu.stat").write_text("usage_usec 7000000\n")
    monkeypatch.setattr(node_metrics, "cgroup_pids", lambda _: members)
    metrics = made(tmp_path)
    metrics.watch("r", OPERATION, CAPACITY, 3, 4, [os.getpid()], str(tmp_path))
    used_s = metrics._watched["r", OPERATION.id].meter.read()
    assert (used_s == 7.0) is counts


def test_a_load_that_begins_in_the_window_in_which_it_is_first_watched_counts_from_its_beginning(tmp_path):
    """The first closed window already has a dose: its CPU time counts from the moment it was watched."""
    metrics = made(tmp_path)
    metrics.watch("r", OPERATION, CAPACITY, 3, 4, [os.getpid()])
    metrics.started("r", OPERATION.id, SystemClock().boot_ns())
    assert ("r", OPERATION.id) in metrics.measure()


def recorder_of(metrics, run="r", operation=OPERATION):
    return Recorder(Segment.open(metrics.open_segment(run, operation)))


def test_loads_record_at_the_level_of_their_run(tmp_path):
    """A load of a detailed run records all, one of another run the core; the policy of a run changes while its load records."""
    metrics = made(tmp_path)
    metrics.begin("detailed", RecordingPolicy(level=Verbosity.VERBOSE))
    normal, verbose = recorder_of(metrics), recorder_of(metrics, "detailed")
    assert (normal.policy.level, verbose.policy.level) == (Verbosity.NORMAL, Verbosity.VERBOSE)
    metrics.set_policy("r", RecordingPolicy(level=Verbosity.MINIMAL))
    for recorder in (normal, verbose):
        recorder.histogram("load.slice").record(1.0)
        recorder.tick()
    assert (normal.policy.level, verbose.policy.level) == (Verbosity.MINIMAL, Verbosity.VERBOSE)
    counts = [metrics._segments[run, OPERATION.id].read(0).count for run in ("r", "detailed")]
    assert counts == [0, 1]
    later = replace(OPERATION, id="1.CpuLoad@n")
    assert recorder_of(metrics, operation=later).policy.level is Verbosity.MINIMAL
    assert recorder_of(metrics, "detailed", later).policy.level is Verbosity.VERBOSE


def test_a_policy_goes_with_its_run(tmp_path):
    """A run of the same name begins anew, and a policy that no segment has room for changes nothing."""
    metrics = made(tmp_path)
    rules = (Filter(include=True, name="x" * 200 + "*"),) * 20
    with pytest.raises(InputError, match="a recording policy of"):
        metrics.set_policy("r", RecordingPolicy(filters=rules))
    assert recorder_of(metrics).policy == RecordingPolicy()
    metrics.set_policy("r", RecordingPolicy(level=Verbosity.MINIMAL))
    metrics.set_policy("unknown", RecordingPolicy(level=Verbosity.MINIMAL))
    metrics.forget("r")
    assert not metrics._policies
    assert recorder_of(metrics).policy == RecordingPolicy()


def rows_of(metrics, run="r"):
    """Return the rows of the windows that a run has sealed."""
    records = [parse(data) for _, data in metrics._streams[run].unacked(1 << 30)]
    return [row for record in records if record.kind is RecordKind.WINDOW for row in unseal(record.payload)[0].to_pylist()]


def test_an_agent_records_by_the_policy_of_each_run(tmp_path):
    """What a filter or the level leaves out of its own is in no window and counted exactly; safety stays; a change is in force at once."""
    metrics = made(tmp_path)
    metrics.begin("few", RecordingPolicy(level=Verbosity.MINIMAL))
    metrics.begin("no-host", RecordingPolicy(level=Verbosity.VERBOSE, filters=(Filter(include=False, name="host.*"),)))
    snapshot = replace(quiet("n"), boot_ns=SystemClock().boot_ns())
    for _ in range(3):
        metrics.on_snapshot(snapshot, 2, {"cpu": 0.5}, 0.0)
    metrics.close_windows()
    names = {run: {row["metric"] for row in rows_of(metrics, run)} for run in ("r", "few", "no-host")}
    assert {"host.cpu.busy", "agent.tick.lag"} <= names["r"]
    assert not {"host.load.average", "agent.outbox"} & names["r"]
    assert names["few"] == {"safety.verdict", "safety.ceiling", "metrics.filtered"}
    assert names["no-host"] == names["few"] | {"agent.tick.lag", "agent.outbox"}
    left = {run: [(row["labels"], row["sum"]) for row in rows_of(metrics, run) if row["metric"] == "metrics.filtered"] for run in names}
    assert left == {
        "r": [([("reason", "level")], 3 * 4.0)],
        "few": [([("reason", "level")], 3 * 12.0)],
        "no-host": [([("reason", "filter")], 3 * 10.0)],
    }
    metrics.set_policy("no-host", RecordingPolicy())
    metrics.on_snapshot(snapshot, 2, {}, 0.0)
    metrics.close_windows()
    assert "host.cpu.busy" in {row["metric"] for row in rows_of(metrics, "no-host")}


def test_loads_of_a_detailed_run_give_their_samples_away(tmp_path):
    """Through a ring of their own; those of another run have none."""
    metrics = made(tmp_path)
    metrics.begin("detailed", RecordingPolicy(mode=Mode.DETAILED))
    for run in ("r", "detailed"):
        recorder = recorder_of(metrics, run)
        recorder.histogram("load.slice").record(0.5)
        recorder.close()
        metrics.unwatch(run, OPERATION.id)
        metrics.seal(run)
    kinds = {run: [parse(data).kind for _, data in metrics._streams[run].unacked(1 << 30)] for run in ("r", "detailed")}
    assert kinds["r"] == [RecordKind.WINDOW, RecordKind.END]
    assert kinds["detailed"] == [RecordKind.SAMPLES, RecordKind.WINDOW, RecordKind.END]


def test_a_machine_without_rings_records_windows_and_says_so(tmp_path, monkeypatch):
    """Detailed mode on another processor: an event, and the run's windows as ever."""
    monkeypatch.setattr("actors.metrics.ring.platform.machine", lambda: "sparc")
    metrics = made(tmp_path)
    metrics.begin("detailed", RecordingPolicy(mode=Mode.DETAILED))
    recorder = recorder_of(metrics, "detailed")
    recorder.histogram("load.slice").record(0.5)
    recorder.close()
    metrics.unwatch("detailed", OPERATION.id)
    metrics.close_windows()
    assert "load.slice" in {row["metric"] for row in rows_of(metrics, "detailed")}
    told = unseal(parse(metrics._streams["detailed"].unacked(1 << 30)[0][1]).payload)[1].to_pylist()
    assert [event["kind"] for event in told] == ["samples_unavailable"]


def test_a_change_of_policy_keeps_the_ring(tmp_path):
    """Detailed mode goes on when the policy changes, on the ring that the load pushes to."""
    metrics, detailed = made(tmp_path), RecordingPolicy(mode=Mode.DETAILED)
    metrics.begin("detailed", detailed)
    recorder = recorder_of(metrics, "detailed")
    _, _, ring = metrics._segments["detailed", OPERATION.id].texts(0)
    for value, policy in enumerate([detailed, replace(detailed, level=Verbosity.VERBOSE), RecordingPolicy(), detailed]):
        metrics.set_policy("detailed", policy)
        recorder.histogram("load.slice").record(float(value))
        recorder.tick()
    assert metrics._segments["detailed", OPERATION.id].texts(0)[2] == ring
    metrics.close_windows()
    batches = [parse(data) for _, data in metrics._streams["detailed"].unacked(1 << 30)]
    values = [unseal_samples(one.payload)["value"].to_pylist() for one in batches if one.kind is RecordKind.SAMPLES]
    assert values == [[0.0, 1.0, 3.0]]


def test_series_have_the_caps_of_their_run(tmp_path):
    """Two runs on one node: what passes the caps of one goes into its overflow series, the other has its own."""
    metrics = made(tmp_path)
    metrics.begin("few", RecordingPolicy(), Caps(series=2))
    for run in ("r", "few"):
        for number in range(4):
            metrics._streams[run].observe("probe.requests", 1.0, labels={"probe": f"p{number}"})
    metrics.close_windows()
    found = {
        run: [dict(row["labels"])["probe"] for row in rows_of(metrics, run) if row["metric"] == "probe.requests"] for run in ("r", "few")
    }
    assert {run: sorted(names) for run, names in found.items()} == {"r": ["p0", "p1", "p2", "p3"], "few": ["__overflow__", "p0", "p1"]}


def test_errors_are_counted_where_their_run_is_open(tmp_path):
    """An error of a run is in its stream by code; one of a run that is unknown or sealed is nobody's, and no trouble."""
    metrics = made(tmp_path)
    metrics.error("r", HarnessError("journal", "x"), "op")
    metrics.error("unknown", HarnessError("os", "x"))
    metrics.seal("r")
    metrics.error("r", HarnessError("os", "x"))
    assert [dict(row["labels"])["code"] for row in rows_of(metrics) if row["metric"] == "errors.seen"] == ["journal"]


@pytest.mark.parametrize("mode", Mode)
def test_ten_thousand_allocations_are_few_calls(tmp_path, mode):
    """Two samples each leave a load by its shared memory, and the node by a push a window and one for the end; none is lost."""
    metrics, windows, each = made(tmp_path, 1 << 24), 10, 1_000
    metrics.begin("few", RecordingPolicy(mode=mode))
    pushes = []

    def push(run, node, incarnation, records, timeout_s):
        pushes.append([parse(data) for _, data in records])
        return records[-1][0]

    holder = Operation("1.MemoryPressure@n", "MemoryPressure", "n", 0.0, 60.0, "bytes", Constant(1 << 30).to_spec())
    reporter, is_kept = open_reporter(metrics.open_segment("few", holder), 1)
    steps = StepMeters(reporter)
    for number in range(windows):
        for _ in range(each):
            steps.record(4096, 1e-4)
        assert len(pushes) == number, "what is recorded makes no call"
        metrics.close_windows()
        metrics.deliver("few", push)
    steps.record(-4096, 1e-4)
    steps.close()
    metrics.unwatch("few", holder.id)
    metrics.seal("few")
    metrics.deliver("few", push)
    samples = 2 * (windows * each + 1)
    assert len(pushes) <= -(-samples // (2 * each)) + 1
    records = [record for one in pushes for record in one]
    sums = Counter()
    for row in (row for one in records if one.kind is RecordKind.WINDOW for row in unseal(one.payload)[0].to_pylist()):
        sums[row["metric"]] += row["sum"] if row["kind"] == "counter" else row["count"]
    assert (sums["memory.populated"], sums["memory.released"], sums["memory.step"]) == (windows * each * 4096, 4096, windows * each + 1)
    single = sum(unseal_samples(one.payload).num_rows for one in records if one.kind is RecordKind.SAMPLES)
    assert (is_kept, single) == (True, samples + 2 if mode is Mode.DETAILED else 0)  # with the two zeros before the first step


def wide(metrics, windows=1, series=2000):
    """Seal windows of so many series."""
    stream = metrics._streams["r"]
    for number in range(windows):
        for worker in range(series):
            stream.observe("host.cpu.busy", worker * 0.7 + number, f"load-{worker}")
        assert stream.close_window(10**18 + number)


def pushed(metrics, *, is_near=True):
    """Deliver to an aggregator that can, or cannot, read the outbox; return what each record came as: its place, or its bytes."""
    box, came = metrics._streams["r"].outbox, []

    def push(run, node, incarnation, records, timeout_s):
        came.extend(type(data) for _, data in records)
        with NearFiles().frames(box.path if is_near else box.path.with_name("gone"), records) as frames:
            return next((parse(data).sequence for _, data in reversed(frames)), records[0][0] - 1)

    metrics.deliver("r", push)
    assert metrics._streams["r"].unacked_bytes == 0
    return came


def test_small_windows_are_always_sent_as_bytes(tmp_path):
    """They cost less to copy than to map, and nobody is asked."""
    metrics = made(tmp_path, max_bytes=64 << 20)
    wide(metrics, windows=5, series=10)
    assert pushed(metrics) == [bytes] * 5


def test_wide_windows_are_sent_by_their_places_to_who_can_read_them(tmp_path):
    """And sealed as they lie in memory from then on, but while the outbox is half full."""
    metrics = made(tmp_path, max_bytes=2 << 20)
    wide(metrics)
    packed = metrics._streams["r"].unacked_bytes
    assert pushed(metrics) == [Place]
    sizes = []
    for _ in range(8):
        before = metrics._streams["r"].unacked_bytes
        wide(metrics)
        sizes.append(metrics._streams["r"].unacked_bytes - before)
    in_place = [size > 2 * packed for size in sizes]
    assert in_place[0]
    assert not in_place[-1]
    assert in_place == sorted(in_place, reverse=True)
    assert sum(sizes[: sum(in_place) - 1]) < 1 << 20 <= sum(sizes[: sum(in_place)])
    assert pushed(metrics) == [Place] * 8


def test_who_cannot_read_places_is_asked_once(tmp_path):
    """An aggregator on another machine gets bytes, packed, all of them."""
    metrics = made(tmp_path, max_bytes=64 << 20)
    wide(metrics, windows=2)
    packed = metrics._streams["r"].unacked_bytes
    assert pushed(metrics, is_near=False) == [Place, Place, bytes, bytes]
    wide(metrics, windows=2)
    assert metrics._streams["r"].unacked_bytes == pytest.approx(packed, rel=0.1)
    assert pushed(metrics, is_near=False) == [bytes, bytes]
