"""A tree of relays on virtual time keeps every acknowledged window, once, and the world notices when one of its rules is taken out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cluster.metrics.store import Ranges
from cluster.metrics.tree import Answer, Outcome, Part, Relay, Way
from tests.simulation.world import tree_world
from tests.simulation.world.tree_faults import FAULTS
from tests.simulation.world.tree_world import TreeWorld

# What has to have happened somewhere, besides every fault: a world in which it never does proves nothing.
HAPPENED = {
    *("bundles", "calls_in_one_bundle", "handed_to_another", "answered_too_late", "sent_again", "died_with_windows"),
    *("told_busy", "told_failed", "told_replaced", "disk_refused", "window_stayed_open"),
}


def play(seed: int, nodes: int, fan_in: int, *, calm: bool = False, **options: float) -> TreeWorld:
    """Run one world; a failure names the line that replays it."""
    try:
        return TreeWorld(seed, nodes, fan_in, () if calm else FAULTS, **options).run()
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed}, {nodes} nodes, fan-in {fan_in}: {error}\nreplay: pytest {__file__} --only-seed {seed}"
        ) from error


def play_many(chosen: range) -> None:
    """Run small worlds."""
    for seed in chosen:
        TreeWorld(seed, 60, 4, FAULTS).run()


def test_two_hundred_nodes_lose_and_double_nothing_and_every_fault_fires(seeds: Callable[[int], range]) -> None:
    """Under any mix of faults each window is kept once, relays stay within their bounds, and all arrives when they have healed."""
    found: Counter[str] = Counter()
    chosen = seeds(100)
    for seed in chosen:
        world = play(seed, 200, 8)
        assert len(world.layout.levels) == 2
        found.update(world.seen)
    if len(chosen) >= 100:
        missing = ({kind.__name__ for kind in FAULTS} | HAPPENED) - set(+found)
        assert not missing, f"never happened in {len(chosen)} seeds: {sorted(missing)}"


def test_a_binary_tree_of_many_levels_loses_nothing(seeds: Callable[[int], range]) -> None:
    """With a fan-in of two every window passes through many relays."""
    for seed in list(seeds(200))[:30]:
        assert len(play(seed, 33, 2, faults_a_second=2.0).layout.levels) == 5


def test_ten_thousand_nodes_lose_nothing_and_the_aggregator_syncs_for_many_at_once(seeds: Callable[[int], range]) -> None:
    """A large cluster's windows reach the aggregator through three callers; a sync makes many of them durable."""
    world = play(next(iter(seeds(1))), 10_000, 64, span_s=6.0)
    assert [len(level) for level in world.layout.levels] == [157, 3]
    assert len(world.kept) > 20 * world.syncs


def test_a_calm_tree_hands_each_window_in_once() -> None:
    """Without faults nothing is sent again, nobody leaves its own relay, and nothing finds a relay full."""
    world = play(1, 200, 8, calm=True)
    assert set(+world.seen) <= {"bundles", "calls_in_one_bundle"}


def test_one_seed_is_one_world() -> None:
    """The same seed replays event by event."""
    first, second = play(3, 60, 4), play(3, 60, 4)
    assert (first.timeline.events, first.seen, first.kept) == (second.timeline.events, second.seen, second.kept)


# ---- what the world notices


def a_relay_answers_what_it_holds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Relay.offer

    def offer(self: Relay, call: int, sender: str, parts: Sequence[Part], now_ns: int) -> list[Answer]:
        answers = real(self, call, sender, parts, now_ns)
        if any(answer.call == call for answer in answers):
            return answers
        early = Answer(call, Outcome.HELD, tuple(records[-1][0] for _, records in parts))
        monkeypatch.setattr(Relay, "_landed", lambda self, number: [])
        return [*answers, early]

    monkeypatch.setattr(Relay, "offer", offer)


def a_bundle_without_an_answer_counts_as_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(self: Relay, number: int) -> list[Answer]:
        landed = self._landed(number)
        return [Answer(call.call, Outcome.HELD, tuple(records[-1][0] for _, records in call.parts)) for call in landed]

    monkeypatch.setattr(Relay, "failed", failed)


def answers_go_to_the_wrong_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Relay.answered
    monkeypatch.setattr(Relay, "answered", lambda self, number, held: real(self, number, dict.fromkeys(held, max(held.values()))))


def the_aggregator_keeps_what_it_has_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_world, "following", lambda coverage, stream, records, read: [read(*one) for one in records])


def the_aggregator_steps_over_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranges, "contiguous", property(lambda self: self._ranges[-1][1] if self._ranges else 0))
    monkeypatch.setattr(tree_world, "following", lambda coverage, stream, records, read: [read(*one) for one in records[-1:]])


def a_relay_takes_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Relay.__init__
    monkeypatch.setattr(Relay, "__init__", lambda self, pace, **_: real(self, pace, max_bytes=1 << 40, bundle_bytes=4096))


def what_was_given_up_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Relay.offer

    def offer(self: Relay, call: int, sender: str, parts: Sequence[Part], now_ns: int) -> list[Answer]:
        earlier = self._waiting.get(sender)
        answers = real(self, call, sender, parts, now_ns)
        self.held_bytes += earlier.size if earlier else 0
        return answers

    monkeypatch.setattr(Relay, "offer", offer)


def nobody_turns_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Way, "unreachable", Way.refused)


def everybody_falls_back_on_its_own_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_world, "PACE", replace(tree_world.PACE, away_max_ns=tree_world.PACE.away_ns))


BREAKS = [
    (a_relay_answers_what_it_holds_itself, "acknowledged, .* on disk"),
    (a_bundle_without_an_answer_counts_as_taken, "acknowledged, .* on disk"),
    (answers_go_to_the_wrong_stream, "acknowledged, .* on disk"),
    (the_aggregator_keeps_what_it_has_again, "kept twice"),
    (the_aggregator_steps_over_gaps, "is not there as it was sealed"),
    (a_relay_takes_whatever_comes, "its bound is"),
    (what_was_given_up_is_never_forgotten, "says it holds"),
    (nobody_turns_to_another, "never delivered"),
    (everybody_falls_back_on_its_own_as_often, "never delivered"),
]


@pytest.mark.parametrize(("break_it", "noticed"), BREAKS, ids=[row[0].__name__ for row in BREAKS])
def test_the_world_notices(break_it: Callable[[pytest.MonkeyPatch], None], noticed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree with this rule taken out breaks an invariant within a few seeds."""
    break_it(monkeypatch)
    with pytest.raises(AssertionError, match=noticed):
        play_many(range(20))
