"""Every pattern of concurrency at its limit and at each of its ends: agents of two nodes and a real guardian; Ray alone is pretended."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from actors import shell as actors_shell
from actors.clock import SECOND_NS, SystemClock
from actors.messages import AMOUNTS, Amounts, Capacity, Operation, spoken
from actors.proc import read_stat
from actors.ray_loads import mesh_members
from actors.shell import SimulatorShell
from actors.simulator import REGISTRY, peak_amounts
from cluster import agent_shell
from cluster.agent_api import AgentConfig
from cluster.agent_shell import AgentShell
from cluster.exchange import Goal, Order, Reply, Report, RunReport, Stage
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, parse
from tests.simulation.world.agent_host import quiet
from tests.support.fake_mesh import FakeBoard, FakeMeshWork, World
from tests.support.fake_ray import FakeRayWork, FakeServices
from tests.support.site import Site
from tests.support.waiting import until

NODES: Final = ("n1", "n2")
PATTERNS: Final = sorted(name for name, record in REGISTRY.items() if record.family == "concurrency")
CAPACITY: Final = Capacity(4.0, 1 << 34, 1 << 34, descriptors=10_000, tasks=10_000, inodes=10_000, locks=1000)
PLENTY: Final = Amounts(64.0, 1 << 36, 1 << 36, 100_000, 100_000, 100_000, 10_000)
CLOCK: Final = SystemClock()
LEASE_S: Final = 15.0  # six loads, two agents and a guardian's client share one interpreter: no lease may end for that


class Now:
    """The time that servers of a pretended Ray live in: the real one."""

    @property
    def now_ns(self) -> int:
        return CLOCK.boot_ns()


class Fleet:
    """Agents of two nodes of one machine, and the orchestrator that they ask: it wants of each run what the test wants."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wanted: dict[str, Goal] = {}
        self.orders: dict[tuple[str, str], Order] = {}
        self.reports: dict[str, Report] = {}
        self.recorded: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.shells: dict[tuple[str, str], SimulatorShell] = {}
        self.works: dict[tuple[str, str], Any] = {}
        self._world = World(Now(), NODES)  # type: ignore[arg-type]
        self._making = threading.local()
        monkeypatch.setattr(agent_shell, "HostSampler", lambda node, _: SimpleNamespace(snapshot=lambda: self._snapshot(node)))
        monkeypatch.setattr(actors_shell, "NodeWork", self._work)
        monkeypatch.setattr(actors_shell, "LINGER_S", 0.5)
        monkeypatch.setattr(mesh_members, "claim", lambda _: FakeBoard())  # a real one stays open as long as its process, which is this
        settings = {"STRESS_CLUSTER_STATE_DIR": str(state)}
        self.agents = [
            AgentShell(AgentConfig(node, "c", 1, renew_s=0.05, window_s=0.25, environ=settings), Port(self, node)) for node in NODES
        ]

    @staticmethod
    def _snapshot(node: str) -> Any:
        return replace(quiet(node), boot_ns=CLOCK.boot_ns())

    def _work(self, _: str, run: str) -> Any:
        kind, node = self._making.about
        made: Any = FakeServices(CLOCK) if kind == "Cascade" else FakeRayWork(CLOCK, 0.001)  # type: ignore[arg-type]
        if kind == "ActorMesh":
            made = FakeMeshWork(self._world, node)
        self.works[run, node] = made
        return made

    def want(self, run: str, operation: Operation, limits: Amounts = PLENTY) -> None:
        """Have both nodes run an operation of their own."""
        for node in NODES:
            mine = replace(operation, id=f"{run}.{operation.kind}@{node}", node=node)
            self.orders[run, node] = Order(run, Goal.PREPARE, LEASE_S, operations=(mine,), capacity=CAPACITY, machine_limits=limits)
        self.wanted[run] = Goal.START

    def make(self, node: str, operation: Operation, *args: Any) -> Any:
        """Return a simulator as an agent sees it, in this process."""
        shell = SimulatorShell(operation, *args)
        self.shells[operation.id.partition(".")[0], node] = shell

        def prepare(timeout_s: float) -> tuple[int, ...]:
            self._making.about = (operation.kind, node)
            spawn = shell._spawn

            def spawn_here() -> None:  # in the shell's own thread
                self._making.about = (operation.kind, node)
                spawn()

            shell._spawn = spawn_here  # type: ignore[method-assign]
            shell.prepare()
            status = until(lambda: (now := shell.status()).phase != "preparing" and now, timeout_s)
            assert status.phase == "ready", status
            return status.pids

        def poll() -> dict[str, Any]:
            status = shell.status()
            return {"phase": status.phase, "reason": status.reason, "first_slice_ns": status.first_slice_ns}

        return SimpleNamespace(prepare=prepare, poll=poll, silent_s=lambda: 0.0, kill=lambda: shell.stop(0.0))

    def answer(self, node: str, report: Report) -> Reply:
        self.reports[node] = report
        return Reply(report.nonce, 1, report.t0_ns, tuple(self._order(run, node, report) for run in self.wanted))

    def _order(self, run: str, node: str, report: Report) -> Order:
        order, found = self.orders[run, node], self.run_of(node, run)
        if self.wanted[run] is not Goal.START:
            return replace(order, goal=self.wanted[run], lease_s=0.0, grace_s=2.0)
        if found is None or found.stage is Stage.PREPARING:
            return order
        if not order.start_at_ns:
            order = self.orders[run, node] = replace(order, start_at_ns=report.t0_ns + SECOND_NS // 5)
        return replace(order, goal=Goal.START)

    def run_of(self, node: str, run: str) -> RunReport | None:
        """Return what a node reported last of a run."""
        report = self.reports.get(node)
        return next((one for one in report.runs if one.run == run), None) if report else None

    def take(self, run: str, node: str, records: Any) -> int:
        for _, data in records:
            record = parse(data)
            if record.kind is Kind.WINDOW:
                for row in unseal(record.payload)[0].to_pylist():
                    code = dict(row["labels"]).get("code", "")
                    self.recorded[run, node][f"{row['metric']} {code}".strip()] += row["sum"] if row["kind"] == "counter" else 0
        return int(records[-1][0])

    def slots(self) -> list[Any]:
        """Return what the guardian has of slots and undo records."""
        status = self.agents[0].guardian_status()
        return [*status["slots"], *status["records"]]

    def finish(self, *runs: str) -> None:
        """Have what was recorded of these runs delivered, and wait for that."""
        places = [(node, run) for node in NODES for run in runs]
        for goal, stage in ((Goal.STOP, Stage.CLEAN), (Goal.SEAL, Stage.DELIVERED)):
            self.wanted.update(dict.fromkeys(runs, goal))
            until(lambda stage=stage: all(self._stage(*place) is stage for place in places), 20, lambda: str(self.reports))

    def _stage(self, node: str, run: str) -> Stage | None:
        found = self.run_of(node, run)
        return found.stage if found is not None else None


class Port:
    """What one agent has of Ray."""

    def __init__(self, fleet: Fleet, node: str) -> None:
        self._fleet, self._node = fleet, node
        self.exit: Callable[[], None] = lambda: None

    def exchange(self, report: Report, timeout_s: float) -> Reply:
        return self._fleet.answer(self._node, report)

    def simulator(self, operation: Operation, *args: Any) -> Any:
        return self._fleet.make(self._node, operation, *args)

    def push(self, run: str, node: str, incarnation: str, records: Any, timeout_s: float) -> int:
        return self._fleet.take(run, node, records)


@pytest.fixture
def fleet(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    made = Fleet(site.state, monkeypatch)
    yield made
    for agent in made.agents:
        agent.leave()
    ours = {"warden", "ray-load"}  # threads that other tests in this process must not share it with
    until(lambda: not [one for one in threading.enumerate() if one.name in ours], 20, lambda: f"{threading.enumerate()}")


def operation(kind: str, duration_s: float = 60.0) -> Operation:
    """Return a small operation of a kind, whatever it counts."""
    unit = "per_second" if "per_second" in REGISTRY[kind].units else "count"
    level = {"per_second": 50.0, "count": 2.0}[unit]
    options = {"fail_after": 0.3} if kind == "Cascade" else {}
    return Operation("", kind, "", 0.0, duration_s, unit, {"kind": "constant", "level": level}, options, seed=1)


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_pattern_at_its_limit_is_refused_by_each_node(fleet: Fleet, kind: str) -> None:
    """For each amount that it takes: one less than that is a `budget` error that names it, counted as a metric; and nothing is held."""
    peak = peak_amounts(replace(operation(kind), id=f"x.{kind}@n1", node="n1"), CAPACITY)
    taken = [name for name, amount in zip(AMOUNTS, astuple(peak), strict=True) if amount]
    assert taken
    for name in taken:
        fleet.want(name, operation(kind), replace(PLENTY, **{name: getattr(peak, name) - (0.01 if name == "cpu_cores" else 1)}))
    for node in NODES:
        for name in taken:
            found = until(lambda name=name, node=node: (run := fleet.run_of(node, name)) and run.failure and run, 20, f"{node}: {name}")
            assert found.failure_code == "budget"
            assert spoken(name) in found.failure
    assert (fleet.slots(), fleet.shells) == ([], {})
    fleet.finish(*taken)
    for node in NODES:
        for name in taken:
            assert fleet.recorded[name, node]["errors.seen budget"] == 1
            assert fleet.recorded[name, node]["operation.started"] == 0


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_pattern_holds_nothing_after_any_end(fleet: Fleet, kind: str) -> None:
    """On each node one ends by its time, one fails and one is stopped: held while they live, nothing after, and each has its fate."""
    for run, duration_s in (("success", 1.0), ("failure", 60.0), ("cancel", 60.0)):
        fleet.want(run, operation(kind, duration_s))

    def begun() -> bool:
        lives = [shell.status().first_slice_ns for shell in fleet.shells.values()]
        return len(lives) == 6 and all(lives)

    until(begun, 60, lambda: f"{[shell.status() for shell in fleet.shells.values()]}; {fleet.reports}")
    held = {slot["operation"] for slot in fleet.slots() if "operation" in slot}
    assert held >= {f"{run}.{kind}@{node}" for run in ("failure", "cancel") for node in NODES}
    pids = {pid for shell in fleet.shells.values() for pid in shell.status().pids} - {os.getpid()}
    for node in NODES:
        fail(fleet, node)
    fleet.wanted["cancel"] = Goal.STOP
    until(lambda: not fleet.slots(), 20, lambda: str(fleet.slots()))
    assert [pid for pid in pids if (stat := read_stat(pid)) is not None and stat.state not in "ZX"] == []
    fates: Mapping[str, tuple[int, int]] = {"success": (1, 0), "failure": (0, 1), "cancel": (0, 1)}
    fleet.finish(*fates)
    for node in NODES:
        for run, (completed, failed) in fates.items():
            counts = fleet.recorded[run, node]
            assert (counts["operation.started"], counts["operation.completed"], counts["operation.failed"]) == (1, completed, failed), run
        assert sum(count for name, count in fleet.recorded["failure", node].items() if name.startswith("errors.seen")) >= 1


def fail(fleet: Fleet, node: str) -> None:
    """Make the one load of a node fail that is to: its process is killed, or what drives it raises."""
    if (work := fleet.works.get(("failure", node))) is not None:
        work.look = lambda _: 1 / 0
        return
    for pid in fleet.shells["failure", node].status().pids:
        os.kill(pid, signal.SIGKILL)
