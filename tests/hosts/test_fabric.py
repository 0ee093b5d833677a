"""The test hosts themselves: a cut cuts, what is private is private, and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fabric import Fabric
from host import Host
from support import census
from support.waiting import never, until
from sweep import folder_of, sweep_dead

HEAR = """
import socket
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind(("", 7))
ear.settimeout({wait_s})
print("up", flush=True)
ear.recv(9)
"""
SAY = """
import socket, time
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10):
    mouth.sendto(b"x", ("{address}", 7))
    time.sleep(0.02)
"""

# Builds a fabric with a busy host and tells its tag; the test kills it.
OWNER = """
import sys, time
sys.path[:0] = {path!r}
from fabric import Fabric
with Fabric(1) as built:
    built.head.popen("sleep", "1000")
    print(built.tag, built._janitor.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def trio(namespaces: None) -> Iterator[Fabric]:
    """Three bare hosts without Ray."""
    with Fabric(3) as built:
        yield built


@pytest.fixture
def bare(trio: Fabric) -> Iterator[Fabric]:
    """The same, whole again after each test."""
    yield trio
    trio.mend()


def hears(receiver: Host, sender: Host, wait_s: float = 0.6) -> bool:
    """Whether datagrams from one host arrive at another."""
    listening = receiver.popen(sys.executable, "-S", "-c", HEAR.format(wait_s=wait_s), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert listening.stdout is not None
    assert listening.stdout.readline() == b"up\n"
    sender.run(sys.executable, "-S", "-c", SAY.format(address=receiver.address), check=False)
    listening.communicate()
    return listening.returncode == 0


def traces(tag: str) -> list[str]:
    """Everything on this machine that carries a tag or the start of one."""
    scope = census.Scope(marks=(tag,), cgroup=tag)
    found = census.take(scope)
    named = [f"{kind}: {line}" for kind, lines in found.items() for line in lines if kind in ("process", "cgroup") or tag in line]
    return named + [str(path) for path in folder_of("").glob(f"{tag}*")]


def test_hosts_reach_each_other_by_address_and_name(bare: Fabric) -> None:
    """Every host reaches every other one."""
    assert all(hears(a, b) for a in bare for b in bare if a is not b)
    assert bare["h1"].run("getent", "hosts", "h3").stdout.split() == [bare["h3"].address, "h3"]


def test_cut_ends_all_traffic_of_one_host_until_healed(bare: Fabric) -> None:
    """A cut host neither hears nor is heard, the others still hear each other, and heal brings it back."""
    h1, h2, h3 = bare
    bare.cut("h2")
    assert [hears(h1, h2), hears(h2, h1), hears(h3, h2), hears(h1, h3)] == [False, False, False, True]
    bare.heal()
    assert hears(h1, h2)


def test_cut_of_a_pair_and_of_one_direction_leave_the_rest(bare: Fabric) -> None:
    """A cut between two hosts spares the third, and a one-way cut spares the way back."""
    h1, h2, h3 = bare
    bare.cut("h1", "h2")
    assert [hears(h1, h2), hears(h2, h1), hears(h3, h2), hears(h2, h3)] == [False, False, True, True]
    bare.heal()
    bare.cut("h1", "h2", oneway=True)
    assert [hears(h2, h1), hears(h1, h2)] == [False, True]


def test_host_sees_a_pulled_cable(bare: Fabric) -> None:
    """Without carrier the host's own link says so."""
    bare.carrier("h2", up=False)
    assert "NO-CARRIER" in bare["h2"].run("ip", "link", "show", "e0").stdout
    assert not hears(bare["h1"], bare["h2"])


def test_processes_and_state_are_private(bare: Fabric) -> None:
    """A host sees neither the processes nor the STATE nor the shared memory of another, the test sees all of them."""
    h1, h2, _ = bare
    sleeper = h1.popen("sleep", "987")
    pid = h1.pid_of(sleeper)
    state = h1.env()["STRESS_CLUSTER_STATE_DIR"]
    h1.run("sh", "-c", f"echo mine > {state}/x; echo mine > /dev/shm/x")
    assert until(lambda: h1.pids("sleep 987"), 5) == {pid: "sleep 987"}
    assert h2.pids("sleep 987") == {}
    assert "sleep 987" not in h2.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert h2.env()["STRESS_CLUSTER_STATE_DIR"] == state
    assert h2.run("sh", "-c", f"ls {state} /dev/shm").stdout.split() == ["/dev/shm:", f"{state}:"]
    assert h2.run("ls", str(folder_of(h2.tag))).stdout.split() == ["here"]
    assert (h1.state / "x").read_text() == "mine\n"
    assert not Path("/dev/shm/x").exists()
    os.kill(pid, signal.SIGKILL)
    sleeper.wait(5)


def test_pause_stops_what_runs_and_resume_lets_it_go_on(bare: Fabric) -> None:
    """A paused host does nothing, and afterwards a command that was running ends as it would have."""
    host = bare["h2"]
    mark = host.folder / "beat"
    beating = host.popen("sh", "-c", f"for i in 1 2 3 4 5 6; do echo $i >> {host.here}/beat; sleep 0.1; done")
    until(mark.exists, 5, "it beats")
    host.pause()
    size = mark.stat().st_size
    never(lambda: mark.stat().st_size != size, 0.5, "the beat of a paused host")
    host.resume()
    assert beating.wait(5) == 0
    assert mark.read_text().split() == list("123456")


def test_power_off_ends_everything_and_keeps_the_disk(bare: Fabric) -> None:
    """After a loss of power no process of the host lives; after the next boot its STATE is as it was."""
    host = bare["h3"]
    host.run("sh", "-c", f"echo kept > {host.here}/state/kept; setsid sleep 986 & exit 0")
    pid = next(iter(until(lambda: host.pids("sleep 986"), 5)))
    host.power_off()
    assert not Path(f"/proc/{pid}").exists()
    assert not host.alive
    host.boot()
    assert host.run("cat", f"{host.here}/state/kept").stdout == "kept\n"


def test_fabric_leaves_nothing(namespaces: None) -> None:
    """Building hosts, running processes on them and taking them down leaves nothing that carries their tag."""
    building = Fabric(2)
    assert traces(building.tag) == []
    with building as built:
        built.head.popen("sh", "-c", "setsid sleep 1000 & sleep 1000")
        until(lambda: len(built.head.pids("sleep 1000")) >= 2, 5, "processes on the host")
        assert {"process", "network namespace"} <= {line.partition(":")[0] for line in traces(built.tag)}
    until(lambda: not traces(built.tag), 2, lambda: f"nothing, but: {traces(built.tag)}")


@pytest.mark.parametrize("janitor_too", [False, True], ids=["janitor-sweeps", "next-session-sweeps"])
def test_fabric_of_a_killed_owner_is_swept(namespaces: None, janitor_too: bool) -> None:
    """When the owner is SIGKILLed its janitor removes everything, and when both are, the next session does."""
    script = OWNER.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        tag, janitor = owner.stdout.readline().split()
        assert traces(tag)
        if janitor_too:
            os.kill(int(janitor), signal.SIGKILL)
        owner.kill()
    if janitor_too:
        assert traces(tag)
        assert tag in sweep_dead()
        assert traces(tag) == []
    until(lambda: not traces(tag), 10, lambda: f"swept, but: {traces(tag)}")


def test_ray_runs_on_all_hosts_with_their_own_addresses(hosts: Fabric) -> None:
    """Ray has the head and three targets alive, each under its own name."""
    assert hosts.nodes_alive() == {"h1", "h2", "h3", "h4"}
    assert all(host.pids("raylet/raylet") for host in hosts)
    assert not Path(f"{folder_of(hosts.tag)}/here/ray").exists()


@pytest.mark.soak  # test_ray_stop_on_a_target does the same, and more
def test_ray_stop_on_one_host_spares_the_others_and_rejoin_brings_it_back(hosts: Fabric) -> None:
    """`ray stop --force` on a target ends Ray there and only there; rejoin makes it a node again."""
    hosts["h3"].ray_stop()
    assert not hosts["h3"].pids("raylet/raylet")
    assert all(hosts[name].pids("raylet/raylet") for name in ("h1", "h2", "h4"))
    hosts.rejoin("h3")
    assert hosts.nodes_alive() == {"h1", "h2", "h3", "h4"}
