"""What goes wrong, one function a kind: each picks its victim by chance and tells whether it hit one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .agent_host import GIB, AgentHost, quiet
from .effects import File
from .load import RUNNING, Fill, Load
from .machine import Link
from .timeline import MS, SECOND, Process

if TYPE_CHECKING:
    from .machine import Machine
    from .world import Node, World

DAY_NS = 86_400 * SECOND


def _node(world: World) -> Node:
    """Pick a node, rather one that is in a run."""
    core = world.head.core
    busy = sorted({name for run in core.runs.values() for name in run.nodes}) if core else []
    names = busy if busy and world.chance.random() < 0.8 else list(world.nodes)
    return world.nodes[world.chance.choice(names)]


def _loads(world: World) -> list[Load]:
    agent = _node(world).agent
    loads = agent.loads.values() if agent is not None else ()
    return [load for load in loads if load.alive and load.phase == RUNNING and not (load.dying or load.holds)]


def _span(world: World, low_s: float, high_s: float) -> int:
    return round(world.chance.uniform(low_s, high_s) * SECOND)


def partition(world: World) -> bool:
    """Cut a node off, in one direction or both; some heal by themselves, some only at the end."""
    node, net = _node(world), world.net
    ways = world.chance.choice(((net.cut_up,), (net.cut_down,), (net.cut_up, net.cut_down)))
    for way in ways:
        way.add(node.name)
        if world.chance.random() < 0.7:
            world.timeline.after(_span(world, 0.5, 9), way.discard, node.name)
    return True


def bad_network(world: World) -> bool:
    """Lose and delay messages everywhere for a while."""
    world.net.loss, world.net.slow = world.chance.uniform(0.05, 0.5), world.chance.uniform(0.05, 0.4)
    world.timeline.after(_span(world, 0.5, 3), _good_network, world)
    return True


def _good_network(world: World) -> None:
    world.net.loss = world.net.slow = 0.0


def agent_killed(world: World) -> bool:
    """SIGKILL an agent."""
    agent = _node(world).agent
    if agent is None or not agent.alive:
        return False
    agent.kill()
    return True


def agent_stopped(world: World) -> bool:
    """SIGSTOP an agent; what comes in is queued until it goes on."""
    agent = _node(world).agent
    return agent is not None and _stop(world, agent, _span(world, 0.3, 8))


def _stop(world: World, process: Process, span_ns: int) -> bool:
    if not process.alive or process.holds:
        return False
    if isinstance(process, AgentHost) and process.core is not None:
        process.ask()  # its answer waits until it goes on
    process.hold()
    process.stopped = True
    world.timeline.after(span_ns, _go_on, world, process)
    return True


def _go_on(world: World, process: Process) -> None:
    process.stopped = False
    if process.holds:
        process.release()


def agent_replaced(world: World) -> bool:
    """Stop an agent, put a newer one beside it, and let the old one go on."""
    node = _node(world)
    agent = node.agent
    if agent is None or not _stop(world, agent, _span(world, 0.5, 6)):
        return False
    node.agent = None
    world.timeline.after(_span(world, 0.1, 0.4), node.replace_agent, world.head.written.epoch)
    return True


def guardian_killed(world: World) -> bool:
    """SIGKILL a guardian: its standby takes over."""
    return _node(world).machine.guardian_dies(standby=True, after_ns=_span(world, 0.005, 0.08))


def guardian_stopped_long(world: World) -> bool:
    """SIGSTOP a guardian: after a second of silence its standby kills it and takes over."""
    machine = _node(world).machine
    guardian = machine.guardian
    if guardian is None or guardian.holds or machine.frozen:
        return False
    guardian.hold()
    world.timeline.after(_span(world, 1.0, 1.4), machine.when_awake, lambda: _take_place(machine, guardian))
    return True


def _take_place(machine: Machine, guardian: Process) -> None:
    if machine.guardian is guardian:
        machine.guardian_dies(standby=True, after_ns=20 * MS)


def guardian_stopped_short(world: World) -> bool:
    """SIGSTOP a guardian for less than a second."""
    guardian = _node(world).machine.guardian
    return guardian is not None and _stop(world, guardian, _span(world, 0.05, 0.8))


def guardian_and_standby_killed(world: World) -> bool:
    """Kill both: the next caller starts another, which sweeps."""
    return _node(world).machine.guardian_dies(standby=False, after_ns=0)


def orchestrator_killed(world: World) -> bool:
    """SIGKILL the orchestrator; a new one has the next epoch."""
    orchestrator = world.head.orchestrator
    if orchestrator is None or not orchestrator.alive:
        return False
    orchestrator.alive = False
    world.timeline.after(_span(world, 0.2, 4), world.head.start)
    return True


def orchestrator_stopped(world: World) -> bool:
    """SIGSTOP the orchestrator for a while."""
    orchestrator = world.head.orchestrator
    return orchestrator is not None and _stop(world, orchestrator, _span(world, 0.3, 4))


def orchestrator_replaced(world: World) -> bool:
    """Stop the orchestrator, start another, and let the old one answer what it had queued."""
    head = world.head
    old = head.orchestrator
    if old is None or not _stop(world, old, _span(world, 0.3, 3)):
        return False
    head.orchestrator = None
    world.timeline.after(_span(world, 0.05, 0.3), head.start)
    return True


def aggregator_killed(world: World) -> bool:
    """Kill a run's aggregator."""
    return world.head.kill_aggregator()


def driver_gone(world: World) -> bool:
    """A run's driver stops beating."""
    return world.drop_driver()


def load_killed(world: World) -> bool:
    """Something else kills a load."""
    loads = _loads(world)
    if loads:
        loads[0].kill()
    return bool(loads)


def load_hung(world: World) -> bool:
    """A load does not look at its lease any more (stopped, or in a long system call)."""
    loads = [load for load in _loads(world) if not isinstance(load, Fill)]
    if loads:
        loads[0].hung = True
    return bool(loads)


def file_replaced(world: World) -> bool:
    """Somebody puts a file of their own where ours is."""
    files = [(machine, record, file) for machine in world.machines for record, file in machine.files.items()]
    for machine, record, file in files:
        if file.ours and file.fill is not None and file.fill.phase == RUNNING:
            machine.files[record] = File(1, False, None)
            file.fill.excused = True
            file.fill.file_gone()
            machine.foreign.add(record)
            return True
    return False


def power_cut(world: World) -> bool:
    """Cut a machine's power; it boots again some seconds later, or only at the end."""
    machine = _node(world).machine
    if not machine.on or machine.frozen:
        return False
    world.power_off(machine)
    if world.chance.random() < 0.8:
        world.timeline.after(_span(world, 1, 6), world.power_on, machine)
    return True


def suspend(world: World) -> bool:
    """Suspend a machine, shorter or longer than a lease."""
    machine = _node(world).machine
    if not machine.on or machine.frozen:
        return False
    machine.freeze(_span(world, 0.5, 9))
    return True


def wall_step(world: World) -> bool:
    """Step the wall clock of a machine by a day."""
    machine, step_ns = _node(world).machine, world.chance.choice((-DAY_NS, DAY_NS))
    if world.wall_steps:
        machine.wall_offset_ns += step_ns
    return True


def slow_disk(world: World) -> bool:
    """Make disks slow for a while."""
    world.slow_disk = 0.3
    world.timeline.after(_span(world, 0.5, 2), _fast_disk, world)
    return True


def _fast_disk(world: World) -> None:
    world.slow_disk = 0.0


def full_disk(world: World) -> bool:
    """Let a guardian's journal refuse for a while."""
    guardian = _node(world).machine.guardian
    if guardian is None:
        return False
    guardian.fault = "no space"
    world.timeline.after(_span(world, 0.5, 3), setattr, guardian, "fault", "")
    return True


def pressure(world: World) -> bool:
    """Let a host run low: SHED, or ABORT."""
    node = _node(world)
    free = world.chance.choice((3 * GIB, 2 * GIB, 1 * GIB, 512 << 20))
    node.pressure = replace(quiet(node.name), memory_available_bytes=free, cpu_busy_fraction=world.chance.choice((0.5, 0.99)))
    world.timeline.after(_span(world, 1, 4), setattr, node, "pressure", None)
    return True


def sampler_dead(world: World) -> bool:
    """Let a host's sampler fail or hang for a while."""
    node = _node(world)
    node.blind = True
    world.timeline.after(_span(world, 1, 6), setattr, node, "blind", False)
    return True


def stop_run(world: World) -> bool:
    """Somebody stops a run."""
    return world.stop_some_run()


def halt(world: World) -> bool:
    """Emergency halt by the orchestrator, lifted some seconds later."""
    return world.set_halt(True) and _later(world, world.set_halt, False)


def _later(world: World, call: Callable[..., Any], *args: Any) -> bool:
    world.timeline.after(_span(world, 0.5, 4), call, *args)
    return True


def halt_on_node(world: World) -> bool:
    """Emergency halt at one machine's guardian, without Ray, lifted there some seconds later."""
    machine = _node(world).machine
    if machine.guardian is None or not machine.on:
        return False
    operator = Process(world.timeline)
    link = Link(machine, operator, {"op": "hello", "role": "cli"})
    link.call("halt", lambda _: None)
    return _later(world, link.call, "resume", lambda _: None)


# kind -> how often, against the others
FAULTS: dict[Callable[[World], bool], int] = {
    partition: 4,
    bad_network: 3,
    agent_killed: 3,
    agent_stopped: 3,
    agent_replaced: 3,
    guardian_killed: 3,
    guardian_stopped_long: 2,
    guardian_stopped_short: 2,
    guardian_and_standby_killed: 2,
    orchestrator_killed: 1,
    orchestrator_stopped: 1,
    orchestrator_replaced: 1,
    aggregator_killed: 2,
    driver_gone: 1,
    load_killed: 3,
    load_hung: 4,
    file_replaced: 1,
    power_cut: 3,
    suspend: 3,
    wall_step: 2,
    slow_disk: 1,
    full_disk: 1,
    pressure: 3,
    sampler_dead: 2,
    stop_run: 2,
    halt: 1,
    halt_on_node: 1,
}
