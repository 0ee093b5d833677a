"""Meshes of actors on virtual nodes that die: what each sender accounts for is compared with what the receivers really got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_mesh import FakeBoard, FakeMeshWork, GoneError, Turns, World

from actors.clock import SECOND_NS
from actors.control import ControlWriter, StatsPage
from actors.disk import leave_by_raising
from actors.lease import LeaseWatch
from actors.messages import Capacity, Operation
from actors.metrics.reporter import MemoryReporter
from actors.ray_loads import board, mesh_members
from actors.ray_loads.actor_mesh import CLOSE_S, ActorMesh
from actors.ray_loads.mesh import RESTARTS_MAX
from actors.ray_loads.mesh_account import TURN_S, Account, Ranges, may_stand_in
from actors.simulator import peak_amounts

CAPACITY = Capacity(8.0, 1 << 34, 1 << 34, tasks=10_000)
MESH = Operation("0.ActorMesh@n1", "ActorMesh", "n1", 0.0, 4.0, "per_second", {"kind": "constant", "level": 100.0})


@given(added=st.lists(st.integers(0, 60), max_size=80), others=st.sets(st.integers(0, 60)))
def test_ranges_are_a_set(added: list[int], others: set[int]) -> None:
    """In whatever order they come: what is in, how many, and what two have in common; touching ranges are one."""
    ranges, model = Ranges(), set[int]()
    for number in added:
        assert ranges.add(number) is (number not in model)
        model.add(number)
    assert [number for start, end in ranges.pairs for number in range(start, end)] == sorted(model)
    assert len(ranges) == len(model)
    assert all(end < start for (_, end), (start, _) in zip(ranges.pairs, ranges.pairs[1:], strict=False))
    other = Ranges()
    for number in others:
        other.add(number)
    both = ranges.common(other)
    assert {number for start, end in both.pairs for number in range(start, end)} == model & others
    assert Ranges(both.pairs).pairs == both.pairs


STEPS = st.tuples(st.sampled_from(["answer", "fail", "cancel", "die", "tell", "final"]), st.sampled_from("ab"), st.sets(st.integers(1, 40)))


@given(steps=st.lists(STEPS, max_size=60))
def test_every_message_has_one_fate(steps: list[tuple[str, str, set[int]]]) -> None:
    """Whatever is answered, fails, dies and is told in whatever order: both sums hold at each step, and nothing is held at the end."""
    account, acknowledged = Account(), Counter[str]()
    for what, member, known in steps:
        if what in {"answer", "fail", "cancel"}:
            number = account.send(member)
            {"answer": lambda: account.acknowledge(member, number), "fail": account.fail, "cancel": account.cancel}[what]()  # noqa: B023
            acknowledged[member] += what == "answer"
        elif what == "die":
            account.die(member)
        else:
            told = Ranges()
            for number in known:
                told.add(number)
            before, lost = account.held, account.sums.lost
            assert account.tell(member, told, final=what == "final") == before - account.held == account.sums.lost - lost
        sums = account.sums
        assert sums.sent == sums.acknowledged + sums.failed + sums.cancelled
        assert sums.acknowledged == acknowledged.total() == sums.lost + sums.unread + account.held
    account.close()
    sums = account.sums
    assert sums.acknowledged == sums.lost + sums.unread + account.held


def test_the_dead_are_lost_and_the_silent_are_unread() -> None:
    """At the end: of two members that nobody could ask, only the dead one's messages are known to be lost; a late answer of it too."""
    account = Account()
    numbers = {member: [account.send(member) for _ in range(3)] for member in ("dead", "silent", "asked")}
    for member, sent in numbers.items():
        for number in sent[:2]:
            account.acknowledge(member, number)
    account.die("dead")
    account.acknowledge("dead", numbers["dead"][2])
    account.die("silent")
    assert account.tell("silent", Ranges([(1, 3)])) == 0  # who stands in for it knows everything, and lives
    assert account.tell("asked", Ranges([(1, 2)]), final=True) == 1
    account.close()
    assert (account.sums.lost, account.sums.unread, account.held) == (3 + 1, 2, 1)


@given(members=st.sets(st.text(min_size=1), min_size=1, max_size=20), nodes=st.sets(st.text(min_size=1), min_size=1, max_size=6))
def test_somebody_stands_in_at_once_and_everybody_in_the_end(members: set[str], nodes: set[str]) -> None:
    """Of the living exactly one may take a lost member in at once, one more after each turn."""
    for member in members:
        for turns in range(len(nodes)):
            may = {node for node in nodes if may_stand_in(member, node, nodes - {node}, turns * TURN_S)}
            assert len(may) == turns + 1


# ---- several senders


class NodeClock:
    """The clock of one node's sender, who is gone when his node is."""

    def __init__(self, turns: Turns, world: World, place: str) -> None:
        self._turns, self._world, self._place = turns, world, place

    def boot_ns(self) -> int:
        return self._turns.now_ns

    def sleep(self, for_s: float) -> None:
        self._turns.sleep(for_s)
        if self._place not in self._world.alive:
            raise GoneError


@dataclass
class Node:
    """One node's simulator."""

    place: str
    mesh: ActorMesh
    work: FakeMeshWork
    reporter: MemoryReporter
    board: FakeBoard


@contextmanager
def nodes(
    names: str, options: dict[str, Any] | None = None, level: float = 100.0, for_s: float = 4.0, **world_fields: float
) -> Iterator[dict[str, Node]]:
    """Make a mesh over nodes of one letter each; each begins within the first tenth of a second, which `run` waits for."""
    turns, boards = Turns(), {name: FakeBoard() for name in names}
    world = World(turns, names, **world_fields)
    made = {}
    for name in names:
        control, _ = ControlWriter.create()
        stats, _ = StatsPage.create()
        control.reset_slot(3, 5, 1, 1)
        control.write_lease(3, 5, turns.now_ns + 1000 * SECOND_NS)
        clock, reporter, work = NodeClock(turns, world, name), MemoryReporter(), FakeMeshWork(world, name)
        watch = LeaseWatch(control, stats, 3, 5, clock, leave=leave_by_raising)
        shape = {"kind": "constant", "level": level}
        same = {"duration_s": for_s, "options": options or {"actors": 1}, "shape": shape}
        operation = replace(MESH, id=f"0.ActorMesh@{name}", node=name, seed=ord(name), **same)
        made[name] = Node(name, ActorMesh(operation, CAPACITY, watch, work, reporter, name), work, reporter, boards[name])
    with patch.object(mesh_members, "claim", boards.__getitem__), patch.object(board, "lower", lambda path, to: boards[path].lower(to)):
        yield made


def live(node: Node, start_ns: int) -> None:
    """Live as a carrier has a pattern live."""
    node.mesh.warm_up()
    clock = node.mesh._watch.clock
    while clock.boot_ns() < start_ns:
        node.mesh.idle()
        clock.sleep(0.1)
    node.mesh.run(start_ns)
    node.mesh.close()


def run(made: dict[str, Node], *faults: tuple[float, str, Any]) -> World:
    """Let all live, with faults at seconds after the start: ("node", name), ("process", (name, which)), ("ceiling", (name, value)),
    ("freeze", (name, seconds)); and ("look", function)."""
    world = next(iter(made.values())).work.world
    start_ns = world.turns.now_ns + SECOND_NS

    def strike() -> None:
        world.turns.sleep(1.0)
        at_s = 0.0
        for fault_s, what, whom in sorted(faults):
            world.turns.sleep(fault_s - at_s)
            at_s = max(at_s, fault_s)
            if what == "node":
                world.kill_node(whom)
            elif what == "process":
                world.kill_process(*whom)
            elif what == "freeze":
                world.freeze(*whom)
            elif what == "look":
                whom()
            else:
                made[whom[0]].board.lower(whom[1])

    for node in made.values():
        world.turns.begin(lambda node=node: live(node, start_ns))
    world.turns.begin(strike)
    world.turns.run()
    return world


def truth(world: World, sender: str) -> tuple[int, int]:
    """Return how many answers a sender really got, and how many of these from actors that a fault killed."""
    delivered = [(server.killed, who) for server in world.actors for who, _ in server.delivered]
    return sum(who == sender for _, who in delivered), sum(killed for killed, who in delivered if who == sender)


def judge(made: dict[str, Node], world: World, living: str) -> None:
    """Each living sender's account is what really happened."""
    for name in living:
        mesh, sums = made[name].mesh, made[name].mesh.account.sums
        assert (sums.acknowledged, sums.lost, sums.unread) == (*truth(world, name), 0), (name, sums)
        counts = mesh.flow.counts
        assert (counts.accepted, counts.finished, counts.failed) == (sums.sent, sums.acknowledged, sums.failed)
        assert counts.cancelled == sums.cancelled
        assert mesh.flow.outstanding == 0
        told = {fate: sum(value for value, _ in made[name].reporter.samples("mesh.messages", fate=fate)) for fate in ("lost", "failed")}
        assert told == {"lost": sums.lost, "failed": sums.failed}
    assert all(server.ended for server in world.actors)


def test_at_rest_nothing_is_lost_and_every_node_gets_its_part() -> None:
    """Four nodes with two members each: every node receives what one sends, a quarter of it from itself, and closes without waiting."""
    with nodes("abcd", {"actors": 2}) as made:
        world = run(made)
        judge(made, world, "abcd")
        for node in made.values():
            assert node.mesh.account.sums.acknowledged == pytest.approx(400, abs=8)
            assert node.board.served == pytest.approx(400, abs=16)
            paths = {path: len(node.reporter.samples("mesh.latency", path=path)) for path in ("same_node", "cross_node")}
            assert 3 * paths["same_node"] == pytest.approx(paths["cross_node"], abs=12)
            assert min(value for value, _ in node.reporter.samples("mesh.latency", path="same_node")) >= 0.003
        assert world.turns.now_ns < (1_000 + 1 + 4 + 0.3) * SECOND_NS


def test_a_lost_nodes_members_go_on_elsewhere() -> None:
    """Both members of a node that dies are taken in by the others, once each; the rate of those that are left is held."""
    with nodes("abc", {"actors": 2}) as made:
        told: list[int] = []
        world = run(made, (1.5, "node", "c"), (3.9, "look", lambda: told.extend(made[name].mesh.account.sums.lost for name in "ab")))
        judge(made, world, "ab")
        assert told == [made[name].mesh.account.sums.lost for name in "ab"]  # when they are taken in, not at the end
        assert sum(made[name].mesh.mesh.restarts for name in "ab") == 2
        assert sum(server.owner != "c" for server in world.actors) == 4 + 2
        for name in "ab":
            sums = made[name].mesh.account.sums
            assert sums.lost == pytest.approx(50, abs=3)
            assert sums.acknowledged == pytest.approx(400, abs=40)
        assert made["c"].mesh.account.sums.sent == pytest.approx(150, abs=3)


def test_no_more_are_taken_in_than_there_is_room_for() -> None:
    """With room for one on the only node that is left, the other three stay dead, and what they had is lost all the same."""
    with nodes("abc", {"actors": 2, "spare": 1}) as made:
        world = run(made, (1.0, "node", "b"), (1.0, "node", "c"))
        judge(made, world, "a")
        assert made["a"].mesh.mesh.restarts == 1
        assert made["a"].mesh.account.sums.lost == pytest.approx(100 * 4 / 6, abs=4)


def test_a_member_that_keeps_on_dying_is_left_dead() -> None:
    """Made anew each time until the limit; the others go on."""
    with nodes("ab", {"actors": 1}) as made:
        mesh = made["a"].mesh.mesh
        mesh.restarts = RESTARTS_MAX - 1
        world = run(made, (1.0, "process", ("a", 0)), (3.0, "process", ("a", 0)))
        judge(made, world, "ab")
        assert mesh.restarts == RESTARTS_MAX
        assert sum(server.place == "a" for server in world.actors) == 2


def test_a_throttled_node_is_spared_by_all() -> None:
    """While one node's ceiling is at a quarter, all senders go at a quarter; then they go on as before."""
    with nodes("abc") as made:
        world = run(made, (1.0, "ceiling", ("b", 0.25)), (3.0, "ceiling", ("b", 1.0)))
        judge(made, world, "abc")
        for node in made.values():
            assert node.mesh.account.sums.acknowledged == pytest.approx(100 * (1 + 0.25 * 2 + 1), rel=0.1)


def test_a_stopped_node_is_asked_again() -> None:
    """A ceiling of nothing stops the mesh; that it rises is seen although nobody sends."""
    with nodes("ab") as made:
        world = run(made, (1.0, "ceiling", ("b", 0.0)), (2.0, "ceiling", ("b", 1.0)))
        judge(made, world, "ab")
        for node in made.values():
            assert node.mesh.account.sums.acknowledged == pytest.approx(100 * 3, rel=0.1)


def test_overload_is_bounded() -> None:
    """Members that serve less than is sent: no sender has more messages without an answer than it may, and no member more than its part."""
    with nodes("abc", {"actors": 1, "outstanding": 9}, level=400.0, work_s=0.01) as made:
        world = run(made)
        judge(made, world, "abc")
        for node in made.values():
            assert node.work.outstanding_max == 9
            assert node.mesh.flow.blocked_s > 2.0
            assert node.board.served == pytest.approx(400, rel=0.06)


def test_a_member_that_hangs_holds_up_no_other() -> None:
    """It gets no more than its part of what may be outstanding; the others get the rest, and nobody waits for it for long at the end."""
    with nodes("abc", {"actors": 1, "outstanding": 9}) as made:
        world = run(made, (1.0, "freeze", ("c", 60.0)))
        for name in "abc":
            sums, counts = made[name].mesh.account.sums, made[name].mesh.flow.counts
            assert sums.acknowledged == truth(world, name)[0] == pytest.approx(400, abs=12)
            assert (sums.cancelled, counts.cancelled) == (3, 3)
            assert (sums.failed, sums.lost, sums.unread) == (0, 0, pytest.approx(33, abs=3))
        assert world.turns.now_ns < (1_000 + 1 + 4 + CLOSE_S + 0.1) * SECOND_NS


def test_what_is_not_waited_for_any_more_is_cancelled() -> None:
    """A message that takes longer than a load has to end was neither acknowledged nor taken back; its receiver could not be asked."""
    with nodes("ab", {"actors": 1, "outstanding": 4}, work_s=3.0, level=10.0) as made:
        world = run(made)
        for name in "ab":
            sums, counts = made[name].mesh.account.sums, made[name].mesh.flow.counts
            assert sums.acknowledged == truth(world, name)[0] == sums.unread
            assert sums.sent == counts.accepted == sums.acknowledged + sums.cancelled
            assert counts.cancelled == sums.cancelled > 0


def test_calls_that_fail_late_kill_nobody_new() -> None:
    """A member is made anew at once; what was sent to the dead one and fails a second later is no death of the new one."""
    with nodes("ab", {"actors": 1}, wire_s=0.1, late_s=1.0) as made:
        world = run(made, (1.0, "process", ("a", 0)))
        judge(made, world, "ab")
        assert made["a"].mesh.mesh.restarts == 1


def test_who_dies_while_asked_is_lost() -> None:
    """Between the last question and its answer: what it had acknowledged is gone with it."""
    with nodes("ab", {"actors": 1}, wire_s=0.2) as made:
        world = run(made, (4.5, "process", ("b", 0)))
        judge(made, world, "ab")
        assert made["a"].mesh.account.sums.lost > 150


FAULTS = st.lists(
    st.tuples(
        st.floats(0.0, 1.95),  # what dies after it was asked for the last time is not lost
        st.sampled_from([("node", "b"), ("node", "d"), ("process", ("a", 0)), ("process", ("b", 1)), ("process", ("c", 0))]),
    ),
    max_size=5,
)


@settings(max_examples=15, deadline=None)
@given(faults=FAULTS, notice_s=st.sampled_from([0.0, 0.3, 2.0]), work_s=st.sampled_from([0.0, 0.003, 0.02]), wire_s=st.floats(0.0, 0.02))
def test_whoever_dies_the_accounts_of_the_living_are_right(
    faults: list[tuple[float, Any]], notice_s: float, work_s: float, wire_s: float
) -> None:
    """Nodes and processes die at any instants: the living tell exactly how many answers they got and how many of these are lost."""
    with nodes("abcd", {"actors": 2, "outstanding": 16}, for_s=2.0, notice_s=notice_s, work_s=work_s, wire_s=wire_s) as made:
        world = run(made, *((at_s, *fault) for at_s, fault in faults))
        living = "".join(name for name in "abcd" if name in world.alive)
        for name in living:
            sums = made[name].mesh.account.sums
            answered, lost = truth(world, name)
            assert sums.acknowledged == answered
            assert sums.acknowledged == sums.lost + sums.unread + made[name].mesh.account.held
            assert lost - sums.unread <= sums.lost <= lost, (lost, sums)
        restarts = sum(made[name].mesh.mesh.restarts for name in made)
        assert restarts == len(world.actors) - 8
        assert world.turns.now_ns <= (1_000 + 1 + 2 + CLOSE_S + 0.1) * SECOND_NS


def test_what_a_mesh_reserves() -> None:
    """Processes of its members and of those that it may take in, whatever the mesh's size."""
    few, more = (peak_amounts(replace(MESH, options={"actors": 2, "spare": spare}), CAPACITY) for spare in (0, 3))
    assert (few.tasks, more.tasks) == (2 * 40, 5 * 40)
    assert more.memory_bytes - few.memory_bytes == 3 * 160 << 20
