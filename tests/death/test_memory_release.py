"""A memory load at Ray's own low priority beside spinners: its end is its memory given back, within the release time that was stated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import proc
from actors.carrier import LoadProcess
from actors.clock import SECOND_NS, SystemClock
from actors.guardian import GuardianClient
from actors.lease import LeaseWatch
from actors.messages import Amounts, Capacity, Operation, SlotTicket
from cluster.agent_shell import release_s
from tests.support.observe import anonymous_bytes, machine_memory_bytes, promised
from tests.support.waiting import until

GIB = 1 << 30
HELD = GIB + GIB // 2
CLOCK = SystemClock()
OWNER = {"cluster": "c", "node": "n", "epoch": 1, "incarnation": 1}
RAYS_NICE = 15
SPINNERS = 2
LEASE_S = 4.0


@pytest.fixture
def spinners() -> Iterator[None]:
    """Keep two cores busy at normal priority."""
    made = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(SPINNERS)]
    yield
    for one in made:
        one.kill()
        one.wait(10)


def end_of(state: Path) -> None:
    """End the guardians of a STATE."""
    for stat in proc.scan():
        command = Path(f"/proc/{stat.pid}/cmdline")
        if command.exists() and os.fsencode(state) in command.read_bytes():
            os.kill(stat.pid, signal.SIGKILL)


def test_memory_at_low_priority_is_gone_and_given_back_by_the_stated_time(spinners: None, tmp_path: Path) -> None:
    """1.5 GiB at nice 15 beside two spinners: process gone and memory given back at the lease's end, release time included."""
    if (available := machine_memory_bytes("MemAvailable")) < HELD + 2 * GIB:
        pytest.skip(f"{available / GIB:.1f} GiB are available, the test takes {HELD / GIB:.1f}")
    tries = iter(range(2))
    promised(lambda: held_and_gone(tmp_path / f"state-{next(tries)}"))()


def held_and_gone(state: Path) -> None:
    """Hold, let the lease end, and judge."""
    state.mkdir(mode=0o700)
    client = GuardianClient.connect(state, role="agent", **OWNER)
    stated_s = release_s(Amounts(memory_bytes=HELD))
    request = {"run": "r", "operation": "0.MemoryPressure@n", "amounts": {"memory_bytes": HELD}, "release_s": stated_s}
    limits = {"cpu_cores": 8, "memory_bytes": 1 << 40, "disk_bytes": 1 << 40}
    answer = client.call("open_slot", **OWNER, **request, machine_limits=limits)
    ticket = SlotTicket(answer["slot"], answer["generation"])
    operation = Operation("0.MemoryPressure@n", "MemoryPressure", "n", 0.0, 600.0, "bytes", {"kind": "constant", "level": HELD})
    watch = LeaseWatch(client.control, client.stats, ticket.slot, ticket.generation, CLOCK, leave=lambda _: None)
    load = LoadProcess(operation, Capacity(2.0, HELD, 0), ticket, watch=watch, guardian=client, page_fds=client.page_fds, state_dir=state)
    try:
        load.start()
        pid = load.pids[0]
        renewing = Renewal(client, ticket)
        until(lambda: renewing.once() and client.stats.read(ticket.slot).state >= 2, 60, "the load is ready", 0.2)
        client.call("start", slot=ticket.slot, generation=ticket.generation, start_ns=CLOCK.boot_ns())
        until(lambda: renewing.once() and anonymous_bytes(pid) >= HELD, 60, lambda: f"{anonymous_bytes(pid) / GIB:.2f} GiB held", 0.2)
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # /proc
            os.setpriority(os.PRIO_PROCESS, int(thread), RAYS_NICE)
        os.kill(pid, signal.SIGSTOP)  # it cannot look at its lease: the guardian has to end it
        held, word = machine_memory_bytes("AnonPages"), client.control.lease(ticket.slot)[1]
        until(lambda: is_gone(pid), 90, "the load's end")
        gone_ns = CLOCK.boot_ns()
        # Pages in use, not available ones: a virtual machine's host may take memory away, or give it back, at any time.
        until(lambda: machine_memory_bytes("AnonPages") <= held - 0.8 * HELD, 30, "the memory is given back")  # others use some too
        back_ns = CLOCK.boot_ns()
        late_s = [(at_ns - word) / SECOND_NS for at_ns in (gone_ns, back_ns)]
        print(f"release time {stated_s:.2f} s; gone {late_s[0]:+.2f} s and given back {late_s[1]:+.2f} s after the deadline")
        assert late_s[0] <= 0.5
        assert late_s[1] <= 0.5
    finally:
        load.kill()
        load._reap()
        load.close()
        client.close()
        end_of(state)


class Renewal:
    """Grants a lease again and again, each from now on."""

    def __init__(self, client: GuardianClient, ticket: SlotTicket) -> None:
        self.client, self.ticket = client, ticket

    def once(self) -> bool:
        """Grant once more; raises when it was refused."""
        until_ns = CLOCK.boot_ns() + round(LEASE_S * SECOND_NS)
        self.client.call("grant", **OWNER, leases=[[self.ticket.slot, self.ticket.generation, until_ns]])
        return True


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended: a zombie has given back its memory, one that merely lost sight of it has not."""
    stat = proc.read_stat(pid)
    return stat is None or stat.state in "ZX"
