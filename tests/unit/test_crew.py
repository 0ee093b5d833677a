"""The cluster's agents: one that hangs is replaced, one that is only new is waited for."""

from __future__ import annotations

import pytest

from actors.errors import HarnessError, RefusedError
from actors.messages import NodeSpec
from cluster import crew as crews
from cluster.crew import HELLO_S, PATIENCE_S, Crew


class Agent:
    """Answers, or says after any time allowed that it did not."""

    def __init__(self, number):
        self.number, self.hangs, self.waits = number, False, []

    def hello(self, timeout_s):
        self.waits.append(timeout_s)
        if self.hangs:
            raise HarnessError("timeout", f"no answer within {timeout_s:.1f} s")
        return {"code_id": "", "number": self.number}


class Port:
    """A cluster of one node whose agents are counted."""

    def __init__(self):
        self.hired = []

    def nodes(self):
        return [NodeSpec("n1")]

    def agent(self, config):
        self.hired.append(Agent(len(self.hired) + 1))
        return self.hired[-1]

    def agent_alive(self, _):
        return True


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(crews, "check_same_code", lambda *_: None)
    return Port()


def test_an_agent_that_answered_before_and_hangs_is_replaced(port):
    """It gets a little time; its successor all that a start may take."""
    crew = Crew(port, lambda name: name)
    assert crew.hello_all(["n1"])["n1"]["number"] == 1
    port.hired[0].hangs = True
    assert crew.hello_all(["n1"])["n1"]["number"] == 2
    assert [agent.waits for agent in port.hired] == [[HELLO_S, PATIENCE_S], [HELLO_S]]


def test_an_agent_that_never_answered_is_waited_for_once_and_refused(port):
    """A node that cannot start an agent takes no part; nobody starts a second one beside it."""
    crew = Crew(port, lambda name: name)
    real = port.agent

    def hung(config):
        real(config).hangs = True
        return port.hired[-1]

    port.agent = hung
    with pytest.raises(RefusedError, match="node n1 cannot take part"):
        crew.hello_all(["n1"])
    assert [agent.waits for agent in port.hired] == [[HELLO_S]]
    assert "error" in crew.hello_all(["n1"], tolerant=True)["n1"]
