"""Deaths around an embedded Ray: load and Ray are gone and undone within the driver's lease + 5 s, and the status is honest."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import documents, held, waiting
from support.embedded import temporary_names
from support.observe import boot_s, promised
from support.terminal import Command, Terminal, terminal

from cluster.analysis import load

LEASE_S = 2.0
GONE_S = LEASE_S + 5.0
CHILDREN = 6  # of each node's load that holds processes
ANSWERS_S = 20.0  # the command's own end: it waits for the guardian, and writes down what it knows


@dataclass(frozen=True, slots=True)
class Victim:
    """Who is hit, how, and what the run directory then says."""

    role: str
    number: signal.Signals = signal.SIGKILL
    status: str = "error"
    code: int = 3


VICTIMS = {
    "command": Victim("command", status="cancelled", code=130),  # as when its terminal is closed: the driver ends the run in good order
    "driver": Victim("driver"),
    "host": Victim("host"),
    "driver-stopped": Victim("driver", signal.SIGSTOP),
}


@contextlib.contextmanager
def loaded() -> Iterator[tuple[Terminal, Command, set[str]]]:
    """Start a run on an embedded Ray of two targets; give it when all four simulators act."""
    with terminal() as here:
        names = temporary_names()
        made = documents.document("death", 60, cpu="10%", hypotheses=())
        made["plan"]["together"].append({"Processes": {"count": CHILDREN}, "for": "60s"})
        command = here.start("run", documents.write(here.folder, made), "--nodes", "2", "--json")
        here.await_load(6)
        command.await_text("running", 60)
        waiting.until(lambda: sum(path.stat().st_blocks * 512 for path in here.fills()) >= 16 * documents.MIB, 30, "a disk fill")
        yield here, command, names


def children_held(here: Terminal) -> dict[int, str]:
    """Return the children of the loads that hold processes, with their start times; none until each node's load has all of its own."""
    found = [children for pid in here.loads() if len(children := held.children(pid)) == CHILDREN]
    return {pid: held.started_ticks(pid) for children in found for pid in children} if len(found) == 2 else {}


def still_there(family: dict[int, str]) -> list[str]:
    """Return which of these processes live or are zombies."""
    return [f"child {pid}, {held.status(pid).get('State')}" for pid, started in family.items() if held.started_ticks(pid) == started]


def left_of(here: Terminal, names: set[str], spared: set[int]) -> list[str]:
    """Return what there still is of load, of the embedded Ray's processes and folder, and of the disk fill."""
    found = [f"{one.role or one.command[:60]} {one.pid}" for one in here.belonging() if one.role != "guardian" and one.pid not in spared]
    return [*found, *(str(path) for path in here.fills()), *sorted(temporary_names() - names)]


def hit(victim: Victim, wait_s: float) -> None:
    """Let a victim fall in mid-run and assert everything that is promised for it."""
    with loaded() as (here, command, names):
        assert not Path("/tmp/ray").exists()
        family = waiting.until(lambda: children_held(here), 30, "the processes that are held")
        time.sleep(wait_s)
        assert len(still_there(family)) == 2 * CHILDREN
        struck = here.one(victim.role)
        struck.signal(victim.number)
        at_s = boot_s()
        # The command may still be telling how it ended, and what is stopped cannot end by itself.
        spared = {command.pid} | ({struck.pid} if victim.number == signal.SIGSTOP else set())
        loads_s = gone_s = 0.0
        while boot_s() - at_s < GONE_S + 5 and not gone_s:
            loads_s = loads_s or (0.0 if here.loads() else boot_s() - at_s)
            gone_s = 0.0 if still_there(family) or left_of(here, names, spared) else boot_s() - at_s
            time.sleep(0.1)
        print(f"{victim.role} {victim.number.name}: load gone after {loads_s:.2f} s, everything after {gone_s:.2f} s")
        left = [*still_there(family), *left_of(here, names, spared)]
        assert loads_s, left
        assert loads_s <= LEASE_S + 1.0
        assert gone_s, left
        assert gone_s <= GONE_S
        if victim.number == signal.SIGSTOP:
            struck.signal(signal.SIGCONT)  # it wakes to find everything gone, and must not begin anything again
        if victim.role != "command":
            ended = command.wait(ANSWERS_S)
            assert (ended.code, ended.document["status"]) == (3, "error"), str(ended)
        told_honestly(here, victim)


def told_honestly(here: Terminal, victim: Victim) -> None:
    """`recover` finds nothing that remains; the run directories then tell the victim's status, never `running` or `passed`."""
    for _ in range(2 if victim.role == "driver" else 1):  # twice is once
        recovered = here.run("recover", "--json", within_s=60)
        assert recovered.code == 0, str(recovered)
        assert recovered.document["remaining"] == []
    folders = [path for root in (here.out, here.state / "runs") if root.is_dir() for path in root.iterdir()]
    assert folders
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["status"], manifest["exit_code"]) == (victim.status, victim.code), manifest
        assert load(folder).manifest["status"] == victim.status
    kept = load(max((here.state / "runs").iterdir()))
    assert kept.metrics.num_rows > 0
    shown = here.run("report", "latest", "--json")
    assert shown.document["status"] == victim.status, str(shown)
    assert not here.loads()
    assert not here.fills()


@pytest.mark.parametrize("name", [name if name == "command" else pytest.param(name, marks=pytest.mark.soak) for name in VICTIMS])
def test_a_death_leaves_nothing(name: str) -> None:
    """SIGKILL of command, driver or host, or SIGSTOP of the driver: all is gone in time, the status is honest.

    All is load and embedded Ray, and each process that a load held: of those not even a zombie is left.
    """
    promised(lambda: hit(VICTIMS[name], 1.0))()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", list(VICTIMS))
def test_a_death_at_any_instant_leaves_nothing(name: str, seed: int) -> None:
    """The same at seeded instants of the run."""
    promised(lambda: hit(VICTIMS[name], random.Random(seed).uniform(0.0, 20.0)))()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_a_driver_killed_while_ray_starts_leaves_nothing(seed: int) -> None:
    """SIGKILL of the driver between its first system call and the first load."""
    with terminal() as here:
        names = temporary_names()
        command = here.start("run", documents.write(here.folder, documents.document("early", 20)), "--nodes", "2", "--json")
        here.one("driver")
        time.sleep(random.Random(seed).uniform(0.0, 12.0))
        for one in here.belonging("driver"):
            os.kill(one.pid, signal.SIGKILL)
        at_s = boot_s()
        waiting.until(lambda: not left_of(here, names, {command.pid}), GONE_S + 2, lambda: "\n".join(left_of(here, names, {command.pid})))
        print(f"everything gone after {boot_s() - at_s:.2f} s")
        assert command.wait(ANSWERS_S).code == 3
