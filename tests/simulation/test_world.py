"""The control plane's invariants on virtual time, and proof that the world would notice if one of them broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.guardian.core import GuardianCore
from actors.guardian.engine import Engine
from actors.guardian.model import LOADING, NEVER_NS, SaveHalt
from actors.messages import Halt
from actors.undo import Outcome
from cluster.agent import Agent
from cluster.orchestrator import Orchestrator
from cluster.times import Times
from tests.simulation.world import faults
from tests.simulation.world.world import Kinds, World

# What has to have happened somewhere, besides every fault: a world in which it never does proves nothing.
HAPPENED = {
    *("takeover", "adopted", "retired", "node_gone", "run_admitted", "run_recovered", "question_lost", "message_lost", "message_late"),
    *("cut_up", "cut_down", "deposed_agent_left", "deposed_orchestrator_wrote", "stale_snapshot", "throttled", "outbox_torn"),
    *("verdict_SHED", "verdict_ABORT", "slot_refused_budget", "slot_refused_halted", "refused_budget", "refused_busy", "refused_halted"),
    *("stopped_agent_killed", "journal_refuses", "stream_whole", "charges_inherited"),
    *("begins_CpuLoad", "begins_MemoryPressure", "begins_DiskFill", "load_done", "load_expired", "applied", "undone", "clean"),
    *("status_passed", "status_error", "status_safety", "status_cancelled", "status_timeout", "status_inconclusive", "halt_on_machine"),
}


Break = Callable[[pytest.MonkeyPatch], None]


def play(seed: int, nodes: int, **options: bool) -> World:
    """Run one world; a failure names the line that replays it."""
    try:
        return World(seed, nodes, **options).run()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, {nodes} nodes: {error}\nreplay: pytest tests/simulation --only-seed {seed}") from error


def play_many(chosen: range, kinds: Kinds) -> None:
    """Run small worlds with these faults only."""
    for seed in chosen:
        World(seed, 10, kinds=kinds).run()


def test_fifty_nodes_keep_every_invariant_and_every_fault_fires(seeds: Callable[[int], range]) -> None:
    """Under any mix of faults no invariant breaks, nothing is left at the end, and no kind of fault was only listed."""
    found: Counter[str] = Counter()
    chosen = seeds(200)
    for seed in chosen:
        world = play(seed, 50)
        found.update(world.fired + world.watch.seen)
    if len(chosen) >= 100:
        missing = ({kind.__name__ for kind in faults.FAULTS} | HAPPENED) - set(found)
        assert not missing, f"never happened in {len(chosen)} seeds: {sorted(missing)}"


def test_a_thousand_nodes_keep_every_invariant(seeds: Callable[[int], range]) -> None:
    """The same on a large cluster."""
    for seed in list(seeds(200))[:5]:
        assert play(seed, 1_000).fired["run_admitted"] > 0


def test_one_seed_is_one_world() -> None:
    """The same seed replays event by event."""
    first, second = play(3, 20), play(3, 20)
    assert first.timeline.events == second.timeline.events
    assert first.fired == second.fired
    assert first.watch.seen == second.watch.seen


def test_a_wall_clock_that_jumps_by_a_day_changes_nothing() -> None:
    """No deadline, order or count depends on wall time."""
    for seed in range(4):
        with_steps, without = play(seed, 20), play(seed, 20, wall_steps=False)
        assert with_steps.timeline.events == without.timeline.events
        assert with_steps.fired == without.fired
        assert with_steps.watch.granted_until == without.watch.granted_until


# ---- what the world notices


def lease_counts_from_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Agent.on_reply
    monkeypatch.setattr(Agent, "on_reply", lambda self, reply, _, now_ns: real(self, reply, now_ns, now_ns))


def charge_without_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Times, "charge_ns", property(lambda self: round(self.lease_s * 1e9)))


def drift_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.times.DRIFT", 0.0)


def expired_leases_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_due", lambda _, slot: slot.drain_until_ns if slot.phase in LOADING else NEVER_NS)


def guardian_forgets_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardianCore, "_admit", lambda self, request, now_ns: (request["cluster"], request["node"]))


def lost_nodes_are_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Orchestrator, "_presume_ended", lambda self, run, node: self._settle_now(run, node), raising=True)

    def settle_now(self: Orchestrator, run: object, node: str) -> None:
        from cluster.safety import budget

        self.ledger = budget.release_node(self.ledger, run.admission.run, node)  # type: ignore[attr-defined]

    monkeypatch.setattr(Orchestrator, "_settle_now", settle_now, raising=False)


def a_successor_inherits_no_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.safety.budget.inherited", lambda ledger, *_: ledger)


def nothing_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.safety.budget.first_excess", lambda *_: "")


def undone_is_taken_on_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    real = GuardianCore.done
    monkeypatch.setattr(GuardianCore, "done", lambda self, result, now_ns: real(self, _trusting(result), now_ns))


def _trusting(result: object) -> object:
    return replace(result, result="undone") if isinstance(result, Outcome) and result.result == "pending" else result


def clean_before_the_guardian_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Agent.close_run

    def close_run(self: Agent, run: object, grace_s: float, *, kill: bool = False) -> None:
        real(self, run, grace_s, kill=kill)  # type: ignore[arg-type]
        for name in run.operations:  # type: ignore[attr-defined]
            self.on_closed(run.run, name, 1, [])  # type: ignore[attr-defined]

    monkeypatch.setattr(Agent, "close_run", close_run)


def halt_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def halt_now(self: GuardianCore, generation: int, *_: object) -> None:
        self.halt = Halt(generation, on=True)
        self._out.append(SaveHalt(generation, True))

    monkeypatch.setattr(GuardianCore, "_halt_now", halt_now)


def nobody_looks_at_the_snapshots_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "on_stale", lambda *_: None)


BREAKS = [
    (lease_counts_from_the_answer, "invariant 2", faults.FAULTS),
    (charge_without_allowance, "invariant 2", faults.FAULTS),
    (drift_is_forgotten, "invariant 2", faults.FAULTS),
    (expired_leases_are_left_alone, "invariant 1 |are left", {faults.load_hung: 1, faults.partition: 1}),
    (guardian_forgets_the_fence, "invariant 5", {faults.agent_replaced: 1}),
    (lost_nodes_are_given_back_at_once, "invariant 2", {faults.partition: 1, faults.load_hung: 1}),
    (a_successor_inherits_no_charge, "invariant 6", {faults.orchestrator_killed: 1}),
    (nothing_is_reserved, "invariant 6", faults.FAULTS),
    (undone_is_taken_on_trust, "invariant (8|15)", faults.FAULTS),
    (clean_before_the_guardian_says_so, "invariant 15", faults.FAULTS),
    (nobody_looks_at_the_snapshots_age, "invariant 20", {faults.sampler_dead: 1}),
    (halt_ends_nothing, "invariant 13", {faults.halt_on_node: 1}),
]


@pytest.mark.parametrize(("break_it", "noticed", "kinds"), BREAKS, ids=[row[0].__name__ for row in BREAKS])
def test_the_world_notices(break_it: Break, noticed: str, kinds: Kinds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core with this rule taken out breaks an invariant within a few seeds."""
    break_it(monkeypatch)
    with pytest.raises(AssertionError, match=noticed):
        play_many(range(60), kinds)
