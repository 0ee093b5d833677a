"""The whole control plane in one process on virtual time: N nodes, one seed, 20 s of trouble, then everything heals.

`World(seed, nodes).run()` raises `AssertionError` on the first broken invariant. The same seed gives the same world.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from actors.messages import Amounts, Capacity, HostSnapshot, Operation
from actors.shape import Constant
from actors.simulator import peak_amounts
from cluster.records import Admission
from cluster.run_state import Phase
from cluster.safety.budget import Budget
from cluster.times import Times
from cluster.verdict import Cause

from .agent_host import GIB, AgentHost, quiet
from .faults import FAULTS
from .head import Head
from .load import Load
from .machine import Machine
from .network import Network
from .timeline import MS, SECOND, Timeline
from .watch import Watch

SETTLE_S = 60
CAPACITY = Capacity(8.0, 32 * GIB, 100 * GIB)
LIMITS = Amounts(6.0, 24 * GIB, 75 * GIB)  # three CPU operations of one run, or two runs, may pass it: the guardian then refuses
Kinds = Mapping[Callable[..., bool], int]


class Node:
    """One raylet of a machine, and its agent."""

    def __init__(self, world: World, name: str, machine: Machine, sharers: int) -> None:
        self.world, self.name, self.machine = world, name, machine
        self.capacity = Capacity(CAPACITY.cpu_cores / sharers, CAPACITY.memory_bytes // sharers, CAPACITY.disk_bytes // sharers, sharers)
        self.quiet = quiet(name)
        self.pressure: HostSnapshot | None = None
        self.blind = False  # its host cannot be sampled
        self.agent: AgentHost | None = None
        self.starting = False
        self.detect_ns = world.chance.randrange(200 * MS, 3 * SECOND)
        self.dead_since_ns = 0

    def replace_agent(self, epoch: int) -> None:
        """Start an agent where the node is alive and reachable."""
        reachable = self.machine.on and not self.machine.frozen and self.name not in self.world.net.cut_down
        if not reachable or self.starting or (self.agent is not None and self.agent.alive):
            return
        self.starting = True
        self.world.timeline.after(self.world.chance.randrange(100 * MS, 600 * MS), self._start_agent, epoch)

    def _start_agent(self, epoch: int) -> None:
        self.starting = False
        if self.machine.on and not (self.agent is not None and self.agent.alive):
            self.agent = AgentHost(self.world, self, max(epoch, 1))
            self.world.fired["agent_started"] += 1


class World:
    """One seeded world."""

    def __init__(self, seed: int, nodes: int, *, seconds: int = 20, kinds: Kinds = FAULTS, wall_steps: bool = True) -> None:
        self.seed, self.seconds, self.wall_steps = seed, seconds, wall_steps
        self.chance = random.Random(seed)
        self.timeline = Timeline()
        self.fired: Counter[str] = Counter()
        lease_s = self.chance.choice((3.0, 4.0, 5.0))
        self.times = Times(lease_s=lease_s, prepare_s=8.0, stop_s=10.0, grace_s=self.chance.choice((0.0, 0.5)), collect_s=5.0)
        self.renew_ns, self.turns_per_sample = round(min(1.0, lease_s / 4) * SECOND), 1
        self.answer_ns = round(max(0.5, lease_s / 2) * SECOND)
        self.allowance_ns = round(self.times.allowance_s * SECOND)
        self.slow_disk = 0.0
        self.share = share = self.chance.choice((0.1, 0.2, 0.5))  # of all capacity: what all runs together may take
        self.budget = Budget(
            nodes_max=max(2, nodes * 3 // 4),
            cpu_cores_max=nodes * CAPACITY.cpu_cores * share,
            memory_bytes_max=round(nodes * CAPACITY.memory_bytes * share),
            disk_bytes_max=round(nodes * CAPACITY.disk_bytes * share),
        )
        self.watch = Watch(self)
        self.net = Network(self)
        self.nodes = self._make_nodes(nodes)
        self.machines = list({id(node.machine): node.machine for node in self.nodes.values()}.values())
        self.head = Head(self)
        self._drivers: dict[str, bool] = {}
        self._runs = 0
        self._plan_trouble(max(self.chance.choice((8, 24, 60)), nodes // 4), kinds)

    def _make_nodes(self, count: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while len(found) < count:
            machine = Machine(self, f"m{len(found)}")
            sharers = 2 if self.chance.random() < 0.1 and len(found) + 2 <= count else 1
            for _ in range(sharers):
                name = f"n{len(found)}"
                found[name] = Node(self, name, machine, sharers)
        return found

    def _plan_trouble(self, faults: int, kinds: Kinds) -> None:
        chance, timeline = self.chance, self.timeline
        for node in self.nodes.values():
            timeline.at(chance.randrange(SECOND), node.replace_agent, 1)
        for _ in range(max(4, len(self.nodes) // 100 + 3)):
            timeline.at(chance.randrange(SECOND, (self.seconds - 3) * SECOND), self._submit)
        timeline.at(2 * SECOND, self._submit)
        for kind in chance.choices(list(kinds), list(kinds.values()), k=faults):
            timeline.at(chance.randrange(2 * SECOND, self.seconds * SECOND), self._fault, kind)
        timeline.at(0, self._beat)

    def _fault(self, kind: Any) -> None:
        if self.timeline.now_ns < self.seconds * SECOND and kind(self):
            self.fired[kind.__name__] += 1

    # ---- runs

    def _submit(self) -> None:
        chance, head = self.chance, self.head
        if head.core is None or head.orchestrator is None or head.orchestrator.holds:
            return
        ready = [name for name, node in self.nodes.items() if node.agent is not None and node.agent.core is not None and node.agent.alive]
        if not ready:
            return
        count = chance.randint(1, max(1, min(len(ready), round(len(self.nodes) * self.share * 1.5))))
        self._runs += 1
        run = f"run{self._runs}"
        names = sorted(chance.sample(ready, count))
        parts = [_part(chance) for _ in range(chance.randint(1, 3))]
        operations = {name: tuple(_operation(index, name, *part) for index, part in enumerate(parts)) for name in names}
        amounts = {name: _total(operations[name], self.nodes[name].capacity) for name in names}
        admission = Admission(
            run=run,
            operations=operations,
            amounts=amounts,
            duration_s=max(part[2] + part[3] for part in parts),
            on_node_lost=chance.choice(("stop", "continue")),
            detached=chance.random() < 0.2,
            timeout_s=chance.choice((None, None, 4.0)),
            capacities={name: self.nodes[name].capacity for name in names},
            machine_limits=dict.fromkeys(names, LIMITS),
        )
        if head.orchestrator.submit(admission):
            self.fired["run_admitted"] += 1
            self._drivers[run] = True

    def _beat(self) -> None:
        """Every driver that lives says so."""
        orchestrator = self.head.orchestrator
        if orchestrator is not None:
            for run, alive in self._drivers.items():
                if alive:
                    orchestrator.take(lambda name, host: host.core.beat(name, self.head.clock.now()), run, orchestrator)
        self.timeline.after(SECOND, self._beat)

    def drop_driver(self) -> bool:
        """Take a driver away."""
        core = self.head.core
        alive = [run for run, here in self._drivers.items() if here and core is not None and run in core.runs]
        if alive:
            self._drivers[self.chance.choice(alive)] = False
        return bool(alive)

    def stop_some_run(self) -> bool:
        """Stop a run on request."""
        core, orchestrator = self.head.core, self.head.orchestrator
        if core is None or orchestrator is None or orchestrator.holds or not core.runs:
            return False
        core.stop(self.chance.choice(list(core.runs)), Cause.CANCELLED, "asked to", self.head.clock.now())
        orchestrator.drain()
        return True

    def set_halt(self, on: bool) -> bool:
        """Halt everything, or lift it."""
        core, orchestrator = self.head.core, self.head.orchestrator
        if core is None or orchestrator is None or orchestrator.holds:
            return False
        core.set_halt(on, self.head.clock.now())
        orchestrator.drain()
        return True

    # ---- power

    def power_off(self, machine: Machine) -> None:
        """Cut a machine's power."""
        machine.power_off()
        for node in self.nodes.values():
            if node.machine is machine:
                node.dead_since_ns = self.timeline.now_ns

    def power_on(self, machine: Machine) -> None:
        """Boot it."""
        if not machine.on:
            machine.power_on()

    # ---- the end

    def run(self) -> World:
        """Play the trouble, heal everything, and look at what is left."""
        self.timeline.run_until(self.seconds * SECOND)
        self.net.heal()
        end_ns = (self.seconds + SETTLE_S) * SECOND
        left = ["not yet looked at"]
        while left and self.timeline.now_ns < end_ns:
            self._heal()
            self.timeline.run_until(self.timeline.now_ns + SECOND)
            left = self.left()
        assert not left, f"{len(left)} things are left {SETTLE_S} s after everything healed: {'; '.join(left[:6])}"
        self._check_metrics()
        return self

    def _heal(self) -> None:
        self.slow_disk = 0.0
        for machine in self.machines:
            self.power_on(machine)
        for node in self.nodes.values():
            node.pressure, node.blind = None, False
        if self.head.orchestrator is None or (not self.head.orchestrator.alive):
            self.head.start()
        if self.head.core is not None and self.head.core.halt.on:
            self.set_halt(False)
        self.head.recover()

    def left(self) -> list[str]:
        """Return what should not be there once everything has healed and leases are over."""
        core, found = self.head.core, []
        if core is None:
            return ["no orchestrator"]
        found += [f"{run} is {state.phase}" for run, state in core.runs.items() if state.phase is not Phase.DONE]
        found += [f"{run} reads as running" for run in self.head.written.past.open_runs]
        found += [f"the ledger holds {run} on {sorted(held.charges)[:3]}" for run, held in core.ledger.reservations.items()]
        for machine in self.machines:
            found += [f"{process} runs on {machine.name}" for process in machine.processes.values() if isinstance(process, Load)]
            found += [f"{machine.name} has our file of {record}" for record, file in machine.files.items() if file.ours]
            found += [
                f"{machine.name}: {record.kind} of {record.run}" for record in machine.journal.values() if record.id not in machine.foreign
            ]
            found += [f"{machine.name}: a stream of {key[0]} is open" for key, box in machine.boxes.items() if not box.drained]
        for name, node in self.nodes.items():
            agent = node.agent
            if agent is None or not agent.alive or agent.core is None:
                found.append(f"{name} has no agent")
            else:
                found += [f"the agent of {name} has {run} ({here.stage()})" for run, here in agent.core.runs.items()]
        return found

    def _check_metrics(self) -> None:
        """14: what was acknowledged is there, once, and what the observer counted is what arrived."""
        for machine in self.machines:
            for key, box in machine.boxes.items():
                held = self.head.durable(key[0]).get(key, [])
                if [sequence for sequence, _ in held] != list(range(1, len(held) + 1)) or len(held) < box.acked:
                    self.watch.fail(14, f"{key}: {box.acked} acknowledged, durable are {held}")
                self.fired["stream_whole"] += [count for _, count in held] == box.counts


def _part(chance: random.Random) -> tuple[str, float, float, float]:
    kind = chance.choice(("CpuLoad", "MemoryPressure", "DiskFill"))
    return kind, round(chance.uniform(0.05, 0.3), 2), chance.choice((0.0, 0.0, 1.0)), round(chance.uniform(1.5, 5.0), 1)


def _operation(index: int, node: str, kind: str, level: float, start_s: float, duration_s: float) -> Operation:
    return Operation(f"{index}.{kind}@{node}", kind, node, start_s, duration_s, "fraction", Constant(level).to_spec())


def _total(operations: tuple[Operation, ...], capacity: Capacity) -> Amounts:
    total = Amounts()
    for operation in operations:
        total = total.plus(peak_amounts(operation, capacity))
    return total
