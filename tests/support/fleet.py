"""Agents of two nodes of this machine with a real guardian, and the orchestrator that they ask: it is the test. Ray alone is pretended."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from actors import shell as actors_shell
from actors.clock import SECOND_NS, SystemClock
from actors.messages import Amounts, Capacity, HostSnapshot, Operation
from actors.ray_loads import mesh_members
from actors.shell import SimulatorShell
from cluster import agent_shell
from cluster.agent_api import AgentConfig
from cluster.agent_shell import AgentShell
from cluster.exchange import Goal, Order, Reply, Report, RunReport, Stage
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, parse
from tests.simulation.world.agent_host import quiet
from tests.support.fake_mesh import FakeBoard, FakeMeshWork, World
from tests.support.fake_ray import FakeRayWork, FakeServices
from tests.support.waiting import until

NODES: Final = ("n1", "n2")
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
        self.hosts: dict[str, HostSnapshot] = {node: quiet(node) for node in NODES}  # what agents see of their hosts; a test may change it
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

    def _snapshot(self, node: str) -> HostSnapshot:
        return replace(self.hosts[node], boot_ns=CLOCK.boot_ns())

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

    def health_of(self, node: str, run: str) -> str:
        """Return how a node's operation of a run does, as it reported last."""
        found = self.run_of(node, run)
        return found.operations[0].health if found is not None and found.operations else ""

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


@contextlib.contextmanager
def fleet(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Give the agents of both nodes, and end them."""
    others, made = set(threading.enumerate()), Fleet(state, monkeypatch)
    try:
        yield made
    finally:
        for agent in made.agents:
            agent.leave()

    def ours() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name in {"warden", "ray-load"} and one not in others]

    until(lambda: not ours(), 20, lambda: f"threads that other tests in this process must not share it with: {ours()}")
