"""Every family of simulators on hosts of their own: doses seen on each host, and whoever dies, that host's load is gone in time.

One run carries a load of each family on all targets. Agent, guardian with its standby, and simulators are killed in it, each on another
host, while everything is held; a guardian alone is too, and its standby takes over. `make soak` does the same for every simulator.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import runs
import watching
from fabric import Fabric
from host import Host
from support import samples
from support.observe import boot_s, promised
from support.samples import SAMPLES
from support.waiting import never, until
from sweep import start_time

from actors import memory_group
from actors.simulator import REGISTRY
from cluster.analysis import load

FAMILIES = ("CpuLoad", "MemoryPressure", "DiskFill", "Connections", "LockContention", "MailboxFlood", "StressNg")
LIMIT_S = runs.LEASE_S + 1.0
FILL_BYTES = 16 * runs.MIB
MARK = b"STRESS_CLUSTER_OPERATION="
LOOK_S = 1.0


def able(kinds: Iterable[str]) -> list[str]:
    """Return the kinds that this machine can run."""
    lacking = set() if shutil.which("stress-ng") else {"StressNg"}
    lacking |= set() if memory_group.find() else {"MemoryStall"}
    return [kind for kind in kinds if kind not in lacking]


def document(name: str, kinds: Iterable[str], for_s: float) -> str:
    """Return a scenario that holds these loads together on every target, whatever becomes of one."""
    parts = [{kind: dict(SAMPLES[kind].options), "for": f"{for_s:g}s", "phase": kind} for kind in kinds]
    limits = {"cpu_busy_fraction": "100%", "cpu_busy_for": "1h", "stale": "10s"}
    head = f"version: 1\nname: {name}\non_node_lost: continue\nprofile: aggressive\n"
    return head + f"limits: {json.dumps(limits)}\nplan: {json.dumps({'together': parts})}\n"


@dataclass(frozen=True, slots=True)
class Family:
    """Processes of a host's loads, by pid and start time: loads, all that they lead or started, what Ray started for them."""

    host: Host
    members: tuple[tuple[int, str], ...]

    def left(self) -> list[str]:
        """Return what is still there of them, and of what they hold outside of processes."""
        alive = [f"process {pid} {command(pid)}" for pid, started in self.members if start_time(pid) == started]
        scratch = self.host.state / "scratch"
        folders = [str(path) for path in scratch.iterdir()] if scratch.is_dir() else []
        fills = [f"fill of {size} bytes"] if (size := watching.filled(self.host)) else []
        return [*alive, *folders, *fills, *runs._groups(self.host)]


def command(pid: int) -> str:
    """Return what a process says that it is."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100]
    return ""


def marked(host: Host) -> list[int]:
    """Return the processes that Ray started for an operation on a host."""
    found = []
    for pid in host.pids("ray::"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if MARK in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def family_of(host: Host) -> Family:
    """Return all processes of a host's loads."""
    loads = runs.pids_of(host, "load")
    found = {*loads, *marked(host)}
    for pid in host.pids():
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            found |= {pid} if {int(fields[1]), int(fields[3])} & set(loads) else set()
    return Family(host, tuple((pid, started) for pid in sorted(found) if (started := start_time(pid))))


def shown(hosts: Iterable[Host], kinds: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return what an outsider sees of each kind on each host within a second."""
    some = list(hosts)
    pids = {host.name: [*runs.pids_of(host, "load"), *runs.pids_of(host, "simulator")] for host in some}
    begun_s, before = boot_s(), {name: samples.counts(kinds, of) for name, of in pids.items()}
    never(lambda: False, LOOK_S)
    seconds, after = boot_s() - begun_s, {name: samples.counts(kinds, of) for name, of in pids.items()}
    found = {name: {kind: samples.shown(kind, before[name][kind], after[name][kind], seconds) for kind in kinds} for name in pids}
    for host in some:
        if "DiskFill" in kinds:
            found[host.name]["DiskFill"] = watching.filled(host)
    return found


def least(kind: str) -> float:
    """Return the least that is to be seen of a kind."""
    return FILL_BYTES if kind == "DiskFill" else SAMPLES[kind].least


def missing(hosts: Iterable[Host], kinds: Iterable[str]) -> list[str]:
    """Return what does not show on which host, with what is seen instead."""
    found = shown(hosts, kinds)
    return [
        f"{host}: {kind} shows {seen:g} of {least(kind):g}" for host, of in found.items() for kind, seen in of.items() if seen < least(kind)
    ]


def held(hosts: Iterable[Host], kinds: Iterable[str], within_s: float, run: runs.Run) -> None:
    """Wait until every kind is seen on each of these hosts at once."""
    some, lacking = list(hosts), ["not looked yet"]
    end_s = boot_s() + within_s
    while lacking and boot_s() < end_s:
        assert run.process.poll() is None, f"the run ended: {run.wait(1)}"
        lacking = missing(some, kinds)
    assert not lacking, f"{lacking}; it said: {run.said()[-1500:]}"


def dies(host: Host, strike: Callable[[], runs.Struck]) -> float:
    """Strike, and return after how many seconds nothing was left of the host's loads."""
    family = family_of(host)
    at_s = strike().at_s
    until(lambda: not family.left(), LIMIT_S + 4, lambda: f"{host.name}: left {family.left()}", 0.02)
    return boot_s() - at_s


@promised
def matrix(hosts: Fabric, name: str, kinds: list[str]) -> None:
    """Run these simulators, kill who holds them on one host after another, and judge."""
    h2, h3, h4 = hosts["h2"], hosts["h3"], hosts["h4"]
    begun_s = boot_s()
    run = runs.Run(hosts, document(name, kinds, 90))
    until(lambda: "run is running" in run.said() or run.process.poll() is not None, 90, run.said, 0.2)  # what compiles shows load too
    held(hosts.targets, kinds, 30, run)
    loaded_s = boot_s()
    never(lambda: False, 3.0)  # so that some windows are settled
    runs.kill(h4, "guardian")
    took = {"agent": dies(h2, lambda: runs.kill(h2, "agent"))}
    never(lambda: False, max(0.0, LIMIT_S - took["agent"]))
    held((h3, h4), kinds, 5, run)
    took["guardians"] = dies(h3, lambda: runs.kill(h3, "guardian", all_of_them=True))
    never(lambda: False, max(0.0, LIMIT_S - took["guardians"]))
    held((h4,), kinds, 5, run)
    took["simulators"] = dies(h4, lambda: runs.kill(h4, "simulator", all_of_them=True))
    ended = run.wait(60)
    told = f"gone after { {role: round(seconds, 2) for role, seconds in took.items()} } s"
    print(f"{name}: loaded after {loaded_s - begun_s:.0f} s; {told}; ended {boot_s() - loaded_s:.0f} s later: {str(ended)[:200]}")
    assert max(took.values()) <= LIMIT_S, took
    assert ended.code == 3, str(ended)
    runs.recover(hosts)
    assert not [pid for host in hosts.targets for pid in marked(host)]
    runs.assert_undone(hosts.hosts)
    runs.assert_exact(run.kept)
    doses_were_told(run, kinds)


def doses_were_told(run: runs.Run, kinds: Iterable[str]) -> None:
    """Every load's dose was recorded on every host while it was held, and most of what was asked was achieved."""
    best: dict[tuple[str, str, str], float] = {}
    for row in load(run.kept).metrics.select(["metric", "node", "phase", "last"]).to_pylist():
        if row["metric"] in ("dose.requested", "dose.achieved"):
            key = row["node"], row["phase"], row["metric"]
            best[key] = max(best.get(key, 0.0), row["last"])
    wanted = [(host, kind) for host in ("h2", "h3", "h4") for kind in kinds]
    told = {(*one, metric) for one in wanted for metric in ("dose.requested", "dose.achieved")}
    assert best.keys() == told, best.keys() ^ told
    short = {one: best[*one, "dose.achieved"] for one in wanted if best[*one, "dose.achieved"] < 0.5 * best[*one, "dose.requested"]}
    assert not {one for one in short if one[1] != "CpuPressure"}, short  # that one rests where others make wait


def test_whoever_dies_each_family_is_gone_in_time(hosts: Fabric) -> None:
    """Cpu, memory, disk, exhaustion, concurrency (one that Ray carries too) and stress-ng, all at once on three hosts."""
    assert {REGISTRY[kind].family for kind in FAMILIES} == {record.family for record in REGISTRY.values()}
    assert "ray" in {REGISTRY[kind].carrier for kind in FAMILIES}
    matrix(hosts, "families", able(FAMILIES))


@pytest.mark.soak
@pytest.mark.parametrize("kind", REGISTRY)
def test_whoever_dies_this_simulator_is_gone_in_time(hosts: Fabric, kind: str) -> None:
    """The same for each simulator by itself."""
    if not able([kind]):
        pytest.skip(f"this machine lacks what {kind} needs: stress-ng, or a control group of memory")
    matrix(hosts, f"matrix-{kind.lower()}", [kind])
