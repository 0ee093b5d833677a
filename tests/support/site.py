"""A STATE folder with real guardians, and what a test asks of them."""

# pathlib is left out where /proc is read
# ruff: noqa: PTH106, PTH123, PTH208

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from actors import memory_group, proc
from actors.clock import SECOND_NS, SystemClock
from actors.guardian import GuardianClient, GuardianError
from actors.undo import Journal
from tests.support.waiting import until

CLOCK = SystemClock()
OWNER = {"cluster": "c", "node": "n", "epoch": 1, "incarnation": 1}
LIMITS = {"cpu_cores": 8, "memory_bytes": 1 << 40, "disk_bytes": 1 << 40}
SPINNER = "import os\nwhile True: pass"


class Site:
    """A STATE folder with its guardians and the processes that a test starts."""

    def __init__(self, folder):
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.children = []
        self.clients = []
        self.containers = []  # control groups with loads that no other word reaches

    def client(self, role="agent", **fields):
        client = GuardianClient.connect(self.state, role=role, **({**OWNER, **fields} if role != "cli" else fields))
        self.clients.append(client)
        return client

    def child(self, *command):
        child = subprocess.Popen(command or ["sleep", "300"], start_new_session=True)
        self.children.append(child)
        return child

    def guardians(self):
        """Every living process of this STATE's guardian, standby included."""
        found = []
        for stat in proc.scan():
            with contextlib.suppress(OSError), open(f"/proc/{stat.pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
                if len(words) > 2 and words[-2] == os.fsencode(self.state) and b"guardian-" in words[-3] and stat.state not in "ZX":
                    found.append(stat.pid)
        return sorted(found)

    def kill_pair(self, client):
        """SIGKILL guardian and standby so that neither sees the other go: the guardian would fork another standby."""
        os.kill(client.hello["pid"], signal.SIGSTOP)
        os.kill(client.hello["standby_pid"], signal.SIGKILL)
        os.kill(client.hello["pid"], signal.SIGKILL)
        until(lambda: not self.guardians(), 5, lambda: f"{self.guardians()} still live")

    def no_guardian_lives(self):
        """Kill each that does; tell whether there was none any more."""
        living = self.guardians()
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not living

    def fill_files(self):
        folder = self.state / "fill"
        return sorted(folder.iterdir()) if folder.exists() else []

    def journal(self):
        fd = os.open(self.state, os.O_RDONLY)
        journal = Journal(fd)
        try:
            return journal.open()
        finally:
            journal.close()
            os.close(fd)

    def mend(self):
        """Begin anew, before a promised test is repeated."""
        self.close()
        shutil.rmtree(self.state)
        Site.__init__(self, self.state.parent)

    def close(self):
        for client in self.clients:
            client.close()
        with contextlib.suppress(AssertionError):  # the rest is ended all the same
            until(self.no_guardian_lives, 2)
        for container in self.containers:
            with contextlib.suppress(OSError):  # gone, as it should be
                proc.kill_cgroup(container)
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(5)
            if child.stdout is not None:
                child.stdout.close()
        limited = memory_group.find()
        for root in (proc.cgroup_root(), limited.folder if limited else ""):
            with contextlib.suppress(OSError, ValueError, KeyError):
                guardian_id = json.loads((self.state / "guardian.id").read_text())["id"]
                folder = f"{root}/stress-cluster-{guardian_id[:8]}"
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        os.rmdir(f"{folder}/{name}")
                os.rmdir(folder)


def open_slot(client, release_s=0.1, **fields):
    request = {
        "run": "r",
        "operation": "0.CpuLoad@n",
        "amounts": {"cpu_cores": 1, "disk_bytes": 1 << 30},
        "machine_limits": LIMITS,
        "release_s": release_s,
    }
    answer = client.call("open_slot", **{**OWNER, **request, **fields})
    return {"slot": answer["slot"], "generation": answer["generation"]}


def grant(client, ticket, lease_s=2.0, **fields):
    lease = [ticket["slot"], ticket["generation"], CLOCK.boot_ns() + round(lease_s * SECOND_NS)]
    return client.call("grant", **{**OWNER, **fields}, leases=[lease])


def fill(client, ticket, size=50 << 20, state=None):
    record = client.call("arm", **ticket, kind="disk_fill", fields={"path": str(state / "fill"), "token": "t", "reserve_bytes": 0})[
        "record"
    ]
    achieved = client.call("apply", record=record, params={"bytes": size})["achieved"]
    assert achieved >= size
    return record


def loaded(site, client, lease_s=2.0, **fields):
    """A slot with a lease, a registered load and a fill."""
    ticket = open_slot(client, **fields)
    load = site.child(sys.executable, "-S", "-c", SPINNER)
    client.call("register", **ticket, pid=load.pid)
    grant(client, ticket, lease_s)
    fill(client, ticket, state=site.state)
    return ticket, load


def keep_granting(client, ticket, stop, lease_s=2.0, every_s=0.3):
    refusals = []

    def work():
        while not stop.wait(every_s):
            try:
                refusals.extend(grant(client, ticket, lease_s)["ended"])
            except GuardianError as error:
                refusals.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, refusals


def gone_within(site, load, seconds):
    start = time.monotonic()
    load.wait(seconds)
    until(lambda: not site.fill_files(), max(0.05, seconds - (time.monotonic() - start)), "the fill is removed")
    return time.monotonic() - start
