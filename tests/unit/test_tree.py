"""The tree's layout, whom a child turns to, and what a relay answers; and real agents' outboxes through relays into real files."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.clock import MILLISECOND_NS, SECOND_NS, VirtualClock
from actors.errors import HarnessError, InputError
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import Stream, read_run
from cluster.metrics.tree import OTHERS, ROOT, Answer, Layout, Outcome, Pace, Part, Relay, Way, layout, size_of
from cluster.outbox import Outbox, parse
from tests.support.windows import end, record

PACE = Pace()
A, B = ("a", "1"), ("b", "1")


def names(count: int) -> list[str]:
    return [f"n{at:05d}" for at in range(count)]


def levels_above(tree: Layout, name: str) -> int:
    """Return how many relays lie between one and the aggregator."""
    steps = 0
    while (name := tree.ways[name][0]) != ROOT:
        steps += 1
    return steps


# ---- the layout


@pytest.mark.parametrize(
    ("count", "fan_in", "levels"),
    [
        pytest.param(0, 2, [], id="nobody"),
        pytest.param(8, 8, [], id="as-many-as-the-aggregator-takes"),
        pytest.param(9, 8, [2], id="one-more"),
        pytest.param(64, 8, [8], id="one-level-is-full"),
        pytest.param(65, 8, [9, 2], id="two-levels"),
        pytest.param(10_000, 100, [100], id="ten-thousand"),
        pytest.param(5, 2, [3, 2], id="binary"),
    ],
)
def test_levels_follow_from_the_count(count: int, fan_in: int, levels: list[int]) -> None:
    """There are as many levels as it takes, and none while the aggregator can take all agents itself."""
    assert [len(level) for level in layout(names(count), fan_in).levels] == levels


@settings(max_examples=60)
@given(count=st.integers(0, 600), fan_in=st.integers(2, 40), seed=st.integers(0, 9))
def test_nobody_has_more_children_than_the_fan_in_and_all_lead_to_the_root(count: int, fan_in: int, seed: int) -> None:
    """Each node and relay has one parent of the next level, groups are even, and the order of the names does not matter."""
    nodes = names(count)
    tree = layout(nodes, fan_in)
    random.Random(seed).shuffle(nodes)
    assert layout([*nodes, *nodes[:3]], fan_in) == tree
    children = Counter(ways[0] for ways in tree.ways.values())
    assert all(found <= fan_in for found in children.values())
    for level in tree.levels:
        sizes = {children[relay] for relay in level}
        assert max(sizes) - min(sizes) <= 1
    assert {levels_above(tree, node) for node in nodes} <= {len(tree.levels)}
    assert set(tree.hosts) == {relay for level in tree.levels for relay in level}
    assert set(tree.hosts.values()) <= set(nodes)
    for name, ways in tree.ways.items():
        assert len(set(ways)) == len(ways) <= OTHERS + 1, name
        assert ways == (ROOT,) or len(ways) >= 2, f"{name} has nobody else to turn to"
        assert len({next(at for at, level in enumerate(tree.levels) if way in level) for way in ways if way}) <= 1


def test_children_of_a_dead_relay_spread_over_the_others() -> None:
    """The second choice of neighbours differs, so that no relay gets all children of a dead one."""
    tree = layout(names(100), 10)
    second = Counter(tree.ways[child][1] for child in tree.children("relay-1-0003"))
    assert len(second) == 9
    assert max(second.values()) == 2


@pytest.mark.parametrize("fan_in", [1, 0, -3])
def test_a_fan_in_under_two_is_refused(fan_in: int) -> None:
    """A tree that does not grow narrower has no root."""
    with pytest.raises(InputError, match="at least 2"):
        layout(names(3), fan_in)


# ---- whom a child turns to


def test_a_child_turns_to_others_in_turn_and_comes_back_to_its_own() -> None:
    """Who does not answer is left for the next; after `away_ns` one's own is tried again."""
    way = Way(("own", "second", "third"), PACE, random.Random(1))
    assert way.target(0) == "own"
    way.unreachable(0)
    assert way.target(1) == "second"
    way.unreachable(1)
    way.taken()
    assert way.target(PACE.away_ns - 1) == "third"
    assert way.target(PACE.away_ns) == "own"
    way.refused(PACE.away_ns)
    assert way.target(PACE.away_ns + 1) == "own", "who lives and has no room is not left"


def test_a_child_whose_own_relay_stays_dead_tries_it_ever_less_often() -> None:
    """Each return in vain doubles the time until the next, up to a bound; windows that are taken there make it short again."""
    way, now_ns = Way(("own", "other"), PACE, random.Random(1)), 0
    stays = []
    for _ in range(8):
        way.unreachable(now_ns)
        left_ns = now_ns
        while way.target(now_ns) == "other":
            now_ns += SECOND_NS
        stays.append(now_ns - left_ns)
    assert stays == [min(PACE.away_ns << at, PACE.away_max_ns) for at in range(8)]
    way.taken()
    way.unreachable(now_ns)
    assert way.target(now_ns + PACE.away_ns) == "own"


def test_waits_grow_to_a_bound_and_end_with_success() -> None:
    """Each failure doubles the wait, up to `wait_max_ns`; chance takes at most half of it off."""
    way = Way(("own", "other"), PACE, random.Random(1))
    waits = []
    for _ in range(12):
        way.refused(0)
        waits.append(way.ready_ns)
    for at, wait_ns in enumerate(waits):
        full_ns = min(PACE.wait_ns << at, PACE.wait_max_ns)
        assert full_ns // 2 <= wait_ns <= full_ns
    way.taken()
    way.refused(0)
    assert way.ready_ns <= PACE.wait_ns


# ---- a relay


def part(stream: Stream, *numbers: int, size: int = 10) -> Part:
    return stream, tuple((number, bytes([number]) * size) for number in numbers)


def test_calls_gather_and_each_is_answered_with_its_own_streams() -> None:
    """One bundle goes up for several calls; each caller hears about its own parts only."""
    relay = Relay(PACE)
    assert relay.due_ns() is None
    assert relay.offer(1, "a", [part(A, 1, 2)], 1000) == []
    assert relay.offer(2, "b", [part(B, 7)], 2000) == []
    assert relay.due_ns() == 1000 + PACE.gather_ns
    bundle = relay.take()
    assert bundle.parts == (part(A, 1, 2), part(B, 7))
    assert relay.due_ns() is None, "one bundle at a time"
    assert relay.answered(bundle.number, {A: 2, B: 5}) == [Answer(1, Outcome.HELD, (2,)), Answer(2, Outcome.HELD, (5,))]
    assert relay.held_bytes == 0


def test_what_comes_while_a_bundle_is_on_its_way_gathers() -> None:
    """The next bundle is due by its own oldest call once the first has landed."""
    relay = Relay(PACE)
    relay.offer(1, "a", [part(A, 1)], 0)
    bundle = relay.take()
    relay.offer(2, "b", [part(B, 1)], 5)
    assert relay.due_ns() is None
    assert relay.failed(bundle.number) == [Answer(1, Outcome.FAILED)]
    assert relay.due_ns() == 5 + PACE.gather_ns
    assert relay.answered(bundle.number, {A: 1}) == [], "an answer that comes too late answers nobody"
    assert relay.take().parts == (part(B, 1),)


def test_one_stream_by_two_children_goes_up_once() -> None:
    """Records that two children hand in are sent once, in order, and both hear what is held."""
    relay = Relay(PACE)
    relay.offer(1, "x", [part(A, 2, 3)], 0)
    relay.offer(2, "y", [part(A, 1, 2)], 0)
    bundle = relay.take()
    assert bundle.parts == (part(A, 1, 2, 3),)
    assert [answer.held for answer in relay.answered(bundle.number, {A: 3})] == [(3,), (3,)]


def test_a_child_that_gave_up_and_calls_again_takes_no_room_twice() -> None:
    """A later call of one child takes the place of its earlier one."""
    relay = Relay(PACE, max_bytes=100)
    relay.offer(1, "a", [part(A, 1, size=60)], 0)
    assert relay.offer(2, "a", [part(A, 1, size=60)], 9) == [Answer(1, Outcome.REPLACED)]
    assert relay.held_bytes == 60
    assert relay.due_ns() == 9 + PACE.gather_ns


def test_a_full_relay_says_so_and_an_empty_one_takes_what_alone_is_too_large() -> None:
    """Past `max_bytes` a call is refused; a single call of any size passes, or it would never arrive."""
    relay = Relay(PACE, max_bytes=100, bundle_bytes=50)
    assert relay.offer(1, "a", [part(A, 1, size=150)], 0) == []
    assert relay.offer(2, "b", [part(B, 1, size=1)], 0) == [Answer(2, Outcome.BUSY)]
    assert relay.due_ns() == 0, "a full bundle waits for nobody"
    bundle = relay.take()
    assert relay.offer(3, "b", [part(B, 1, size=1)], 0) == [Answer(3, Outcome.BUSY)], "what is on its way is held too"
    relay.failed(bundle.number)
    assert relay.offer(4, "b", [part(B, 1, size=1)], 0) == []


def test_a_bundle_takes_the_oldest_calls_up_to_its_size() -> None:
    """What does not fit goes with the next one."""
    relay = Relay(PACE, bundle_bytes=25)
    for call, sender in enumerate("abc", 1):
        relay.offer(call, sender, [part((sender, "1"), 1)], call)
    first = relay.take()
    assert [stream for stream, _ in first.parts] == [A, B]
    relay.failed(first.number)
    assert relay.due_ns() == 3 + PACE.gather_ns
    assert [stream for stream, _ in relay.take().parts] == [("c", "1")]


# ---- real outboxes, real files


def test_many_streams_are_pushed_together_each_by_its_own_rule(tmp_path: Path) -> None:
    """A gap or a torn frame refuses the rest of its stream only; what is held is skipped; ends are known."""
    core = Aggregator("r", tmp_path / "r", VirtualClock())
    sequence, torn = record("c", 1)
    parts = {
        ("a", "1"): [record("a", 1), record("a", 2), end(3)],
        ("b", "1"): [record("b", 1), record("b", 3)],
        ("c", "1"): [(sequence, torn[:-1]), record("c", 2)],
        ("d", "1"): [],
    }
    assert core.push_many(parts) == {("a", "1"): 3, ("b", "1"): 1, ("c", "1"): 0, ("d", "1"): 0}
    assert core.push_many(parts) == {("a", "1"): 3, ("b", "1"): 1, ("c", "1"): 0, ("d", "1"): 0}
    assert core.push("b", "1", [record("b", 2), record("b", 3)]) == 3
    assert {one["node"] for one in core.outstanding()} == {"b"}
    core.finish({})
    contents = read_run(tmp_path / "r")
    assert Counter(row["node"] for row in contents.metrics.to_pylist() if row["metric"] == "probe.requests") == {"a": 2, "b": 3}
    core.close()


def test_a_bundle_costs_one_sync_of_each_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many streams a bundle has, events are synced once and metrics once; a push each costs two a stream."""
    synced: list[int] = []
    core = Aggregator("r", tmp_path / "r", VirtualClock())
    core.push("z", "1", [record("z", 1)])  # the files are there
    monkeypatch.setattr("cluster.metrics.store.os.fsync", synced.append)
    core.push_many({(f"n{at}", "1"): [record(f"n{at}", 1)] for at in range(20)})
    assert len(synced) == 2
    for at in range(20):
        core.push(f"n{at}", "1", [record(f"n{at}", 2)])
    assert len(synced) == 2 + 40
    core.close()


def test_a_disk_that_refuses_takes_nothing_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the call counts then, and the same call later is taken whole."""
    core = Aggregator("r", tmp_path / "r", VirtualClock())
    parts = {("a", "1"): [record("a", 1)], ("b", "1"): [record("b", 1)]}
    with monkeypatch.context() as patch:
        patch.setattr("cluster.metrics.store.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HarnessError, match="No space"):
            core.push_many(parts)
    assert core.push_many(parts) == {("a", "1"): 1, ("b", "1"): 1}
    assert len(core.query("probe.requests")) == 2
    core.close()


@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 20))
def test_windows_through_relays_that_die_are_in_the_files_once(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Outboxes through two relays, calls repeated, answers lost, relays replaced: the files hold what was sealed, value by value."""
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("tree")
    core = Aggregator("r", folder / "r", VirtualClock())
    boxes = {node: Outbox(folder / "outbox" / f"{node}.box", node=node, incarnation="1", run="r") for node in "abc"}
    for node, box in boxes.items():
        for at in range(1, 6):
            frame = parse(record(node, at)[1])
            assert box.append(frame.kind, frame.payload) == at
        box.seal()
    relays = [Relay(PACE), Relay(PACE)]
    now_ns, call, finished = 0, 0, set()
    while len(finished) < len(boxes):
        at = chance.randrange(2)
        callers: dict[int, str] = {}
        for node in sorted(set(boxes) - finished):
            call, now_ns = call + 1, now_ns + MILLISECOND_NS
            parts = [((node, "1"), tuple(boxes[node].unacked(chance.choice([1, 4000, 1 << 20]))))]
            relays[at].offer(call, node, parts, now_ns)
            callers[call] = node
        now_ns += SECOND_NS
        bundle = relays[at].take()
        assert size_of(bundle.parts) > 0
        held = core.push_many(dict(bundle.parts)) if chance.random() < 0.8 else None
        if chance.random() < 0.3:
            relays[at] = Relay(PACE)  # it dies before it could answer
            continue
        for answer in relays[at].failed(bundle.number) if held is None else relays[at].answered(bundle.number, held):
            node = callers[answer.call]
            if answer.outcome is Outcome.HELD and chance.random() < 0.8:
                boxes[node].ack(answer.held[0])
                finished |= {node} if not boxes[node].path.exists() else set()
    assert core.outstanding() == []
    core.finish({})
    found = [row for row in read_run(folder / "r").metrics.to_pylist() if row["metric"] == "probe.requests"]
    assert Counter((row["node"], row["sum"]) for row in found) == Counter((node, float(at)) for node in "abc" for at in range(1, 6))
    core.close()
