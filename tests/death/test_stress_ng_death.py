"""Deaths around a StressNg under a real guardian: whoever dies, by the lease's end no process, object or file of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors import proc
from actors.carrier import LoadProcess
from actors.clock import SystemClock
from actors.guardian import GuardianClient
from actors.lease import LeaseWatch
from actors.messages import Capacity, Operation, SlotTicket
from tests.support.site import CLOCK, Site, grant, keep_granting, open_slot
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not shutil.which("stress-ng"), reason="stress-ng is not installed on this machine")

LEASE_S = 2.0
# One whose workers survive their parent's death, one that leaves message queues when killed, one whose files are there meanwhile.
STRESSORS = {
    "mmapfork": {"stressor": "mmapfork", "memory_bytes": 4 << 30},
    "msg": {"stressor": "msg"},
    "hdd": {"stressor": "hdd", "arguments": "--hdd-bytes 8M"},
}


@dataclass
class Loaded:
    """A load that works, and all by which it could be found."""

    site: Site
    client: GuardianClient
    load: LoadProcess
    ticket: dict[str, int]
    stop: threading.Event
    group: str

    def processes(self) -> list[str]:
        """Return all that lives in its session, its group or its folder."""
        pids = {stat.pid for stat in proc.session_members(self.load.pids[0])} | set(proc.cgroup_pids(self.group) if self.group else ())
        for stat in proc.scan():
            path = Path(f"/proc/{stat.pid}/cwd")
            try:
                pids |= {stat.pid} if path.readlink().is_relative_to(self.site.state / "scratch") else set()
            except OSError:
                continue
        return sorted(f"{pid} {stat.state}" for pid in pids if (stat := proc.read_stat(pid)) is not None and stat.state not in "ZX")

    def left(self) -> list[str]:
        """Return what is left of it: processes, its group, its folder."""
        folders = [str(path) for path in (self.site.state / "scratch").iterdir()]
        return [*self.processes(), *folders, *([self.group] if self.group and Path(self.group).exists() else [])]


def queues() -> int:
    """Return how many System V message queues this test's own namespace has."""
    return len(Path("/proc/sysvipc/msg").read_text().splitlines()) - 1


Begin = Callable[[str], Loaded]


@pytest.fixture
def begin(site: Site) -> Iterator[Begin]:
    """Return what makes a load of a stressor that works."""
    made: list[Loaded] = []

    def one(name: str) -> Loaded:
        client = site.client()
        operation = Operation("0.StressNg@n", "StressNg", "n", 0.0, 300.0, "count", {"kind": "constant", "level": 1}, STRESSORS[name])
        ticket = open_slot(client, operation=operation.id)
        group = next(slot["container"] for slot in client.call("status")["slots"])
        where = SlotTicket(ticket["slot"], ticket["generation"])
        watch = LeaseWatch(client.control, client.stats, where.slot, where.generation, SystemClock(), leave=lambda _: None)
        capacity = Capacity(2.0, 8 << 30, 8 << 30, tasks=10_000)
        load = LoadProcess(operation, capacity, where, watch=watch, guardian=client, page_fds=client.page_fds, state_dir=site.state)
        load.start()
        grant(client, ticket, LEASE_S)
        made.append(Loaded(site, client, load, ticket, threading.Event(), group))
        keep_granting(client, ticket, made[-1].stop, LEASE_S)
        until(lambda: load.poll() or client.stats.read(where.slot).state >= 2, 20, "the load is ready")
        client.call("start", **ticket, start_ns=CLOCK.boot_ns())
        until(lambda: load.poll() or len(made[-1].processes()) >= 3, 20, lambda: f"{load.poll()} {made[-1].processes()}")
        assert load.poll() is None, load.poll()
        return made[-1]

    yield one
    for each in made:
        each.stop.set()
        each.load.kill()
        each.load._reap()
        each.load.close()


def kill_load(one: Loaded) -> None:
    os.kill(one.load.pids[0], signal.SIGKILL)
    one.stop.set()


def kill_instance(one: Loaded) -> None:
    for stat in proc.scan():
        if stat.ppid == one.load.pids[0]:
            os.kill(stat.pid, signal.SIGKILL)
    one.stop.set()


def kill_agent(one: Loaded) -> None:
    one.stop.set()  # nobody grants any more


def stop_load(one: Loaded) -> None:
    os.kill(one.load.pids[0], signal.SIGSTOP)  # it cannot look at its lease, nor kill its tree
    one.stop.set()


def kill_guardian(one: Loaded) -> None:
    os.kill(one.client.hello["pid"], signal.SIGKILL)  # its standby takes over
    one.stop.set()


DEATHS = (kill_load, kill_instance, kill_agent, stop_load, kill_guardian)
LONG = [pytest.param(death, name, marks=pytest.mark.soak) for name in ("msg", "hdd") for death in DEATHS[1:]]


@pytest.mark.parametrize(("death", "stressor"), [*((death, "mmapfork") for death in DEATHS), (kill_load, "msg"), (kill_load, "hdd"), *LONG])
def test_nothing_is_left(begin: Begin, death: Callable[[Loaded], None], stressor: str) -> None:
    """Whoever is killed or stopped, a moment after the lease's end there is no process, no group, no folder and no queue of it."""
    before = queues()
    one = begin(stressor)
    folders = list((one.site.state / "scratch").iterdir())
    assert len(folders) == 1
    death(one)
    until(lambda: one.load.poll() is not None and not one.left(), LEASE_S + 8, lambda: f"{one.left()}")
    assert queues() == before

    def states() -> set[str]:
        return {record["state"] for record in one.client.call("status")["records"]}

    until(lambda: states() <= {"checked"}, 10, lambda: f"{states()}")  # undone and looked at, a moment after; and once more later
