"""What the guardian does with an agent or simulator that is stopped by a signal, behind the end of its lease."""

from __future__ import annotations

import pytest

from actors.guardian.fields import PROTOCOL
from tests.support.guarded import SECOND, Machine


@pytest.fixture
def machine():
    machine = Machine()
    machine.hello()
    return machine


def owned(machine):
    """Return a live slot of agent 7 whose simulator is 8."""
    machine.processes.update({7: 1, 8: 1})
    machine.hello(pid=7, watch=[7])
    ticket = machine.ticket()
    assert machine.call("hello", "s", role="simulator", protocol=PROTOCOL, code_id="code", node="n", pid=8, **ticket)["ok"]
    machine.load(ticket)
    machine.grant(ticket, 5)
    return ticket


@pytest.mark.parametrize(
    ("stopped", "left"),
    [
        pytest.param(set(), {7, 8}, id="who-runs-is-left-alone-however-cut-off-it-is"),
        pytest.param({7}, {8}, id="a-stopped-agent"),
        pytest.param({8}, {7}, id="a-stopped-simulator"),
        pytest.param({7, 8}, set(), id="both"),
    ],
)
def test_who_stands_still_at_the_end_of_its_lease_is_killed(machine, stopped, left):
    """Not before; and nobody else."""
    owned(machine)
    machine.stopped |= stopped
    machine.run_for(4)
    assert machine.processes.keys() == {7, 8, 100}
    machine.run_for(3)
    assert machine.processes.keys() == left


@pytest.mark.parametrize("how", ["close_slot", "halt"])
def test_a_stopped_simulator_goes_with_its_slot_and_a_stopped_agent_does_not(machine, how):
    """A close proves that the agent lives, and a halt asks for nobody's death."""
    ticket = owned(machine)
    machine.stopped |= {7, 8}
    machine.call(how, **({**ticket, "grace_s": 0} if how == "close_slot" else {}))
    machine.run_for(3)
    assert machine.processes.keys() == {7}


def test_a_slot_of_another_agent_or_another_slot_costs_nobody_his_life(machine):
    """The lease that ended is another's."""
    owned(machine)
    machine.hello("q", node="other", incarnation=9)
    other = machine.ticket(node="other", incarnation=9)
    machine.call("grant", cluster="c", node="other", epoch=1, incarnation=9, leases=[[*other.values(), machine.now_ns + SECOND]])
    machine.stopped |= {7, 8}
    machine.run_for(2)
    assert machine.processes.keys() == {7, 8, 100}


def test_a_simulator_is_held_no_longer_than_its_slot(machine):
    """Neither one whose slot was freed, nor one that comes too late."""
    ticket = owned(machine)
    machine.call("close_slot", **ticket, grace_s=0)
    machine.run_for(3)
    machine.call("hello", "s", role="simulator", protocol=PROTOCOL, code_id="code", node="n", pid=8, **ticket)
    assert {identity.pid for identity in machine.held} == {7}
