"""What goes wrong around a tree of relays, one function a kind: each picks its victim by chance and tells whether it hit one."""

from __future__ import annotations

from cluster.metrics.tree import ROOT

from .timeline import MS
from .tree_world import Fault, Server, TreeWorld


def relay_killed(world: TreeWorld) -> bool:
    """A relay dies, with all that it holds, and is replaced."""
    relay = world.a_relay()
    if relay is None:
        return False
    world.seen["died_with_windows"] += relay.core.held_bytes > 0
    relay.alive = False
    world.within(0.1, 4, _replace, world, relay.name)
    return True


def _replace(world: TreeWorld, name: str) -> None:
    if not world.servers[name].alive:
        world.begin_server(name)


def relay_gone(world: TreeWorld) -> bool:
    """A relay dies and is never replaced, as long as one of its level is left."""
    relay = world.a_relay()
    if relay is None:
        return False
    gone = {name for name, server in world.servers.items() if not server.alive} | {relay.name}
    if any(set(ways) <= gone for ways in world.layout.ways.values() if relay.name in ways):
        return False
    relay.alive = False
    return True


def relay_hangs(world: TreeWorld) -> bool:
    """A relay is stopped, and goes on later with what has come meanwhile."""
    relay = world.a_relay()
    if relay is None:
        return False
    relay.hold()
    world.within(0.5, 7, _go_on, relay)
    return True


def _go_on(server: Server) -> None:
    if server.holds:
        server.release()


def relay_cut_off(world: TreeWorld) -> bool:
    """A relay is cut off from everybody, or only its answers and bundles are."""
    relay = world.a_relay()
    if relay is None:
        return False
    way = world.chance.choice((world.net.cut_off, world.net.mute))
    way.add(relay.name)
    world.within(0.5, 7, way.discard, relay.name)
    return True


def root_killed(world: TreeWorld) -> bool:
    """The aggregator dies, with what it had not synced, and is replaced."""
    root = world.servers[ROOT]
    if not root.alive:
        return False
    root.alive = False
    world.within(0.2, 4, _replace, world, ROOT)
    return True


def disk_full(world: TreeWorld) -> bool:
    """The aggregator's disk refuses for a while."""
    world.disk_refuses = True
    world.within(0.2, 3, setattr, world, "disk_refuses", False)
    return True


def disk_slow(world: TreeWorld) -> bool:
    """Each sync takes its time."""
    world.sync_ns = round(world.chance.uniform(20, 900) * MS)
    world.within(0.5, 4, setattr, world, "sync_ns", MS)
    return True


def bad_network(world: TreeWorld) -> bool:
    """Messages are lost and late everywhere."""
    world.net.loss, world.net.slow = world.chance.uniform(0.02, 0.3), world.chance.uniform(0.02, 0.3)
    world.within(0.3, 3, _good_network, world)
    return True


def _good_network(world: TreeWorld) -> None:
    world.net.loss = world.net.slow = 0.0


def agent_killed(world: TreeWorld) -> bool:
    """An agent dies with its open window; the next one on the node takes its outbox over."""
    node = world.chance.choice(list(world.agents))
    agent = world.agents[node]
    if not agent.alive:
        return False
    agent.kill()
    world.within(0.1, 3, _new_agent, world, node)
    return True


def _new_agent(world: TreeWorld, node: str) -> None:
    if not world.agents[node].alive:
        world.begin_agent(node)


def agent_cut_off(world: TreeWorld) -> bool:
    """A node is cut off until its outbox is full."""
    node = world.chance.choice(list(world.agents))
    world.net.cut_off.add(node)
    world.within(2, 12, world.net.cut_off.discard, node)
    return True


FAULTS: tuple[Fault, ...] = (
    *(relay_killed, relay_gone, relay_hangs, relay_cut_off, root_killed),
    *(disk_full, disk_slow, bad_network, agent_killed, agent_cut_off),
)
