"""What the simulation found in the guardian, each as a row of its own: sweeps that are asked for, fences, crossing halts."""

from __future__ import annotations

import pytest

from actors.guardian.model import HaltSaved, SaveHalt
from actors.messages import Halt
from tests.support.guarded import SECOND, Machine


@pytest.fixture
def machine():
    machine = Machine()
    machine.hello()
    return machine


def test_a_close_of_what_a_fresh_guardian_sweeps_is_answered_when_it_is_gone(machine):
    """After guardian and standby died, the owner's ticket still means its slot: no answer before the end, and then its outcomes."""
    ticket = machine.ticket()
    machine.load(ticket)
    machine.grant(ticket)
    machine.slow_kill_turns = 3
    machine.restart(same_page=False)
    assert machine.hello()["ok"]
    assert machine.call("close_slot", **ticket, grace_s=0) is None
    assert machine.processes
    machine.run_for(1)
    (answer,) = [reply for reply in machine.replies["p"] if "outcomes" in reply]
    assert machine.processes == {}
    assert [outcome["outcome"] for outcome in answer["outcomes"]] == ["undone", "undone"]
    assert machine.call("close_slot", **ticket, grace_s=0)["outcomes"] == answer["outcomes"]


@pytest.mark.parametrize(("epoch", "incarnation"), [(1, 1), (2, 1), (1, 2)])
def test_neither_part_of_the_fence_token_may_fall(machine, epoch, incarnation):
    """An older agent is refused also when it has heard of a newer orchestrator, and so is an older epoch of a newer agent."""
    machine.hello("q", epoch=2 if incarnation == 2 else 1, incarnation=2)
    answer = machine.open(epoch=epoch, incarnation=incarnation)
    assert (answer["ok"], answer.get("code")) == (False, "stale_epoch")


def test_a_halt_that_crosses_a_newer_resume_does_not_undo_it_on_disk():
    """While a resume is being written its generation counts: an older halt is refused, a halt without a number is newer."""
    core = Machine().core
    core.handle({"op": "halt", "generation": 1}, "p", SECOND)
    core.done(HaltSaved(1), SECOND)
    core.handle({"op": "resume", "generation": 2}, "p", SECOND)
    (refusal,) = core.handle({"op": "halt", "generation": 1}, "q", SECOND)
    assert refusal.body["code"] == "stale_epoch"
    actions = core.handle({"op": "halt"}, "q", SECOND)
    assert [(action.generation, action.on) for action in actions if isinstance(action, SaveHalt)] == [(3, True)]
    core.done(HaltSaved(2), SECOND)
    assert core.halt == Halt(3, on=True)
