"""Every pattern of concurrency at its limit and at each of its ends: agents of two nodes and a real guardian; Ray alone is pretended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from typing import Final

import pytest

from actors.messages import AMOUNTS, Operation, spoken
from actors.proc import read_stat
from actors.simulator import REGISTRY, peak_amounts
from cluster.exchange import Goal
from tests.support import fleet as fleets
from tests.support.fleet import CAPACITY, NODES, PLENTY, Fleet
from tests.support.site import Site
from tests.support.waiting import until

PATTERNS: Final = sorted(name for name, record in REGISTRY.items() if record.family == "concurrency")


@pytest.fixture
def fleet(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with fleets.fleet(site.state, monkeypatch) as made:
        yield made


def operation(kind: str, duration_s: float = 60.0) -> Operation:
    """Return a small operation of a kind, whatever it counts."""
    unit = "per_second" if "per_second" in REGISTRY[kind].units else "count"
    level = {"per_second": 50.0, "count": 2.0}[unit]
    options = {"fail_after": 0.3} if kind == "Cascade" else {}
    return Operation("", kind, "", 0.0, duration_s, unit, {"kind": "constant", "level": level}, options, seed=1)


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_pattern_at_its_limit_is_refused_by_each_node(fleet: Fleet, kind: str) -> None:
    """For each amount that it takes: one less than that is a `budget` error that names it, counted as a metric; and nothing is held."""
    peak = peak_amounts(replace(operation(kind), id=f"x.{kind}@n1", node="n1"), CAPACITY)
    taken = [name for name, amount in zip(AMOUNTS, astuple(peak), strict=True) if amount]
    assert taken
    for name in taken:
        fleet.want(name, operation(kind), replace(PLENTY, **{name: getattr(peak, name) - (0.01 if name == "cpu_cores" else 1)}))
    for node in NODES:
        for name in taken:
            found = until(lambda name=name, node=node: (run := fleet.run_of(node, name)) and run.failure and run, 20, f"{node}: {name}")
            assert found.failure_code == "budget"
            assert spoken(name) in found.failure
    assert (fleet.slots(), fleet.shells) == ([], {})
    fleet.finish(*taken)
    for node in NODES:
        for name in taken:
            assert fleet.recorded[name, node]["errors.seen budget"] == 1
            assert fleet.recorded[name, node]["operation.started"] == 0


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_pattern_holds_nothing_after_any_end(fleet: Fleet, kind: str) -> None:
    """On each node one ends by its time, one fails and one is stopped: held while they live, nothing after, and each has its fate."""
    for run, duration_s in (("success", 1.0), ("failure", 60.0), ("cancel", 60.0)):
        fleet.want(run, operation(kind, duration_s))

    def begun() -> bool:
        lives = [shell.status().first_slice_ns for shell in fleet.shells.values()]
        return len(lives) == 6 and all(lives)

    until(begun, 60, lambda: f"{[shell.status() for shell in fleet.shells.values()]}; {fleet.reports}")
    held = {slot["operation"] for slot in fleet.slots() if "operation" in slot}
    assert held >= {f"{run}.{kind}@{node}" for run in ("failure", "cancel") for node in NODES}
    pids = {pid for shell in fleet.shells.values() for pid in shell.status().pids} - {os.getpid()}
    for node in NODES:
        fail(fleet, node)
    fleet.wanted["cancel"] = Goal.STOP
    until(lambda: not fleet.slots(), 20, lambda: str(fleet.slots()))
    assert [pid for pid in pids if (stat := read_stat(pid)) is not None and stat.state not in "ZX"] == []
    fates: Mapping[str, tuple[int, int]] = {"success": (1, 0), "failure": (0, 1), "cancel": (0, 1)}
    fleet.finish(*fates)
    for node in NODES:
        for run, (completed, failed) in fates.items():
            counts = fleet.recorded[run, node]
            assert (counts["operation.started"], counts["operation.completed"], counts["operation.failed"]) == (1, completed, failed), run
        assert sum(count for name, count in fleet.recorded["failure", node].items() if name.startswith("errors.seen")) >= 1


def fail(fleet: Fleet, node: str) -> None:
    """Make the one load of a node fail that is to: its process is killed, or what drives it raises."""
    if (work := fleet.works.get(("failure", node))) is not None:
        work.look = lambda _: 1 / 0
        return
    for pid in fleet.shells["failure", node].status().pids:
        os.kill(pid, signal.SIGKILL)
