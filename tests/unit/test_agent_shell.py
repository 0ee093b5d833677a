"""The agent's threads against a guardian, a port and a sampler that only pretend."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from actors.clock import SystemClock
from actors.control import ControlWriter
from actors.messages import Amounts, Operation
from actors.shape import Constant
from cluster import agent_shell
from cluster.agent_api import AgentConfig
from cluster.agent_shell import AgentShell
from cluster.exchange import Goal, Order, Reply, Stage
from tests.simulation.world.agent_host import quiet
from tests.support import waiting

WAIT_S = 10.0
OPERATION = Operation("0.CpuLoad@n", "CpuLoad", "n", 0.0, 600.0, "fraction", Constant(0.1).to_spec())


class PretendedGuardian:
    """Answers like a guardian that has one slot; keeps what it was asked. Grants nothing before `grants` is set."""

    grants = threading.Event()
    grants.set()

    def __init__(self):
        self.hello = {"guardian_id": "g", "pid": 1, "halt": {"generation": 0, "on": False}}
        self.control, fd = ControlWriter.create()
        os.close(fd)
        self.control.beat(1 << 62)
        self.control.reset_slot(0, 1, 1, 1)
        load = SimpleNamespace(generation=1, first_slice_ns=1, state=2, heartbeat_ns=0, pid=0)
        self.stats = SimpleNamespace(read=lambda _: load, word=lambda *_: 0)
        self.close_asked, self.granted = threading.Event(), threading.Event()
        self.close_answers = [closed()]

    @classmethod
    def connect(cls, *_, **__):
        return cls()

    def close(self):
        """Nothing to end."""

    def call(self, op, **fields):
        if op == "grant":
            assert self.grants.wait(WAIT_S)
            for lease in fields["leases"]:
                self.control.write_lease(*lease)
            self.granted.set()
            return {"halt": {"generation": 0, "on": False}}
        if op == "close_slot":
            self.close_asked.set()
            return self.close_answers.pop(0) if len(self.close_answers) > 1 else self.close_answers[0]
        return {"slots": []} if op == "status" else {"slot": 0, "generation": 1}


def closed(**fields):
    return {"gone": True, "cause": "close", "stopped_ns": 5, "released_ns": 9, "outcomes": [], **fields}


class PretendedPort:
    """An orchestrator that wants load, and goes on to want it. `early_lease_s`: of what is not ready yet."""

    early_lease_s = 5.0

    def __init__(self):
        self.orders = []
        self.reports = []
        self.seen = threading.Condition()

    def exchange(self, report, timeout_s):
        with self.seen:
            self.reports.append(report)
            self.seen.notify_all()
        goal = Goal.START if report.runs else Goal.PREPARE
        stage = report.runs[0].stage if report.runs else None
        start = {"start_at_ns": report.t0_ns} if goal is Goal.START and stage is not Stage.PREPARING else {}
        if goal is Goal.START and not start:
            goal = Goal.PREPARE
        lease_s = 5.0 if start else self.early_lease_s
        order = Order("r", goal, lease_s, operations=(OPERATION,), machine_limits=Amounts(4.0, 1 << 30, 1 << 30), **start)
        return Reply(report.nonce, 1, report.t0_ns, (order,))

    def simulator(self, *_):
        return SimpleNamespace(prepare=lambda timeout_s: (), poll=dict, silent_s=lambda: 0.0, kill=lambda: None)

    def push(self, run, node, incarnation, records, timeout_s):
        return records[-1][0]

    def exit(self):
        """Nothing to end."""

    def until(self, wanted):
        """Return the first report that `wanted` accepts."""
        with self.seen:
            assert self.seen.wait_for(lambda: any(map(wanted, self.reports)), WAIT_S)
            return next(report for report in self.reports if wanted(report))


class Sampler:
    """Samples until it is told to fail or to hang."""

    def __init__(self):
        self.fails, self.hangs, self.go_on = threading.Event(), threading.Event(), threading.Event()

    def snapshot(self):
        if self.hangs.is_set():
            self.go_on.wait(WAIT_S)
        if self.fails.is_set():
            raise OSError("no /proc here")
        return replace(quiet("n"), boot_ns=SystemClock().boot_ns())


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A running agent; ends it afterwards."""
    sampler = Sampler()
    monkeypatch.setattr(agent_shell, "GuardianClient", PretendedGuardian)
    monkeypatch.setattr(agent_shell, "HostSampler", lambda *_: sampler)
    started = []

    def start(**fields):
        config = AgentConfig("n", "c", 1, renew_s=0.02, sample_hz=50.0, environ={"STRESS_CLUSTER_STATE_DIR": str(tmp_path)}, **fields)
        started.append(AgentShell(config, PretendedPort()))
        return started[0]

    yield SimpleNamespace(start=start, sampler=sampler)
    sampler.go_on.set()
    for shell in started:
        shell.leave()


@pytest.mark.parametrize("how", ["fails", "hangs"])
@pytest.mark.parametrize("when", ["from the start", "under load"])
def test_a_sampler_that_fails_or_hangs_ends_the_load(node, how, when):
    """The age of the last good snapshot is judged by threads that never wait for the sampler."""
    if when == "from the start":
        getattr(node.sampler, how).set()
    shell = node.start(stale_s=0.3)
    if when == "under load":
        assert shell._guardian.granted.wait(WAIT_S)
        getattr(node.sampler, how).set()
    assert shell._guardian.close_asked.wait(WAIT_S)
    report = shell._port.until(lambda one: bool(one.runs) and bool(one.runs[0].failure))
    assert (report.runs[0].failure_code, report.verdict_level) == ("safety_abort", 3)
    assert "no host snapshot for" in report.runs[0].failure


def test_a_load_that_waits_for_its_first_lease_is_not_lost(node, monkeypatch):
    """Its start and its first lease may come with one answer, and the guardian may take a while to write the lease."""
    monkeypatch.setattr(PretendedPort, "early_lease_s", 0.0)
    monkeypatch.setattr(PretendedGuardian, "grants", threading.Event())
    shell = node.start(stale_s=30.0)
    waiting.until(lambda: [op for _, op in shell._agent.live_slots() if op.stage == "running"], WAIT_S, "its first slice is seen")
    before = len(shell._port.reports)
    looks = count_of(shell, "_look_at_loads", monkeypatch)
    waiting.until(lambda: len(looks) > 3, WAIT_S, "looks at a load without a lease")
    PretendedGuardian.grants.set()
    report = shell._port.until(lambda one: shell._port.reports.index(one) > before + 3)
    assert (report.runs[0].stage, report.runs[0].failure) == (Stage.RUNNING, "")


def count_of(thing, name, monkeypatch):
    """Return a list that grows by one with each call of a method."""
    calls, real = [], getattr(thing, name)
    monkeypatch.setattr(thing, name, lambda: (real(), calls.append(1)))
    return calls


def test_another_guardian_is_told_of_once(node, monkeypatch):
    """A takeover that nobody would notice otherwise is in the run's story."""
    shell = node.start(stale_s=30.0)
    told = []
    monkeypatch.setattr(shell._metrics, "event", lambda kind, message, severity="info": told.append((kind, message)))
    shell._guardian.hello["pid"] = 2
    for _ in range(2):
        shell._watch_guardian(SystemClock().boot_ns())
    (found,) = [message for kind, message in told if kind == "guardian_replaced"]
    assert "process 1" in found
    assert "process 2" in found


def test_what_cannot_be_done_keeps_nothing_else_from_being_done(node, monkeypatch):
    """A throttle that the guardian refuses does not cost the close that was decided with it."""
    shell = node.start(stale_s=30.0)
    shell._port.until(lambda one: bool(one.runs) and one.runs[0].stage is Stage.RUNNING)
    real = shell._guardian.call

    def call(op, **fields):
        if op in {"grant", "throttle"}:
            raise agent_shell.StressError("timeout", "no answer")
        return real(op, **fields)

    monkeypatch.setattr(shell._guardian, "call", call)
    with shell._lock:
        shell._agent._do("throttle", data={"ceilings": []})
        shell._agent._fail(shell._agent.runs["r"], "internal", "for this test")
    assert shell._guardian.close_asked.wait(WAIT_S)


def test_what_failed_is_counted_under_its_code(node):
    """An effect that an error ended is in the run's metrics: by stable code, under the operation that it was for."""
    shell = node.start(stale_s=30.0)
    shell._port.until(lambda one: bool(one.runs) and one.runs[0].stage is Stage.RUNNING)
    told = []
    shell._metrics.error = lambda run, error, worker="", phase="": told.append((run, error, worker))
    refused = agent_shell.StressError("timeout", "no answer")

    def body(effect):
        raise refused

    shell._guarded(body, SimpleNamespace(what="close_slot", run="r", operation="op"))
    assert told == [("r", refused, "op")]


def test_metrics_that_hang_keep_no_load_alive(node):
    """A load that could not be prepared is ended and its slot closed while what records the error waits for a disk."""
    shell = node.start(stale_s=30.0)
    shell._port.until(lambda one: bool(one.runs) and one.runs[0].stage is Stage.RUNNING)
    hangs, go_on = threading.Event(), threading.Event()

    def error(*_):
        hangs.set()
        assert go_on.wait(WAIT_S)

    def body(effect):
        raise agent_shell.StressError("timeout", "no answer")

    shell._metrics.error = error
    telling = threading.Thread(target=shell._guarded, args=(body, SimpleNamespace(what="prepare", run="r", operation=OPERATION.id)))
    telling.start()
    try:
        assert hangs.wait(WAIT_S)
        assert shell._guardian.close_asked.wait(WAIT_S / 2)
    finally:
        go_on.set()
        telling.join()


def test_a_close_that_says_not_gone_is_asked_again_until_it_is(node, monkeypatch):
    """The simulator and its measurement stay until then, and the run's stage is not clean."""
    monkeypatch.setattr("cluster.agent.STUCK_ASK_NS", 1)
    stuck = {"record": "a", "kind": "process", "outcome": "stuck", "detail": "7(D)"}
    shell = node.start(stale_s=1.0)
    shell._guardian.close_answers = [closed(gone=False, outcomes=[stuck]), closed()]
    shell._port.until(lambda one: bool(one.runs) and one.runs[0].stage is Stage.RUNNING)
    with shell._lock:
        shell._agent._fail(shell._agent.runs["r"], "internal", "for this test")
    report = shell._port.until(lambda one: bool(one.runs) and bool(one.runs[0].unclean))
    assert (report.runs[0].stage, report.runs[0].unclean) == (Stage.STOPPING, ("process stuck: 7(D)",))
    report = shell._port.until(lambda one: bool(one.runs) and one.runs[0].stage is Stage.CLEAN)
    assert report.runs[0].unclean == ()


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        pytest.param({"phase": "failed", "reason": "no memory"}, [("internal", "no memory")], id="failed"),
        pytest.param({"phase": "expired"}, [("expired", "its lease ended")], id="expired"),
        pytest.param({"phase": "done"}, [], id="as-planned"),
    ],
)
def test_the_end_of_a_load_that_nobody_asked_for_is_an_error_once(node, status, counted):
    """In the run's metrics by stable code, with operation and phase; an end as planned is none, and one that closes counts no more."""
    shell = node.start(stale_s=30.0)
    shell._port.until(lambda one: bool(one.runs) and one.runs[0].stage is Stage.RUNNING)
    told = []
    shell._metrics.error = lambda run, error, worker="", phase="": told.append((run, worker, phase, error))
    (simulator,) = shell._simulators.values()
    shell._guardian.close_answers = [closed(gone=False)]
    simulator.poll = lambda: status
    assert shell._guardian.close_asked.wait(WAIT_S)
    seen = len(shell._port.reports)
    shell._port.until(lambda one: shell._port.reports.index(one) > seen + 5)
    assert [(error.code, error.message) for *_, error in told] == counted, shell._troubles
    assert all(found[:3] == ("r", OPERATION.id, OPERATION.phase) for found in told)
