"""`cluster.exhaust` from Python: what its handles hold on two nodes, counted from outside, and that nobody can forget to give it back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import held
from support.observe import allocated_bytes, boot_s
from support.terminal import Terminal
from support.waiting import until

LEASE_S = 2.0
# After the caller's lease, which ends its run: the order to stop comes to each node with the next answer that its agent gets, and what is
# held is given back then, 200 MiB of blocks among it.
TOLD_S = 1.0
MIB = 1 << 20
SCRIPT = """
import sys
import cluster
from scenarios import Descriptors, DiskFill, Mappings, Sockets, Targets

there = {"targets": Targets(names=("n1", "n2")), "profile": "aggressive", "out": sys.argv[1], "settings": {"lease_s": 2.0}, "quiet": True}

def say(*words):
    print(*words, flush=True)
    sys.stdin.readline()

with cluster.exhaust(Descriptors(count=200), for_s=120, hold=True, **there) as files:
    rest = cluster.exhaust(
        Mappings(count=500, form="shared"), Sockets(count=100, protocol="udp"), DiskFill(bytes=200 << 20, reserve_bytes=64 << 20),
        for_s=120, hold=True, **there,
    )
    say("held", *(f"{one.node}:{one.operation.split('@')[0].split('.')[-1]}:{one.achieved:.0f}" for one in (*files.held, *rest.held)))
say("released", files.release().status, files.is_held, files.held, *rest.nodes)
say("woken", rest.release().status)
outcome = cluster.exhaust(Descriptors(count=200), for_s=2, **there)
say("default", outcome.exit_code in (0, 5))
"""
KINDS = {
    "Descriptors": (lambda pid: held.links_to(pid, "/dev/null") - 2, range(198, 204)),  # beside standard input and output
    "Mappings": (lambda pid: held.maps_of(pid, "/dev/zero (deleted)"), range(495, 506)),
    "Sockets": (lambda pid: held.sockets(pid, "UDP"), range(99, 102)),
}


class Caller:
    """The script above as a process of its own."""

    def __init__(self, here: Terminal) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(here.out)],
            env=here.environ(),
            cwd=here.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> list[str]:
        """Return what it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def nod(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def caller(standing: Terminal) -> Iterator[Caller]:
    made = Caller(standing)
    yield made
    made.process.kill()
    made.process.communicate()


def seen(here: Terminal) -> dict[str, int]:
    """Return on how many nodes each kind is at target, as counted from outside."""
    pids = here.loads()
    found = {kind: sum(count(pid) in target for pid in pids) for kind, (count, target) in KINDS.items()}
    return {**found, "DiskFill": sum(0.99 * 200 * MIB <= allocated_bytes(path) <= 1.01 * 200 * MIB for path in here.fills())}


def test_what_handles_hold_is_there_together_and_gone_with_them(standing: Terminal, caller: Caller) -> None:
    """Two handles hold four kinds on two nodes at once; each lets go of its own only; a caller asleep loses its hold with the lease."""
    heard = caller.hear()
    assert {tuple(words.split(":")) for words in heard[1:]} == {
        (node, kind, count)
        for node in ("n1", "n2")
        for kind, count in (("Descriptors", "200"), ("Mappings", "500"), ("Sockets", "100"), ("DiskFill", str(200 * MIB)))
    }
    pause, all_of_them = threading.Event(), dict.fromkeys((*KINDS, "DiskFill"), 2)
    for _ in range(10):
        assert seen(standing) == all_of_them
        pause.wait(0.1)
    caller.nod()
    assert caller.hear() == ["released", "passed", "False", "()", "n1", "n2"]
    assert seen(standing) == {**all_of_them, "Descriptors": 0}
    os.kill(caller.process.pid, signal.SIGSTOP)
    asleep_s = boot_s()
    until(lambda: not standing.loads() and not standing.fills(), LEASE_S + 5, lambda: f"nothing held: {seen(standing)}", 0.05)
    gone_s = boot_s() - asleep_s
    os.kill(caller.process.pid, signal.SIGCONT)
    caller.nod()
    assert caller.hear() == ["woken", "error"]
    caller.nod()
    until(lambda: seen(standing)["Descriptors"] == 2, 30, "the load of the last one")
    assert caller.hear() == ["default", "True"]  # too short to be judged on a busy machine
    assert standing.loads() == []
    caller.nod()
    assert caller.process.wait(10) == 0
    print(f"gone {gone_s:.2f} s after the caller fell asleep")
    assert gone_s <= LEASE_S + TOLD_S
    assert all((Path(path) / "summary.json").exists() for path in standing.out.iterdir())
