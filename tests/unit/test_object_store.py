"""Pressure on an object store without Ray: what its raylet is read to be, what fits, what a turn does, and what is held, told and freed."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_ray import FakeCall, FakeRayWork

from actors.clock import SECOND_NS, VirtualClock
from actors.control import ControlWriter, StatsPage
from actors.disk import leave_by_raising
from actors.errors import RefusedError
from actors.lease import LeaseWatch, read_shortfall
from actors.messages import Amounts, Capacity, Operation
from actors.metrics.reporter import MemoryReporter
from actors.ray_loads import object_store
from actors.ray_loads.board import LINK, Board, claim
from actors.ray_loads.flow import Outcome
from actors.ray_loads.object_store import ObjectStorePressure, most_unspilled
from actors.ray_loads.ray_work import Ended, StoreUse
from actors.ray_loads.store_holder import StoreHolder
from actors.raylet import RayletStore, parse_store, read_store, spilled_bytes
from actors.simulator import absolute, peak_amounts

MIB = 1 << 20
SIZE = 80_000_000
CAPACITY = Capacity(8.0, 1 << 34, 1 << 34, tasks=10_000, object_store_bytes=SIZE)
HOLD = Operation("o@n1", "ObjectStorePressure", "n1", 0.0, 4.0, "bytes", {"kind": "constant", "level": 40 * MIB}, {"object_bytes": MIB})
SLOT, GENERATION = 3, 5
LINE = ["/x/ray/core/src/ray/raylet/raylet", "--node_id=ab", "--object_store_memory=80000000", "--fallback_directory=/tmp/s", "--head", ""]


@dataclass
class FakeStore:
    """An object store with room for so many objects."""

    room: int
    held: list[bytes] = field(default_factory=list)
    read: list[Any] = field(default_factory=list)

    def put(self, data: bytes) -> Any:
        return [data] if len(self.held) < self.room and not self.held.append(data) else None

    def get(self, held: Any) -> bytes:
        self.read.append(held)
        return held[0]


class StoreWork(FakeRayWork):
    """Ray with one holder whose turns are real, and a raylet that counts what it holds beside others' 8 MiB."""

    others_bytes = 8 * MIB

    def __init__(self, clock: VirtualClock, room: int = 1000) -> None:
        super().__init__(clock, 0.001)
        self.store = FakeStore(room)
        self.holder: StoreHolder | None = None
        self.asked: list[tuple[int, int]] = []

    def object_store(self) -> FakeStore:
        return self.store

    def spawn(self, factory: type, *args: Any, calls_max: int = 0) -> Any:
        self.holder = factory(*args)
        return super().spawn(factory, *args, calls_max=calls_max)

    def call(self, victim: Any, method: str, *args: Any) -> Any:
        made = super().call(victim, method, *args)
        if method == "turn":
            self.asked.append(args)
            made.end = Ended(Outcome.FINISHED, self.holder.turn(*args))
        return made

    def see(self, call: FakeCall) -> Ended | None:
        return call.end or super().see(call)

    def store_use(self) -> StoreUse:
        alive = self.holder is not None and self.servers[-1].alive
        ours = len(self.holder._held) * MIB if alive else 0
        return StoreUse(self.others_bytes + ours, self.others_bytes + ours, self.spilled)


@pytest.fixture
def raylet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RayletStore:
    found = RayletStore(SIZE, tmp_path / "spilled")
    monkeypatch.setattr(object_store, "read_store", lambda pid: found)
    return found


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208  # descriptors


@pytest.fixture(autouse=True)
def boards_are_closed() -> Iterator[None]:
    """What a process claims stays open as long as it: other tests of this one would find that board in place of theirs."""
    before = descriptors()
    yield
    claim.cache_clear()
    gc.collect()
    for fd in descriptors() - before:
        with contextlib.suppress(OSError):  # that of the listing is closed
            if os.readlink(f"/proc/self/fd/{fd}").startswith(LINK):  # noqa: PTH115  # a descriptor
                os.close(int(fd))


class Life:
    """One load from its warm-up on."""

    def __init__(self, operation: Operation, room: int = 1000) -> None:
        claim.cache_clear()
        self.clock = VirtualClock()
        pages, _ = ControlWriter.create()
        self.stats, _ = StatsPage.create()
        pages.reset_slot(SLOT, GENERATION, 1, 1)
        pages.write_lease(SLOT, GENERATION, self.clock.boot_ns() + 1000 * SECOND_NS)
        self.stats.begin(SLOT, GENERATION, os.getpid())
        self.watch = LeaseWatch(pages, self.stats, SLOT, GENERATION, self.clock, leave=leave_by_raising)
        self.work, self.reporter, self.board = StoreWork(self.clock, room), MemoryReporter(), Board()
        self.load = ObjectStorePressure(operation, CAPACITY, self.watch, self.work, self.reporter, self.board.path)
        self.load.warm_up()

    def run(self) -> None:
        self.load.run(self.clock.boot_ns())
        self.load.close()

    def values(self, name: str) -> list[float]:
        return [value for value, _ in self.reporter.samples(name)]


def test_a_raylets_command_line_says_what_its_store_is(tmp_path: Path) -> None:
    """Size and spill folder; a raylet that spills elsewhere has no folder, and what is no raylet has no store."""
    assert parse_store(LINE) == RayletStore(80_000_000, Path("/tmp/s/ray_spilled_objects_ab"))
    assert parse_store([*LINE[:3], "--fallback_directory="]) == RayletStore(80_000_000, None)
    for line in ([], ["/bin/sh", *LINE[1:]], [LINE[0], "--node_id=ab"], [LINE[0], "--object_store_memory=x"]):
        assert parse_store(line) is None
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "cmdline").write_bytes("\0".join(LINE).encode())
    assert read_store(7, tmp_path) == parse_store(LINE)
    assert read_store(8, tmp_path) is None
    assert read_store(os.getppid()) is None  # of this test


def test_what_lies_in_a_spill_folder_is_counted(tmp_path: Path) -> None:
    """All files; none where there is no folder yet."""
    assert spilled_bytes(tmp_path / "nowhere") == 0
    for name, size in (("a", 3), ("b", 4)):
        (tmp_path / name).write_bytes(bytes(size))
    assert spilled_bytes(tmp_path) == 7


@given(size=st.integers(1, 1 << 40), others=st.integers(0, 1 << 41), each=st.integers(1, 1 << 30))
def test_what_fits_without_a_spill(size: int, others: int, each: int) -> None:
    """As many objects as stay within four fifths of the store beside others', and not one less."""
    fit = most_unspilled(size, others, each)
    assert fit >= 0
    assert fit == 0 or others + fit * each <= 0.8 * size + 1
    assert others + (fit + 1) * each > 0.8 * size - 1


@given(steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=20), room=st.integers(0, 100))
def test_a_holder_has_what_was_wanted_last_and_reads_in_turn(steps: list[tuple[int, int]], room: int) -> None:
    """Each turn leaves what was wanted, or says that there was no room; all that is read is held, each as often as the others."""
    store = FakeStore(room)
    holder = StoreHolder(store, 16)
    for wanted, gets in steps:
        before, read = len(holder._held), len(store.read)
        turn = holder.turn(wanted, gets)
        assert turn.held == len(holder._held)
        assert turn.held == wanted or (turn.refused and before <= turn.held < wanted) or (turn.refused and turn.held == before)
        assert len(turn.puts_s) == max(0, turn.held - before)
        got = store.read[read:]
        assert len(got) == len(turn.gets_s) == (0 if turn.refused or not turn.held else gets)
        assert all(any(one is held for held in holder._held) for one in got)
        assert len({id(one) for one in got}) == min(len(got), turn.held)


def test_what_is_asked_is_held_read_and_freed(raylet: RayletStore) -> None:
    """40 objects of a MiB, read at ten a second; at the end nothing is held, and the board says so."""
    one = Life(replace(HOLD, options={"object_bytes": MIB, "reads_per_second": 10.0}))
    one.run()
    assert max(one.values("store.held")) == 40 * MIB
    assert len(one.values("store.put")) == 40
    assert len(one.values("store.get")) == pytest.approx(40, abs=3)
    assert sum(one.values("load.operations")) == len(one.values("store.put")) + len(one.values("store.get"))
    assert not any(server.alive for server in one.work.servers)
    assert one.board.served() == 0
    assert read_shortfall(one.stats, SLOT, GENERATION) is None


def test_the_dose_is_the_raylets_count_and_the_files(raylet: RayletStore) -> None:
    """What was there before is not ours; a file in the spill folder counts."""
    assert raylet.spill_folder is not None
    raylet.spill_folder.mkdir()
    (raylet.spill_folder / "before").write_bytes(bytes(100))
    one = Life(HOLD)
    (raylet.spill_folder / "ours").write_bytes(bytes(1000))
    one.load._asked = 3 * MIB
    for _ in range(3):
        one.load._go_on(0.0)
        one.clock.advance(0.5)
        one.load._look(one.clock.boot_ns())
    assert one.board.served() == 3 * MIB + 1000
    assert one.values("store.files")[-1] == 1000


def test_a_shape_is_followed_down(raylet: RayletStore) -> None:
    """What is too much is freed, oldest first."""
    ramp = {"kind": "ramp", "start": 40.0 * MIB, "end": 10.0 * MIB, "over_s": 3.0}
    one = Life(replace(HOLD, shape=ramp))
    one.run()
    assert one.work.asked[-1][0] == 10
    assert [wanted for wanted, _ in one.work.asked] == sorted((wanted for wanted, _ in one.work.asked), reverse=True)


@pytest.mark.parametrize(("spill", "room", "held", "errno"), [(False, 1000, 53, "ENOMEM"), (True, 1000, 200, ""), (True, 90, 90, "ENOSPC")])
def test_what_does_not_fit_is_told(raylet: RayletStore, spill: bool, room: int, held: int, errno: str) -> None:
    """Without a spill no more than four fifths of the store with others'; with one all, or what the disk behind it takes."""
    asked = {"kind": "constant", "level": 200.0 * MIB}
    one = Life(replace(HOLD, shape=asked, options={"object_bytes": MIB, "spill": spill, "reads_per_second": 0.0}), room)
    one.run()
    assert max(one.values("store.held")) == held * MIB
    short = read_shortfall(one.stats, SLOT, GENERATION)
    assert (short and (short.errno, short.requested, short.allocated)) == ((errno, 200 * MIB, held * MIB) if errno else None)


def test_a_node_whose_spills_cannot_be_seen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reason and what to do; without a spill it goes."""
    monkeypatch.setattr(object_store, "read_store", lambda pid: RayletStore(SIZE, None))
    with pytest.raises(RefusedError, match="spills to no folder of its own"):
        Life(replace(HOLD, options={"object_bytes": MIB, "spill": True}))
    Life(HOLD)
    monkeypatch.setattr(object_store, "read_store", lambda pid: None)
    with pytest.raises(RefusedError, match="has no raylet"):
        Life(HOLD)


def test_what_it_reserves_and_what_a_fraction_is_of() -> None:
    """Memory for what is held and its process, disk only where it spills; a fraction is of the store."""
    plain, spilling = (peak_amounts(replace(HOLD, options={"spill": spill}), CAPACITY) for spill in (False, True))
    assert plain.memory_bytes == spilling.memory_bytes > 40 * MIB + 100e6
    assert (plain.disk_bytes, spilling.disk_bytes >= 40 * MIB) == (0, True)
    assert Amounts() != plain
    half = replace(HOLD, unit="fraction", shape={"kind": "constant", "level": 0.5})
    assert absolute(half, CAPACITY).value(0.0) == SIZE / 2
    with pytest.raises(RefusedError, match="asks a share of the object_store_bytes of n1, which states none"):
        absolute(half, replace(CAPACITY, object_store_bytes=0))
