"""Memory and disk are given back in equal steps like all that is used up (`test_exhaustion`): the staircase is seen from outside."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_agent import Agent
from load_bench import CAPACITY, SLOT, Bench, Told
from support import held
from support.observe import allocated_bytes, anonymous_bytes, boot_s, promised
from support.stairs import assert_stairs
from support.waiting import until

from actors.lease import read_shortfall
from actors.lifecycle import Event
from actors.messages import Operation

MIB = 1 << 20
HELD = 64 * MIB
MARGIN = 1 * MIB
STEPS, INTERVAL_S, HOLD_S = 4, 0.25, 0.7


def operation(kind: str, for_s: float, steps: int, interval_s: float) -> Operation:
    options = {"release_steps": steps, "release_interval_s": interval_s}
    return Operation(f"0.{kind}@n1", kind, "n1", 0.0, for_s, "bytes", {"kind": "constant", "level": HELD}, options)


class Memory:
    """A load process; what it holds is its anonymous memory."""

    def __init__(self, folder: Path, one: Operation) -> None:
        self.bench = Bench(folder, one, CAPACITY)
        self.bench.ready()
        self.before = anonymous_bytes(self.bench.load.pids[0])
        self.start_s = self.bench.go() / 1e9
        self.close = self.bench.close

    def held(self) -> int:
        return anonymous_bytes(self.bench.load.pids[0]) - self.before

    def over(self) -> bool:
        return self.bench.load.poll() is not None

    def stop(self) -> None:
        self.bench.load.drain()
        assert self.bench.end() == (Event.FINISHED, "")


class Disk:
    """A fill by the guardian; what it holds are the blocks in its folder."""

    def __init__(self, folder: Path, one: Operation) -> None:
        self.agent = Agent(folder)
        self.shell = self.agent.run(replace(one, options={**one.options, "files": 3}))
        self.folder = folder / "fill"
        self.start_s = self.agent.client.control.start_ns(self.agent.ticket.slot) / 1e9
        self.close = self.agent.close

    def held(self) -> int:
        return sum(map(allocated_bytes, self.folder.iterdir()))

    def over(self) -> bool:
        return self.shell.status().phase == "done"

    def stop(self) -> None:
        assert self.shell.stop(1.0).phase == "done"


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr("actors.shell.LINGER_S", 0.1)  # a shell's thread ends with its test
    made: list[Any] = []

    def start(kind: str, *args: Any) -> Any:
        folder = tmp_path / str(len(made))
        folder.mkdir(mode=0o700)
        made.append({"MemoryPressure": Memory, "DiskFill": Disk}[kind](folder, operation(kind, *args)))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", ["MemoryPressure", "DiskFill"])
@promised
def test_it_gives_back_in_equal_steps(begin: Any, kind: str) -> None:
    """After its time the staircase has k equal steps in k times the interval, +/- 10 %."""
    one, seen = begin(kind, HOLD_S, STEPS, INTERVAL_S), []
    while not one.over() and boot_s() < one.start_s + 10:
        seen.append((boot_s(), one.held()))
    gone_s = boot_s()
    assert_stairs(seen, HELD, STEPS, INTERVAL_S, one.start_s + HOLD_S, MARGIN)
    assert gone_s - (one.start_s + HOLD_S) == pytest.approx(STEPS * INTERVAL_S, rel=0.1)


def test_memory_that_the_kernel_refuses_is_partial_and_no_failure(tmp_path: Path) -> None:
    """Where the process may not have more (ENOMEM), what there is is held, told and counted; with the limit lifted all of it is."""
    told = Told()
    one = Bench(tmp_path, operation("MemoryPressure", 60.0, 1, 0.1), CAPACITY, told.segment.path)
    try:
        one.ready()
        (pid,) = one.load.pids
        before = anonymous_bytes(pid)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        mapped = int(held.status(pid)["VmSize"].split()[0]) * 1024
        resource.prlimit(pid, resource.RLIMIT_AS, (mapped + HELD // 2 + 8 * MIB, hard))
        one.go()
        short = until(lambda: read_shortfall(one.guardian.stats, SLOT, one.stats.generation), 5, "a shortfall")
        assert (short.errno, short.requested) == ("ENOMEM", HELD)
        assert HELD // 4 <= short.allocated < HELD
        assert anonymous_bytes(pid) - before == pytest.approx(short.allocated, abs=MARGIN)
        until(lambda: told.last("load.refused", errno="ENOMEM") >= 1, 3, "a refusal that is counted by its number")
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
        until(lambda: one.stats.own == HELD, 4, lambda: str(one.stats))
        assert anonymous_bytes(pid) - before == pytest.approx(HELD, abs=MARGIN)
        assert read_shortfall(one.guardian.stats, SLOT, one.stats.generation) is None
        one.load.drain()
        assert one.end() == (Event.FINISHED, "")
    finally:
        one.close()
        told.close()


@pytest.mark.parametrize("kind", ["MemoryPressure", "DiskFill"])
def test_a_stop_in_the_middle_of_the_steps_gives_all_back(begin: Any, kind: str) -> None:
    """Who asks for the end does not wait for the rest of a slow release."""
    one = begin(kind, 0.4, 10, 1.0)
    until(lambda: MARGIN < one.held() < HELD - MARGIN and boot_s() > one.start_s + 1.3, 6, "the first step")
    before_s = boot_s()
    one.stop()
    assert boot_s() - before_s < 2.0
    assert one.held() <= 0
