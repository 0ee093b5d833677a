"""Handles of what is held, with a driver that only tells what a test says: who lets go, when, and how often."""

from __future__ import annotations

import gc
import os
import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster
from actors.errors import HarnessError, InputError, RefusedError, StressError
from cluster import held
from cluster.driver import Outcome, RunRequest
from scenarios import CpuLoad, Descriptors, Mappings, Targets, text

ENDED = Outcome("passed", 0, "held", Path("runs/r"))


class FakeDriver:
    """A driver's process that tells what is put into it; `stop` ends it as a real one does."""

    def __init__(self, request: RunRequest) -> None:
        self.request, self.words, self.stops = request, queue.Queue[Any](), list[tuple[str, bool]]()
        self.outcome = ENDED

    def tell(self, **event: Any) -> None:
        self.words.put(event)

    def holds(self, *operations: dict[str, Any]) -> None:
        self.tell(type="progress", operations=operations)

    def events(self) -> Iterator[dict[str, Any]]:
        while (event := self.words.get()) is not None:
            yield event

    def end(self, outcome: Outcome, **told: Any) -> None:
        self.outcome = outcome
        self.tell(type="outcome", **told)
        self.words.put(None)

    def stop(self, reason: str, *, as_planned: bool = False) -> None:
        self.stops.append((reason, as_planned))
        self.words.put(None)

    def wait(self) -> Outcome:
        return self.outcome


def operation(achieved: float | None, requested: float | None = 200.0, errno: str = "", node: str = "n1") -> dict[str, Any]:
    short = {"errno": errno, "requested": 200, "allocated": 100} if errno else None
    health = "" if None in (achieved, requested) else "well" if abs(achieved - requested) <= 0.02 * requested else "short"
    told = {"operation": f"0.Descriptors@{node}", "node": node, "stage": "running", "unit": "count"}
    return {**told, "requested": requested, "achieved": achieved, "shortfall": short, "health": health}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return a box whose `made` are the drivers started, and whose `first` prepares what each tells at once."""
    box = SimpleNamespace(made=[], first=lambda one: one.holds(operation(200.0)))
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def start(request: RunRequest) -> FakeDriver:
        box.made.append(FakeDriver(request))
        box.first(box.made[-1])
        return box.made[-1]

    monkeypatch.setattr(held, "start", start)
    yield box
    for one in box.made:
        one.words.put(None)


def hold(**options: Any) -> held.Held:
    return held.exhaust(Descriptors(count=200), for_s=60, hold=True, quiet=True, **{"address": "auto", **options})


def test_a_handle_says_what_is_held_until_it_lets_go(driver: Any) -> None:
    """What is asked and counted outside, by node; released once, judged as planned, and the same outcome again."""
    driver.first = lambda one: one.holds(operation(200.0), operation(199.0, node="n2"))
    one = hold()
    assert [(dose.node, dose.requested, dose.achieved, dose.unit) for dose in one.held] == [
        ("n1", 200.0, 200.0, "count"),
        ("n2", 200.0, 199.0, "count"),
    ]
    assert (one.nodes, one.is_held) == (("n1", "n2"), True)
    assert one.release() is one.release() is ENDED
    assert (one.held, one.nodes, one.is_held) == ((), (), False)
    assert driver.made[0].stops == [("the holder let go", True)]


def test_its_run_is_the_scenario_of_one_hold_that_ends_by_itself(driver: Any) -> None:
    """All simulators together for `for_s` at most, on the targets asked for, for a caller that may let go."""
    with held.exhaust(Descriptors(count=200), Mappings(count=500), for_s=30, hold=True, quiet=True, targets=Targets(names=("n1",))):
        request = driver.made[0].request
    scenario = text.load(request.scenario_text)
    assert request.held
    assert [part.simulator for part in scenario.plan.parts] == [Descriptors(count=200), Mappings(count=500)]
    assert (scenario.plan.duration_s, scenario.targets.names) == (30.0, ("n1",))
    assert driver.made[0].stops == [("the holder let go", True)]


def test_whoever_drops_the_handle_lets_go(driver: Any) -> None:
    """Also as part of a cycle, and however it is dropped; other handles hold on."""
    kept, dropped, cycle = hold(), hold(), [hold()]
    cycle.append(cycle)
    del dropped, cycle
    gc.collect()
    assert [one.stops for one in driver.made] == [[], [("the holder let go", True)], [("the holder let go", True)]]
    assert kept.is_held


def test_an_error_in_the_block_lets_go(driver: Any) -> None:
    """And goes on."""
    with pytest.raises(KeyError), hold():
        raise KeyError("x")
    assert driver.made[0].stops


def test_a_forked_child_lets_go_of_nothing(driver: Any) -> None:
    """What it has is a copy of the handle."""
    one = hold()
    child = os.fork()
    if not child:
        one._let_go()
        os._exit(7 if driver.made[0].stops else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("told", "is_there"),
    [
        pytest.param([operation(None, None)], False, id="no-window-yet"),
        pytest.param([operation(0.0, 0.0)], False, id="nothing-asked-yet"),
        pytest.param([operation(150.0)], False, id="not-all-yet"),
        pytest.param([operation(200.0), operation(150.0, node="n2")], False, id="not-everywhere"),
        pytest.param([operation(199.0)], True, id="within-the-tolerance"),
        pytest.param([operation(100.0, errno="EMFILE")], True, id="all-that-the-kernel-gives"),
    ],
)
def test_it_returns_once_all_is_held(driver: Any, told: list[dict[str, Any]], is_there: bool) -> None:
    """Or what of it the kernel gave; where that does not come to be in time, nothing stays held."""
    driver.first = lambda one: one.holds(*told)
    if is_there:
        assert [dose.errno for dose in hold().held] == [one["shortfall"]["errno"] if one["shortfall"] else "" for one in told]
    else:
        with pytest.raises(HarnessError, match=r"not all was held within 0\.05 s"):
            hold(within_s=0.05)
        assert driver.made[0].stops


@pytest.mark.parametrize(
    ("outcome", "told", "error", "words"),
    [
        pytest.param(
            Outcome("refused", 6, "x"), {"code": "budget", "error": "too much", "hint": "less"}, RefusedError, "too much", id="refused"
        ),
        pytest.param(Outcome("invalid", 2, "x"), {"code": "invalid_value", "error": "bad"}, InputError, "bad", id="invalid"),
        pytest.param(Outcome("error", 3, "it died"), {}, HarnessError, "the run ended as error: it died", id="died"),
        pytest.param(Outcome("passed", 0, "over"), {}, HarnessError, "the run ended as passed", id="over-before-it-was-seen"),
    ],
)
def test_what_cannot_be_held_is_an_error(driver: Any, outcome: Outcome, told: dict[str, Any], error: type[StressError], words: str) -> None:
    """With the code and the words that the run gave."""
    driver.first = lambda one: one.end(outcome, **told)
    with pytest.raises(error, match=words) as caught:
        hold()
    assert caught.value.code == told.get("code", "internal")


def test_by_default_it_is_a_run_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocated, held for its time and given back: the same as running the scenario."""
    asked: list[Any] = []
    monkeypatch.setattr(held, "run_scenario", lambda scenario, **options: asked.append((scenario, options)) or ENDED)
    assert cluster.exhaust(CpuLoad(0.5), for_s=3, profile="aggressive", nodes=2) is ENDED
    ((scenario, options),) = asked
    assert (scenario.plan.simulator, scenario.plan.for_s, scenario.profile) == (CpuLoad(0.5), 3.0, "aggressive")
    assert options == {"quiet": False, "nodes": 2}


@pytest.mark.parametrize(
    ("simulators", "options"),
    [
        pytest.param((), {}, id="nothing"),
        pytest.param(("Descriptors",), {}, id="no-simulator"),
        pytest.param((Descriptors(count=1),), {"for_s": 0.0}, id="no-time"),
        pytest.param((Descriptors(count=1),), {"for_s": float("inf")}, id="for-ever"),
    ],
)
def test_wrong_holds_are_refused_before_anything_starts(driver: Any, simulators: tuple[Any, ...], options: dict[str, Any]) -> None:
    """No simulator, and no time or one without an end."""
    with pytest.raises(InputError):
        held.exhaust(*simulators, hold=True, **{"for_s": 1.0, **options})
    assert driver.made == []
