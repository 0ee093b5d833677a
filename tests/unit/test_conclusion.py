"""From the end of a run to its verdict."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from actors.messages import Allocation, Operation, Shortfall
from cluster.conclusion import Ending, NodeEnding, conclude
from cluster.ending import node_ending
from cluster.exchange import OperationReport, RunReport, Stage
from cluster.records import NodeInRun

GOOD = {"stage": "delivered", "clean": True, "delivered": True}


class Nothing:
    """Figures of a run without metrics; `streams` are the open ones."""

    def __init__(self, *streams):
        self.streams = streams

    def evaluate(self, *_, **__):
        return None

    def windows(self, _):
        return ()

    def outstanding(self):
        return [{"node": node, "from": 4} for node in self.streams]


def concluded(*nodes, causes=(), streams=(), start_at_wall_ns=1, operations=()):
    plan = SimpleNamespace(operations=operations, duration_s=4.0, scenario=SimpleNamespace(hypotheses=()))
    ending = Ending("r", tuple(causes), tuple(nodes), (), start_at_wall_ns, 0.0, None)
    return conclude(ending, plan, Nothing(*streams))


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        pytest.param({}, "passed", "held", id="clean-and-delivered"),
        pytest.param({"clean": False, "delivered": False, "stage": "running"}, "error", "not confirmed", id="its-end-is-unknown"),
        pytest.param({"delivered": False, "stage": "clean"}, "error", "not all arrived", id="clean-but-a-stream-never-came"),
        pytest.param({"unclean": ("disk_fill foreign: x",)}, "error", "foreign", id="an-undo-is-not-verified"),
        pytest.param({"lost": True, "lost_reason": "silent"}, "inconclusive", "no part to the end", id="lost-and-then-confirmed"),
        pytest.param({"lost": True, "clean": False, "lost_reason": "silent", "stage": "running"}, "error", "silent", id="lost-for-good"),
    ],
)
def test_one_node_is_enough_to_keep_a_run_from_passing(fields, status, word):
    """A run passes only when every node confirmed its end and delivered."""
    found = concluded(NodeEnding("n1", **GOOD), NodeEnding("n2", **{**GOOD, **fields}))
    assert found.conclusion.status == status
    assert any(word in finding.reason for finding in found.findings)


def test_an_open_stream_is_an_error_and_named_once():
    """The aggregator's word on a stream is not repeated for its node."""
    found = concluded(NodeEnding("n1", **{**GOOD, "delivered": False}), streams=("n1",))
    assert [finding.reason for finding in found.findings] == ["metrics of n1 from sequence 4 on have not arrived"]


def test_a_node_that_was_never_reached_leaves_nothing_unknown():
    """Nothing began there."""
    assert concluded(NodeEnding("n1", "never_heard", delivered=True)).conclusion.status == "passed"


def test_a_planned_operation_without_a_dose_keeps_a_run_from_passing():
    """No measure is no pass."""
    found = concluded(NodeEnding("n1", **GOOD), operations=(SimpleNamespace(id="0.CpuLoad@n1", start_s=0.0),))
    assert found.conclusion.status == "inconclusive"


class Lost(Nothing):
    """Figures of a load of 200 descriptors that began in the first second of UTC and is gone from the fifth of its own on."""

    def windows(self, _):
        return [(1.0 + at, 200.0, 200.0 if at < 5 else 0.0, None) for at in range(8)]


@pytest.mark.parametrize(
    ("ended_s", "status"),
    [
        pytest.param(5.2, "passed", id="let-go-when-it-was-gone"),
        pytest.param(7.2, "inconclusive", id="gone-before-it-was-let-go"),
        pytest.param(None, "inconclusive", id="never-let-go"),
        pytest.param(2.5, "inconclusive", id="let-go-before-anything-had-settled"),
    ],
)
def test_what_is_let_go_is_judged_by_the_time_until_then(ended_s, status):
    """The windows after it say nothing; those before it do."""
    held = Operation("0.Descriptors@n1", "Descriptors", "n1", 0.0, 60.0, "count", {"kind": "constant", "level": 200.0})
    plan = SimpleNamespace(operations=(held,), duration_s=60.0, scenario=SimpleNamespace(hypotheses=()))
    causes = () if ended_s is None else (("passed", "let go"),)
    ending = Ending("r", causes, (NodeEnding("n1", **GOOD),), (), 1_000_000_000, 0.0, None, ended_s=ended_s)
    found = conclude(ending, plan, Lost())
    assert found.conclusion.status == status, found.findings
    assert found.summary["overlap"]["for_s"] == pytest.approx({5.2: 5.0, 7.2: 5.0, None: 5.0, 2.5: 2.0}[ended_s])


def test_a_run_that_never_started_has_no_dose_to_miss():
    """Only its cause counts."""
    found = concluded(causes=(("cancelled", "asked to"),), start_at_wall_ns=0, operations=(SimpleNamespace(id="x"),))
    assert (found.conclusion.status, found.conclusion.exit_code) == ("cancelled", 130)


def test_what_is_stuck_ends_the_run_with_an_error_that_names_it():
    """It is not called ended by its lease."""
    node = NodeEnding("n1", **{**GOOD, "stage": "stopping", "clean": False, "delivered": False, "unclean": ("process stuck: 7(D)",)})
    found = concluded(node)
    reasons = " ".join(finding.reason for finding in found.findings)
    assert found.conclusion.status == "error"
    assert "process stuck: 7(D)" in reasons
    assert "has ended by its lease" not in reasons


@pytest.mark.parametrize(("decided_ns", "want"), [(1_000_000, (1.0, 3.0)), (0, (None, None))], ids=["stopped", "ended-as-planned"])
def test_stopped_and_released_are_told_apart(decided_ns, want):
    """Both count from the decision; memory that is still being freed does not hide when the load had ended."""
    report = RunReport("r", Stage.CLEAN, last_gone_ns=2_000_000, last_released_ns=4_000_000)
    found = node_ending("n1", NodeInRun(stage=Stage.CLEAN, report=report), decided_ns)
    assert (found.stopped_ms, found.released_ms) == want


def test_a_partial_allocation_is_a_finding_and_in_the_summary():
    """What a load could not get makes the run inconclusive, with how many, of how many, and the kernel's word for it."""
    short = {"0.Descriptors@n1": Shortfall("EMFILE", 1000, 600)}
    found = concluded(NodeEnding("n1", **GOOD, partial=short), NodeEnding("n2", **GOOD))
    assert (found.conclusion.status, found.conclusion.exit_code) == ("inconclusive", 5)
    assert found.summary["partial"] == [
        {"operation": "0.Descriptors@n1", "node": "n1", "errno": "EMFILE", "requested": 1000, "allocated": 600}
    ]
    assert [finding.reason for finding in found.findings] == ["0.Descriptors@n1 got 600 of the 1,000 that it asked for: EMFILE"]
    assert concluded(NodeEnding("n1", **GOOD)).summary["partial"] == []


def test_what_was_held_is_in_the_summary():
    """By operation and node, as it was counted from outside."""
    held = Allocation("descriptors", 200.0, 60.0, 0.4, 200.0, 1.4, 8.0, 201.0, 0.0, 10.2)
    report = RunReport("r", Stage.DELIVERED, (OperationReport("a", "clean", allocation=held), OperationReport("b", "clean")))
    ended = node_ending("n1", NodeInRun(stage=Stage.DELIVERED, report=report))
    found = concluded(NodeEnding("n1", **GOOD, allocations=ended.allocations), NodeEnding("n2", **GOOD))
    (one,) = found.summary["allocations"]
    assert (one["operation"], one["node"], one["meter"]) == ("a", "n1", "descriptors")
    assert [one[name] for name in ("asked", "allocate", "hold", "held_for_s", "peak", "release")] == [200, 60, 200, 8, 201, 0]
    assert "allocations" not in found.summary["nodes"][0]


def test_a_part_that_failed_while_the_rest_went_on_keeps_a_run_from_passing():
    """It is inconclusive and says which part and why; where the node failed by it, that is the reason and is told once."""
    found = concluded(NodeEnding("n1", **GOOD, failed={"0.1.CpuLoad@n1": "it broke"}))
    assert found.conclusion.status == "inconclusive"
    assert [finding.reason for finding in found.findings] == ["0.1.CpuLoad@n1 has failed: it broke"]
    told = (OperationReport("0.0.CpuLoad@n1", "clean"), OperationReport("0.1.CpuLoad@n1", "clean", "it broke"))
    for failure in ("", "0.1.CpuLoad@n1: it broke"):
        report = RunReport("r", Stage.CLEAN, told, failure)
        assert node_ending("n1", NodeInRun(stage=Stage.CLEAN, report=report)).failed == ({} if failure else {"0.1.CpuLoad@n1": "it broke"})


def test_a_shortfall_comes_with_the_nodes_last_report():
    """What an operation reported last is what the ending knows of it; one that got all is not there."""
    short = Shortfall("EAGAIN", 10, 4)
    reports = (OperationReport("a", "clean", shortfall=short), OperationReport("b", "clean"))
    state = NodeInRun(report=RunReport("r", Stage.DELIVERED, reports))
    assert node_ending("n1", state).partial == {"a": short}
