"""The simulator's shell without Ray, against the real guardian: the whole life of CPU, memory and disk operations."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_agent import Agent
from support.waiting import until

from actors.dose import OutsideMeter
from actors.errors import InputError, StressError
from actors.messages import Operation

MIB = 1 << 20
CPU = Operation("0.CpuLoad@n1", "CpuLoad", "n1", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.2})
MEMORY = Operation("1.MemoryPressure@n1", "MemoryPressure", "n1", 0.0, 60.0, "bytes", {"kind": "constant", "level": 64 * MIB})
DISK = Operation("2.DiskFill@n1", "DiskFill", "n1", 0.0, 60.0, "bytes", {"kind": "constant", "level": 24 * MIB})
ALL = [pytest.param(one, id=one.kind) for one in (CPU, MEMORY, DISK)]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.close()


def gone(pids: tuple[int, ...]) -> bool:
    return not any(Path(f"/proc/{pid}/task").is_dir() for pid in pids)


@pytest.mark.parametrize("operation", ALL)
def test_the_whole_life(agent: Agent, operation: Operation) -> None:
    """Prepared, ready, running with its dose seen from outside, ended by its own time: done, with nothing left."""
    operation = replace(operation, duration_s=1.5)
    shell = agent.run(operation)
    meter = agent.meter(operation, shell)
    want = 24 * MIB if operation is DISK else 0.05
    until(lambda: (meter.read() or 0) >= want, 5, "the dose")
    status = until(lambda: (now := shell.status()).phase == "done" and now, 10, lambda: str(shell.status()))
    assert (status.reason, bool(status.first_slice_ns)) == ("", True)
    assert gone(status.pids)
    assert {one["outcome"] for one in agent.close_slot()["outcomes"]} <= {"undone"}
    assert meter.read() is None


@pytest.mark.parametrize("operation", ALL)
def test_stop_ends_it_and_undoes_it(agent: Agent, operation: Operation) -> None:
    """A stop returns when the load is gone, and says that it was asked for."""
    shell = agent.run(operation)
    meter = agent.meter(operation, shell)
    until(meter.read, 5, "a dose")
    status = shell.stop(1.0)
    assert (status.phase, status.reason) == ("done", "stopped as asked")
    assert gone(status.pids)
    assert meter.read() is None


@pytest.mark.parametrize("operation", ALL)
def test_without_renewal_it_expires(agent: Agent, operation: Operation) -> None:
    """When nobody renews, the load ends by the lease's end, its effect is undone, and the simulator says why."""
    shell = agent.run(operation)
    meter = agent.meter(operation, shell)
    until(meter.read, 5, "a dose")
    agent.leases.clear()
    status = until(lambda: (now := shell.status()).phase == "expired" and now, 4, lambda: str(shell.status()))
    assert status.reason
    assert gone(status.pids)
    until(lambda: meter.read() is None, 2, "the undo")


def test_a_frozen_load_is_killed_by_the_guardian(agent: Agent) -> None:
    """A stopped process cannot look at its lease: the guardian ends it, and the simulator knows it for the lease's end."""
    shell = agent.run(CPU)
    os.kill(shell.status().pids[0], signal.SIGSTOP)
    agent.leases.clear()
    status = until(lambda: (now := shell.status()).phase == "expired" and now, 4, lambda: str(shell.status()))
    assert status.exit_code == -signal.SIGKILL


def test_a_load_in_its_own_group_is_counted_there(agent: Agent) -> None:
    """Where the guardian made a control group, the load is in it."""
    shell = agent.run(CPU)
    slots = agent.client.call("status")["slots"]
    container = next(one["container"] for one in slots if (one["slot"], one["generation"]) == agent.key)
    if not container:
        pytest.skip("no control group can be made here")
    pids = {int(line) for line in Path(container, "cgroup.procs").read_text().split()}
    assert pids == set(shell.status().pids)
    assert (OutsideMeter(CPU, shell.status().pids, cgroup=Path(container)).read() or 0) > 0


def test_a_ceiling_shrinks_the_fill(agent: Agent) -> None:
    """A throttled fill gives blocks back."""
    shell = agent.run(DISK)
    meter = agent.meter(DISK, shell)
    until(lambda: (meter.read() or 0) >= 24 * MIB, 5, "the fill")
    agent.client.call("throttle", ceilings=[[*agent.key, 0.25]])
    until(lambda: abs((meter.read() or 0) - 6 * MIB) <= 0.02 * 6 * MIB, 3, "the smaller fill")


def test_the_reserve_stays_free(agent: Agent) -> None:
    """What would leave less than the reserve, here the whole disk, is not filled, and the asked figure shows the difference."""
    stat = os.statvfs(agent.state_dir)
    reserve = stat.f_blocks * stat.f_frsize
    operation = replace(DISK, options={"reserve_bytes": reserve})
    shell = agent.run(operation)
    pause = threading.Event()
    pause.wait(0.8)
    meter = agent.meter(operation, shell)
    found = agent.client.stats.read(agent.ticket.slot)
    assert not meter.read()
    assert found.asked == 24 * MIB


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"kind": "Cpu"}, "unknown_name", id="unknown-simulator"),
        pytest.param({"options": {"dir": "/not/there"}}, "invalid_value", id="no-such-folder"),
        pytest.param({"options": {"dir": "relative"}}, "invalid_value", id="relative-folder"),
    ],
)
def test_bad_operations_are_told_apart(agent: Agent, change: dict[str, Any], code: str) -> None:
    """What the caller did wrong is an input error of `prepare`, and nothing is left running."""
    shell = agent.shell(DISK)
    shell._operation = replace(DISK, **change)
    with pytest.raises(InputError) as caught:
        shell.prepare()
    assert caught.value.code == code
    assert shell.status().pids == ()


def test_a_stale_slot_is_refused(agent: Agent) -> None:
    """A simulator whose slot ended before it prepared starts nothing."""
    shell = agent.shell(CPU)
    agent.close_slot()
    with pytest.raises(StressError) as caught:
        shell.prepare()
    assert caught.value.code == "stale_slot"
    status = shell.status()
    assert (status.phase, status.pids) == ("failed", ())


def test_a_killed_guardian_does_not_end_a_leased_load(agent: Agent) -> None:
    """The standby takes over the same page: the load goes on and still answers to it."""
    shell = agent.run(CPU)
    os.kill(agent.client.hello["pid"], signal.SIGKILL)
    pause = threading.Event()
    pause.wait(2.5)
    assert shell.status().phase == "running"
    assert shell.stop(1.0).phase == "done"


def test_it_stays_while_its_load_lives(agent: Agent) -> None:
    """A simulator is not left alone with a load; once the load has ended it may go."""
    shell = agent.run(CPU)
    with pytest.raises(StressError) as caught:
        shell.leave()
    shell.stop(1.0)
    shell.leave()
    assert caught.value.code == "busy"


def test_hello_names_code_and_process(agent: Agent) -> None:
    """The agent can compare the code of a simulator with its own."""
    found = agent.shell(CPU).hello()
    assert (found["pid"], found["node"], len(found["code_id"])) == (os.getpid(), "n1", 16)


def test_a_load_that_dies_with_its_guardians_has_lost_its_lease(agent: Agent) -> None:
    """Who comes after a guardian and its standby ends what they left: that is no failure of the load, though their page shows a lease."""
    shell = agent.run(CPU)
    status, pause = agent.client.call("status"), threading.Event()
    os.kill(status["pid"], signal.SIGSTOP)  # or it would fork another standby
    for pid in (status["standby_pid"], status["pid"]):
        os.kill(pid, signal.SIGKILL)
    ended = until(lambda: (now := shell.status()).phase in {"expired", "failed", "done"} and now, 6, lambda: str(shell.status()))
    pause.wait(0.2)
    assert (ended.phase, ended.exit_code) == ("expired", -signal.SIGKILL), ended
    assert "another one has taken its place" in ended.reason
    agent.tickets.clear()  # of a guardian that is no more
