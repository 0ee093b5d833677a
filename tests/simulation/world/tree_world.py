"""A tree of relays on virtual time: real relays, ways and intake; agents, a network and an aggregator's disk around them.

What holds at every instant: what an agent was told is on disk is there, once, with the value it had; no relay holds more than its
bound. What holds at the end: produced = kept + queued + lost in an open window, exactly; when everything has healed, nothing is queued.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.metrics.intake import following, reached
from cluster.metrics.store import Coverage, End, Stream
from cluster.metrics.tree import ROOT, Answer, Outcome, Pace, Part, Relay, Way, layout, size_of

from .timeline import MS, SECOND, Process, Timeline

PACE = Pace(away_ns=3 * SECOND)
WINDOW_NS = SECOND
PATIENCE_NS = (4 * SECOND, 3 * SECOND, 2 * SECOND)  # of an agent, of its relay, of the relay above
PUSH_RECORDS = 12
END_VALUE = -1
RECORD = b"\0" * 92  # what a record has beside its value, so that bounds in bytes are met
Reply = Callable[[Answer], None]
Fault = Callable[["TreeWorld"], bool]  # does harm, and tells whether it hit something


def sealed(value: int) -> bytes:
    """Return a record's bytes: its value, or that it is the end."""
    return value.to_bytes(8, "little", signed=True) + RECORD


def value_of(data: bytes) -> int:
    """Return the value of a record."""
    return int.from_bytes(data[:8], "little", signed=True)


@dataclass(slots=True)
class Box:
    """One stream's outbox: on the node's disk, so it outlives its agent."""

    stream: Stream
    records: list[bytes] = field(default_factory=list)
    acked: int = 0
    ended: bool = False
    checked: int = 0  # records whose value on the aggregator's disk was looked at

    def append(self, value: int) -> None:
        self.records.append(sealed(value))
        self.ended = value == END_VALUE

    def unacked(self) -> tuple[tuple[int, bytes], ...]:
        first = self.acked
        return tuple((first + 1 + at, data) for at, data in enumerate(self.records[first : first + PUSH_RECORDS]))

    @property
    def drained(self) -> bool:
        return self.ended and self.acked == len(self.records)


class Network:
    """Delays, loses and cuts messages. A message that is lost is never told of; its sender's patience ends."""

    def __init__(self, timeline: Timeline, chance: random.Random) -> None:
        self.timeline, self.chance = timeline, chance
        self.cut_off: set[str] = set()  # neither hears nor is heard
        self.mute: set[str] = set()  # hears, but its answers do not arrive
        self.loss = self.slow = 0.0

    def send(self, source: str, target: str, call: Callable[..., None], *args: object) -> None:
        if source in self.cut_off or target in self.cut_off or source in self.mute or self.chance.random() < self.loss:
            return
        delay_ns = round(self.chance.uniform(0.3, 3) * MS)
        if self.chance.random() < self.slow:
            delay_ns += round(self.chance.uniform(0, 6) * SECOND)  # so that a call may do its work after it was given up
        self.timeline.after(delay_ns, call, *args)


class Server(Process):
    """What others hand windows to, under a name that its successor gets too."""

    def __init__(self, world: TreeWorld, name: str) -> None:
        super().__init__(world.timeline)
        self.world, self.name = world, name

    def receive(self, sender: str, parts: tuple[Part, ...], reply: Reply) -> None:
        raise AssertionError


class Uplink:
    """One call upward at a time, with its patience, for an agent or a relay."""

    def __init__(self, owner: Process, world: TreeWorld, name: str, patience_ns: int) -> None:
        self.owner, self.world, self.name, self.patience_ns = owner, world, name, patience_ns
        self.way = Way(world.layout.ways[name], PACE, world.chance)
        self.busy = False
        self._calls = 0

    def ready_ns(self) -> int:
        return max(self.world.timeline.now_ns, self.way.ready_ns)

    def push(self, parts: tuple[Part, ...], told: Callable[[Answer | None], None]) -> None:
        """Hand parts on; `told` gets the answer, or None when there was none in time."""
        now_ns = self.world.timeline.now_ns
        target = self.way.target(now_ns)
        if target != self.world.layout.ways[self.name][0]:
            self.world.seen["handed_to_another"] += 1
        self.busy, self._calls = True, self._calls + 1
        call = self._calls

        def hear(answer: Answer | None) -> None:
            if not (self.busy and call == self._calls):
                self.world.seen["answered_too_late"] += answer is not None
                return
            self.busy = False
            if answer is None:
                self.way.unreachable(self.world.timeline.now_ns)
            elif answer.outcome is Outcome.HELD:
                self.way.taken()
            else:
                self.world.seen[f"told_{answer.outcome.value}"] += 1
                self.way.refused(self.world.timeline.now_ns)
            told(answer)

        def reply(answer: Answer) -> None:
            self.world.net.send(target, self.name, self.owner.take, hear, answer)

        self.world.net.send(self.name, target, self.world.arrive, target, self.name, parts, reply)
        self.owner.after(self.patience_ns, hear, None)


class RelayHost(Server):
    """A relay's process: the real core, and a shell that performs what it decides."""

    def __init__(self, world: TreeWorld, name: str) -> None:
        super().__init__(world, name)
        self.core = Relay(PACE, max_bytes=world.relay_bytes, bundle_bytes=world.relay_bytes // 4)
        self.uplink = Uplink(self, world, name, PATIENCE_NS[min(2, int(name.split("-")[1]))])
        self._replies: dict[int, Reply] = {}
        self._calls = 0
        self._timer_ns = 0

    def receive(self, sender: str, parts: tuple[Part, ...], reply: Reply) -> None:
        self._calls += 1
        self._replies[self._calls] = reply
        self._answer(self.core.offer(self._calls, sender, parts, self.timeline.now_ns))
        self.world.check_bound(self)
        self._arm()

    def _answer(self, answers: list[Answer]) -> None:
        for answer in answers:
            self._replies.pop(answer.call)(answer)

    def _arm(self) -> None:
        due_ns = self.core.due_ns()
        if due_ns is None:
            return
        when_ns = max(due_ns, self.uplink.ready_ns())
        if not self.timeline.now_ns < self._timer_ns <= when_ns:
            self._timer_ns = max(when_ns, self.timeline.now_ns + 1)
            self.after(self._timer_ns - self.timeline.now_ns, self._turn)

    def _turn(self) -> None:
        due_ns = self.core.due_ns()
        if due_ns is None or max(due_ns, self.uplink.ready_ns()) > self.timeline.now_ns:
            self._arm()
            return
        bundle = self.core.take()
        self.world.seen["bundles"] += 1
        self.world.seen["calls_in_one_bundle"] += len(self.core._flying) > 1

        def told(answer: Answer | None) -> None:
            if answer is not None and answer.outcome is Outcome.HELD:
                held = {stream: number for (stream, _), number in zip(bundle.parts, answer.held, strict=True)}
                self._answer(self.core.answered(bundle.number, held))
            else:
                self._answer(self.core.failed(bundle.number))
            self._arm()

        self.uplink.push(bundle.parts, told)


class RootHost(Server):
    """The aggregator's process: takes bundles one after the other by the real rule; what is synced outlives it."""

    def __init__(self, world: TreeWorld, name: str = ROOT) -> None:
        super().__init__(world, name)
        self._free_ns = 0

    def receive(self, sender: str, parts: tuple[Part, ...], reply: Reply) -> None:
        begin_ns = max(self.timeline.now_ns, self._free_ns)
        self._free_ns = begin_ns + self.world.sync_ns + sum(len(records) for _, records in parts) * self.world.record_ns
        self.after(self._free_ns - self.timeline.now_ns, self._write, parts, reply)

    def _write(self, parts: tuple[Part, ...], reply: Reply) -> None:
        world = self.world
        if world.disk_refuses:
            world.seen["disk_refused"] += 1
            reply(Answer(0, Outcome.FAILED))
            return
        world.syncs += 1
        for stream, records in parts:
            fresh = following(world.coverage, stream, records, lambda number, data: (number, value_of(data)))
            world.seen["sent_again"] += len(records) > len(fresh)
            for number, value in fresh:
                assert (stream, number) not in world.kept, f"record {number} of {stream} was kept twice"
                world.kept[stream, number] = value
                world.coverage.add(stream, number, End(number, True) if value == END_VALUE else None)
                world.kept_sum += max(0, value)
        reply(Answer(0, Outcome.HELD, tuple(reached(world.coverage, stream) for stream, _ in parts)))


class AgentHost(Process):
    """An agent's life: closes windows, delivers its own outbox and what earlier lives left."""

    def __init__(self, world: TreeWorld, node: str, life: int) -> None:
        super().__init__(world.timeline)
        self.world, self.node = world, node
        self.open = 0
        self.box = Box((node, f"life-{life}"))
        for box in world.boxes[node]:
            if not box.ended:
                box.append(END_VALUE)  # what its life had not sealed is lost, and counted where it died
        world.boxes[node].append(self.box)
        self.uplink = Uplink(self, world, node, PATIENCE_NS[0])
        self.after(round(world.chance.uniform(0.02, 1) * WINDOW_NS), self._close_window)

    def _close_window(self) -> None:
        gained = self.world.chance.randrange(1, 1000)
        self.open += gained
        self.world.produced += gained
        if self.box.acked + self.world.box_records > len(self.box.records):
            self.box.append(self.open)
            self.open = 0
        else:
            self.world.seen["window_stayed_open"] += 1
        if self.world.is_ending and not self.open:
            self.box.append(END_VALUE)
        else:
            self.after(WINDOW_NS, self._close_window)
        self.deliver()

    def deliver(self) -> None:
        """Hand on what waits, the oldest life first, one call at a time."""
        waiting = [box for box in self.world.boxes[self.node] if box.unacked()]
        if not waiting or self.uplink.busy:
            return
        if self.uplink.ready_ns() > self.timeline.now_ns:
            self.after(self.uplink.ready_ns() - self.timeline.now_ns, self.deliver)
            return
        box = waiting[0]
        records = box.unacked()

        def told(answer: Answer | None) -> None:
            if answer is not None and answer.outcome is Outcome.HELD:
                (held,) = answer.held
                assert held >= records[0][0], f"{box.stream}: record {records[0][0]} was refused, only {held} are held"
                self._ack(box, held)
            self.deliver()

        self.uplink.push(((box.stream, records),), told)

    def _ack(self, box: Box, held: int) -> None:
        durable = reached(self.world.coverage, box.stream)
        assert held <= durable, f"{box.stream}: {held} acknowledged, {durable} on disk"
        box.acked = max(box.acked, held)

    def kill(self) -> None:
        self.alive = False
        self.world.lost += self.open


class TreeWorld:
    """Nodes, the tree over them, and what goes wrong; one seed is one world."""

    def __init__(
        self, seed: int, nodes: int, fan_in: int, faults: Sequence[Fault] = (), *, span_s: float = 12.0, faults_a_second: float = 4.0
    ) -> None:
        self.chance = random.Random(seed)
        self.timeline = Timeline()
        self.net = Network(self.timeline, self.chance)
        self.layout = layout((f"node-{at:05d}" for at in range(nodes)), fan_in)
        self.faults, self.span_ns, self.fault_ns = faults, round(span_s * SECOND), round(SECOND / faults_a_second)
        self.relay_bytes = 100 * max(24, fan_in * 3)  # about three windows of each child
        self.box_records = 8
        self.sync_ns, self.record_ns = MS, 20_000
        self.disk_refuses = self.is_ending = False
        self.coverage = Coverage()
        self.kept: dict[tuple[Stream, int], int] = {}
        self.produced = self.lost = self.kept_sum = self.syncs = self.lives = 0
        self.seen: Counter[str] = Counter()
        self.boxes: dict[str, list[Box]] = {node: [] for node in self.layout.ways if not node.startswith("relay-")}
        self.servers: dict[str, Server] = {ROOT: RootHost(self)}
        self.servers |= {name: RelayHost(self, name) for level in self.layout.levels for name in level}
        self.agents: dict[str, AgentHost] = {}
        for node in self.boxes:
            self.begin_agent(node)

    def begin_agent(self, node: str) -> None:
        self.lives += 1
        self.agents[node] = AgentHost(self, node, self.lives)
        self.agents[node].deliver()

    def begin_server(self, name: str) -> None:
        self.servers[name] = RootHost(self) if name == ROOT else RelayHost(self, name)

    def arrive(self, target: str, sender: str, parts: tuple[Part, ...], reply: Reply) -> None:
        server = self.servers[target]
        server.take(server.receive, sender, parts, reply)

    # ---- the world's course

    def run(self) -> TreeWorld:
        """Let it go wrong for a while, heal what can heal, and check that every window arrived, once."""
        if self.faults:
            self.timeline.after(self.fault_ns, self._go_wrong)
        for second in range(1, self.span_ns // SECOND + 1):
            self.timeline.run_until(second * SECOND)
            self.check()
        self.heal()
        self.is_ending = True
        for _ in range(300):
            self.timeline.run_until(self.timeline.now_ns + SECOND)
            self.check()
            if all(box.drained for boxes in self.boxes.values() for box in boxes):
                break
        left = [box.stream for boxes in self.boxes.values() for box in boxes if not box.drained]
        assert not left, f"never delivered: {left[:5]} and {max(0, len(left) - 5)} more"
        assert self.produced == self.kept_sum + self.lost, f"{self.produced} produced, {self.kept_sum} kept, {self.lost} lost"
        assert set(self.coverage.ends) == {box.stream for boxes in self.boxes.values() for box in boxes}, "a stream has no end"
        return self

    def _go_wrong(self) -> None:
        if self.timeline.now_ns >= self.span_ns:
            return
        kind = self.chance.choice(self.faults)
        if kind(self):
            self.seen[kind.__name__] += 1
        self.timeline.after(round(self.fault_ns * self.chance.uniform(0.5, 1.5)), self._go_wrong)

    def check(self) -> None:
        """Assert conservation at this instant: produced = kept + queued + open + lost, each record at one place with its value."""
        queued = open_now = 0
        for node, boxes in self.boxes.items():
            agent = self.agents[node]
            open_now += agent.open if agent.alive else 0
            for box in boxes:
                held = reached(self.coverage, box.stream)
                assert box.acked <= held <= len(box.records), f"{box.stream}: {box.acked} acknowledged, {held} on disk"
                for number in range(box.checked + 1, held + 1):
                    kept, value = self.kept.get((box.stream, number)), value_of(box.records[number - 1])
                    assert kept == value, f"record {number} of {box.stream} is not there as it was sealed"
                box.checked = held
                queued += sum(max(0, value_of(data)) for data in box.records[held:])
        found = (self.kept_sum, queued, open_now, self.lost)
        assert self.produced == sum(found), f"{self.produced} produced, but kept, queued, open and lost are {found}"

    def check_bound(self, relay: RelayHost) -> None:
        """Assert that a relay holds what it says it holds, and no more than it may."""
        calls = [*relay.core._waiting.values(), *relay.core._flying]
        holds = sum(size_of(call.parts) for call in calls)
        assert holds <= self.relay_bytes, f"{relay.name} holds {holds} bytes, its bound is {self.relay_bytes}"
        assert relay.core.held_bytes == holds, f"{relay.name} says it holds {relay.core.held_bytes} bytes and holds {holds}"

    def heal(self) -> None:
        """End every fault but relays that are gone for good."""
        self.net.cut_off.clear()
        self.net.mute.clear()
        self.net.loss = self.net.slow = 0.0
        self.disk_refuses = False
        self.sync_ns = MS
        for server in [*self.servers.values(), *self.agents.values()]:
            while server.holds:
                server.release()
        if not self.servers[ROOT].alive:
            self.begin_server(ROOT)
        for node, agent in self.agents.items():
            if not agent.alive:
                self.begin_agent(node)

    # ---- victims

    def a_relay(self) -> RelayHost | None:
        alive = [server for server in self.servers.values() if isinstance(server, RelayHost) and server.alive]
        return self.chance.choice(alive) if alive else None

    def within(self, low_s: float, high_s: float, call: Callable[..., object], *args: object) -> None:
        self.timeline.after(round(self.chance.uniform(low_s, high_s) * SECOND), call, *args)
