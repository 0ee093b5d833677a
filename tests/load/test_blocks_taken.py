"""DiskFill with the real guardian, on file systems of the test's own: blocks, free space and the guardian, each seen from outside."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_agent import Agent
from load_bench import Told
from support import held
from support.filesystem import mounted
from support.observe import boot_s, promised
from support.waiting import until

from actors.disk import FILES_MAX
from actors.guardian.blocks import CHUNK_BYTES
from actors.lease import read_shortfall
from actors.messages import Operation

MIB = 1 << 20
DISK = Operation("0.DiskFill@n1", "DiskFill", "n1", 0.0, 600.0, "bytes", {"kind": "constant", "level": 0})


def fill(size_bytes: int, **options: Any) -> Operation:
    return replace(DISK, shape={"kind": "constant", "level": size_bytes}, options=options)


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Make agents, each with its STATE on a file system of its own where a kind is named."""
    with ExitStack() as stack:

        def make(kind: str = "", size_bytes: int = 0) -> Agent:
            folder = stack.enter_context(mounted(kind, tmp_path, size_bytes)) if kind else tmp_path
            state = folder / "state"
            state.mkdir(mode=0o700)
            agent = Agent(state)
            stack.callback(agent.close)
            return agent

        yield make


@pytest.fixture
def told() -> Iterator[Told]:
    kept = Told()
    yield kept
    kept.close()


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


@pytest.mark.parametrize(
    ("kind", "files", "write"),
    [
        pytest.param("ext4", 3, False, id="ext4-reserved"),
        pytest.param("ext4", 1, True, id="ext4-written"),
        pytest.param("tmpfs", 7, True, id="tmpfs-written"),
    ],
)
def test_free_space_falls_by_what_is_asked(agents: Any, kind: str, files: int, write: bool) -> None:
    """By 200 MiB within 1 %, and all blocks of each file are there; what is said, reserved and metered is what is seen."""
    agent, want = agents(kind, 400 * MIB), 200 * MIB
    one = fill(want, files=files, write=write, reserve_bytes=16 * MIB)
    before = free_bytes(agent.state_dir)
    shell = agent.run(one)
    meter, paths = agent.meter(one, shell), agent.files(one)
    until(lambda: sum(map(blocks, paths)) >= want, 20, lambda: str([blocks(path) for path in paths]))
    assert before - free_bytes(agent.state_dir) == pytest.approx(want, rel=0.01)
    assert sorted(path.name for path in (agent.state_dir / "fill").iterdir()) == sorted(path.name for path in paths)
    assert all(blocks(path) >= path.stat().st_size for path in paths)
    assert max(path.stat().st_size for path in paths) - min(path.stat().st_size for path in paths) <= 4096
    until(lambda: agent.client.stats.read(agent.ticket.slot).own == sum(map(blocks, paths)), 3, "the fill's own count")
    assert meter.read() == sum(map(blocks, paths))
    (slot,) = [one for one in agent.client.call("status")["slots"] if one["slot"] == agent.ticket.slot]
    assert slot["amounts"]["disk_bytes"] == want
    assert want <= sum(map(blocks, paths)) <= 1.01 * want
    assert shell.stop(1.0).phase == "done"
    assert before - free_bytes(agent.state_dir) < 0.01 * want
    assert meter.read() is None


def test_the_reserve_stays_free_whatever_others_take(agents: Any, told: Told) -> None:
    """A fill that asks for more than there is leaves the reserve, gives back what others need, and tells how little it has, and why."""
    agent, reserve, want = agents("ext4", 300 * MIB), 64 * MIB, 1 << 30
    one, state = fill(want, files=2, reserve_bytes=reserve), agent.state_dir
    agent.run(one, segment_path=told.segment.path)
    seen = [free_bytes(state)]

    def room_left() -> int:
        seen.append(free_bytes(state))
        return seen[-1]

    until(lambda: room_left() - reserve < 2 * MIB, 10, lambda: str(seen[-5:]), every_s=0.002)
    assert min(seen) >= reserve
    slot, generation = agent.key
    short = until(lambda: read_shortfall(agent.client.stats, slot, generation), 3, "a shortfall")
    assert (short.errno, short.requested) == ("ENOSPC", want)
    assert short.allocated == pytest.approx(sum(map(blocks, agent.files(one))), abs=4 * MIB)
    taken = state / "others"
    with taken.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 40 * MIB)
    until(lambda: free_bytes(state) >= reserve, 1.5, lambda: f"{free_bytes(state) / MIB} MiB free")
    taken.unlink()
    until(lambda: room_left() - reserve < 2 * MIB, 3, "what others gave back is filled")
    until(lambda: told.last("load.refused", errno="ENOSPC") >= 1, 3, "a refusal that is counted by its number")
    assert told.count("load.slice") >= 2


def test_a_full_disk_is_no_failure(agents: Any, told: Told) -> None:
    """Without a reserve the fill takes the last MiB; the kernel's refusal is told, and lifted once the shape asks for less."""
    agent = agents("tmpfs", 64 * MIB)
    shape = {"kind": "steps", "levels": [100 * MIB, 20 * MIB], "each_s": 1.5}
    one = replace(fill(0, reserve_bytes=0, write=True), shape=shape)
    shell = agent.run(one, segment_path=told.segment.path)
    until(lambda: free_bytes(agent.state_dir) < MIB, 5, lambda: f"{free_bytes(agent.state_dir)} bytes free")
    slot, generation = agent.key
    assert until(lambda: read_shortfall(agent.client.stats, slot, generation), 2, "a shortfall").errno == "ENOSPC"
    until(lambda: sum(map(blocks, agent.files(one))) == 20 * MIB, 4, "the lower step")
    assert shell.status().phase == "running"


@promised
def test_the_rate_is_held(agents: Any) -> None:
    """40 MiB a second at most: the growth of its blocks over two seconds is that within 5 %."""
    rate = 40 * MIB
    agent, one = agents(), fill(4 << 30, rate_bytes=rate, files=2)
    agent.run(one)
    paths, pause, seen = agent.files(one), threading.Event(), []
    pause.wait(0.3)
    begun_s = boot_s()
    while boot_s() < begun_s + 2.0:
        seen.append((boot_s() - begun_s, sum(map(blocks, paths))))
        pause.wait(0.01)
    assert slope(seen) == pytest.approx(rate, rel=0.05)


def slope(points: list[tuple[float, int]]) -> float:
    """Return the rise of the straight line through points (least squares)."""
    at, value = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((x - at) * (y - value) for x, y in points) / sum((x - at) ** 2 for x, _ in points)


SIZES = [pytest.param(1 << 30, id="1-GiB"), pytest.param(10 << 30, id="10-GiB", marks=pytest.mark.soak)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("write", [False, True], ids=["reserved", "written"])
def test_a_large_fill_takes_no_memory_and_holds_nobody_up(agents: Any, size: int, write: bool) -> None:
    """Real blocks of all of it, while the guardian grows by at most 16 MiB at its peak and answers; gone a second after a stop.

    Freeing is the disk's own work: beyond a GiB it gets a second for each two more (a mount with discard frees 2 to 6 GiB a second).
    """
    agent, one = agents(), fill(size, write=write, files=2)
    if free_bytes(agent.state_dir) < size + (2 << 30):
        pytest.skip(f"{free_bytes(agent.state_dir) >> 20} MiB are free, too few for {size >> 20} and a reserve")
    writer = agent.client.hello["pid"]
    before = peak_bytes(writer)
    shell, paths = agent.run(one), agent.files(one)
    answers, ages, begun_s = [], [], boot_s()
    while any(not path.exists() or min(blocks(path), path.stat().st_size) < size // 2 for path in paths):
        asked_s = boot_s()
        assert agent.client.call("status")["pid"] == writer
        answers.append(boot_s() - asked_s)
        ages.append(boot_s() - agent.client.control.heartbeat_ns / 1e9)
        threading.Event().wait(0.02)
        assert boot_s() - begun_s < 60 * size / (1 << 30)
    assert all(blocks(path) >= path.stat().st_size for path in paths)
    assert peak_bytes(writer) - before <= 16 * MIB
    assert CHUNK_BYTES <= 8 * MIB
    assert max(answers, default=0.0) < 1.0
    assert max(ages, default=0.0) < 1.0  # at which its standby would take over
    stopped_s = boot_s()
    assert shell.stop(1.0).phase == "done"
    assert boot_s() - stopped_s <= 1.0 + (size - (1 << 30)) / (2 << 30)
    assert not any(path.exists() for path in paths)


def peak_bytes(pid: int) -> int:
    """Return the most resident bytes that a process ever had (VmHWM)."""
    return int(held.status(pid)["VmHWM"].split()[0]) * 1024


@promised
def test_a_stop_amid_writing_is_answered_within_a_second(agents: Any) -> None:
    """However much is still to be written, a second after the question nothing of it is left."""
    agent, one = agents(), fill(12 << 30, write=True, files=FILES_MAX)
    shell, paths = agent.run(one), agent.files(one)
    until(lambda: sum(map(blocks, paths)) > 64 * MIB, 20, "blocks")
    stopped_s = boot_s()
    assert shell.stop(1.0).phase == "done"
    assert boot_s() - stopped_s <= 1.0
    assert not any(path.exists() for path in paths)
