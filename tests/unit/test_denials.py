"""What a node's guardian has no budget for: an agent and the guardian's own rules, on a machine that only pretends."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from actors.clock import SystemClock
from actors.errors import StressError
from actors.messages import AMOUNTS, Amounts, Capacity, Halt, Operation, spoken
from actors.simulator import REGISTRY, peak_amounts
from cluster import agent_shell
from cluster.agent_api import AgentConfig
from cluster.agent_shell import AgentShell
from cluster.exchange import Goal, Order, Reply, Report, RunReport, Stage
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, parse
from tests.simulation.world.agent_host import quiet
from tests.support.guarded import Machine
from tests.support.waiting import until

CAPACITY: Final = Capacity(
    4.0, 1 << 34, 1 << 34, descriptors=10_000, tasks=10_000, inodes=10_000, locks=1000, mappings=10_000, ports=10_000
)
PLENTY: Final = Amounts(64.0, 1 << 36, 1 << 36, 100_000, 100_000, 100_000, 10_000)
KINDS: Final = sorted(REGISTRY)
LEVELS: Final = {"fraction": 0.25, "count": 10.0, "bytes": float(1 << 24), "per_second": float(1 << 20)}


def operation(kind: str) -> Operation:
    """Return a small operation of a kind, whatever it counts."""
    record = REGISTRY[kind]
    shape = {"kind": "constant", "level": LEVELS[record.units[0]]}
    return Operation(f"0.{kind}@n", kind, "n", 0.0, 10.0, record.units[0], shape, {}, seed=1)


def taken(kind: str) -> dict[str, Amounts]:
    """Return by amount that a kind takes limits that are one less than that, and plenty of all else."""
    peak = peak_amounts(operation(kind), CAPACITY)
    amounts = {name: amount for name, amount in zip(AMOUNTS, peak.values(), strict=True) if amount}
    return {name: replace(PLENTY, **{name: amount - (0.01 if name == "cpu_cores" else 1)}) for name, amount in amounts.items()}


class Guardian:
    """A guardian's rules as an agent reaches them. Its pages show nothing, for no load gets as far."""

    def __init__(self) -> None:
        self.machine, self._lock, self._known = Machine(), threading.Lock(), False
        self.hello = {"guardian_id": "g", "pid": 1, "halt": {"generation": 0, "on": False}}
        self.control = SimpleNamespace(halt=Halt(), halt_kept=Halt(), heartbeat_ns=1 << 62)
        self.stats = None

    @classmethod
    def connect(cls, *_: Any, **__: Any) -> Guardian:
        return cls()

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        with self._lock:
            if op == "open_slot" and not self._known:
                self.machine.hello(**{name: fields[name] for name in ("cluster", "node", "epoch", "incarnation")})
                self._known = True
            answer = dict(self.machine.call(op, **fields) or {})
        if not answer.pop("ok"):
            raise StressError(answer["code"], answer["message"])
        return answer


class Port:
    """An orchestrator that wants one run for each limit, and has each sealed once it is over."""

    exit = staticmethod(lambda: None)

    def __init__(self, wanted: dict[str, tuple[Operation, Amounts]]) -> None:
        self.wanted, self.runs = wanted, dict[str, RunReport]()
        self.recorded: dict[str, Counter[str]] = defaultdict(Counter)

    def exchange(self, report: Report, timeout_s: float) -> Reply:
        self.runs = {run.run: run for run in report.runs}
        return Reply(report.nonce, 1, report.t0_ns, tuple(map(self._order, self.wanted)))

    def _order(self, run: str) -> Order:
        one, limits = self.wanted[run]
        found = self.runs.get(run)
        goal = Goal.SEAL if found is not None and found.stage in {Stage.CLEAN, Stage.DELIVERED} else Goal.PREPARE
        return Order(run, goal, 5.0, operations=(one,), capacity=CAPACITY, machine_limits=limits)

    def push(self, run: str, node: str, incarnation: str, records: Any, timeout_s: float) -> int:
        for _, data in records:
            record = parse(data)
            for row in unseal(record.payload)[0].to_pylist() if record.kind is Kind.WINDOW else ():
                name = f"{row['metric']} {dict(row['labels']).get('code', '')} {row['worker']}".strip()
                self.recorded[run][name] += row["sum"] if row["kind"] == "counter" else 0
        return int(records[-1][0])

    def simulator(self, *_: Any) -> Any:
        raise AssertionError("a simulator is made for what was denied")


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Port]:
    """Each kind's operation under a limit that is one less than it takes, for each amount that it takes; all are over and delivered."""
    monkeypatch.setattr(agent_shell, "GuardianClient", Guardian)
    monkeypatch.setattr(
        agent_shell, "HostSampler", lambda *_: SimpleNamespace(snapshot=lambda: replace(quiet("n"), boot_ns=SystemClock().boot_ns()))
    )
    port = Port({f"{kind}-{name}": (operation(kind), limits) for kind in KINDS for name, limits in taken(kind).items()})
    config = AgentConfig("n", "c", 1, renew_s=0.02, window_s=2.0, environ={"STRESS_CLUSTER_STATE_DIR": str(tmp_path)})
    shell = AgentShell(config, port)  # type: ignore[arg-type]
    over = {Stage.DELIVERED}
    try:
        until(lambda: len(port.runs) == len(port.wanted) and {run.stage for run in port.runs.values()} == over, 30, lambda: str(port.runs))
        assert shell.guardian_status()["slots"] == []
        yield port
    finally:
        shell.leave()


def test_every_denial_is_typed_and_counted(denied: Port) -> None:
    """For each amount that a simulator takes: one less is a `budget` error that names it, counted once, and no load begins."""
    assert {run.partition("-")[0] for run in denied.wanted} == set(KINDS)
    for run, (one, _) in denied.wanted.items():
        told, counts = denied.runs[run], denied.recorded[run]
        assert told.failure_code == "budget", told
        assert spoken(run.partition("-")[2]) in told.failure, told
        assert counts[f"errors.seen budget {one.id}"] == 1, (run, counts)
        assert not [name for name in counts if name.startswith("operation.")], (run, counts)
