"""The death matrix: whoever dies in mid-run, load and fill are gone on each node that it concerns within the lease plus a second.

Every row has a fill armed on every target. Instants are seeded; `make soak` takes many more of them.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import runs
import watching
from fabric import Fabric
from host import Host
from support.observe import boot_s, promised
from support.waiting import never, until
from sweep import start_time

from cluster.analysis import load

# After the lease of who died. A driver's ends its run: the order to stop comes to the nodes with their next renewal. A load's own ends the
# load: the guardian, or the standby that first takes over, kills what does not end by itself, sees that it is gone, and frees its blocks.
UNDO_S = 1.0
SOAK_INSTANTS = 8


@dataclass(frozen=True)
class Row:
    """Who dies and what may come of it.

    `concerned`: hosts whose load must end within the lease plus a second. `codes`: exit codes that are honest.
    `told`: a word that the verdict's reasons or the recorded warnings must have. `goes_on`: whose load must outlive the deadline.
    `counted`: the recorded CPU time of all targets is compared with the one seen in /proc.
    """

    name: str
    victims: tuple[tuple[str, str], ...]  # (host, role); all at once
    concerned: tuple[str, ...]
    codes: frozenset[int]
    told: str
    number: int = signal.SIGKILL
    on_node_lost: str = "stop"
    goes_on: tuple[str, ...] = ()
    for_s: float = 9.0
    whole_role: bool = False
    lease_s: float = runs.LEASE_S
    counted: bool = False

    @property
    def gapless(self) -> tuple[str, ...]:
        """Return the targets that were not hit: no second of theirs may be missing. A guardian alone has a standby."""
        hit = {host for host, role in self.victims if role != "guardian" or self.whole_role or len(self.victims) > 1}
        return tuple(host for host in ALL if host not in hit)

    @property
    def harness_lost(self) -> bool:
        """Tell whether who is hit would have judged the run: it reads as an error before anybody recovers anything."""
        return any(role in {"driver", "orchestrator"} for _, role in self.victims)

    def __str__(self) -> str:
        return self.name


ALL = ("h2", "h3", "h4")
ERROR = frozenset({3})
# Replaced and reported: the run may go on to its own verdict (5 where neighbours took the CPU).
REPLACED = frozenset({0, 3, 5})

# The scenario says to go on without a lost node: part of the load is missing, or the node's end is unknown.
PARTIAL = frozenset({3, 5})

ROWS = (
    Row("driver-default-lease", (("h1", "driver"),), ALL, ERROR, "driver", for_s=20, lease_s=runs.DEFAULT_LEASE_S),
    Row("orchestrator", (("h1", "orchestrator"),), ALL, ERROR, "orchestrator"),
    Row("aggregator", (("h1", "aggregator"),), (), REPLACED, "aggregator", goes_on=ALL, counted=True),
    Row("agent", (("h2", "agent"),), ("h2",), PARTIAL, "h2", on_node_lost="continue", goes_on=("h3", "h4")),
    Row("simulator", (("h3", "simulator"),), ("h3",), ERROR, "h3"),
    Row("load", (("h4", "load"),), ("h4",), ERROR, "h4"),
    Row("guardian", (("h2", "guardian"),), (), REPLACED, "guardian", goes_on=ALL, counted=True),
    Row("guardian-and-standby", (("h3", "guardian"),), ("h3",), ERROR, "h3", whole_role=True),
    Row("guardian-and-agent", (("h4", "guardian"), ("h4", "agent")), ("h4",), ERROR, "h4"),
    Row("stopped-agent", (("h3", "agent"),), ("h3",), ERROR, "h3", number=signal.SIGSTOP),
    Row("stopped-simulator", (("h4", "simulator"),), ("h4",), ERROR, "h4", number=signal.SIGSTOP),
    Row("stopped-load", (("h2", "load"),), ("h2",), ERROR, "h2", number=signal.SIGSTOP),
    Row("raylet", (("h2", "raylet"),), ("h2",), PARTIAL, "h2", on_node_lost="continue", goes_on=("h3", "h4"), for_s=10),
)
LONG = (  # what another row shows at another lease
    Row("driver", (("h1", "driver"),), ALL, ERROR, "driver"),
    Row(
        "stopped-load-default-lease", (("h3", "load"),), ("h3",), ERROR, "h3", number=signal.SIGSTOP, for_s=16, lease_s=runs.DEFAULT_LEASE_S
    ),
)


@pytest.mark.parametrize("row", [*ROWS, *(pytest.param(row, marks=pytest.mark.soak) for row in LONG)], ids=str)
def test_death(hosts: Fabric, row: Row) -> None:
    """The load that the death concerns ends in time, the verdict is honest, and recovery leaves nothing and loses no window."""
    dies(hosts, row, 0)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1, SOAK_INSTANTS + 1))
@pytest.mark.parametrize("row", [*ROWS, LONG[0]], ids=str)
def test_death_at_many_instants(hosts: Fabric, row: Row, number: int) -> None:
    """The same at other instants."""
    dies(hosts, row, number)


@promised
def dies(hosts: Fabric, row: Row, number: int) -> None:
    """Run, kill at the seeded instant, and judge."""

    def strike() -> runs.Struck:
        struck = [runs.kill(hosts[host], role, row.number, all_of_them=row.whole_role) for host, role in row.victims]
        return runs.Struck(max(one.at_s for one in struck), tuple(victim for one in struck for victim in one.victims))

    run, ended = suffer(hosts, row, strike, number)
    for host, role in row.victims:
        if role == "raylet":
            hosts.rejoin(host)
    recovered(hosts, row, run, ended)


@promised
def test_ray_stop_on_a_target(hosts: Fabric) -> None:
    """`ray stop --force` on a target ends its load at once; after `ray start` there, `recover` delivers what it held."""
    row = Row("ray-stop", (("h3", "raylet"),), ("h3",), PARTIAL, "h3", for_s=10, on_node_lost="continue", goes_on=("h2", "h4"))

    def strike() -> runs.Struck:
        raylets = runs.pids_of(hosts["h3"], "raylet")
        assert raylets
        victims = tuple((pid, start_time(pid)) for pid in raylets)
        stopping = hosts["h3"].popen("ray", "stop", "--force", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: not runs.Struck(0.0, victims).living(), 30, "the raylet's end", 0.005)
        at_s = boot_s()
        stopping.wait(60)
        return runs.Struck(at_s, victims)

    run, ended = suffer(hosts, row, strike, 0)
    hosts.rejoin("h3")
    recovered(hosts, row, run, ended)


@promised
def test_death_of_the_gcs(hosts: Fabric) -> None:
    """Without its GCS a node's load is gone within the lease plus a second or goes on under a live one, and Ctrl-C undoes everything."""
    with watching.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, runs.scenario("gcs", 40))
        runs.await_load(watch, run, hosts.targets)
        at_s = runs.kill(hosts.head, "gcs").at_s
        limit_s = runs.LEASE_S + UNDO_S
        until(lambda: boot_s() - at_s > limit_s, limit_s + 1)
        seen = {host.name: (watch.quiet(host), watch.loading(host)) for host in hosts.targets}
        assert all(quiet or leased for quiet, leased in seen.values()), f"neither gone nor under load (quiet, loading): {seen}"
        if run.process.poll() is None:
            struck_s = run.signal(signal.SIGINT)
            until(lambda: all(watch.quiet(host) for host in hosts), limit_s + 4, lambda: f"quiet: {holding(watch, list(hosts))}")
            gone_s = max(watch.gone_s(host) for host in hosts.targets) - struck_s
            print(f"gcs: {seen} after {limit_s:g} s; gone {gone_s:.2f} s after Ctrl-C")
            assert gone_s <= limit_s
        ended = run.wait(120)
        print(f"gcs: the command returned {boot_s() - at_s:.1f} s after the death; {str(ended)[:200]}")
        assert all(watch.quiet(host) for host in hosts), "load or fill when the command had returned"
    assert ended.code in {3, 130}, str(ended)
    path = run.kept if run.kept.exists() else run.out
    runs.assert_exact(path)
    runs.assert_undone(hosts.hosts)
    hosts.mend()
    runs.recover(hosts)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["status"] in {"error", "cancelled"}, manifest["status"]


def suffer(hosts: Fabric, row: Row, strike: Callable[[], runs.Struck], number: int) -> tuple[runs.Run, runs.Ended]:
    """Run the row up to its verdict."""
    cpu = "15%" if row.counted else "10%"
    text = runs.scenario(row.name, row.for_s, cpu=cpu, on_node_lost=row.on_node_lost)
    limit_s = row.lease_s + UNDO_S
    began_s = boot_s()
    with watching.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, text, env={"STRESS_CLUSTER_LEASE_S": f"{row.lease_s:g}"})
        runs.await_load(watch, run, hosts.targets)
        loaded_s = boot_s()
        never(lambda: False, runs.seeded(row.name, 0.3, 2.5, number))
        struck = strike()
        at_s = struck.at_s
        concerned = [hosts[name] for name in row.concerned]
        until(lambda: all(watch.quiet(host) for host in concerned), limit_s + 4, lambda: f"quiet: {holding(watch, concerned)}")
        took = {host.name: round(watch.gone_s(host) - at_s, 2) for host in concerned}
        until(lambda: boot_s() - at_s > limit_s, limit_s + 1)
        assert not struck.living(), f"still there after lease + {UNDO_S:g} s: {row.victims} as {struck.living()}"
        assert all(watch.loading(hosts[name]) for name in row.goes_on), f"the others ended: {run.said()[-800:]}"
        ended = run.wait(row.for_s + row.lease_s + 90)
        spent = f"loaded after {loaded_s - began_s:.0f} s, struck after {at_s - loaded_s:.1f} s, ended {boot_s() - at_s:.0f} s later"
        print(f"{row.name}: {spent}; gone after {took} s; code {ended.code}, {ended.message[:150]}")
        assert all(watch.quiet(host) for host in hosts), "load or fill when the command had returned"
    assert max(took.values(), default=0.0) <= limit_s, took
    assert ended.code in row.codes, str(ended)
    reads_honestly(hosts, row, run)
    if row.counted:
        watching.assert_counted(runs.assert_exact(run.kept), watch, hosts.targets, 0.15 * watching.CORES)
    return run, ended


def holding(watch: watching.Watch, hosts: list[Host]) -> dict[str, object]:
    """Say what each host still has."""
    return {host.name: (watch.loads(host), watching.filled(host)) for host in hosts}


def reads_honestly(hosts: Fabric, row: Row, run: runs.Run) -> None:
    """The run directory reads before anybody recovered anything; where the judge was hit, `report` tells an error."""
    assert load(run.kept).metrics.num_rows > 0
    if row.harness_lost:
        told = runs.command(hosts.head, "report", str(hosts.head.here / "state/runs" / run.id))
        assert told.code == 0, str(told)
        assert told.document["status"] == "error", told.document["status"]


def recovered(hosts: Fabric, row: Row, run: runs.Run, ended: runs.Ended) -> None:
    """Recover where something is open; then nothing is outstanding, every window is there once, and the verdict stands honest."""
    if open_streams(run) or document(run, "manifest")["status"] == "running":
        runs.recover(hosts)
    assert open_streams(run) == []
    assert {stream["node"] for stream in runs.streams(run.kept)} >= set(ALL)
    manifest = document(run, "manifest")
    wanted = ("error", 3) if row.harness_lost else (ended.document["status"], ended.code)
    assert (manifest["status"], manifest["exit_code"]) == wanted, str(ended)
    data = runs.assert_exact(run.kept, gapless=row.gapless)
    story = told_by(ended, document(run, "summary"), data.events.to_pylist())
    assert row.told in story, f"{row.told!r} is not in the story: {story}"
    runs.assert_undone(hosts.hosts)


def told_by(ended: runs.Ended, summary: dict[str, Any], events: list[dict[str, Any]]) -> str:
    """Return what a reader is told of a trouble: message, reasons, warnings and errors; the plan and the progress name everybody."""
    troubles = [f"{event['node']}: {event['message']}" for event in events if event["severity"] in {"warning", "error"}]
    return "\n".join([ended.message, *(str(one["reason"]) for one in summary.get("reasons", ())), *troubles])


def document(run: runs.Run, name: str) -> dict[str, Any]:
    """Return a document of the run directory in STATE."""
    found: dict[str, Any] = json.loads((run.kept / f"{name}.json").read_text())
    return found


def open_streams(run: runs.Run) -> list[dict[str, object]]:
    """Return the streams that have not come to their end."""
    found = runs.streams(run.kept)
    return [stream for stream in found if stream["received"] != stream["expected_end"]] if found else [{"none": "listed"}]
