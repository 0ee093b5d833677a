"""Two loads on one node whose figures must not mix: one of many processes beside one that fills the node up to a level."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.observe import promised
from support.waiting import until
from test_shell import CPU, Agent

from actors import proc
from actors.clock import SystemClock
from actors.control import LOAD_RUNNING
from actors.host import BusyMeter
from actors.messages import Operation
from actors.metrics.policy import RecordingPolicy
from cluster.loads_cpu import LoadsCpu
from cluster.node_metrics import NodeMetrics

SLOT, GENERATION = 3, 7
CHILD = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\n"
FORKS = f"""
import subprocess, sys, time
for _ in range(2):
    subprocess.run([sys.executable, "-c", {CHILD!r}])
print("done", flush=True)
time.sleep(60)
"""
STRESS = Operation(
    "1.StressNg@n1", "StressNg", "n1", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.25}, options={"stressor": "cpu"}
)
FILL = Operation("2.DiskFill@n1", "DiskFill", "n1", 0.0, 60.0, "bytes", {"kind": "constant", "level": 1 << 20}, {"reserve_bytes": 1 << 20})
FILLS = replace(CPU, shape={"kind": "constant", "level": 0.3}, options={"mode": "host_total", "heat_limit_c": 0})


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["group", "session"])
def tree(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A load that has its work done by children, which end: in a control group of its slot, and without one."""
    group = ""
    if request.param == "group":
        if not (root := proc.cgroup_root()):
            pytest.skip("no control group can be made on this machine")
        group = f"{root}/stress-cluster-test-{os.getpid()}/{SLOT}-{GENERATION}"
        proc.make_cgroup(group)
    enter = ["sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "sh"] if group else []
    made = subprocess.Popen([*enter, sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True, start_new_session=True)
    yield made
    os.killpg(made.pid, signal.SIGKILL)
    made.wait(10)
    if group:
        until(lambda: not proc.is_populated(group), 5, "the group is empty")
        proc.remove_cgroup(group)


def test_what_the_children_of_a_load_use_is_the_loads(tree: subprocess.Popen[str]) -> None:
    """Also of those that have ended between two looks."""
    running = SimpleNamespace(state=LOAD_RUNNING, pid=tree.pid, generation=GENERATION)
    idle = SimpleNamespace(state=0, pid=0, generation=0)
    loads = LoadsCpu(SimpleNamespace(read=lambda slot: running if slot == SLOT else idle))
    before = loads.read()[SLOT, tree.pid]
    assert tree.stdout is not None
    assert tree.stdout.readline() == "done\n"
    assert 0.75 <= loads.read()[SLOT, tree.pid] - before <= 1.3
    running.state = 0
    assert loads.read() == {}


def test_what_works_in_a_process_of_others_is_no_load_of_its_own(agent: Agent) -> None:
    """A disk fill is a thread of its actor's process, here of this one: what that uses is others', to agent and loads alike."""
    agent.run(FILL)
    loads = LoadsCpu(agent.client.stats)
    assert loads.read() == {}
    shell = agent.run(FILLS)
    assert set(loads.read()) == {(agent.ticket.slot, shell.status().pids[0])}


@promised
@pytest.mark.skipif(not shutil.which("stress-ng"), reason="stress-ng is not installed on this machine")
def test_stress_ng_beside_a_host_total_load(agent: Agent, tmp_path: Path) -> None:
    """Each has its own dose; what the agent takes for others' use is the machine's busy time less both trees, as an observer sees them."""
    metrics = NodeMetrics("n1", 1, tmp_path, agent.client, SystemClock(), 1 << 20)
    metrics.begin("run", RecordingPolicy())
    for one in (STRESS, FILLS):
        shell = agent.run(one)
        groups = {(slot["slot"], slot["generation"]): slot["container"] for slot in agent.client.call("status")["slots"]}
        metrics.watch("run", one, agent.capacity, *agent.key, shell.status().pids, groups[agent.key])
        metrics.started("run", one.id, SystemClock().boot_ns() - 1)
    told: list[tuple[str, float]] = []
    metrics._observe = lambda watched, metric, value: told.append((f"{watched.operation.kind} {metric}", value))  # type: ignore[method-assign]
    pause, busy = threading.Event(), BusyMeter()
    pause.wait(1.0)
    metrics.measure()
    told.clear()
    before = (busy.read(), trees_s(agent))
    pause.wait(4.0)
    metrics.measure()
    after = (busy.read(), trees_s(agent))
    seconds = (after[0][0] - before[0][0]) / 1e9
    ours = [(now_s - then_s) / seconds for then_s, now_s in zip(before[1], after[1], strict=True)]
    others = max(0.0, (after[0][1] - before[0][1]) / seconds - sum(ours))
    found = dict(told)
    assert found["StressNg dose.achieved"] == pytest.approx(0.25, abs=0.05), found
    assert found["StressNg dose.achieved"] == pytest.approx(ours[0], abs=0.03), (found, ours)
    assert found["CpuLoad dose.own"] == pytest.approx(ours[1], abs=0.03), (found, ours)
    assert found["CpuLoad dose.achieved"] - found["CpuLoad dose.own"] == pytest.approx(others, abs=0.05), (found, ours, others)
    assert found["CpuLoad dose.own"] == pytest.approx(max(0.0, 0.3 - others), abs=0.06), (found, others)  # beside the others alone


def trees_s(agent: Agent) -> list[float]:
    """Return the CPU seconds of each load's session, ended children included, by /proc."""
    found = []
    for shell in agent.shells:
        ticks = 0
        for stat in proc.session_members(shell.status().pids[0]):
            try:
                fields = Path(f"/proc/{stat.pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile, and its parent has its time
            ticks += sum(map(int, fields[11:15]))
        found.append(ticks / os.sysconf("SC_CLK_TCK"))
    return found
