"""Whoever dies while something is used up: simulator, agent, guardian or load, the load by an exception too. What was held is gone in time.

In time is within the lease. Agent and simulator are processes of their own with the real guardian between them; every
simulator of exhaustion has its matrix in `make soak`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.capability import judge, read_facts
from tests.support import held
from tests.support.observe import boot_s, promised
from tests.support.site import Site
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
LEASE_S = 2.0
COUNTS = {
    "Processes": 16,
    "Descriptors": 500,
    "Mappings": 500,
    "Sockets": 100,
    "Connections": 50,
    "Ports": 100,
    "Threads": 100,
    "Inodes": 100,
    "SharedMemory": 50,
    "Semaphores": 100,
}
KINDS = [pytest.param(kind, marks=() if kind == "Processes" else pytest.mark.soak) for kind in COUNTS]
VICTIMS = ("simulator", "agent", "guardian", "load", "load-by-an-exception")

AGENT = f"""
import os, sys
from actors.clock import SECOND_NS, SystemClock
from actors.guardian import GuardianClient
state, kind, wait = sys.argv[1], sys.argv[2], SystemClock()
me = {{"cluster": "c", "node": "n", "epoch": 1, "incarnation": 1}}
client = GuardianClient.connect(state, role="agent", watch=[os.getpid()], **me)
amounts = {{"descriptors": 1000, "tasks": 1000, "inodes": 1000, "memory_bytes": 1 << 30}}
limits = {{"cpu_cores": 8, **{{name: 100 * most for name, most in amounts.items()}}}}
slot = client.call("open_slot", **me, run="r", operation="0@n", amounts=amounts, machine_limits=limits, release_s=0.1)
print(slot["slot"], slot["generation"], flush=True)
while True:
    until_ns = wait.boot_ns() + round({LEASE_S} * SECOND_NS)
    client.call("grant", **me, leases=[[slot["slot"], slot["generation"], until_ns]])
    if client.stats.read(slot["slot"]).state == 2 and not client.control.start_ns(slot["slot"]):
        client.call("start", slot=slot["slot"], generation=slot["generation"], start_ns=wait.boot_ns())
    wait.sleep(0.2)
"""

SIMULATOR = """
import os, sys, threading
from pathlib import Path
from actors.capacity import read_capacity
from actors.carrier import LoadProcess
from actors.clock import SystemClock
from actors.guardian import GuardianClient
from actors.lease import LeaseWatch
from actors.messages import Operation, SlotTicket
state, kind, count, slot, generation = sys.argv[1:]
shape = {"kind": "constant", "level": float(count)}
operation, ticket = Operation("0@n", kind, "n", 0.0, 600.0, "count", shape), SlotTicket(int(slot), int(generation))
guardian = GuardianClient.connect(
    state, role="simulator", spawn=False, node="n", pid=os.getpid(), slot=ticket.slot, generation=ticket.generation
)
watch = LeaseWatch(guardian.control, guardian.stats, ticket.slot, ticket.generation, SystemClock(), leave=lambda _: None)
load = LoadProcess(
    operation, read_capacity(Path(state)), ticket, watch=watch, guardian=guardian, page_fds=guardian.page_fds, state_dir=Path(state)
)
load.start()
print(*load.pids, flush=True)
threading.Event().wait()
"""


class Cast:
    """An agent, a simulator and its load around one guardian."""

    def __init__(self, site: Site, kind: str) -> None:
        self.site, self.kind = site, kind
        self.agent = self._run(AGENT, str(site.state), kind)
        slot, generation = self._said(self.agent)
        self.simulator = self._run(SIMULATOR, str(site.state), kind, str(COUNTS[kind]), slot, generation)
        (pid,) = self._said(self.simulator)
        self.load = int(pid)

    def _run(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *arguments]
        made = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.site.children.append(made)
        return made

    @staticmethod
    def _said(process: subprocess.Popen[str]) -> list[str]:
        assert process.stdout is not None
        return process.stdout.readline().split()

    def count(self) -> int:
        return held.OBSERVERS[self.kind](self.load)

    def kill(self, victim: str) -> None:
        if victim == "guardian":
            self.site.kill_pair(self.site.client(role="cli"))
        else:
            pids = {"simulator": self.simulator.pid, "agent": self.agent.pid}
            # An interrupt is an exception wherever the load is: nothing of its code gives back what it holds.
            number = signal.SIGINT if victim == "load-by-an-exception" else signal.SIGKILL
            os.kill(pids.get(victim, self.load), number)


@pytest.fixture
def cast(site: Site) -> Callable[[str], Cast]:
    able = judge(read_facts(site.state))

    def make(kind: str) -> Cast:
        if able[kind].verdict == "unavailable":
            pytest.skip(able[kind].reason)
        return Cast(site, kind)

    return make


def lives(pid: int) -> bool:
    return held.status(pid).get("State", "Z")[0] not in "ZX"


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left(cast: Callable[[str], Cast], site: Site, kind: str, victim: str) -> None:
    """Killed while all is held, whoever it was takes the load and its children along in time; with the agent's end no record stays.

    A load knows what it holds, to give it back in steps. Killed, it knows nothing any more, and all is gone: the kernel undoes it and the
    guardian sees to that.
    """
    promised(lambda: dies(cast(kind), victim))()
    for child in site.children:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    until(lambda: not site.client(role="cli").call("status")["slots"], 10, "every slot ended")
    until(lambda: not site.journal(), 10, lambda: f"records stay: {site.journal()}")


def dies(one: Cast, victim: str) -> None:
    """Hold, kill, and judge."""
    until(lambda: one.count() >= COUNTS[one.kind], 30, lambda: f"{one.count()} held")
    family = [one.load, *held.children(one.load)]
    assert len(family) == 1 + (COUNTS["Processes"] if one.kind == "Processes" else 0)
    one.kill(victim)
    killed_s = boot_s()
    until(lambda: not any(map(lives, family)), LEASE_S + 5, lambda: f"alive: {[pid for pid in family if lives(pid)]}", 0.02)
    gone_s = boot_s() - killed_s
    print(f"{one.kind}, {victim}: gone after {gone_s:.2f} s")
    assert gone_s <= LEASE_S
    until(lambda: not any(held.status(pid) for pid in family[1:]), 5, "no zombie of a child")
