"""What the orchestrator decides, call by call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.clock import SECOND_NS
from actors.errors import RefusedError
from actors.messages import Amounts, Halt, Operation
from cluster.ending import ending_of
from cluster.exchange import Goal, OperationReport, Report, RunReport, Stage
from cluster.journal import Past
from cluster.orchestrator import Orchestrator
from cluster.records import Admission
from cluster.run_state import Phase
from cluster.safety.budget import Budget
from cluster.times import Times
from cluster.verdict import Cause

S = SECOND_NS
TIMES = Times(lease_s=5.0, allowance_s=1.0, prepare_s=10.0, stop_s=8.0, collect_s=3.0)
ONE = Amounts(1.0, 10, 0)


def operation(node):
    return Operation(f"0.CpuLoad@{node}", "CpuLoad", node, 0.0, 4.0, "fraction", {"shape": "constant", "level": 0.1})


def admission(*nodes, run="r", **options):
    return Admission(run, {node: (operation(node),) for node in nodes}, dict.fromkeys(nodes, ONE), 4.0, **options)


def made(past=None, now_s=0):
    return Orchestrator("c", 3, TIMES, Budget(nodes_max=3, cpu_cores_max=3.0), past or Past(), now_s * S)


def report(node, stage=None, *, run="r", incarnation=7, machine="", **fields):
    of_run = {key: fields.pop(key) for key in ("failure", "failure_code", "unclean", "operations") if key in fields}
    runs = () if stage is None else (RunReport(run, stage, **of_run),)
    return Report(node, machine or f"m-{node}", "c", incarnation, 3, 1, 0, runs, **fields)


def order(core, node, stage, now_s, **fields):
    reply = core.exchange(report(node, stage, **fields), round(now_s * S))
    return next((one for one in reply.orders if one.run == fields.get("run", "r")), None)


def brought_to(phase, *nodes, **options):
    """Return an orchestrator whose run on these nodes is in a phase, at 1 s (2 s when running)."""
    core = made()
    core.admit(admission(*nodes, **options), 0)
    if phase is Phase.PREPARING:
        return core
    for node in nodes:
        order(core, node, Stage.READY, 1)
    if phase is Phase.RUNNING:
        core.tick(2 * S)
    assert core.runs["r"].phase is phase
    return core


@pytest.mark.parametrize(
    ("before", "code"),
    [
        pytest.param(lambda core: core.set_halt(True, 0), "halted", id="under-a-halt"),
        pytest.param(lambda core: core.admit(admission("n1", "n2", "n3", run="other"), 0), "budget", id="over-the-budget"),
    ],
)
def test_a_run_that_may_not_run_is_refused_and_changes_nothing(before, code):
    """The reason is a stable code, and nothing is held afterwards."""
    core = made()
    before(core)
    ledger = core.ledger
    with pytest.raises(RefusedError) as error:
        core.admit(admission("n1"), 4)
    assert error.value.code == code
    assert core.ledger == ledger
    assert "r" not in core.runs


def test_a_successor_admits_once_the_earlier_load_is_over():
    """The wait ends at its instant."""
    core = made(Past(open_runs=("old",)), 10)
    with pytest.raises(RefusedError, match="earlier orchestrator"):
        core.admit(admission("n1"), core.quiet_until_ns - 1)
    core.admit(admission("n1"), core.quiet_until_ns)
    assert core.runs["r"].phase is Phase.PREPARING
    assert core.quiet_until_ns - 10 * S == TIMES.charge_ns


def past_of(core):
    """Return what a journal of everything that this orchestrator wrote so far would tell its successor."""
    past = Past()
    for effect in core.drain():
        past = past.after({"run": effect.run, **effect.data}) if effect.what == "journal" else past
    return past


def test_a_successor_inherits_what_no_node_has_confirmed():
    """Cores and bytes free themselves once the load must have ended; the place in the count waits for the node's own word."""
    first = brought_to(Phase.RUNNING, "n1", "n2")
    first.stop("r", Cause.CANCELLED, "asked", 3 * S)
    order(first, "n1", Stage.CLEAN, 4)
    core = made(past_of(first), 100)
    assert core.ledger.nodes_harmed() == {"n2"}
    assert core.ledger.total(100 * S) == ONE
    later_ns = core.quiet_until_ns
    assert core.ledger.total(later_ns) == Amounts()
    with pytest.raises(RefusedError, match="budget is 3"):
        core.admit(admission("n3", "n4", "n5", run="next"), later_ns)
    core.exchange(report("n2"), later_ns)
    core.admit(admission("n3", "n4", "n5", run="next"), later_ns)
    assert past_of(core).charges.keys() == {"next"}


def test_a_node_that_will_not_come_back_is_forgotten_on_request_only():
    """Not while a run goes on there, not while its load may live; then its place is free, also for every successor."""
    first = brought_to(Phase.RUNNING, "n1")
    with pytest.raises(RefusedError, match="goes on"):
        first.forget("n1", 3 * S)
    past = past_of(first)
    core = made(past, 100)
    with pytest.raises(RefusedError, match="may live for another"):
        core.forget("n1", core.quiet_until_ns - 1)
    assert core.forget("n7", core.quiet_until_ns) == ()
    assert core.forget("n1", core.quiet_until_ns) == ("r",)
    assert core.ledger.is_empty()
    for effect in core.drain():
        past = past.after({"run": effect.run, **effect.data})
    assert made(past, 200).ledger.is_empty()


def test_a_stream_is_expected_from_the_first_word_of_its_node():
    """Once, so that a node that is lost before anything of its metrics arrived is missed."""
    core = made()
    core.admit(admission("n1", "n2"), 0)
    for now_s in (1, 2):
        order(core, "n1", Stage.PREPARING, now_s)
    expected = [(effect.nodes, effect.data["incarnation"]) for effect in core.drain() if effect.what == "expect"]
    assert expected == [(("n1",), "7")]


def test_how_even_the_start_was_is_told_once_all_have_begun():
    """By the first slices of what begins with the barrier, on every node; what begins later does not count, and it is told once."""
    core = made()
    core.admit(admission("n1", "n2"), 0)
    begins = lambda node, slice_ns: (OperationReport(operation(node).id, "running", first_slice_ns=slice_ns),)
    told = lambda: [effect.data["skew_s"] for effect in core.drain() if effect.what == "started"]
    for now_s, node, slice_ns in ((1, "n1", 0), (1, "n2", 5 * S), (2, "n2", 0)):
        order(core, node, Stage.RUNNING, now_s, operations=begins(node, slice_ns))
        assert told() == []
    order(core, "n1", Stage.RUNNING, 3, operations=begins("n1", 5 * S + S // 4))
    assert told() == [0.25]
    order(core, "n1", Stage.RUNNING, 4, operations=begins("n1", 6 * S))
    assert told() == []


@pytest.mark.parametrize("on_node_lost", ["stop", "continue"])
@pytest.mark.parametrize("stage", [Stage.STOPPING, Stage.CLEAN, Stage.DELIVERED])
def test_a_node_whose_lease_ended_is_lost_and_the_scenario_says_what_follows(stage, on_node_lost):
    """It was not renewed, so it is no failure of its own, however far it has come by now; with `continue` the other node goes on."""
    core = brought_to(Phase.RUNNING, "n1", "n2", on_node_lost=on_node_lost)
    core.exchange(report("n1", stage, failure="its lease ended", failure_code="expired"), 3 * S)
    run = core.runs["r"]
    assert run.nodes["n1"].lost
    assert run.phase is {"stop": Phase.STOPPING, "continue": Phase.RUNNING}[on_node_lost]
    assert order(core, "n1", Stage.CLEAN, 4).lease_s == 0.0
    assert order(core, "n2", Stage.RUNNING, 4).lease_s == (TIMES.lease_s if on_node_lost == "continue" else 0.0)


def test_nodes_record_on_where_the_time_after_the_load_is_judged():
    """Five seconds of collecting, then the stream is sealed; a run that was cut short is sealed at once."""
    core = brought_to(Phase.RUNNING, "n1", observe_s=5.0, detached=True)
    order(core, "n1", Stage.RUNNING, 6)
    core.tick(9 * S)  # the plan's 4 s and the grace are over
    assert order(core, "n1", Stage.CLEAN, 9).goal is Goal.STOP
    core.tick(9 * S)
    assert core.runs["r"].phase is Phase.COLLECTING
    assert order(core, "n1", Stage.CLEAN, 13).goal is Goal.STOP
    assert order(core, "n1", Stage.CLEAN, 14).goal is Goal.SEAL
    assert order(core, "n1", Stage.DELIVERED, 15) is None or core.finished_runs
    cut = brought_to(Phase.RUNNING, "n1", observe_s=5.0)
    cut.stop("r", Cause.CANCELLED, "asked", 3 * S)
    assert order(cut, "n1", Stage.CLEAN, 4).goal is Goal.SEAL


def test_a_run_that_is_let_go_ends_as_planned():
    """It drains, and what it did counts until then, in seconds from its start; before its load that is a cancellation, after it nothing."""
    core = brought_to(Phase.RUNNING, "n1")
    run = core.runs["r"]
    assert core.stop("r", Cause.PASSED, "let go", 4 * S)
    assert (run.phase, run.kill) == (Phase.STOPPING, False)
    assert order(core, "n1", Stage.RUNNING, 4).grace_s == TIMES.grace_s
    ending = ending_of(run, (), 0, (), {})
    assert ending.causes == (("passed", "let go"),)
    assert ending.ended_s == (4 * S - run.start_at_ns) / S
    early = brought_to(Phase.PREPARING, "n1")
    early.stop("r", Cause.PASSED, "let go", 1)
    assert [cause for cause, _ in early.runs["r"].causes] == [Cause.CANCELLED]
    late = brought_to(Phase.RUNNING, "n1", detached=True)
    order(late, "n1", Stage.RUNNING, 6)
    late.tick(9 * S)
    assert late.runs["r"].phase is Phase.STOPPING
    assert late.stop("r", Cause.PASSED, "let go", 9 * S)
    assert (late.runs["r"].causes, ending_of(late.runs["r"], (), 0, (), {}).ended_s) == ([], None)


def test_a_node_that_was_silent_before_a_run_has_a_lease_to_speak_up():
    """Its agent may have been replaced for this very run; silence counts from the admission on."""
    core = made()
    core.exchange(report("n1"), 0)
    core.admit(admission("n1"), 60 * S)
    core.tick(64 * S)
    assert not core.runs["r"].nodes["n1"].lost
    core.tick(round(65.5 * S))
    assert core.runs["r"].nodes["n1"].lost


@pytest.mark.parametrize(
    ("phase", "goal", "lease_s"),
    [
        pytest.param(Phase.PREPARING, Goal.PREPARE, 5.0, id="prepares-under-a-lease"),
        pytest.param(Phase.STARTING, Goal.START, 5.0, id="starts"),
        pytest.param(Phase.RUNNING, Goal.START, 5.0, id="runs"),
    ],
)
def test_a_live_run_is_leased(phase, goal, lease_s):
    """Each live phase has its goal and a lease."""
    found = order(brought_to(phase, "n1", "n2"), "n1", Stage.READY if phase is not Phase.PREPARING else Stage.PREPARING, 2)
    assert (found.goal, found.lease_s) == (goal, lease_s)


def test_a_grant_is_charged_and_journalled_before_it_is_told():
    """The journal's expiry covers lease, allowance and two clocks that drift apart by 1,000 ppm each."""
    core = brought_to(Phase.RUNNING, "n1")
    core.drain()
    order(core, "n1", Stage.RUNNING, 3)
    (entry,) = [effect for effect in core.drain() if effect.data.get("kind") == "granted"]
    assert entry.data["expiry_ns"] == core.nodes["n1"].expiry_ns
    assert entry.data["expiry_ns"] - 3 * S >= 6 * S * 1.001 / 0.999


def test_nothing_is_leased_to_a_lost_node():
    """A node that comes back after its loss is told to stop, not to go on."""
    core = brought_to(Phase.RUNNING, "n1", "n2", on_node_lost="continue")
    order(core, "n1", Stage.RUNNING, 2)
    for now_s in range(3, 9):
        order(core, "n2", Stage.RUNNING, now_s)
        core.beat("r", now_s * S)
    core.tick(round(7.5 * S))
    assert core.runs["r"].nodes["n1"].lost
    found = order(core, "n1", Stage.RUNNING, 9)
    assert (found.goal, found.lease_s) == (Goal.STOP, 0.0)


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        pytest.param(lambda core: core.stop("r", Cause.CANCELLED, "asked", 3 * S), Cause.CANCELLED, id="asked-to"),
        pytest.param(lambda core: core.set_halt(True, 3 * S), Cause.SAFETY, id="halt"),
        pytest.param(lambda core: core.node_gone("n1", "dead", 3 * S), Cause.ERROR, id="node-lost"),
        pytest.param(
            lambda core: core.exchange(report("n1", Stage.RUNNING, verdict_level=3, verdict_reason="low"), 3 * S), Cause.SAFETY, id="abort"
        ),
        pytest.param(lambda core: core.exchange(report("n1", Stage.STOPPING, failure="x"), 3 * S), Cause.ERROR, id="a-node-failed"),
        pytest.param(
            lambda core: core.exchange(report("n1", Stage.STOPPING, failure="low", failure_code="safety_abort", verdict_level=3), 3 * S),
            Cause.SAFETY,
            id="abort-that-failed-the-run-on-its-node",
        ),
        pytest.param(lambda core: core.tick(round(5.5 * S)), Cause.ERROR, id="driver-not-heard"),
        pytest.param(lambda core: core.exchange(report("n9", halt=Halt(4, on=True)), 3 * S), Cause.SAFETY, id="a-node-knows-a-newer-halt"),
    ],
)
def test_what_ends_a_run(event, cause):
    """Each way to the end leaves its cause, and nothing is leased afterwards."""
    core = brought_to(Phase.RUNNING, "n1", "n2")
    for node in ("n1", "n2"):
        order(core, node, Stage.RUNNING, 2.5)
    event(core)
    run = core.runs["r"]
    assert run.phase is Phase.STOPPING
    assert {found for found, _ in run.causes} == {cause}
    assert order(core, "n2", Stage.RUNNING, 5.6).lease_s == 0.0


def test_a_run_ends_when_all_nodes_are_clean_and_delivered():
    """STOP, SEAL, FORGET by node; then the run is finished and holds nothing."""
    core = brought_to(Phase.RUNNING, "n1", "n2", detached=True)
    for node in ("n1", "n2"):
        order(core, node, Stage.RUNNING, 5)
    core.tick(round(5.6 * S))
    assert order(core, "n1", Stage.RUNNING, 6).goal is Goal.STOP
    assert order(core, "n1", Stage.CLEAN, 6.1).goal is Goal.SEAL
    assert core.ledger.nodes_harmed() == {"n2"}
    assert order(core, "n1", Stage.DELIVERED, 6.2).goal is Goal.FORGET
    order(core, "n2", Stage.CLEAN, 6.3)
    order(core, "n2", Stage.DELIVERED, 6.4)
    assert core.finished_runs["r"].phase is Phase.DONE
    assert core.ledger.is_empty()
    assert "finish" in {effect.what for effect in core.drain()}


def test_a_node_that_was_too_slow_to_end_stays_charged_until_it_confirms():
    """A run that ends without a node's word keeps its charge for the lease, and gives it back when the node reports without the run."""
    core = brought_to(Phase.RUNNING, "n1", detached=True)
    order(core, "n1", Stage.RUNNING, 5)
    core.stop("r", Cause.CANCELLED, "asked", 5 * S)
    now_s = 5.0
    while "r" in core.runs:
        now_s += 0.5
        order(core, "n1", Stage.STOPPING, now_s)
        core.tick(round(now_s * S))
        assert now_s < 30
    assert core.ledger.nodes_harmed() == {"n1"}
    assert not core.ledger.holds("r", "n1", round(now_s * S))
    core.exchange(report("n1", Stage.STOPPING), round((now_s + 1) * S))
    assert core.ledger.nodes_harmed() == {"n1"}
    core.exchange(report("n1"), round((now_s + 2) * S))
    assert core.ledger.is_empty()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"incarnation": 6}, "newer agent", id="an-older-agent-of-this-boot"),
        pytest.param({"incarnation": 9, "machine": "m-other"}, "another machine", id="the-name-is-in-use-elsewhere"),
        pytest.param({"epoch": 4}, "newer than this", id="another-orchestrator-was-heard"),
        pytest.param({"incarnation": 8}, "", id="a-newer-agent"),
    ],
)
def test_who_is_refused(fields, words):
    """The refusal says why; a newer agent of the same machine is taken."""
    core = brought_to(Phase.RUNNING, "n1")
    epoch = fields.pop("epoch", 3)
    reply = core.exchange(replace(report("n1", Stage.RUNNING, **fields), epoch=epoch), 3 * S)
    assert words in reply.refused
    assert bool(reply.refused) == bool(words)
    assert not (reply.refused and reply.orders)


def test_an_agent_after_a_reboot_is_taken_although_its_boot_clock_began_anew():
    """Incarnations are boot times, so those of two boots have no order."""
    core = made()
    core.exchange(report("n1", incarnation=900), 0)
    assert core.exchange(report("n1", incarnation=5, machine="m-next-boot"), S).refused == ""


@pytest.mark.parametrize(
    ("stage", "goal"),
    [(Stage.RUNNING, Goal.STOP), (Stage.STOPPING, Goal.STOP), (Stage.CLEAN, Goal.SEAL), (Stage.DELIVERED, Goal.FORGET)],
)
def test_a_run_that_nobody_knows_is_ended_delivered_and_forgotten(stage, goal):
    """What a dead orchestrator began comes to its end under the next."""
    found = order(made(), "n1", stage, 1, run="unknown")
    assert (found.goal, found.lease_s) == (goal, 0.0)


def test_a_halt_given_on_a_node_ends_every_run_for_safety_and_nothing_else():
    """The question that brings the halt may tell of the load that it ended: neither failed nor lost, on no node."""
    core = brought_to(Phase.RUNNING, "n1", "n2")
    halted = report("n1", Stage.STOPPING, failure="emergency halt (generation 1)", failure_code="halted", halt=Halt(1, on=True))
    reply = core.exchange(halted, 3 * S)
    run = core.runs["r"]
    assert run.phase is Phase.STOPPING
    assert [cause for cause, _ in run.causes] == [Cause.SAFETY]
    assert (reply.orders[0].goal, reply.orders[0].kill) == (Goal.STOP, True)
    assert not any(state.lost for state in run.nodes.values())
    assert core.exchange(report("n2", Stage.RUNNING), 3 * S).halt == Halt(1, on=True)


def test_a_node_halted_under_an_older_generation_is_still_a_halt():
    """A resume that was decided here meanwhile does not turn the node's halt into a failure."""
    core = brought_to(Phase.RUNNING, "n1")
    core.set_halt(False, 2 * S, above=6)
    core.exchange(report("n1", Stage.STOPPING, failure="emergency halt", failure_code="halted", halt=Halt(5, on=True)), 3 * S)
    assert [cause for cause, _ in core.runs["r"].causes] == [Cause.SAFETY]


@pytest.mark.parametrize("on", [True, False])
def test_a_halt_is_above_all_that_is_known_and_kept_only_by_the_nodes_word(on):
    """What was heard of counts as much as what the caller names; a node has kept it when its disk has this very one."""
    core = made(Past(halt_generation=3))
    core.exchange(report("n1", halt=Halt(8, on=True)), 1 * S)
    assert core.set_halt(on, 2 * S, above=5) == Halt(9, on)
    assert core.set_halt(on, 2 * S, above=20) == Halt(21, on)
    assert any(effect.what == "poke" and effect.nodes == ("n1",) for effect in core.drain())
    core.exchange(report("n1", halt=Halt(21, on), halt_kept=Halt(20, on)), 3 * S)
    assert not core.has_kept_halt("n1")
    assert not core.has_kept_halt("n2")
    core.exchange(report("n1", halt=Halt(21, on), halt_kept=Halt(21, on)), 4 * S)
    assert core.has_kept_halt("n1")


def test_of_two_halts_of_one_generation_the_one_that_is_on_counts():
    """A halt and a resume that crossed end halted everywhere, also over a restart."""
    core = made()
    core.set_halt(False, 1 * S)
    core.exchange(report("n1", halt=Halt(1, on=True)), 2 * S)
    assert core.halt == Halt(1, on=True)
    assert past_of(core) == Past(halt_generation=1, halt_on=True)


def test_what_is_stuck_stays_charged_as_long_as_its_agent_says_so():
    """Cores and bytes too, beyond every lease and beyond the run's own end; then a clean node gives them back."""
    core = brought_to(Phase.RUNNING, "n1")
    core.stop("r", Cause.CANCELLED, "asked to", 3 * S)
    for now_s in range(4, 60):
        core.exchange(report("n1", Stage.STOPPING, unclean=("process stuck: D state",)), now_s * S)
        core.tick(now_s * S)
        assert core.ledger.total(now_s * S) == ONE
    assert "r" in core.finished_runs
    assert not core.finished_runs["r"].nodes["n1"].clean
    core.exchange(report("n1", Stage.CLEAN), 60 * S)
    core.exchange(report("n1"), 75 * S)
    assert core.ledger.is_empty()


def test_an_abort_that_was_over_before_it_was_reported_is_still_a_safety_stop():
    """The failure's code says so, whatever the verdict is by now."""
    core = brought_to(Phase.RUNNING, "n1")
    core.exchange(report("n1", Stage.STOPPING, failure="no host snapshot", failure_code="safety_abort"), 3 * S)
    assert core.runs["r"].causes == [(Cause.SAFETY, "n1: no host snapshot")]


@pytest.mark.parametrize(("gone_s", "want_ms"), [(3.25, 250.0), (2.9, 0.0), (0, None)])
def test_the_latency_of_a_halt_counts_from_the_decision_here(gone_s, want_ms):
    """Load that a node's own guardian had ended before this orchestrator heard of the halt took it no time."""
    core = brought_to(Phase.RUNNING, "n1")
    core.stop("r", Cause.SAFETY, "emergency halt", 3 * S)
    core.runs["r"].last_gone_ns = round(gone_s * S)
    assert ending_of(core.runs["r"], [], 0, (), {}).halt_latency_ms == want_ms
