"""The death matrix: whoever dies in mid-run, load and fill are gone on each node that it concerns within the lease plus a second.

Every row has a fill armed on every target. Instants are seeded; `make soak` takes many more of them.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import runs
from fabric import Fabric
from host import Host
from support.observe import boot_s, promised
from support.waiting import never, until

UNDO_S = 1.0
SOAK_INSTANTS = 8


@dataclass(frozen=True)
class Row:
    """Who dies and what may come of it.

    `concerned`: hosts whose load must end within the lease plus a second. `codes`: exit codes that are honest.
    `told`: a word that the run's story or message must have. `goes_on`: the others' load must outlive the deadline.
    """

    name: str
    victims: tuple[tuple[str, str], ...]  # (host, role); all at once
    concerned: tuple[str, ...]
    codes: frozenset[int]
    told: str
    number: int = signal.SIGKILL
    on_node_lost: str = "stop"
    goes_on: tuple[str, ...] = ()
    for_s: float = 12.0
    whole_role: bool = False
    lease_s: float = runs.LEASE_S

    def __str__(self) -> str:
        return self.name


ALL = ("h2", "h3", "h4")
ERROR = frozenset({3})
# Replaced and reported: the run may go on to its own verdict (5 where neighbours took the CPU).
REPLACED = frozenset({0, 3, 5})

# The scenario says to go on without a lost node: part of the load is missing, or the node's end is unknown.
PARTIAL = frozenset({3, 5})

ROWS = (
    Row("driver", (("h1", "driver"),), ALL, ERROR, "driver"),
    Row("driver-default-lease", (("h1", "driver"),), ALL, ERROR, "driver", for_s=20, lease_s=5.0),
    Row("orchestrator", (("h1", "orchestrator"),), ALL, ERROR, "orchestrator"),
    Row("aggregator", (("h1", "aggregator"),), (), REPLACED, "aggregator", goes_on=ALL),
    Row("agent", (("h2", "agent"),), ("h2",), PARTIAL, "h2", on_node_lost="continue", goes_on=("h3", "h4")),
    Row("simulator", (("h3", "simulator"),), ("h3",), ERROR, "h3"),
    Row("load", (("h4", "load"),), ("h4",), ERROR, "h4"),
    Row("guardian", (("h2", "guardian"),), (), REPLACED, "guardian"),
    Row("guardian-and-standby", (("h3", "guardian"),), ("h3",), ERROR, "h3", whole_role=True),
    Row("guardian-and-agent", (("h4", "guardian"), ("h4", "agent")), ("h4",), ERROR, "h4"),
    Row("stopped-agent", (("h3", "agent"),), ("h3",), ERROR, "h3", number=signal.SIGSTOP),
    Row("stopped-simulator", (("h4", "simulator"),), ("h4",), ERROR, "h4", number=signal.SIGSTOP),
    Row("stopped-load", (("h2", "load"),), ("h2",), ERROR, "h2", number=signal.SIGSTOP),
    Row("raylet", (("h2", "raylet"),), ("h2",), PARTIAL, "h2", on_node_lost="continue", goes_on=("h3", "h4"), for_s=16),
)


@pytest.fixture(scope="module", autouse=True)
def clean_at_the_end(hosts_session: Fabric) -> Iterator[None]:
    """After all rows `recover` finds nothing more to do, and when the control plane has gone idle, no host has anything of ours."""
    yield
    hosts_session.mend()
    recover(hosts_session)
    runs.assert_nothing_left(hosts_session.hosts, 60)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_death(hosts: Fabric, row: Row) -> None:
    """The load that the death concerns ends in time, the verdict is honest, and recovery leaves nothing and loses no window."""
    dies(hosts, row, 0)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1, SOAK_INSTANTS + 1))
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_death_at_many_instants(hosts: Fabric, row: Row, number: int) -> None:
    """The same at other instants."""
    dies(hosts, row, number)


@promised
def dies(hosts: Fabric, row: Row, number: int) -> None:
    """Run, kill at the seeded instant, and judge."""

    def strike() -> float:
        return max(runs.kill(hosts[host], role, row.number, all_of_them=row.whole_role) for host, role in row.victims)

    suffer(hosts, row, strike, number)
    for host, role in row.victims:
        if role == "raylet":
            hosts.rejoin(host)
    recovered(hosts, row)


def test_ray_stop_on_a_target(hosts: Fabric) -> None:
    """`ray stop --force` on a target ends its load at once; after `ray start` there, `recover` delivers what it held."""
    row = Row("ray-stop", (), ("h3",), PARTIAL, "h3", for_s=16, on_node_lost="continue", goes_on=("h2", "h4"))

    def strike() -> float:
        at_s = boot_s()
        hosts["h3"].ray_stop()
        return at_s

    suffer(hosts, row, strike, 0, allowance_s=6.0)  # the command itself takes its time to find and to kill
    hosts.rejoin("h3")
    recovered(hosts, row)


def test_death_of_the_gcs(hosts: Fabric) -> None:
    """Without its GCS the run goes on under live leases or ends; either way all load is gone at its end, and the command says so."""
    text = runs.scenario("gcs", 8)
    with runs.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, text)
        runs.await_load(watch, run, hosts.targets)
        at_s = runs.kill(hosts.head, "gcs")
        until(lambda: all(watch.quiet(host) for host in hosts), 8 + runs.LEASE_S + UNDO_S + 3, "load gone on every host")
        ended = run.wait(120)
    assert max(watch.gone_s(host) for host in hosts.targets) - at_s <= 8 + runs.LEASE_S + UNDO_S
    assert ended.code in {0, 3, 5}, str(ended)
    path = run.kept if run.kept.exists() else run.out
    runs.assert_exact(path)
    assert json.loads((path / "manifest.json").read_text())["status"] != "passed" or ended.code == 0
    runs.assert_undone(hosts.hosts)
    hosts.mend()
    recover(hosts)
    assert json.loads((path / "manifest.json").read_text())["status"] != "running"


def suffer(hosts: Fabric, row: Row, strike: Callable[[], float], number: int, allowance_s: float = 0.0) -> None:
    """Run the row up to its verdict."""
    text = runs.scenario(row.name, row.for_s, on_node_lost=row.on_node_lost)
    limit_s = row.lease_s + UNDO_S + allowance_s
    began_s = boot_s()
    with runs.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, text, env={"STRESS_CLUSTER_LEASE_S": f"{row.lease_s:g}"})
        runs.await_load(watch, run, hosts.targets)
        loaded_s = boot_s()
        never(lambda: False, runs.seeded(row.name, 0.3, 2.5, number))
        at_s = strike()
        concerned = [hosts[name] for name in row.concerned]
        until(lambda: all(watch.quiet(host) for host in concerned), limit_s + 4, lambda: f"quiet: {holding(watch, concerned)}")
        took = {host.name: round(watch.gone_s(host) - at_s, 2) for host in concerned}
        if row.goes_on:
            until(lambda: boot_s() - at_s > limit_s, limit_s + 1)
            assert all(watch.loading(hosts[name]) for name in row.goes_on), f"the others ended: {run.said()[-800:]}"
        ended = run.wait(row.for_s + row.lease_s + 90)
        spent = f"loaded after {loaded_s - began_s:.0f} s, struck after {at_s - loaded_s:.1f} s, ended {boot_s() - at_s:.0f} s later"
        print(f"{row.name}: {spent}; gone after {took} s; code {ended.code}, {ended.message[:150]}")
        assert all(watch.quiet(host) for host in hosts), "load or fill when the command had returned"
    assert max(took.values(), default=0.0) <= limit_s, took
    assert ended.code in row.codes, str(ended)
    LAST[row.name] = (run, ended)


LAST: dict[str, tuple[runs.Run, runs.Ended]] = {}


def holding(watch: runs.Watch, hosts: list[Host]) -> dict[str, object]:
    """Say what each host still has."""
    return {host.name: (watch.loads(host), runs.filled(host)) for host in hosts}


def recover(hosts: Fabric) -> None:
    """Call `recover` as an operator would."""
    found = runs.command(hosts.head, "recover", "--address", hosts.address, timeout_s=150)
    assert found.code == 0, str(found.document)


def recovered(hosts: Fabric, row: Row) -> None:
    """Recover where something is open; then nothing is outstanding, every window is there once, and the verdict stands honest."""
    run, ended = LAST.pop(row.name)
    for host, role in row.victims:
        if row.number == signal.SIGSTOP:
            for pid in runs.pids_of(hosts[host], role):
                runs.resume(pid)
    if open_streams(run) or status_of(run) == "running":
        recover(hosts)
    assert open_streams(run) == []
    assert {stream["node"] for stream in runs.streams(run.kept)} >= set(ALL)
    manifest = json.loads((run.kept / "manifest.json").read_text())
    assert manifest["status"] != "running", manifest
    assert manifest["exit_code"] == ended.code or "driver" in row.name, (manifest["status"], str(ended))
    data = runs.assert_exact(run.kept)
    story = " ".join([ended.message, ended.said, *data.events["message"].to_pylist()])
    assert row.told in story, story[-2000:]
    runs.assert_undone(hosts.hosts)


def status_of(run: runs.Run) -> str:
    """Return what the manifest says."""
    return str(json.loads((run.kept / "manifest.json").read_text())["status"])


def open_streams(run: runs.Run) -> list[dict[str, object]]:
    """Return the streams that have not come to their end."""
    found = runs.streams(run.kept)
    return [stream for stream in found if stream["received"] != stream["expected_end"]] if found else [{"none": "listed"}]
