"""Connections from node to node: each host's own socket table has both ends of them, and whoever dies or is cut off, they are gone in time.

They are what is used up here, so that what the system holds is seen wherever one end is, and after the death of the other's host too.
"""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import runs
from fabric import Fabric
from host import Host
from support.observe import boot_s, promised
from support.waiting import never, until

from cluster.analysis import load

COUNT = 150
PORT = 17_700
LEASE_S = runs.DEFAULT_LEASE_S
ESTABLISHED, TIME_WAIT = "01", "06"  # include/net/tcp_states.h
SCENARIO = """
version: 1
name: {name}
on_node_lost: continue
limits: {{cpu_busy_fraction: 100%, cpu_busy_for: 1h, stale: 10s}}
plan:
  Connections: {{count: {count}, peer: next, close: {close}}}
  for: {for_s}s
"""


def ends(host: Host, state: str = ESTABLISHED) -> Counter[tuple[str, str]]:
    """Return how many ends of these connections a host's socket table has in a state, by direction and the other host's address."""
    found: Counter[tuple[str, str]] = Counter()
    with contextlib.suppress(OSError):  # the host is gone
        for row in Path(f"/proc/{host.init_pid}/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, seen = row.split()[:4]
            ports = int(local[-4:], 16), int(remote[-4:], 16)
            if seen == state and PORT in ports:
                other = ".".join(str(byte) for byte in reversed(bytes.fromhex(remote[:8])))
                found["out" if ports[1] == PORT else "in", other] += 1
    return found


def whole(hosts: Fabric, name: str) -> Counter[tuple[str, str]]:
    """Return what a target's table has while all is held: as many to the next one as from the one before."""
    targets = [host.name for host in hosts.targets]
    at = targets.index(name)
    following, before = hosts[targets[(at + 1) % len(targets)]], hosts[targets[at - 1]]
    return Counter({("out", following.address): COUNT, ("in", before.address): COUNT})


def all_held(hosts: Fabric, run: runs.Run) -> None:
    """Wait until every target's table has all of its ends."""

    def held() -> bool:
        assert run.process.poll() is None, f"the run ended: {run.wait(1)}"
        return all(ends(host) == whole(hosts, host.name) for host in hosts.targets)

    until(held, 60, lambda: f"{ {host.name: ends(host) for host in hosts.targets} }; it said {run.said()[-1500:]}", 0.05)


@promised
def test_both_ends_are_on_two_nodes_and_both_are_closed(hosts: Fabric) -> None:
    """N established in each of the two tables, as `ss` says too; none after, and what stays in TIME_WAIT is recorded by each node."""
    before = sum(sum(ends(host, TIME_WAIT).values()) for host in hosts.targets)
    run = runs.Run(hosts, SCENARIO.format(name="linked", count=COUNT, close="orderly", for_s=6))
    all_held(hosts, run)
    h2, h3 = hosts["h2"], hosts["h3"]
    said = h2.run("ss", "-Htn", "state", "established", "dst", h3.address, "dport", "=", f":{PORT}").stdout
    assert said.count("\n") == COUNT, said[:300]
    ended = run.wait(60)
    assert ended.code == 0, str(ended)
    assert not any(ends(host) for host in hosts), {host.name: ends(host) for host in hosts}
    waiting = {host.name: sum(ends(host, TIME_WAIT).values()) for host in hosts.targets}
    rows = load(run.kept).metrics.select(["metric", "node", "last"]).to_pylist()
    told = {row["node"]: row["last"] for row in rows if row["metric"] == "load.sockets.waiting"}
    print(f"linked: TIME_WAIT in the tables {waiting}, recorded {told}")
    assert told.keys() == waiting.keys()
    assert all(told[name] <= waiting[name] for name in told)
    assert sum(told[name] < waiting[name] for name in told) <= 1  # whose peer took longer to close than it waits for that
    assert sum(waiting.values()) - before == len(hosts.targets) * COUNT  # of each connection one end
    runs.assert_undone(hosts.hosts)


@dataclass(frozen=True)
class Row:
    """Who goes, and whose connections have to go with it: those that have an end on one of these hosts."""

    name: str
    strike: Callable[[Fabric], float]
    concerned: tuple[str, ...] = ("h4",)

    def __str__(self) -> str:
        return self.name


def cut(hosts: Fabric) -> float:
    """Lose a node at once: nobody is told anything by it."""
    at_s = boot_s()
    hosts.cut("h4")
    return at_s


ROWS = (
    Row("driver", lambda hosts: runs.kill(hosts.head, "driver").at_s, ("h2", "h3", "h4")),
    Row("load", lambda hosts: runs.kill(hosts["h4"], "load").at_s),
    Row("node", cut),
)
LONG = (
    Row("agent", lambda hosts: runs.kill(hosts["h4"], "agent").at_s),
    Row("simulator", lambda hosts: runs.kill(hosts["h4"], "simulator").at_s),
)


@pytest.mark.parametrize("row", [*ROWS, *(pytest.param(row, marks=pytest.mark.soak) for row in LONG)], ids=str)
def test_whoever_goes_both_ends_are_gone_within_the_lease(hosts: Fabric, row: Row) -> None:
    """Whoever is killed with -9, or a node lost: no table has an end of what it held when the lease is over."""
    goes(hosts, row)


@promised
def goes(hosts: Fabric, row: Row) -> None:
    """Hold, strike, and look at every host's table."""
    assert not any(ends(host) for host in hosts)
    lease = {"STRESS_CLUSTER_LEASE_S": f"{LEASE_S:g}"}
    run = runs.Run(hosts, SCENARIO.format(name=row.name, count=COUNT, close="reset", for_s=60), env=lease)
    all_held(hosts, run)
    never(lambda: False, runs.seeded(row.name, 0.2, 1.0))
    at_s = row.strike(hosts)
    lost = {hosts[name].address for name in row.concerned}

    def left() -> list[tuple[str, str, str]]:
        return [(host.name, *end) for host in hosts for end in ends(host) if {host.address, end[1]} & lost]

    until(lambda: not left(), LEASE_S + 4, lambda: f"left {left()}", 0.02)
    took_s, others = boot_s() - at_s, ends(hosts["h2"])
    if run.process.poll() is None and row.name != "driver":
        run.signal(signal.SIGINT)
    hosts.heal()
    ended = run.wait(90)
    print(f"{row.name}: gone {took_s:.2f} s after; of h2 stayed {others}; {str(ended)[:150]}")
    assert took_s <= LEASE_S
    assert ended.code != 0, str(ended)
    if "h3" not in row.concerned:
        assert others == Counter({("out", hosts["h3"].address): COUNT}), others
    runs.recover(hosts)
    assert not any(ends(host) for host in hosts), {host.name: ends(host) for host in hosts}
    runs.assert_undone(hosts.hosts)
