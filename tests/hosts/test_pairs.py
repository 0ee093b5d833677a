"""Who was stopped, replaced and goes on again later: what is old does nothing any more, and every count is exact."""

from __future__ import annotations

import signal

import runs
import watching
from fabric import Fabric
from support.observe import boot_s, promised
from support.waiting import never, until
from sweep import start_time

UNDO_S = 1.0
TAIL_S = runs.LEASE_S + 2.0  # how long to look for what an old one may still begin


@promised
def test_agent_stopped_replaced_and_continued(hosts: Fabric) -> None:
    """An agent stopped between two runs is replaced for the second, begins no load when it goes on; both runs' counts are exact."""
    target = hosts["h3"]
    with watching.Watch(hosts.hosts) as watch:
        first = runs.Run(hosts, runs.scenario("before", 3))
        assert first.wait(90).code in {0, 5}, first.said()
        old = runs.pids_of(target, "agent")
        assert len(old) == 1, old
        born = start_time(old[0])
        runs.kill(target, "agent", signal.SIGSTOP)  # between runs: it holds no lease for whose end it would be killed
        watch.forget()
        second = runs.Run(hosts, runs.scenario("after", 8, on_node_lost="continue"))
        try:
            until(lambda: second.process.poll() is not None or watch.loading(hosts["h2"]), 120, lambda: f"load; {second.said()}", 0.1)
            replaced = runs.pids_of(target, "agent")
            before = watch.loads(target)
        finally:
            if start_time(old[0]) == born:
                runs.resume(old[0])
        ended = second.wait(120)
        never(lambda: [pid for pid in watch.loads(target) if pid not in before], TAIL_S, "load of the old agent")
    print(f"agents before {old}, while the second ran {replaced}; loads on h3 {before}; {str(ended)[:200]}")
    assert ended.code in {0, 5}, str(ended)
    assert set(replaced) - set(old), f"nobody took the place of {old}"
    for run in (first, second):
        runs.assert_exact(run.kept, gapless=("h2", "h3", "h4"))
    assert len(watch.of(target)) == 1, [(sight.pid, sight.first_s) for sight in watch.of(target)]
    runs.assert_undone(hosts.hosts)


@promised
def test_orchestrator_stopped_and_a_new_run_and_continued(hosts: Fabric) -> None:
    """A stopped orchestrator's load ends by its leases, a new run is told honestly, and going on it loads nothing more."""
    with watching.Watch(hosts.hosts) as watch:
        first = runs.Run(hosts, runs.scenario("held", 40))
        runs.await_load(watch, first, hosts.targets)
        struck = runs.kill(hosts.head, "orchestrator", signal.SIGSTOP)
        pid = struck.victims[0][0]
        try:
            until(lambda: all(watch.quiet(host) for host in hosts), runs.LEASE_S + UNDO_S + 4, "load gone on all hosts")
            gone_s = max(watch.gone_s(host) for host in hosts.targets) - struck.at_s
            old = set(watch.sights)
            second = runs.Run(hosts, runs.scenario("meanwhile", 4))
            until(lambda: second.process.poll() is not None or any(watch.loads(host) for host in hosts), 60, second.said, 0.1)
        except AssertionError as error:
            print(f"a new run waits for the stopped orchestrator: {error}")
        finally:
            if struck.living():
                runs.resume(pid)
        at_s = boot_s()
        told = [first.wait(120), second.wait(120)]
        until(lambda: all(watch.quiet(host) for host in hosts), 10, "quiet on all hosts")
        never(lambda: any(watch.loads(host) for host in hosts), TAIL_S, "load of the old orchestrator")
        new = [sight for key, sight in watch.sights.items() if key not in old]
    print(f"gone {gone_s:.2f} s after SIGSTOP; both ended {boot_s() - at_s:.0f} s after SIGCONT: {[str(one)[:150] for one in told]}")
    print(f"loads that began after the stop: {[(one.host, round(one.first_s - struck.at_s, 1)) for one in new]}")
    assert gone_s <= runs.LEASE_S + UNDO_S
    assert told[0].code == 3, str(told[0])
    assert told[1].code in {0, 3, 5, 6}, str(told[1])
    # What began after the stop is the second run's own: at most one load on a target, and none where it was not admitted.
    most = 0 if told[1].code == 6 else 1
    assert all(sum(sight.host == host.name for sight in new) <= most for host in hosts.targets), [(s.host, s.pid) for s in new]
    runs.assert_exact(first.kept)
    runs.assert_undone(hosts.hosts)
