"""Locks of a load at a real guardian: reserved while it lives, refused beyond the limit, and free after every end, also a violent one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from actors import proc
from actors.carrier import LoadProcess
from actors.guardian import GuardianClient, GuardianError
from actors.lease import LeaseWatch
from actors.lifecycle import Event
from actors.messages import Capacity, Operation, SlotTicket
from actors.simulator import peak_amounts
from tests.support.contests import operation
from tests.support.site import CLOCK, LIMITS, Site, grant, open_slot
from tests.support.waiting import until

PLENTY = {"tasks": 1000, "descriptors": 1000, "locks": 1000}
CAPACITY = Capacity(cpu_cores=2.0, memory_bytes=1 << 30, disk_bytes=1 << 30, tasks=1000, locks=1000)


class Guarded:
    """One load under a real guardian."""

    def __init__(self, site: Site, one: Operation, **limits: int) -> None:
        self.client: GuardianClient = site.client()
        amounts = asdict(peak_amounts(one, CAPACITY))
        self.ticket = open_slot(self.client, operation=one.id, amounts=amounts, machine_limits={**LIMITS, **PLENTY, **limits})
        ticket = SlotTicket(**self.ticket)
        watch = LeaseWatch(self.client.control, self.client.stats, ticket.slot, ticket.generation, CLOCK, leave=lambda _: None)
        pages = self.client.page_fds
        self.load = LoadProcess(one, CAPACITY, ticket, watch=watch, guardian=self.client, page_fds=pages, state_dir=site.state)

    def run(self, lease_s: float) -> int:
        """Start it; return its process."""
        self.load.start()
        until(lambda: self.grant(2.0) and self.client.stats.read(self.ticket["slot"]).state >= 2, 60, "the load is ready", 0.1)
        self.client.call("start", **self.ticket, start_ns=CLOCK.boot_ns())
        until(lambda: self.grant(2.0) and self.client.stats.read(self.ticket["slot"]).first_slice_ns, 10, "the first slice", 0.05)
        self.grant(lease_s)
        return self.load.pids[0]

    def grant(self, lease_s: float) -> bool:
        """Grant a lease from now on; one is never shortened. Raises when it is refused."""
        return not grant(self.client, self.ticket, lease_s)["ended"]

    def locks(self) -> int:
        """Return what the machine's usage has of locks."""
        return sum(int(slot["amounts"]["locks"]) for slot in self.client.call("status")["slots"])

    def close(self) -> None:
        self.load.kill()
        self.load._reap()
        self.load.close()


@pytest.fixture
def guarded(site: Site) -> Iterator[Any]:
    made: list[Guarded] = []

    def make(one: Operation, **limits: int) -> Guarded:
        made.append(Guarded(site, one, **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def file_locks(pids: set[int]) -> list[str]:
    """Return the kernel's lines of file locks that these processes hold or wait for."""
    return [line for line in Path("/proc/locks").read_text().splitlines() if pids & {int(word) for word in line.split() if word.isdigit()}]


ENDS = {
    "time": ({"duration_s": 1.0}, Event.FINISHED),
    "drain": ({}, Event.FINISHED),
    "deadlock": ({"on_deadlock": "fail"}, Event.BROKE),
    "timeout": ({"on_deadlock": "fail", "detect": False, "timeout_s": 0.3}, Event.BROKE),
    "kill": ({}, Event.BROKE),
    "lease": ({}, Event.LEASE_ENDED),
}


@pytest.mark.parametrize("end", list(ENDS))
def test_usage_has_two_locks_a_pair_during_and_none_after_whatever_the_end(guarded: Any, end: str) -> None:
    """Planned end, stop, deadlock, timeout, SIGKILL, end of lease: two locks in use before, none once its slot is closed."""
    options, event = ENDS[end]
    one = guarded(operation("Deadlock", 1, **{"timeout_s": 60.0, **options}), locks=2)
    pid = one.run(1.0 if end == "lease" else 30.0)
    assert one.locks() == 2
    with pytest.raises(GuardianError) as caught:
        open_slot(one.client, operation="1.Deadlock@n", amounts={"locks": 1}, machine_limits={**LIMITS, **PLENTY, "locks": 2})
    assert caught.value.code == "budget"
    if end == "drain":
        one.load.drain()
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
    found, reason = until(one.load.poll, 10, "the end of the load")
    assert found is event, reason
    one.client.call("close_slot", **one.ticket)
    until(lambda: one.locks() == 0, 5, lambda: str(one.client.call("status")["slots"]))
    assert proc.session_members(pid) == []


def test_a_pair_is_refused_where_the_machine_allows_one_lock(site: Site) -> None:
    """With limit 1 the guardian refuses a pair's two locks with the code of a budget, and nothing is charged."""
    amounts = asdict(peak_amounts(operation("Deadlock", 1), CAPACITY))
    client = site.client()
    with pytest.raises(GuardianError, match="locks") as caught:
        open_slot(client, operation="0.Deadlock@n", amounts=amounts, machine_limits={**LIMITS, **PLENTY, "locks": 1})
    assert caught.value.code == "budget"
    assert client.call("status")["slots"] == []


MATRIX = [
    pytest.param("LockContention", {"contenders": "processes", "contention": 1.0, "hold_s": 5.0}, id="processes"),
    pytest.param("LockContention", {}, id="threads", marks=pytest.mark.soak),
    pytest.param("LockContention", {"contenders": "tasks"}, id="tasks", marks=pytest.mark.soak),
    pytest.param("LockConvoy", {}, id="convoy", marks=pytest.mark.soak),
    pytest.param("Deadlock", {"detect": False, "timeout_s": 60.0}, id="deadlock", marks=pytest.mark.soak),
    pytest.param("Livelock", {}, id="livelock", marks=pytest.mark.soak),
    pytest.param("PriorityInversion", {}, id="inversion", marks=pytest.mark.soak),
]


@pytest.mark.parametrize("death", ["load", "frozen", "agent", "guardian"])
@pytest.mark.parametrize(("kind", "options"), MATRIX)
def test_nothing_is_left_whatever_dies(guarded: Any, site: Site, kind: str, options: dict[str, Any], death: str) -> None:
    """SIGKILL of the load or of the guardian, SIGSTOP of all, the agent's silence: all processes and their locks are gone by the lease."""
    one = guarded(operation(kind, 3, **options))
    pid = one.run(2.0)
    count = 4 if options.get("contenders") == "processes" else 1
    pids = until(lambda: len(found := {member.pid for member in proc.session_members(pid)}) == count and found, 2, "all are there", 0.01)
    if count > 1:
        until(lambda: len(file_locks(pids)) == 3, 1.5, lambda: str(file_locks(pids)), 0.01)
    if death == "load":
        os.kill(pid, signal.SIGKILL)
    if death == "frozen":
        for member in pids:
            os.kill(member, signal.SIGSTOP)
    if death == "guardian":
        os.kill(one.client.hello["pid"], signal.SIGKILL)
    until(lambda: one.load.poll() is not None and not proc.session_members(pid), 10, lambda: str(proc.session_members(pid)))
    assert file_locks(pids) == []
    if death in ("agent", "guardian"):
        assert one.load.poll()[0] is Event.LEASE_ENDED
