"""The orchestrator's shell without Ray: what waits for the disk and what does not, and how a halt reaches every node."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from actors.errors import HarnessError, InputError, RefusedError
from actors.messages import Amounts, Capacity, Halt, NodeSpec, Operation
from cluster.exchange import Goal, Report, RunReport, Stage
from cluster.journal import Journal, Past
from cluster.orchestrator_api import OrchestratorConfig, Submission
from cluster.orchestrator_shell import Extras, OrchestratorShell
from cluster.records import Admission
from scenarios import plan as plans
from scenarios import text
from scenarios.recording import Metrics
from tests.support import waiting

ONE = Amounts(0.5, 10, 0)
SCENARIO = "version: 1\nname: x\nplan: {CpuLoad: {fraction: 10%}, for: 5s}\n"
CAPACITY = Capacity(2.0, 1000, 1000)
REPORT = {"simulators": {"CpuLoad": {"verdict": "available", "reason": ""}}}


class Agent:
    """A node with an agent: asks on a thread of its own when it is poked, and keeps every halt that it is told."""

    def __init__(self, node, cluster):
        self.node, self.cluster, self.pokes = node, cluster, 0
        self.halt, self.kept, self.is_deaf = cluster.guardians.get(node, Halt()), cluster.guardians.get(node, Halt()), node in cluster.deaf
        self.number = 0

    def report(self):
        self.number += 1
        return Report(self.node, f"m-{self.node}", "c", 1, 1, self.number, 0, halt=self.halt, halt_kept=self.kept)

    def ask(self):
        reply = self.cluster.shell.exchange(self.report())
        if reply.halt > self.halt:
            self.halt = self.kept = reply.halt
            self.cluster.shell.exchange(self.report())
        return reply

    def poke(self):
        self.pokes += 1
        if self.node in self.cluster.dead:
            raise HarnessError("lost", "its process is gone")
        if not self.is_deaf:
            threading.Thread(target=self.ask, daemon=True).start()

    def hello(self, timeout_s):
        self.cluster.greeting.wait(timeout_s)
        self.poke()
        return {"code_id": "", "machine": f"m-{self.node}", "capacity": CAPACITY, "halt": self.halt, "report": REPORT}

    def leave(self):
        pass


class Cluster:
    """The port of a cluster with these nodes. `guardians`: what their guardians keep before any agent is there."""

    def __init__(self, tmp_path, monkeypatch, *nodes, guardians=None, deaf=(), past=()):
        self.alive, self.guardians, self.deaf, self.dead = set(nodes), guardians or {}, deaf, set()
        self.greeting = threading.Event()
        self.greeting.set()
        self.agents = {}
        for module in ("orchestrator_shell", "crew"):
            monkeypatch.setattr(f"cluster.{module}.check_same_code", lambda *_: None)
        monkeypatch.setattr("cluster.orchestrator_shell.HALT_S", 0.3)
        monkeypatch.setattr("cluster.orchestrator_shell.HIRE_S", 0.3 if deaf else 5.0)
        self.journal = Journal(tmp_path / "journal")
        self.journal.append(past)
        self.shell = OrchestratorShell(OrchestratorConfig(lease_s=5.0), self, "c", 1, self.journal)

    def end_actor(self, actor):
        pass

    def nodes(self):
        return [NodeSpec(name) for name in sorted(self.alive)]

    def agent(self, config):
        self.agents[config.node] = Agent(config.node, self)
        return self.agents[config.node]

    def agent_alive(self, node):
        return node in self.alive

    def exit(self):
        pass

    def hire(self, *nodes):
        self.shell._crew.hello_all(nodes)
        waiting.until(lambda: not self.shell._unheard(set(nodes)), 5, "all agents were heard")

    def admit(self, run, *nodes):
        operation = {node: (Operation(f"0.CpuLoad@{node}", "CpuLoad", node, 0.0, 4.0, "fraction", {}),) for node in nodes}
        hellos = {node: {"machine": node, "capacity": CAPACITY, "halt": Halt()} for node in nodes}
        self.shell._admit_now(Admission(run, operation, dict.fromkeys(nodes, ONE), 4.0), hellos)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    made = []

    def make(*nodes, **options):
        made.append(Cluster(tmp_path, monkeypatch, *nodes, **options))
        return made[-1]

    yield make
    for one in made:
        one.greeting.set()
        one.shell.leave()


@pytest.fixture
def slow_disk(monkeypatch):
    """Return (waits, go): a sync sets the one and waits for the other."""
    waits, go = threading.Event(), threading.Event()

    def hold(self):
        waits.set()
        assert go.wait(10)

    monkeypatch.setattr(Journal, "sync", hold)
    yield waits, go
    go.set()


# ---- grants and the disk


def test_an_exchange_waits_for_no_sync_and_no_node_hears_of_a_run_before_its_admission_is_on_disk(cluster, slow_disk):
    """The admission's caller waits; agents are answered meanwhile, without the run, and then with it."""
    here = cluster("n1")
    here.hire("n1")
    waits, go = slow_disk
    admitting = threading.Thread(target=here.admit, args=("r", "n1"))
    admitting.start()
    assert waits.wait(10)
    assert here.agents["n1"].ask().orders == ()
    assert admitting.is_alive()
    before = here.agents["n1"].pokes
    go.set()
    admitting.join(10)
    assert here.agents["n1"].pokes > before
    assert [order.goal for order in here.agents["n1"].ask().orders] == [Goal.PREPARE]


def test_a_halt_that_a_node_brings_is_answered_before_it_is_on_disk_and_gets_there(cluster, slow_disk):
    """The node that was halted and all others go on asking; the sync is somebody else's wait."""
    here = cluster("n1", "n2")
    here.hire("n1", "n2")
    waits, go = slow_disk
    halted = replace(here.agents["n1"].report(), halt=Halt(4, on=True))
    assert here.shell.exchange(halted).halt == Halt(4, on=True)
    assert waits.wait(10)
    waiting.until(lambda: here.agents["n2"].halt == Halt(4, on=True), 5, "the other node hears of it, poked, before the disk")
    go.set()
    assert here.journal.replay() == Past(4, True)


def test_a_poke_waits_for_no_worker(cluster):
    """With every worker held by a slow node's hello, a halt still reaches the agents that are there; a dead one stops nothing."""
    here = cluster("n1", "n2")
    here.hire("n1", "n2")
    here.dead.add("n1")
    here.greeting.clear()
    for _ in range(20):
        here.shell._workers.submit(here.agents["n2"].hello, 30)
    before = here.agents["n2"].pokes
    here.shell._set_halt(True, 0)
    assert here.agents["n2"].pokes == before + 1


# ---- halt and resume


def test_a_halt_reaches_nodes_without_an_agent_and_names_who_has_it_on_disk(cluster):
    """Agents are started everywhere; the generation is above the caller's and above what any node keeps."""
    here = cluster("n1", "n2", guardians={"n2": Halt(7)})
    here.hire("n1")
    told = here.shell.halt(True, above=3)
    assert (told["nodes"], told["unreached"], told["on"]) == (["n1", "n2"], [], True)
    assert told["generation"] > 7
    assert {agent.kept for agent in here.agents.values()} == {Halt(told["generation"], on=True)}


def test_a_halt_is_told_to_the_agents_that_are_there_before_others_are_started(cluster, monkeypatch):
    """Starting agents takes seconds, and no load waits for it to end."""
    here = cluster("n1", "n2")
    here.hire("n1")
    seen = []
    monkeypatch.setattr(here.shell._crew, "hire_everywhere", lambda: seen.append(here.agents["n1"].pokes) or ({"n1"}, set()))
    before = here.agents["n1"].pokes
    here.shell.halt(True)
    assert seen == [before + 1]


def test_a_resume_after_the_orchestrator_left_lifts_what_its_journal_and_the_nodes_keep(cluster):
    """A new orchestrator begins under the journalled halt, hears the nodes first, and is newer than all of them."""
    here = cluster("n1", "n2", guardians={"n1": Halt(9, on=True)}, past=[{"run": "", "kind": "halt", "generation": 4, "on": True}])
    told = here.shell.halt(False, above=2)
    assert (told["nodes"], told["unreached"], told["on"]) == (["n1", "n2"], [], False)
    assert told["generation"] > 9
    assert {agent.kept for agent in here.agents.values()} == {Halt(told["generation"])}
    assert here.journal.replay() == Past(told["generation"], False)


@pytest.mark.parametrize("on", [True, False])
def test_a_node_that_does_not_confirm_is_named(cluster, on):
    """Within the time, and beside those that did."""
    here = cluster("n1", "n2", deaf=("n2",))
    told = here.shell.halt(on)
    assert told["nodes"] == ["n1"]
    assert [line.split(":")[0] for line in told["unreached"]] == ["n2"]


def test_a_node_of_a_live_run_that_ray_has_lost_is_not_reached(cluster):
    """It is no alive node, and its load ends with its lease; the answer says so and which runs the halt ended."""
    here = cluster("n1", "n2")
    here.hire("n1", "n2")
    here.admit("r", "n1", "n2")
    here.alive.discard("n2")
    told = here.shell.halt(True)
    assert told["runs"] == [{"run": "r"}]
    assert [line.split(":")[0] for line in told["unreached"]] == ["n2"]
    assert "lease" in told["unreached"][0]


def test_a_run_is_refused_for_a_halt_that_only_a_node_knows(cluster):
    """What a node's hello shows counts at admission, before that node's first question."""
    here = cluster("n1")
    with pytest.raises(RefusedError) as error:
        here.shell._admit_now(Admission("r", {}, {}, 4.0), {"n1": {"machine": "m", "capacity": CAPACITY, "halt": Halt(3, on=True)}})
    assert error.value.code == "halted"


# ---- settings of a second run


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        pytest.param({"lease_s": 2.0}, "lease_s is 5.0 here, 2.0 was asked", id="lease"),
        pytest.param({"nodes_max": 1}, "budget.max_nodes is None here, 1 was asked", id="budget"),
        pytest.param({"stale_s": 1.0}, "stale_s is 2.0 here, 1.0 was asked", id="safety"),
    ],
)
@pytest.mark.parametrize("ask", [OrchestratorShell.submit, OrchestratorShell.preview])
def test_a_run_of_other_settings_is_refused_by_name(cluster, ask, asked, named):
    """Its manifest would tell of a lease or a budget that were never in force."""
    here = cluster("n1")
    with pytest.raises(RefusedError) as error:
        ask(here.shell, Submission("r", "", 1, config=OrchestratorConfig(**asked)))
    assert (error.value.code, error.value.exit_code) == ("busy", 6)
    assert named in error.value.message


def test_what_binds_no_other_run_may_differ():
    """The profile travels with each run; how long an idle orchestrator stays is nobody's business."""
    assert OrchestratorConfig().differences(OrchestratorConfig(profile="conservative", idle_exit_s=3.0, code_id="x")) == []


def test_a_machine_that_left_counts_for_no_budget(cluster):
    """The budget is a share of the machines that are alive when a run is admitted."""
    here = cluster("n1", "n2")
    here.hire("n1", "n2")
    here.alive.discard("n2")
    seen = []
    here.shell._admit_now = lambda admission, alive: seen.append(sorted(alive))
    admit_submission(here)
    assert seen == [["n1"]]


class Aggregator:
    def call(self, *_, **__):
        pass


def admit_submission(here):
    """Have a small run admitted on n1."""
    here.aggregator = lambda *_, **__: Aggregator()
    scenario = {"version": 1, "name": "small", "targets": {"names": ["n1"]}, "plan": {"CpuLoad": {"fraction": "10%"}, "for": "4s"}}
    here.shell.submit(Submission("r", json.dumps(scenario), 1, allow_head=True))


def test_an_orchestrator_at_work_is_not_sent_away(cluster):
    """Who wants another in its place is told so: the run of a driver that was quicker goes on."""
    one = cluster("a")
    one.hire("a")
    one.admit("r1", "a")
    assert not one.shell.leave(True)
    assert not one.shell._ending.is_set()
    with one.shell._deciding():
        one.shell._core.runs.clear()
    assert one.shell.leave(True)
    assert one.shell._ending.is_set()


# ---- what a live run records


def test_modify_answers_once_every_node_has_confirmed(cluster, monkeypatch):
    """It pokes the nodes and waits for their word; one that does not answer is named; the next change builds on this one."""
    monkeypatch.setattr("cluster.orchestrator_shell.MODIFY_S", 0.3)
    here = cluster("n1", "n2")
    here.hire("n1", "n2")
    here.admit("r", "n1", "n2")
    plan = plans.resolve(text.load(SCENARIO), here.nodes(), 1)
    here.shell._extras["r"] = Extras(plan, Submission("r", SCENARIO, 1), aggregator=None, probing=None)

    def report(self):
        self.number += 1
        theirs = RunReport("r", Stage.READY, recording=self.recording)
        return Report(self.node, f"m-{self.node}", "c", 1, 1, self.number, 0, (theirs,))

    def ask(self):
        reply = self.cluster.shell.exchange(self.report())
        if self.node != "n2" and reply.orders:
            self.recording = reply.orders[0].terms["recording"]
            self.cluster.shell.exchange(self.report())

    monkeypatch.setattr(Agent, "recording", "", raising=False)
    monkeypatch.setattr(Agent, "report", report)
    monkeypatch.setattr(Agent, "ask", ask)
    told = here.shell.modify("r", ["metrics.level=minimal"])
    assert (told["nodes"], [one.partition(":")[0] for one in told["unreached"]]) == (["n1"], ["n2"])
    here.shell.modify("r", ["metrics.mode=detailed"])
    assert here.shell._extras["r"].plan.scenario.metrics == Metrics("minimal", "detailed")
    for run, change in (("r", "seed=9"), ("other", "metrics.level=minimal")):
        with pytest.raises(InputError):
            here.shell.modify(run, [change])
    assert [event.message for event in here.shell._core.runs["r"].events if event.kind == "modified"] == [
        "recording changed: metrics.level=minimal",
        "recording changed: metrics.mode=detailed",
    ]
