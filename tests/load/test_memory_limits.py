"""Memory loads at the limits of their nodes: more than that is refused in every pattern, and one that is throttled is told as short.

Agents of two nodes and a real guardian; what a load holds is read from outside of its process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors import shape as shapes
from actors.messages import Operation
from actors.simulator import peak_amounts
from tests.support import fleet as fleets
from tests.support.fleet import CAPACITY, NODES, PLENTY, Fleet
from tests.support.observe import anonymous_bytes
from tests.support.site import Site
from tests.support.waiting import until

MIB = 1 << 20
ASKED = 48 * MIB
HELD = Operation("", "MemoryPressure", "", 0.0, 60.0, "bytes", {"kind": "constant", "level": ASKED})
GREEDY = {  # each asks 80 % at its peak
    one.to_spec()["kind"]: one
    for one in (
        shapes.Constant(0.8),
        shapes.Ramp(0.0, 0.8, 5.0),
        shapes.Steps((0.1, 0.8), 2.0),
        shapes.Sine(0.1, 0.8, 5.0),
        shapes.Square(0.1, 0.8, 5.0),
        shapes.Burst(0.1, 0.8, 5.0, 1.0),
        shapes.Sawtooth(0.1, 0.8, 4.0),
        shapes.Leak(0.2, 0.01),
        shapes.Custom("theirs", 0.8),
    )
}


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    site = Site(tmp_path)
    try:
        with fleets.fleet(site.state, monkeypatch) as made:
            yield made
    finally:
        site.close()


def test_more_than_the_limit_is_refused_by_each_node_in_every_pattern(fleet: Fleet) -> None:
    """80 % where 50 % is the limit, each pattern in a run of its own: `budget`, with what was asked and may be had; no load ever is."""
    assert GREEDY.keys() == shapes.KINDS.keys()
    limit = CAPACITY.memory_bytes // 2
    for name, one in GREEDY.items():
        greedy = Operation("", "MemoryPressure", "", 0.0, 60.0, "fraction", one.to_spec())
        assert peak_amounts(greedy, CAPACITY).memory_bytes == pytest.approx(0.8 * CAPACITY.memory_bytes)
        fleet.want(name, greedy, replace(PLENTY, memory_bytes=limit))
    for node in NODES:
        for name, one in GREEDY.items():
            found = until(lambda name=name, node=node: (run := fleet.run_of(node, name)) and run.failure and run, 20, f"{node}: {name}")
            asked = peak_amounts(Operation("", "MemoryPressure", "", 0.0, 60.0, "fraction", one.to_spec()), CAPACITY).memory_bytes
            assert found.failure_code == "budget"
            assert f"would carry {asked} bytes of memory, its limit is {limit}" in found.failure, found.failure
    assert (fleet.slots(), fleet.shells) == ([], {})


def test_a_throttled_load_is_told_as_short(fleet: Fleet) -> None:
    """Of two nodes' loads, both well, that on the node that runs out of memory is lowered by the guardian: short, and less is there."""
    fleet.want("r", HELD)
    health = lambda: {node: fleet.health_of(node, "r") for node in NODES}
    until(lambda: health() == dict.fromkeys(NODES, "well"), 30, lambda: f"{health()}; {fleet.reports}")
    pids = {node: fleet.shells["r", node].status().pids[0] for node in NODES}
    before = {node: anonymous_bytes(pid) for node, pid in pids.items()}
    host = fleet.hosts["n1"]
    fleet.hosts["n1"] = replace(host, memory_available_bytes=host.memory_limit_bytes // 13)  # sheds, and is no reason to abort
    until(lambda: health() == {"n1": "short", "n2": "well"}, 5, lambda: f"{health()}; {fleet.reports}")
    until(lambda: before["n1"] - anonymous_bytes(pids["n1"]) > ASKED / 2, 5, "memory was given back")
    assert abs(anonymous_bytes(pids["n2"]) - before["n2"]) < 0.05 * ASKED
    (one,) = fleet.run_of("n1", "r").operations  # type: ignore[union-attr]
    assert one.requested == ASKED, "what is asked is the scenario's, whatever the ceiling"
    fleet.finish("r")
    until(lambda: not fleet.slots(), 10, lambda: f"left: {fleet.slots()}")
