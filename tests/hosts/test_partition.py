"""A target is cut off in mid-run: its load ends by itself, the others follow `on_node_lost`, and nothing it recorded is lost."""

from __future__ import annotations

import contextlib
import json

import runs
import watching
from fabric import Fabric
from support.observe import boot_s, promised
from support.waiting import never, until

INSIDE_S = 0.5
CUT_S = 12.0
DELIVERS_S = 10.0
CPU = 0.15


@promised
def test_a_cut_that_heals_and_the_same_agent_delivers(hosts: Fabric) -> None:
    """The cut host's load ends within the lease, the others go on to the plan's end, and its agent delivers every window afterwards."""
    cut = hosts["h2"]
    with watching.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, runs.scenario("healed", 9, cpu=f"{CPU:.0%}", on_node_lost="continue", memory="64MiB"))
        runs.await_load(watch, run, hosts.targets)
        never(lambda: False, runs.seeded("healed", 0.5, 1.5))
        agent = runs.pids_of(cut, "agent")
        at_s = boot_s()
        hosts.cut("h2")
        until(lambda: watch.quiet(cut), runs.LEASE_S + 4, lambda: f"load of the cut host gone: {watch.loads(cut)}")
        took_s = watch.load_gone_s(cut) - at_s
        until(lambda: boot_s() - at_s > runs.LEASE_S + 2.0, runs.LEASE_S + 3)
        assert all(watch.loading(hosts[name]) for name in ("h3", "h4")), run.said()[-800:]
        until(lambda: boot_s() - at_s > CUT_S, CUT_S + 1)
        assert runs.pids_of(cut, "agent") == agent, "the agent of a cut host went away"
        hosts.heal()
        ended = run.wait(90)
    print(f"healed: load gone {took_s:.2f} s after the cut; {str(ended)[:200]}")
    assert took_s <= runs.LEASE_S + INSIDE_S
    assert ended.code in {3, 5}, str(ended)
    settle(hosts, run, "h2")
    data = runs.assert_exact(run.kept, gapless=("h2", "h3", "h4"))
    watching.assert_counted(data, watch, hosts.targets, CPU * watching.CORES)
    assert len([stream for stream in runs.streams(run.kept) if stream["node"] == "h2"]) == 1, "the same agent delivered"
    told = runs.journal_of(cut)
    assert told == [], told


@promised
def test_cut_at_the_default_lease(hosts: Fabric) -> None:
    """With the lease as it comes, the cut host's load ends within that lease, and the others stop."""
    cut = hosts["h4"]
    with watching.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, runs.scenario("default", 30), env={"STRESS_CLUSTER_LEASE_S": f"{runs.DEFAULT_LEASE_S:g}"})
        runs.await_load(watch, run, hosts.targets)
        never(lambda: False, runs.seeded("default", 0.5, 1.5))
        at_s = boot_s()
        hosts.cut("h4")
        until(lambda: watch.quiet(cut), runs.DEFAULT_LEASE_S + 4, lambda: f"load of the cut host gone: {watch.loads(cut)}")
        took_s = watch.load_gone_s(cut) - at_s
        until(lambda: all(watch.quiet(host) for host in hosts), runs.DEFAULT_LEASE_S + 6, "the others stopped, as on_node_lost says")
        hosts.heal()
        ended = run.wait(90)
    print(f"default lease: load gone {took_s:.2f} s after the cut; {str(ended)[:200]}")
    assert took_s <= runs.DEFAULT_LEASE_S + INSIDE_S
    assert ended.code == 3, str(ended)
    settle(hosts, run, "h4")


@promised
def test_cut_until_declared_dead_ends_the_run_and_is_recovered(hosts: Fabric) -> None:
    """The run stops everywhere and names what is outstanding; once Ray is started again on the host, `recover` brings it, exactly."""
    cut = hosts["h3"]
    with watching.Watch(hosts.hosts) as watch:
        run = runs.Run(hosts, runs.scenario("dead", 60))
        runs.await_load(watch, run, hosts.targets)
        never(lambda: False, runs.seeded("dead", 0.5, 1.5))
        at_s = boot_s()
        hosts.cut("h3")
        until(lambda: watch.quiet(cut), runs.LEASE_S + 4, lambda: f"load of the cut host gone: {watch.loads(cut)}")
        took_s = watch.load_gone_s(cut) - at_s
        until(lambda: all(watch.quiet(host) for host in hosts), runs.LEASE_S + 6, "the others stopped, as on_node_lost says")
        ended = run.wait(90)
    print(f"dead: load gone {took_s:.2f} s after the cut; {str(ended)[:200]}")
    assert took_s <= runs.LEASE_S + INSIDE_S
    assert ended.code == 3, str(ended)
    outstanding = json.loads((run.out / "summary.json").read_text())["outstanding"]
    assert {entry["node"] for entry in outstanding} == {"h3"}, outstanding
    assert "h3" in ended.message + json.dumps(ended.document.get("reasons", [])), str(ended)
    runs.assert_exact(run.out, gapless=("h2", "h4"))
    until(lambda: "h3" not in hosts.nodes_alive(), runs.DECLARED_DEAD_S * 2, "Ray declared h3 dead", 1.0)
    told = runs.command(hosts.head, "recover", "--address", hosts.address, timeout_s=150)
    assert told.code == 3, str(told.document)
    assert any(line.startswith("h3: metrics of run") for line in told.document["remaining"]), told.document
    hosts.heal()
    hosts.rejoin("h3")
    settle(hosts, run, "h3", delivers_s=0.0)  # the agent that had it died with its node: it comes by `recover`
    runs.assert_exact(run.kept, gapless=("h2", "h3", "h4"))


def settle(hosts: Fabric, run: runs.Run, node: str, delivers_s: float = DELIVERS_S) -> None:
    """Give the node's agent a moment to deliver, and recover if its stream is still open then; it must be whole afterwards."""

    def whole() -> bool:
        found = [stream for stream in runs.streams(run.kept) if stream["node"] == node]
        return bool(found) and all(stream["received"] == stream["expected_end"] for stream in found)

    with contextlib.suppress(AssertionError):
        until(whole, delivers_s)
    if not whole():
        runs.recover(hosts)
    assert whole(), runs.streams(run.kept)
    summary = json.loads((run.kept / "summary.json").read_text())
    assert summary["outstanding"] == []
    assert summary["status"] != "passed"
    runs.assert_undone(hosts.hosts)
