"""Real stress-ng under real load processes. Doses are read from outside; what is left is looked for in /proc, groups and folders."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_pages import PageGuardian
from support.observe import promised
from support.waiting import until
from test_load_process import CAPACITY, GENERATION, SLOT, Bench

from actors import proc
from actors.clock import SECOND_NS, SystemClock
from actors.control import LOAD_READY
from actors.dose import OutsideMeter
from actors.lease import LeaseWatch
from actors.lifecycle import EXIT_LEASE, Event
from actors.messages import Operation, SlotTicket
from actors.metrics import Segment
from actors.stress_ng.record import RECORD

MIB = 1 << 20
ONE = Operation("0.StressNg@n1", "StressNg", "n1", 0.0, 60.0, "count", {"kind": "constant", "level": 1})
VM = {"stressor": "vm", "arguments": "--vm-bytes 4M --vm-method zero-one"}
HDD = {"stressor": "hdd", "arguments": "--hdd-bytes 8M"}
SOME = [{"stressor": "cpu"}, VM, HDD]

pytestmark = pytest.mark.skipif(not shutil.which("stress-ng"), reason="stress-ng is not installed on this machine")


def names(options: dict[str, Any]) -> str:
    return str(options["stressor"])


class Grouped(PageGuardian):
    """Pages, and a control group for the slot as the guardian makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.group = f"{proc.cgroup_root()}/stress-cluster-test-{os.getpid()}/{SLOT}-{GENERATION}"
        proc.make_cgroup(self.group)

    def call(self, op: str, *, timeout_s: float = 1.0, **fields: Any) -> dict[str, Any]:
        if op == "status":
            return {"slots": [{"slot": SLOT, "generation": GENERATION, "container": self.group, "cause": "lease"}]}
        return super().call(op, timeout_s=timeout_s, **fields)

    def close(self) -> None:
        proc.kill_cgroup(self.group)
        until(lambda: not proc.is_populated(self.group), 5, "the group is empty")
        proc.remove_cgroup(self.group)
        super().close()


class Stress(Bench):
    """One StressNg, with a control group or without."""

    def __init__(self, state_dir: Path, operation: Operation, *, grouped: bool, segment_path: str = "") -> None:
        super().__init__(state_dir, operation, CAPACITY)
        self.group = ""
        if grouped:
            self.guardian.close()
            self.guardian = Grouped()
            self.guardian.open_slot(SLOT, GENERATION)
            self.group = self.guardian.group
        watch = LeaseWatch(self.guardian.control, self.guardian.stats, SLOT, GENERATION, SystemClock(), leave=lambda _: None)
        self.load._guardian, self.load._watch, self.load._page_fds = self.guardian, watch, self.guardian.page_fds
        self.load._ticket = SlotTicket(SLOT, GENERATION, segment_path)

    def ready(self) -> None:
        super().ready()
        self.meter = OutsideMeter(self.operation, self.load.pids, cgroup=Path(self.group) if self.group else None)

    def close(self) -> None:
        super().close()
        for stat in proc.session_members(self.load.pids[0]) if self.load.pids else ():
            os.kill(stat.pid, signal.SIGKILL)  # as the guardian would: what was stopped does not hear of its parent's death

    def children(self) -> list[int]:
        """Return what the load process started, by its own children's numbers."""
        return [stat.pid for stat in proc.scan() if stat.ppid == self.load.pids[0] and stat.state not in "ZX"]

    def left(self) -> list[str]:
        """Return the commands of all that is left of it: in its session, in its group."""
        pids = {stat.pid for stat in proc.session_members(self.load.pids[0])} | set(proc.cgroup_pids(self.group) if self.group else ())
        return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in sorted(pids) if Path(f"/proc/{pid}/comm").exists()]

    def busy(self, over_s: float) -> float:
        """Return the cores that all of its processes used together over a while."""
        meter = OutsideMeter(replace(ONE, unit="fraction"), self.load.pids, cgroup=Path(self.group) if self.group else None)
        clock, pause = SystemClock(), threading.Event()
        before, then_ns = meter.read(), clock.boot_ns()
        pause.wait(over_s)
        after, now_ns = meter.read(), clock.boot_ns()
        meter.close()
        assert before is not None
        assert after is not None
        return (after - before) * SECOND_NS / (now_ns - then_ns)


Make = Callable[..., Stress]


def maker(folder: Path, *, grouped: bool) -> Iterator[Make]:
    """Give what makes loads, and end them all."""
    made: list[Stress] = []

    def one(options: dict[str, Any] | None = None, *, segment_path: str = "", **change: Any) -> Stress:
        made.append(Stress(folder, replace(ONE, options=options or {}, **change), grouped=grouped, segment_path=segment_path))
        return made[-1]

    def end() -> None:
        while made:
            made.pop().close()
        shutil.rmtree(folder / "scratch", ignore_errors=True)  # as the guardian would

    one.mend = end  # type: ignore[attr-defined]  # before a promised test is repeated
    yield one
    end()


@pytest.fixture(params=["group", "session"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return what makes loads: with a control group, and without one."""
    if request.param == "group" and not proc.cgroup_root():
        pytest.skip("no control group can be made on this machine")
    yield from maker(tmp_path, grouped=request.param == "group")


@pytest.fixture
def make_one(tmp_path: Path) -> Iterator[Make]:
    """Return what makes loads as this machine can: for what is the same with and without a control group."""
    yield from maker(tmp_path, grouped=bool(proc.cgroup_root()))


@pytest.mark.parametrize("options", SOME, ids=names)
def test_a_stressor_works_and_ends_with_nothing_left(make: Make, options: dict[str, Any]) -> None:
    """Seen from outside one instance works and uses CPU time; asked to end, all of it ends in a moment, and its figures are told."""
    segment = Segment.create()
    one = make(options, segment_path=segment.path)
    one.ready()
    assert one.meter.read() == 0.0
    one.go()
    until(lambda: one.meter.read() == 1.0, 5, lambda: f"{one.left()}")
    until(lambda: one.busy(1.0) > 0.02, 10, "it works")  # and is past its own beginning
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    until(lambda: not one.left(), 2, lambda: f"{one.left()}")
    told = {(metric, labels): segment.read(row) for row, _, metric, labels in segment.series()}
    assert {metric for metric, _ in told} == set(RECORD.metrics)
    assert {labels for _, labels in told} == {(("stressor", options["stressor"]),)}
    assert all(found.count == 1 for found in told.values())
    assert told["stressng.bogo.operations", (("stressor", options["stressor"]),)].sum > 0
    segment.close()


def test_figures_come_also_where_the_starter_blocks_signals(make_one: Make) -> None:
    """A load whose starter blocks signals, as threads of a Ray worker do, still ends its instances in a moment, with their figures."""
    segment = Segment.create()
    one = make_one({"stressor": "nanosleep"}, segment_path=segment.path)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        one.ready()
    finally:
        signal.signal(signal.SIGINT, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    one.go()
    until(lambda: one.meter.read() == 1.0, 5, "it works")
    one.busy(1.0)
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    assert {metric for _, _, metric, _ in segment.series()} == set(RECORD.metrics)
    segment.close()


def test_instances_follow_the_shape(make: Make) -> None:
    """As many instances as asked work, up and down, each step within a moment."""
    levels = [1, 3, 2]
    one = make({"stressor": "nanosleep"}, shape={"kind": "steps", "levels": levels, "each_s": 1.5})
    one.ready()
    one.go()
    for level in levels:
        until(lambda want=level: one.stats.asked == want and one.meter.read() == want, 4, lambda: f"{one.meter.read()}, {one.left()}")


@promised
def test_a_fraction_is_cpu_time_of_the_whole_tree(make: Make) -> None:
    """As a fraction the whole tree uses that share of the node's cores, though each instance by itself would take a core."""
    one = make({"instances": 2}, unit="fraction", shape={"kind": "constant", "level": 0.3})
    one.ready()
    one.go()
    one.busy(0.5)
    found = [one.busy(1.0) for _ in range(4)]
    assert min(abs(cores - 0.3) for cores in found) <= 0.05, found
    assert one.stats.asked == pytest.approx(0.3)


def at_work(one: Stress, looks: int = 60) -> float:
    """Return the share of looks, 20 ms apart, at which its instance was let run."""
    pause, seen = threading.Event(), 0.0
    for _ in range(looks):
        seen += one.meter.read()
        pause.wait(0.02)
    return seen / looks


def test_the_ceiling_holds_a_stressor_that_has_no_level(make: Make) -> None:
    """A ceiling lets an instance run for about that part of the time, of whatever it takes then; at 0 it stands still, and still ends."""
    one = make({"stressor": "nanosleep"})
    one.ready()
    one.go()
    until(lambda: one.meter.read() == 1.0, 5, "it works")
    before = at_work(one)
    one.guardian.control.write_ceiling(SLOT, 0.25)
    at_work(one, 15)
    throttled = at_work(one)
    one.guardian.control.write_ceiling(SLOT, 0.0)
    at_work(one, 15)
    assert before > 0.9
    assert 0.05 < throttled < 0.6, throttled
    assert at_work(one, 15) == 0.0  # what is held does not count as there
    assert one.busy(0.5) < 0.1
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    assert one.left() == []


def test_it_all_dies_with_the_lease(make: Make) -> None:
    """When the lease ends the load kills its whole tree, and says why it ended."""
    one = make(VM)
    one.ready()
    one.go(lease_s=1.5)
    until(lambda: one.meter.read() == 1.0, 5, "it works")
    event, _ = one.end()
    assert (event, one.load.exit_code) == (Event.LEASE_ENDED, EXIT_LEASE)
    assert one.left() == []


def test_a_killed_load_takes_its_instances_along(make: Make) -> None:
    """SIGKILL of the load process is by the kernel the end of each instance, and with it of its worker."""
    one = make(VM)
    one.ready()
    one.go()
    until(lambda: one.meter.read() == 1.0, 5, "it works")
    one.busy(1.0)  # a worker asks for its parent's death a moment after it began: the guardian sees to those that do not hear of it
    os.kill(one.load.pids[0], signal.SIGKILL)
    assert one.end()[0] is Event.BROKE
    until(lambda: not one.left(), 5, lambda: f"{one.left()}")


@pytest.mark.parametrize("who", ["instance", "worker"])
def test_a_killed_instance_ends_the_load_with_a_reason(make: Make, who: str) -> None:
    """SIGKILL of an instance, or of its worker, breaks the load: that tells which stressor ended, and leaves nothing."""
    one = make({"stressor": "cpu"})
    one.ready()
    one.go()
    until(lambda: one.meter.read() == 1.0, 5, "it works")
    (instance,) = one.children()
    if who == "instance":
        os.kill(instance, signal.SIGKILL)
    else:
        worker = next(stat.pid for stat in proc.scan() if stat.ppid == instance)
        os.kill(worker, signal.SIGKILL)
    event, reason = one.end()
    assert event is Event.BROKE
    assert "stress-ng --cpu" in reason
    assert one.left() == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"stressor": "cpuu"}, "did you mean 'cpu'", id="unknown-stressor"),
        pytest.param({"stressor": "vm", "arguments": "--vm-rw-bytes 1M"}, "of the stressor 'vm-rw'", id="an-option-of-another"),
    ],
)
def test_what_the_node_lacks_is_said_before_the_start(make_one: Make, options: dict[str, Any], why: str) -> None:
    """A name that this node's stress-ng does not know is refused while the load gets ready, with the nearest one."""
    one = make_one(options)
    one.load.start()
    event, reason = one.end()
    assert event is Event.BROKE
    assert why in reason


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"stressor": "cpu", "arguments": "--cpu-method nonesuch"}, "cpu-method must be one of", id="refused-by-stress-ng"),
        pytest.param(
            {"stressor": "vm", "arguments": "--vm-bytes 96M --vm-keep", "memory_bytes": 8 * MIB}, "memory_bytes, its slot", id="memory"
        ),
        pytest.param({"stressor": "hdd", "arguments": "--hdd-bytes 64M", "disk_bytes": MIB}, "disk_bytes, its slot", id="disk"),
        pytest.param({"stressor": "resched", "tasks": 2}, "tasks, its slot", id="tasks"),
    ],
)
def test_what_goes_wrong_is_told(make_one: Make, options: dict[str, Any], why: str) -> None:
    """What stress-ng refuses, and what takes more than its slot reserves, ends the load with the reason and leaves nothing."""
    one = make_one(options)
    one.ready()
    one.go()
    event, reason = one.end()
    assert event is Event.BROKE
    assert why in reason, reason
    assert one.left() == []


@pytest.mark.parametrize("stressor", ["daemon", "fork"])
def test_what_leaves_its_session_needs_a_group(make: Make, stressor: str) -> None:
    """A stressor that calls setsid runs where a control group finds it, and leaves nothing; without one it is refused."""
    one = make({"stressor": stressor})
    if one.group:
        one.ready()
        one.go()
        until(lambda: one.meter.read() == 1.0, 5, "it works")
        one.load.drain()
        assert one.end() == (Event.FINISHED, "")
        assert one.left() == []
        return
    one.load.start()
    event, reason = one.end()
    assert event is Event.BROKE
    assert "control group" in reason


def test_files_stay_in_a_folder_whose_removal_is_armed(make_one: Make, tmp_path: Path) -> None:
    """What a stressor writes lies below the load's folder in STATE, and the guardian was told to remove that before it was made."""
    one = make_one(HDD)
    one.ready()
    armed = [fields for op, fields in one.guardian.calls if op == "arm"]
    (folder,) = (tmp_path / "scratch").iterdir()
    assert [(fields["kind"], fields["fields"]["path"]) for fields in armed] == [("tree", str(folder))]
    one.go()
    until(lambda: any(child.name.startswith("tmp-stress-ng-hdd") for child in folder.iterdir()), 5, "its files")
    for pid in {*one.children(), *proc.cgroup_pids(one.group)} - {one.load.pids[0]}:
        with suppress(FileNotFoundError):  # it ended meanwhile
            assert Path(f"/proc/{pid}/cwd").resolve() == folder


def test_nothing_of_it_runs_before_the_start(make_one: Make) -> None:
    """A load that is ready has started no instance."""
    one = make_one()
    one.ready()
    assert one.stats.state == LOAD_READY
    assert one.children() == []
