"""A cascade of failures among real actors of Ray: its services are gone when what holds it dies or is cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raylets import Raylets
from support.leasing import Leased, Leasing, marked
from support.waiting import until
from test_floods import begin, creator

from actors import proc
from actors.lease import read_cascade
from actors.messages import Operation
from actors.ray_loads.cascade import graph_of

OPTIONS = {"services": 4, "levels": 3, "fan_out": 1, "graph_seed": 7}
CASCADE = Operation("c@n1", "Cascade", "n1", 0.0, 60.0, "per_second", {"kind": "constant", "level": 20.0}, options=OPTIONS)


@pytest.fixture
def agent(driver: Raylets, tmp_path: Path) -> Iterator[Leasing]:
    with Leasing(tmp_path, creator(driver)) as made:
        yield made
    until(lambda: not marked(), 10, lambda: f"left behind: {marked()}")


def failed(agent: Leasing, one: Leased) -> Any:
    return read_cascade(agent.client.stats, one.ticket.slot)


@pytest.mark.parametrize("how", ["killed", "cancelled"])
def test_a_service_that_hangs_is_gone_with_the_others(agent: Leasing, how: str) -> None:
    """Its process is really stopped while the failure spreads; killed or cancelled meanwhile, no service is left, stopped or not."""
    (one,) = begin(agent, replace(CASCADE, options={**OPTIONS, "levels": 2, "services": 2}))
    assert graph_of(one.operation).first == "s00"
    victims = [pid for pid in one.status().pids[1:] if pid in marked()]
    assert len(victims) == 2
    until(lambda: (found := failed(agent, one)) and found[0] == (("s00",), ("s01",)), 20, lambda: f"{failed(agent, one)}")
    states = sorted(stat.state for pid in victims if (stat := proc.read_stat(pid)) is not None)
    assert states.count("T") == 1, states
    if how == "killed":
        os.kill(one.status().pids[0], signal.SIGKILL)
        agent.let_go(one)
        until(lambda: not set(victims) & set(marked()), 20, lambda: f"left: {set(victims) & set(marked())}")
    else:
        assert one.call("stop", 1.0).phase == "done"
        assert not set(victims) & set(marked())
