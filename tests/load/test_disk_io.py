"""DiskIO as a real load process: the bytes a second are those that the kernel accounts to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_bench import Bench, Told
from support import held
from support.observe import boot_s
from support.waiting import until

from actors.capability import judge, read_facts
from actors.capacity import read_capacity
from actors.dose import OutsideMeter
from actors.exhaustion.disk_io import MIB
from actors.lifecycle import Event
from actors.messages import Operation
from actors.simulator import REGISTRY

RATE = 2 * MIB  # few enough waits for a disk that others use too
WRITE = Operation("0.DiskIO@n1", "DiskIO", "n1", 0.0, 60.0, "per_second", {"kind": "constant", "level": RATE}, {"file_bytes": 8 * MIB})


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def bench(state_dir: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []
    able = judge(read_facts(state_dir))["DiskIO"]

    def make(one: Operation, told: Told | None = None) -> Bench:
        if able.verdict == "unavailable":
            pytest.skip(able.reason)
        made.append(Bench(state_dir, one, read_capacity(state_dir), told.segment.path if told else ""))
        return made[-1]

    yield make
    for one in made:
        one.close()


def rate(one: Bench, over_s: float) -> float:
    """Return the bytes a second that the kernel accounts to the load over a while."""
    pid = one.load.pids[0]
    before, then_s = held.io_bytes(pid), boot_s()
    threading.Event().wait(over_s)
    return (held.io_bytes(pid) - before) / (boot_s() - then_s)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"direction": "write", "order": "sequential"}, id="write-sequential"),
        pytest.param({"direction": "write", "order": "random", "sync": True}, id="write-random-sync", marks=pytest.mark.soak),
        pytest.param({"direction": "read", "order": "random"}, id="read-random"),
        pytest.param({"direction": "read", "order": "sequential", "direct": False}, id="read-buffered", marks=pytest.mark.soak),
        pytest.param({"direction": "write", "order": "sequential", "direct": False}, id="write-buffered"),
    ],
)
def test_the_rate_is_held(bench: Any, options: dict[str, Any]) -> None:
    """Over a second the kernel accounts the asked bytes to it, within 5 %, of real storage."""
    one = bench(replace(WRITE, options={**WRITE.options, **options}))
    one.ready()
    one.go()
    threading.Event().wait(0.3)
    seen = next((found for _ in range(4) if abs((found := rate(one, 1.0)) - RATE) <= 0.05 * RATE), rate(one, 1.0))
    assert seen == pytest.approx(RATE, rel=0.05)
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")


def test_it_follows_its_shape_and_its_ceiling(bench: Any) -> None:
    """Half of the ceiling is half of the rate, in the asked figure as in what is moved."""
    one = bench(WRITE)
    one.ready()
    one.go()
    one.guardian.control.write_ceiling(3, 0.5)
    until(lambda: one.stats.asked == RATE / 2, 2, "the lower ceiling")
    seen = next((found for _ in range(4) if abs((found := rate(one, 1.0)) - RATE / 2) <= 0.05 * RATE), 0.0)
    assert seen == pytest.approx(RATE / 2, rel=0.1)


def test_the_file_has_no_name_and_ends_with_the_load(bench: Any, state_dir: Path, told: Told) -> None:
    """No file is left where it is killed: its blocks, real ones, are free again; and what it records is what its record says."""
    one = bench(WRITE, told)
    before = {path.name for path in state_dir.rglob("*")}
    one.ready()
    pid = one.load.pids[0]
    one.go()
    file = next(link for link in Path(f"/proc/{pid}/fd").iterdir() if str(link.readlink()).startswith(str(state_dir)))
    found = file.stat()
    assert (found.st_nlink, found.st_size) == (0, 8 * MIB)
    assert found.st_blocks * 512 >= 8 * MIB
    until(lambda: told.names() == set(REGISTRY["DiskIO"].metrics), 5, lambda: str(told.names()))
    one.load.kill()
    assert one.end()[0] is Event.FINISHED
    assert {path.name for path in state_dir.rglob("*")} - before <= {"kernels"}


def test_the_meter_counts_from_where_it_stood(bench: Any) -> None:
    """What was written to make the file is no dose, and the meter grows by what the kernel accounts."""
    one = bench(WRITE)
    one.ready()
    meter = OutsideMeter(WRITE, one.load.pids)
    assert meter.cumulative
    first = meter.read()
    assert first == held.io_bytes(one.load.pids[0])
    threading.Event().wait(0.3)
    assert meter.read() == first
    one.go()
    until(lambda: meter.read() > first + RATE // 4, 5, "growth")
    meter.close()


@pytest.fixture
def told() -> Iterator[Told]:
    kept = Told()
    yield kept
    kept.close()
