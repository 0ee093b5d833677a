"""What a node's agent decides, call by call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.clock import SECOND_NS
from actors.messages import Allocation, Amounts, Capacity, Halt, Operation, Shortfall
from cluster.agent import Agent
from cluster.agent_state import Stage
from cluster.exchange import Goal, Order, Reply
from cluster.exchange import Stage as RunStage
from cluster.load_end import TELL_S, Silence
from cluster.safety.policies import OK, Level, Verdict
from tests.simulation.world.agent_host import quiet

S = SECOND_NS
CAPACITY = Capacity(4.0, 1 << 30, 1 << 30)
OPERATION = Operation("0.CpuLoad@n", "CpuLoad", "n", 0.5, 4.0, "fraction", {"shape": "constant", "level": 0.5})


class Driven:
    """An agent with the least of a shell: asks, takes answers, keeps effects."""

    def __init__(self):
        self.core = Agent("n", "c", "machine", 7, 1, CAPACITY)
        self.now_ns = 100 * S

    def exchange(self, *orders, later_s=0.01, epoch=1, **fields):
        report = self.core.report(self.now_ns)
        t0_ns = self.now_ns
        self.now_ns += round(later_s * S)
        self.core.on_reply(Reply(report.nonce, epoch, t0_ns - 40 * S, orders, **fields), t0_ns, self.now_ns)
        return self.effects()

    def effects(self):
        return self.core.drain()[0]

    def whats(self):
        return [effect.what for effect in self.effects()]

    def brought_to(self, stage):
        self.exchange(order(Goal.PREPARE, operations=(OPERATION,)))
        if stage is Stage.OPENING:
            return self
        self.core.on_opened("r", OPERATION.id, 3, 9)
        if stage is not Stage.PREPARING:
            self.core.on_prepared("r", OPERATION.id)
        if stage in {Stage.ARMED, Stage.RUNNING}:
            self.exchange(order(Goal.START, start_at_ns=61 * S))
        if stage is Stage.RUNNING:
            self.core.on_first_slice("r", OPERATION.id, self.now_ns)
        assert self.stage() is stage
        self.effects()
        return self

    def stage(self):
        return self.core.runs["r"].operations[OPERATION.id].stage


def order(goal, lease_s=5.0, **fields):
    return Order(
        "r", goal, 0.0 if goal not in {Goal.PREPARE, Goal.START} else lease_s, machine_limits=Amounts(4.0, 1 << 30, 1 << 30), **fields
    )


@pytest.mark.parametrize("later_s", [0.01, 3.0, 11.0])
def test_a_lease_counts_from_the_question_however_late_its_answer_is(later_s):
    """A reply that waited in a queue extends nothing."""
    agent = Driven().brought_to(Stage.RUNNING)
    asked_ns = agent.now_ns
    (grant,) = [one for one in agent.exchange(order(Goal.START), later_s=later_s) if one.what == "grant"]
    assert grant.data["leases"] == [[3, 9, asked_ns + 5 * S]]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"nonce": -1}, "an answer to an older question"), ({"epoch": 0}, "an older orchestrator"), ({"refused": "replaced"}, "a refusal")],
)
def test_what_renews_nothing(change, why):
    """Late, foreign and refusing answers leave every lease as it is."""
    agent = Driven().brought_to(Stage.RUNNING)
    report = agent.core.report(agent.now_ns)
    fields = {"nonce": report.nonce, "epoch": 1, "refused": "", **change}
    agent.core.on_reply(Reply(received_ns=0, orders=(order(Goal.START),), **fields), agent.now_ns, agent.now_ns + 1)
    assert "grant" not in agent.whats(), why


def test_the_first_answer_of_two_to_one_question_is_enough():
    """Once a newer question is out, an answer to the older one counts no more."""
    agent = Driven().brought_to(Stage.RUNNING)
    old = agent.core.report(agent.now_ns)
    agent.core.report(agent.now_ns + S)
    agent.core.on_reply(Reply(old.nonce, 1, 0, (order(Goal.START),)), agent.now_ns, agent.now_ns + 2 * S)
    assert "grant" not in agent.whats()


@pytest.mark.parametrize("stage", [Stage.PREPARING, Stage.READY, Stage.ARMED, Stage.RUNNING])
def test_a_stop_closes_what_holds_a_slot_and_nothing_is_granted_after(stage):
    """From each such stage: close, and CLEAN only when the guardian has said so."""
    agent = Driven().brought_to(stage)
    assert [one.what for one in agent.exchange(order(Goal.STOP, grace_s=1.0))] == ["close_slot"]
    assert agent.core.runs["r"].stage() is RunStage.STOPPING
    assert "grant" not in [one.what for one in agent.exchange(order(Goal.START))]
    agent.core.on_closed("r", OPERATION.id, agent.now_ns, [])
    assert agent.core.runs["r"].stage() is RunStage.CLEAN


def test_what_an_operation_held_is_reported_once_it_is_gone():
    """With the guardian's word on its end, as its node counted it."""
    agent = Driven().brought_to(Stage.RUNNING)
    held = Allocation("descriptors", 5.0, 5.0, 0.1, release=0.0)
    agent.exchange(order(Goal.STOP))
    assert agent.core.report(agent.now_ns).runs[0].operations[0].allocation is None
    agent.core.on_closed("r", OPERATION.id, agent.now_ns, [], agent.now_ns, held)
    assert agent.core.report(agent.now_ns).runs[0].operations[0].allocation == held


def test_a_stop_while_the_slot_is_being_opened_closes_it_as_soon_as_it_is_known():
    """No slot is forgotten between question and answer of the guardian."""
    agent = Driven().brought_to(Stage.OPENING)
    agent.exchange(order(Goal.STOP))
    agent.core.on_opened("r", OPERATION.id, 3, 9)
    assert "close_slot" in agent.whats()
    assert agent.stage() is Stage.CLOSING


def test_the_start_time_is_told_in_the_nodes_own_clock():
    """The offset between the two clocks comes from the exchange, and the operation's own offset is added."""
    agent = Driven().brought_to(Stage.READY)
    (write,) = [one for one in agent.exchange(order(Goal.START, start_at_ns=61 * S)) if one.what == "write_start"]
    assert abs(write.data["start_ns"] - round(101.5 * S)) < 0.01 * S


def test_a_refused_slot_fails_the_run_here_with_the_guardians_code():
    """There is nothing to close, and the orchestrator learns why."""
    agent = Driven().brought_to(Stage.OPENING)
    agent.core.on_refused("r", OPERATION.id, "budget", "too much")
    (run,) = agent.core.report(agent.now_ns).runs
    assert (run.stage, run.failure_code, run.failure) == (RunStage.CLEAN, "budget", "too much")


def test_abort_ends_everything_here_at_once():
    """The node does not wait for anybody's answer."""
    agent = Driven().brought_to(Stage.RUNNING)
    agent.core.on_snapshot(quiet("n"), Verdict(Level.ABORT, "memory"), {})
    (close,) = [one for one in agent.effects() if one.what == "close_slot"]
    assert close.data["grace_s"] == 0.0
    assert agent.core.report(agent.now_ns).verdict_level == Level.ABORT


def test_shed_lowers_only_the_ceiling_of_what_it_is_about():
    """A busy CPU is no reason to give memory back."""
    agent = Driven().brought_to(Stage.RUNNING)
    agent.core.on_snapshot(
        quiet("n"), Verdict(Level.SHED, "busy"), {"cpu_cores": Verdict(Level.SHED, "busy"), "memory_bytes": OK, "disk_bytes": OK}
    )
    (throttle,) = [one for one in agent.effects() if one.what == "throttle"]
    assert throttle.data["ceilings"] == [[3, 9, pytest.approx(0.9)]]
    assert agent.core.ceilings["memory_bytes"] == 1.0


def test_a_run_that_an_earlier_agent_left_is_clean_only_when_it_was_swept():
    """Adopted, ended by the guardian, then delivered and forgotten; never loaded."""
    agent = Driven()
    agent.core.adopt("r")
    assert agent.core.runs["r"].stage() is RunStage.STOPPING
    assert agent.exchange(order(Goal.PREPARE, operations=(OPERATION,))) == []
    agent.core.on_swept("r")
    assert agent.core.runs["r"].stage() is RunStage.CLEAN
    agent.effects()
    assert [one.what for one in agent.exchange(order(Goal.SEAL))] == ["seal"]
    agent.core.on_delivered("r")
    assert agent.core.runs["r"].stage() is RunStage.DELIVERED
    assert "forget" in [one.what for one in agent.exchange(order(Goal.FORGET))]
    assert agent.core.idle()


def test_the_newer_halt_wins_on_both_ways():
    """The orchestrator's goes to the guardian with every answer until the guardian has it; the guardian's goes to the orchestrator."""
    agent = Driven()
    agent.core.on_halt(Halt(4, on=True), Halt(3))
    assert agent.whats() == ["exchange"]
    report = agent.core.report(agent.now_ns)
    assert (report.halt, report.halt_kept) == (Halt(4, on=True), Halt(3))
    assert agent.exchange(halt=Halt(3, on=False)) == []
    assert agent.exchange(halt=Halt(4, on=False)) == []
    for _ in range(2):
        (effect,) = agent.exchange(halt=Halt(5, on=False))
        assert (effect.what, dict(effect.data)) == ("halt", {"generation": 5, "on": False})
    agent.core.on_halt(Halt(5), Halt(5))
    assert agent.whats() == ["exchange"]
    assert agent.exchange(halt=Halt(5, on=False)) == []
    agent.core.on_halt(Halt(5), Halt(5))
    assert agent.effects() == []


@pytest.mark.parametrize("stage", [Stage.OPENING, Stage.PREPARING, Stage.READY, Stage.RUNNING])
def test_a_halt_given_on_the_node_ends_its_runs_as_halted(stage):
    """Whatever is seen of the load afterwards, its lease's end included, the reason stays the halt."""
    agent = Driven().brought_to(stage)
    agent.core.on_halt(Halt(1, on=True), Halt())
    if stage is Stage.OPENING:
        agent.core.on_opened("r", OPERATION.id, 3, 9)
    agent.core.on_load_ended("r", OPERATION.id, planned=False, reason="its lease ended", code="expired")
    assert {"close_slot", "exchange"} <= set(agent.whats())
    (run,) = agent.core.report(agent.now_ns).runs
    assert (run.failure_code, run.failure) == ("halted", "emergency halt (generation 1)")


def test_a_run_that_was_told_to_stop_is_not_failed_by_the_halt_that_stopped_it():
    """The order to stop came with the halt; only the guardian's word is waited for."""
    agent = Driven().brought_to(Stage.RUNNING)
    agent.exchange(order(Goal.STOP, kill=True), halt=Halt(1, on=True))
    agent.core.on_halt(Halt(1, on=True), Halt(1, on=True))
    assert agent.core.report(agent.now_ns).runs[0].failure == ""


STUCK = ({"record": "a", "kind": "process", "outcome": "stuck", "detail": "processes 7(D) are left"},)


def test_what_is_stuck_is_not_clean_and_asked_for_again_at_a_slow_pace():
    """The report names it; only the guardian's word that it is gone ends the operation, and then nothing is unclean."""
    agent = Driven().brought_to(Stage.RUNNING)
    agent.exchange(order(Goal.STOP))
    agent.core.on_stuck("r", OPERATION.id, STUCK, agent.now_ns)
    (run,) = agent.core.report(agent.now_ns).runs
    assert (run.stage, run.unclean) == (RunStage.STOPPING, ("process stuck: processes 7(D) are left",))
    assert agent.whats() == ["exchange"]
    agent.core.ask_again(agent.now_ns + S)
    assert agent.whats() == []
    agent.core.ask_again(agent.now_ns + 2 * S)
    agent.core.ask_again(agent.now_ns + 3 * S)
    assert agent.whats() == ["close_slot"], "asked once, until it is answered"
    agent.core.on_closed("r", OPERATION.id, agent.now_ns, [], agent.now_ns + S)
    (run,) = agent.core.report(agent.now_ns).runs
    assert (run.stage, run.unclean) == (RunStage.CLEAN, ())
    assert run.last_released_ns - run.last_gone_ns == S


def test_a_seal_that_failed_is_tried_again_with_the_next_order():
    """Once at a time, and never after it was done."""
    agent = Driven()
    agent.core.adopt("r")
    agent.core.on_swept("r")
    agent.effects()
    assert [one.what for one in agent.exchange(order(Goal.SEAL))] == ["seal"]
    assert agent.exchange(order(Goal.SEAL)) == []
    agent.core.on_seal_failed("r")
    assert [one.what for one in agent.exchange(order(Goal.SEAL))] == ["seal"]


@pytest.mark.parametrize(
    ("on_failure", "code", "goes_on"), [("continue", "internal", True), ("stop", "internal", False), ("continue", "expired", False)]
)
def test_a_load_that_fails_ends_the_run_or_its_own_part(on_failure, code, goes_on):
    """As its sequence says, once the run has begun; a lease that ended is a lost node, whatever it says."""
    other = replace(OPERATION, id="1.CpuLoad@n")
    agent = Driven()
    agent.exchange(order(Goal.PREPARE, operations=(replace(OPERATION, on_failure=on_failure), other)))
    for slot, one in enumerate((OPERATION, other)):
        agent.core.on_opened("r", one.id, slot, 9)
        agent.core.on_prepared("r", one.id)
    agent.exchange(order(Goal.START, start_at_ns=61 * S))
    agent.core.drain()
    agent.core.on_load_ended("r", OPERATION.id, planned=False, reason="it broke", code=code)
    effects, events = agent.core.drain()
    closed = [effect.operation for effect in effects if effect.what == "close_slot"]
    report = agent.core.report(agent.now_ns).runs[0]
    assert closed == ([OPERATION.id] if goes_on else [OPERATION.id, other.id])
    assert [event.kind for event in events] == (["part_failed"] if goes_on else ["node_failed"])
    assert (report.failure == "", report.operations[0].reason) == (goes_on, "it broke")


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_what_fails_before_the_run_begins_ends_it(on_failure):
    """Then nothing has been loaded yet, and all of the plan is to be."""
    agent = Driven()
    agent.exchange(order(Goal.PREPARE, operations=(replace(OPERATION, on_failure=on_failure),)))
    agent.core.on_opened("r", OPERATION.id, 3, 9)
    agent.core.on_load_ended("r", OPERATION.id, planned=False, reason="it broke")
    assert agent.core.report(agent.now_ns).runs[0].failure == f"{OPERATION.id}: it broke"


def test_what_a_load_could_not_get_is_reported_and_told_once():
    """The first shortfall is an event with its figures, a larger one only a figure, and one that was made up is gone from the report."""
    agent = Driven().brought_to(Stage.RUNNING)
    agent.core.drain()
    for allocated in (4, 5):
        agent.core.on_shortfall("r", OPERATION.id, Shortfall("EMFILE", 10, allocated))
    (event,) = agent.core.drain()[1]
    assert (event.kind, event.severity) == ("partial", "warning")
    assert event.data == {"run": "r", "operation": OPERATION.id, "errno": "EMFILE", "requested": 10, "allocated": 4}
    assert agent.core.report(agent.now_ns).runs[0].operations[0].shortfall == Shortfall("EMFILE", 10, 5)
    agent.core.on_shortfall("r", OPERATION.id, None)
    assert agent.core.report(agent.now_ns).runs[0].operations[0].shortfall is None
    assert agent.core.drain()[1] == []


def test_a_silence_is_told_within_five_seconds_and_its_end_too():
    """Once each, before the load is ended for it at the default lease; the operation's health says so meanwhile."""
    agent = Driven().brought_to(Stage.RUNNING)
    for seconds in (TELL_S, TELL_S + 0.1, TELL_S + 1.0):
        agent.core.on_silence("r", OPERATION.id, Silence("its load process", seconds))
    (told,) = agent.core.drain()[1]
    assert (told.kind, told.severity, told.data) == ("silent", "warning", {"run": "r", "operation": OPERATION.id})
    assert "its load process has given no sign of life for 3.1 s" in told.message
    assert TELL_S + 0.1 < 5.0
    assert agent.core.report(agent.now_ns).runs[0].operations[0].health == "silent"
    agent.core.on_silence("r", OPERATION.id, Silence("its simulator", 0.1))
    assert [event.kind for event in agent.core.drain()[1]] == ["heard_again"]
    assert agent.core.report(agent.now_ns).runs[0].operations[0].health == ""


@pytest.mark.parametrize(
    ("requested", "achieved", "want"),
    [
        pytest.param(0.5, 0.46, "well", id="within-five-points"),
        pytest.param(0.5, 0.44, "short", id="less"),
        pytest.param(0.5, 0.56, "over", id="more"),
        pytest.param(None, None, "", id="not-measured-yet"),
    ],
)
def test_health_holds_what_is_measured_against_what_is_asked(requested, achieved, want):
    """By the last window and the tolerance that the dose is judged by; nothing is said of what does not load."""
    agent = Driven().brought_to(Stage.RUNNING)
    operation = agent.core.runs["r"].operations[OPERATION.id]
    operation.requested, operation.achieved = requested, achieved
    assert agent.core.report(agent.now_ns).runs[0].operations[0].health == want
    agent.core.on_load_ended("r", OPERATION.id, planned=True, reason="")
    assert agent.core.report(agent.now_ns).runs[0].operations[0].health == ""
