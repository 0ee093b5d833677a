"""The head: the orchestrator's process, its journal, the runs' aggregators, and what Ray tells of nodes. All of it may die."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from actors.errors import RefusedError
from cluster.conclusion import Ending, conclude
from cluster.ending import node_ending
from cluster.exchange import Report, Stage
from cluster.journal import Past
from cluster.orchestrator import Orchestrator
from cluster.records import Admission, Do, Run
from cluster.verdict import Cause
from scenarios.plan import Plan

from .timeline import MS, SECOND, LocalClock, Process

if TYPE_CHECKING:
    from .agent_host import AgentHost
    from .machine import Machine
    from .world import World

TICK_NS = 200 * MS
Stream = tuple[str, str, int]  # run, node, incarnation


@dataclass(slots=True)
class Written:
    """The orchestrator's journal: survives every orchestrator."""

    past: Past = field(default_factory=Past)
    epoch: int = 0
    outcomes: dict[str, str] = field(default_factory=dict)


class Aggregator(Process):
    """One run's aggregator: what it acknowledges was durable before. Its successor begins with what is durable."""

    def __init__(self, world: World, durable: dict[Stream, list[tuple[int, int]]], ends: set[Stream]) -> None:
        super().__init__(world.timeline)
        self.world, self.durable, self.ends = world, durable, ends

    def push(self, agent: AgentHost, key: Stream, records: list[tuple[int, int, bool]]) -> None:
        """Take records, sync, then acknowledge."""
        self.after(self.world.chance.randrange(1, 20) * MS, self._synced, agent, key, records)

    def _synced(self, agent: AgentHost, key: Stream, records: list[tuple[int, int, bool]]) -> None:
        held = self.durable.setdefault(key, [])
        for sequence, count, is_end in records:
            if sequence == len(held) + 1:
                held.append((sequence, count))
                if is_end:
                    self.ends.add(key)
        self.world.net.down(agent.node.name, agent, agent.pushed, key, len(held))

    def outstanding(self) -> Sequence[dict[str, Any]]:
        """Return the streams without an end."""
        late = [(key, held) for key, held in self.durable.items() if key not in self.ends]
        return [{"node": key[1], "incarnation": key[2], "from": len(held) + 1} for key, held in late]

    def evaluate(self, *_: object, **__: object) -> float | None:
        """Return nothing: figures are no part of this world."""
        return None

    def windows(self, _: str) -> Sequence[tuple[float, float, float, float | None]]:
        """Return nothing: doses are no part of this world."""
        return ()


class OrchestratorHost(Process):
    """One orchestrator's life."""

    def __init__(self, head: Head, epoch: int) -> None:
        super().__init__(head.timeline)
        self.head, self.world = head, head.world
        self.core = Orchestrator("c", epoch, self.world.times, self.world.budget, head.written.past, head.clock.now())
        self.world.fired["charges_inherited"] += bool(head.written.past.charges)
        self._beats = 0
        self._tick()

    def _tick(self) -> None:
        self._beats += 1
        if self._beats % 5 == 0:
            self._watch_agents()
            self.world.watch.ledger(self.core, self.head.clock.now())
        self.core.tick(self.head.clock.now())
        self.drain()
        self.timeline.after(TICK_NS, self.take, self._tick)

    def _watch_agents(self) -> None:
        wanted = {node for run in self.core.runs.values() for node in run.nodes}
        for name in sorted(wanted):
            if self.head.agent_known_dead(name):
                self.core.node_gone(name, f"the agent of {name} died", self.head.clock.now())
                self.world.fired["node_gone"] += 1
                self.world.nodes[name].replace_agent(self.core.epoch)

    def question(self, agent: AgentHost, report: Report) -> None:
        """Answer an agent."""
        watch, core = self.world.watch, self.core
        now_ns = self.head.clock.now()
        reply = core.exchange(report, now_ns)
        for theirs in report.runs:
            if theirs.stage is Stage.CLEAN and not reply.refused:
                watch.clean(self.world.nodes[report.node], theirs.run)
        self.drain()
        leases = [order.lease_s for order in reply.orders if order.lease_s]
        if leases:
            charged = self.head.clock.when(core.nodes[report.node].expiry_ns)
            watch.answered(report.node, report.t0_ns + round(max(leases) * SECOND), charged)
        self.world.net.down(report.node, agent, agent.answer, reply, report.t0_ns)

    def submit(self, admission: Admission) -> bool:
        """Admit a run, or not."""
        now_ns = self.head.clock.now()
        try:
            self.core.admit(admission, now_ns)
        except RefusedError as error:
            self.world.fired[f"refused_{error.code}"] += 1
            return False
        self.world.watch.ledger(self.core, now_ns)
        self.drain()
        return True

    def drain(self) -> None:
        """Write what was decided, then do it."""
        if not self.core.effects:
            return
        effects = self.core.drain()
        for effect in effects:
            if effect.what == "journal" and effect.data["kind"] != "granted":
                self.head.write(self.core.epoch, effect)
        for effect in effects:
            if effect.what in ("poke", "start_agents"):
                for name in effect.nodes:
                    agent = self.world.nodes[name].agent
                    if agent is not None and agent.core is not None:
                        self.world.net.down(name, agent, agent.ask)
            elif effect.what == "expect":
                self.head.durable(effect.run).setdefault((effect.run, effect.nodes[0], int(effect.data["incarnation"])), [])
            elif effect.what == "finish":
                self.after(self.world.chance.randrange(20 * MS, 300 * MS), self._finish, effect.run)

    def _finish(self, run_id: str) -> None:
        run: Run = self.core.finished_runs[run_id]
        ending = Ending(
            run=run_id,
            causes=tuple((str(cause), reason) for cause, reason in run.causes),
            nodes=tuple(node_ending(name, state) for name, state in run.nodes.items()),
            events=(),
            start_at_wall_ns=run.start_at_ns,
            start_skew_ms=None,
            halt_latency_ms=None,
        )
        aggregator = self.head.aggregator(run_id)
        plan = cast("Plan", SimpleNamespace(operations=(), duration_s=run.admission.duration_s, scenario=SimpleNamespace(hypotheses=())))
        status = conclude(ending, plan, aggregator).conclusion.status
        if status == "passed":
            self.world.watch.passed(run_id, run.nodes)
        self.head.written.outcomes[run_id] = status
        self.head.append({"run": run_id, "kind": "done", "status": status})
        self.world.fired[f"status_{status}"] += 1


class Head:
    """What outlives an orchestrator on its node: a clock, a journal, aggregators' directories, Ray's view of the nodes."""

    def __init__(self, world: World) -> None:
        self.world, self.timeline = world, world.timeline
        self.clock = LocalClock(self.timeline, world.chance.randrange(1, 10**6) * SECOND, world.chance.randint(-1_000, 1_000))
        self.written = Written()
        self.orchestrator: OrchestratorHost | None = None
        self._durable: dict[str, dict[Stream, list[tuple[int, int]]]] = {}
        self._ends: dict[str, set[Stream]] = {}
        self._aggregators: dict[str, Aggregator] = {}
        self.start()

    @property
    def core(self) -> Orchestrator | None:
        """The acting orchestrator's decisions."""
        return self.orchestrator.core if self.orchestrator is not None and self.orchestrator.alive else None

    def start(self) -> None:
        """Start an orchestrator with the next epoch."""
        if self.orchestrator is not None and self.orchestrator.alive:
            return
        self.written.epoch += 1
        self.orchestrator = OrchestratorHost(self, self.written.epoch)

    def write(self, epoch: int, effect: Do) -> None:
        """Append to the journal; only the newest epoch may."""
        if epoch < self.written.epoch:
            self.world.fired["deposed_orchestrator_wrote"] += 1
            return
        past, data = self.written.past, effect.data
        before = (past.halt_generation, past.halt_on)
        if data["kind"] == "halt" and (data["generation"], data["on"]) <= before:
            self.world.watch.fail(13, f"the halt's generation fell from {before} to {data['generation']}")
        self.append({"run": effect.run, **data})

    def append(self, entry: Mapping[str, Any]) -> None:
        """Have an entry in writing."""
        self.written.past = self.written.past.after(entry)

    # ---- what agents reach by name

    def ask(self, agent: AgentHost, report: Report) -> None:
        """Carry a question to the orchestrator that has the name now."""
        if self.orchestrator is not None:
            self.world.net.up(report.node, self.orchestrator, self.orchestrator.question, agent, report)

    def aggregator(self, run: str) -> Aggregator:
        """Return a run's aggregator, a new one on the same directory when the last has died."""
        found = self._aggregators.get(run)
        if found is None or not found.alive:
            found = self._aggregators[run] = Aggregator(self.world, self._durable.setdefault(run, {}), self._ends.setdefault(run, set()))
        return found

    def push(self, agent: AgentHost, key: Stream, records: list[tuple[int, int, bool]]) -> None:
        """Carry records to a run's aggregator."""
        aggregator = self.aggregator(key[0])
        self.world.net.up(key[1], aggregator, aggregator.push, agent, key, records)

    def kill_aggregator(self) -> bool:
        """Kill one; what it had not synced is lost."""
        alive = [one for one in self._aggregators.values() if one.alive]
        if not alive:
            return False
        self.world.chance.choice(alive).alive = False
        return True

    def durable(self, run: str) -> dict[Stream, list[tuple[int, int]]]:
        """Return what of a run is on disk."""
        return self._durable.setdefault(run, {})

    def agent_known_dead(self, name: str) -> bool:
        """Tell whether Ray knows that the agent of a node is dead."""
        node = self.world.nodes[name]
        agent = node.agent
        if agent is None or not agent.alive:
            return not node.starting and self.timeline.now_ns - node.dead_since_ns > node.detect_ns
        return False

    def recover(self) -> None:
        """Have an agent on every node, as `recover` does, and end the runs whose orchestrator is gone."""
        assert self.orchestrator is not None
        for node in self.world.nodes.values():
            if node.agent is None or not node.agent.alive:
                node.replace_agent(self.orchestrator.core.epoch)
            else:
                node.agent.say_hello()
        core = self.orchestrator.core
        for run in self.written.past.open_runs:
            if run not in core.runs and run not in core.finished_runs:
                self.append({"run": run, "kind": "done", "status": "error"})
                self.written.outcomes[run] = str(Cause.ERROR)
                self.world.fired["run_recovered"] += 1
        for machine in self.world.machines:
            self._deliver_local(machine)

    def _deliver_local(self, machine: Machine) -> None:
        """Deliver outboxes whose agent is gone and that no later agent knows of."""
        owners = {node.name: node.agent for node in self.world.nodes.values() if node.machine is machine}
        for key, box in machine.boxes.items():
            agent = owners[key[1]]
            if box.drained or agent is None or not agent.alive or agent.core is None:
                continue
            if agent.incarnation == key[2] or key[0] in agent.core.runs:
                continue
            if not box.ended:
                box.ended = True
                box.counts.append(0)
            held = self._durable.setdefault(key[0], {}).setdefault(key, [])
            held += [(place + 1, box.counts[place]) for place in range(len(held), len(box.counts))]
            box.acked = len(box.counts)
            self.world.fired["box_recovered"] += 1
