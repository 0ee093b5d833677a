"""Simulators of exhaustion without a process: every refusal of the kernel, page sizes, and what a load tells of a partial allocation."""

from __future__ import annotations

import _thread
import errno
import itertools
import math
import mmap
import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.clock import VirtualClock
from actors.control import ControlPage, ControlWriter, StatsPage
from actors.errors import InputError, RefusedError
from actors.exhaustion import holder, inodes, mappings, place, ports, shared_memory, tuning
from actors.exhaustion.connections import Pairs
from actors.exhaustion.descriptors import OpenFiles
from actors.exhaustion.disk_io import RatePacer
from actors.exhaustion.holder import Holding, next_step, whole
from actors.exhaustion.inodes import NamelessFiles
from actors.exhaustion.mappings import Maps, map_bytes
from actors.exhaustion.ports import BoundPorts
from actors.exhaustion.processes import Children
from actors.exhaustion.refusal import ERRNOS, errno_word
from actors.exhaustion.shared_memory import Segments
from actors.exhaustion.sockets import Unconnected
from actors.exhaustion.tcp import count_time_wait
from actors.exhaustion.threads import Waiters
from actors.lease import LeaseWatch
from actors.messages import Capacity, Operation
from actors.metrics import Recorder, Segment
from actors.release import release_level
from actors.simulator import REGISTRY, check, peak_amounts
from cluster.safety.profiles import check_planned, limits_for
from scenarios import kinds
from tests.support.held import own_descriptors, status

CAPACITY = Capacity(4.0, 1 << 34, 1 << 40, 1, 10_000, 10_000, 10_000, 10_000, 10_000)
TEN = Operation("0.Descriptors@n1", "Descriptors", "n1", 0.0, 5.0, "count", {"kind": "constant", "level": 10})


class Watch:
    """A lease that lives for so many looks, and keeps what is told."""

    def __init__(self, looks: int = 1 << 30) -> None:
        self.clock, self.looks = VirtualClock(), looks
        self.short: tuple[int, int, int] = (0, 0, 0)
        self.own: list[float] = []

    def first_slice(self) -> None: ...

    def note(self, bit: int) -> None: ...

    def ceiling(self) -> float:
        return 1.0

    def may_go_on(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def shortfall(self, code: int, requested: int, allocated: int) -> None:
        self.short = (code, requested, allocated)

    def report(self, *, own: float, **_: float) -> None:
        self.own.append(own)


class Shelf:
    """A stock of nothing, of which there are `most`; beyond it `error` is raised."""

    def __init__(self, most: int, error: BaseException | None = None) -> None:
        self.most, self.error, self.held, self.high, self.calls = most, error, 0, 0, 0

    def open(self) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}

    def take(self, count: int) -> None:
        self.calls += 1
        for _ in range(count):
            if self.held >= self.most:
                assert self.error is not None
                raise self.error
            self.held += 1
        self.high = max(self.high, self.held)

    def give_back(self, count: int) -> None:
        assert 0 <= count <= self.held
        self.held -= count


@pytest.mark.parametrize("word", [word for word in ERRNOS if word != "other"])
@pytest.mark.parametrize("allow_partial", [True, False])
def test_each_refusal_is_told_and_no_end(word: str, allow_partial: bool) -> None:
    """Whatever limit speaks, the load says which, keeps what it has or gives all back, and ends in its own time."""
    watch, shelf = Watch(), Shelf(6, OSError(getattr(errno, word), "no more"))
    operation = replace(TEN, options={"allow_partial": allow_partial, "spare": 1, "retry_s": 100.0})
    load = Holding(shelf, operation, CAPACITY, watch)
    load.warm_up()
    load.run(watch.clock.boot_ns())
    code, requested, allocated = watch.short
    assert (errno_word(code), requested, allocated) == (word, 10, 5 if allow_partial else 0)
    assert watch.own[-1] == allocated
    assert shelf.held == 0
    assert watch.clock.boot_ns() >= 1_005 * 10**9


def test_no_memory_for_the_interpreter_is_a_refusal_too() -> None:
    """A MemoryError of a take is ENOMEM."""
    watch, shelf = Watch(), Shelf(3, MemoryError())
    load = Holding(shelf, TEN, CAPACITY, watch)
    load.warm_up()
    load.run(watch.clock.boot_ns())
    assert errno_word(watch.short[0]) == "ENOMEM"


class Space(Shelf):
    """Address space of which nothing is free again when it is given back, as that of threads' stacks."""

    def __init__(self) -> None:
        super().__init__(0)
        self.maps: list[mmap.mmap] = []

    def take(self, count: int) -> None:
        for _ in range(count):
            self.maps.append(mmap.mmap(-1, 1 << 16))
            self.held += 1


def test_a_load_that_is_refused_address_space_has_some_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit, and after each time that it asked again, a further arena of the interpreter's is to be had."""
    watch, stock, looks = Watch(), Space(), []
    load = Holding(stock, replace(TEN, shape={"kind": "constant", "level": 10_000}, options={"spare": 1, "retry_s": 0.5}), CAPACITY, watch)
    load.warm_up()
    monkeypatch.setattr(watch, "report", lambda **_: looks.append(len(mmap.mmap(-1, 1 << 20))))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(status(os.getpid())["VmSize"].split()[0]) * 1024 + (32 << 20), hard))
    try:
        load.run(watch.clock.boot_ns())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for one in stock.maps:
            one.close()
    assert errno_word(watch.short[0]) == "ENOMEM"
    assert 100 < watch.short[2] < 600
    assert len(looks) > 50


def test_other_numbers_are_other() -> None:
    """An error that no limit gives has no word of its own, and never becomes a label by itself."""
    assert errno_word(errno.EIO) == errno_word(0) == errno_word(None) == "other"


def test_a_shortfall_is_taken_back_once_all_is_held() -> None:
    """Asked for again each `retry_s`, what is there in the end is no partial allocation; a lower level of the shape is not enough."""
    watch, shelf = Watch(), Shelf(6, OSError(errno.EMFILE, "no more"))
    shape = {"kind": "steps", "levels": [10, 4, 10], "each_s": 2.0}
    load = Holding(shelf, replace(TEN, duration_s=6.0, shape=shape, options={"spare": 1, "retry_s": 0.5}), CAPACITY, watch)
    load.warm_up()
    seen: list[tuple[float, float]] = []
    begun_ns = watch.clock.boot_ns()

    def ceiling() -> float:
        elapsed_s = (watch.clock.boot_ns() - begun_ns) / 1e9
        seen.append((elapsed_s, watch.short[1]))
        if elapsed_s > 4.5:
            shelf.most = 20
        return 1.0

    watch.ceiling = ceiling
    load.run(begun_ns)
    assert {short for at_s, short in seen if 0.1 < at_s < 4.4} == {10}
    assert watch.short == (0, 0, 0)
    assert shelf.high == 10


def test_the_end_in_the_middle_of_a_release_gives_all_back() -> None:
    """A stop between two steps leaves nothing."""
    watch, shelf = Watch(), Shelf(100)
    load = Holding(shelf, replace(TEN, duration_s=1.0, options={"release_steps": 5, "release_interval_s": 1.0}), CAPACITY, watch)
    load.warm_up()
    load._watch.may_go_on = lambda: watch.clock.boot_ns() < 1_003 * 10**9
    load.run(watch.clock.boot_ns())
    assert shelf.held == 0
    assert watch.own[-1] == 8.0
    assert watch.clock.boot_ns() < 1_004 * 10**9


def test_a_look_at_the_lease_comes_with_each_batch() -> None:
    """However many are asked, no more than `batch` are taken between two looks, in one call of the stock."""
    watch, shelf = Watch(looks=4), Shelf(1 << 20)
    shape = {"kind": "constant", "level": 100_000}
    load = Holding(shelf, replace(TEN, shape=shape, options={"batch": 1000}), CAPACITY, watch)
    load.warm_up()
    load.run(watch.clock.boot_ns())
    assert (shelf.high, shelf.calls) == (4000, 5)


OUTWARD = {"posix", "_socket", "socket", "select", "fcntl", "_io", "_multiprocessing", "_posixsubprocess", "signal"}


class CountingWatch(LeaseWatch):
    """A lease on real pages that counts how often figures are told."""

    reports = 0

    def report(self, **figures: Any) -> None:
        self.reports += 1
        super().report(**figures)


def test_what_10_000_things_tell_goes_into_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default batch: for 1,000 taken one report and one sample at most, and no call through which a process is reached."""
    (writer, control_fd), (stats, stats_fd) = ControlWriter.create(), StatsPage.create()
    writer.reset_slot(3, 7, epoch=1, sharers=1)
    writer.write_lease(3, 7, 2_000 * 10**9)
    watch, segment, outward = CountingWatch(ControlPage.from_fd(control_fd), stats, 3, 7, VirtualClock()), Segment.create(), Counter[str]()
    operation = replace(TEN, duration_s=0.05, shape={"kind": "constant", "level": 10_000})
    monkeypatch.setattr(holder, "open_reporter", lambda *_: (Recorder(segment), True))
    shelf = Shelf(1 << 20)
    load = Holding(shelf, operation, CAPACITY, watch, segment.path)
    load.warm_up()

    def count(_: object, event: str, function: Any) -> None:
        place = event == "c_call" and (function.__module__ or type(function.__self__).__module__)
        if place in OUTWARD:
            outward[f"{place}.{function.__name__}"] += 1

    watch.reports = 0
    sys.setprofile(count)
    try:
        load.run(watch.clock.boot_ns())
    finally:
        sys.setprofile(None)
    samples = sum(segment.read(row).count for row, *_ in segment.series())
    segment.close()
    for fd in (control_fd, stats_fd):
        os.close(fd)
    assert (shelf.high, outward) == (10_000, {})
    assert 0 < watch.reports <= 10
    assert 0 < samples <= 10


@pytest.mark.parametrize(
    ("asked", "held", "most", "batch", "want"),
    [(10, 0, 99, 4, 4), (10, 8, 99, 4, 2), (10, 10, 99, 4, 0), (3, 10, 99, 4, -4), (9, 10, 99, 4, -1), (10, 6, 6, 4, 0), (10, 8, 6, 4, -2)],
)
def test_what_to_do_next(asked: int, held: int, most: int, batch: int, want: int) -> None:
    """Towards the asked, a batch at a time, never past what the kernel gives."""
    assert next_step(asked, held, most, batch) == want


def test_steps_are_equal_and_end_at_nothing() -> None:
    """k steps differ by at most one, and the last leaves nothing; a strength that rounding took from a whole number is that number."""
    for held, steps in ((100, 4), (10, 3), (3, 7), (0, 2)):
        levels = [release_level(held, steps, done) for done in range(steps + 1)]
        falls = {before - after for before, after in itertools.pairwise(levels)}
        assert (levels[0], levels[-1], max(falls) - min(falls) <= 1) == (held, 0, True)
    assert [whole(value) for value in (2.9999999, 2.5, 0.0)] == [3, 2, 0]


# ---- one fault for each way of taking: the call of the kernel fails at the third

FAULTS = [
    pytest.param(lambda _: OpenFiles(os.devnull, copies=False), os, "open", errno.ENFILE, id="open"),
    pytest.param(lambda _: OpenFiles(os.devnull, copies=True), os, "dup", errno.EMFILE, id="dup"),
    pytest.param(lambda _: Maps("shared", 1, touch=False), mmap, "mmap", errno.ENOMEM, id="mmap"),
    pytest.param(lambda _: Unconnected("udp"), socket, "socket", errno.ENOBUFS, id="socket"),
    pytest.param(lambda _: Waiters(1 << 16), _thread, "start_new_thread", errno.EAGAIN, id="thread"),
    pytest.param(lambda _: Children(), os, "fork", errno.EAGAIN, id="fork"),
    pytest.param(NamelessFiles, inodes, "open_nameless", errno.ENOSPC, id="file"),
    pytest.param(lambda _: Segments(1), shared_memory, "allocate", errno.ENOSPC, id="segment"),
]


@pytest.mark.parametrize(("make", "module", "name", "code"), FAULTS)
def test_what_was_taken_before_a_refusal_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], Any], module: Any, name: str, code: int
) -> None:
    """Two are held when the third is refused with the kernel's own number, and nothing leaks: all descriptors are back after."""
    before = len(own_descriptors())
    stock, real, calls = make(tmp_path), getattr(module, name), []
    stock.open()
    opened = len(own_descriptors()) - before

    def third_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("can't start new thread") if module is _thread else OSError(code, "refused")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, third_fails)
    with pytest.raises(OSError, match=r"refused|new thread") as refused:
        stock.take(5)
    monkeypatch.undo()
    assert (refused.value.errno, stock.held) == (code, 2)
    stock.give_back(2)
    assert stock.held == 0
    assert len(own_descriptors()) == before + opened
    if isinstance(stock, OpenFiles):
        os.close(stock._first)


def test_a_map_that_cannot_be_split_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give a map and refuse the entry that sets it apart: it is unmapped then."""
    stock = Maps("private", 1, touch=False)
    made = []

    class Map:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.closed = False
            made.append(self)

        def madvise(self, _: int) -> None:
            raise OSError(errno.EAGAIN, "no entry")  # as the kernel says it of a split, unlike of a map

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(mappings.mmap, "mmap", Map)
    with pytest.raises(OSError, match="no entry") as refused:
        stock.take(2)
    assert refused.value.errno == errno.ENOMEM
    assert (stock.held, [one.closed for one in made]) == (1, [False, True])
    stock.give_back(1)


def test_a_connection_that_is_refused_leaves_no_half() -> None:
    """Where the accepted end finds no descriptor, the other is closed too."""
    pairs = Pairs(orderly=False)
    pairs.open()
    assert pairs._listener is not None
    before = len(own_descriptors())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest - before + 2)]  # no holes below
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(*fillers, highest) + 2, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            pairs.take(3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    pairs.give_back(pairs.held)
    assert len(own_descriptors()) == before
    pairs._listener.close()


def test_a_device_that_is_none_is_refused(tmp_path: Path) -> None:
    """A pipe or a file in place of the device could wait for ever, or be read: it is never opened."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="character device"):
        OpenFiles(str(tmp_path / "file"), copies=False).open()


def test_ports_end_with_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once every port of the namespace is taken the number is the one that a connection would get, and given back they are taken anew."""
    monkeypatch.setattr(ports, "leave_network", lambda: None)
    monkeypatch.setattr(ports, "read_range", lambda: (50_100, 50_102))
    stock = BoundPorts(0)
    stock.open()
    with pytest.raises(OSError, match="every local port") as refused:
        stock.take(4)
    assert (refused.value.errno, stock.held) == (errno.EADDRNOTAVAIL, 3)
    stock.give_back(1)
    stock.take(1)
    stock.give_back(3)


def test_children_that_died_by_themselves_count_no_more() -> None:
    """A dead child is waited for and no longer held."""
    stock = Children()
    stock.take(2)
    victim = stock._held[0]
    os.kill(victim, 9)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    assert stock.held == 1
    stock.give_back(1)
    with pytest.raises(ChildProcessError):
        os.waitpid(victim, 0)


@pytest.mark.parametrize("page", [4 << 10, 16 << 10, 64 << 10])
def test_sizes_are_whole_pages_of_this_machine(monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """With pages of 4, 16 and 64 KiB every size is a multiple of them and at least one; each map is unmapped with its own length."""
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    for size in (1, page - 1, page, page + 1, 10 * page + 7):
        assert map_bytes(size) % page == 0
        assert 0 <= map_bytes(size) - size < page
    stock = Maps("shared", page + 1, touch=False)
    stock.take(1000)
    assert {len(one) for one in stock._held} == {2 * page}
    before = _mapped_bytes()
    stock.give_back(1000)
    assert before - _mapped_bytes() == pytest.approx(2000 * page, rel=0.3)
    operation = replace(TEN, kind="SharedMemory", options={"size_bytes": 1})
    assert peak_amounts(operation, CAPACITY).memory_bytes == 10 * (page + tuning.used.segment_overhead_bytes)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", [kind for kind, record in REGISTRY.items() if record.family == "exhaustion"])
def test_what_is_reserved_grows_with_what_is_asked(kind: str) -> None:
    """Twice as many reserve more of something, and of its own resource never fewer than asked."""
    operation = replace(TEN, kind=kind)
    once, twice = peak_amounts(operation, CAPACITY), peak_amounts(replace(operation, shape={"kind": "constant", "level": 20}), CAPACITY)
    assert all(more >= less for more, less in zip(twice.values(), once.values(), strict=True))
    assert twice != once
    assert getattr(once, REGISTRY[kind].resource, 10) >= 10


def test_time_wait_is_counted_by_port() -> None:
    """Rows of the kernel's table in TIME_WAIT with the port at either end count, others do not."""
    row = "   0: 0100007F:{:04X} 0100007F:{:04X} {} 00000000:00000000 00:00000000 00000000     0        0 12345"
    table = "  sl  local_address\n" + "\n".join(
        [row.format(80, 99, "06"), row.format(98, 80, "06"), row.format(80, 97, "01"), row.format(1, 2, "06")]
    )
    assert count_time_wait(table, 80) == 2


def test_folders_of_another_file_system_are_refused(tmp_path: Path) -> None:
    """Inodes and blocks elsewhere are watched by nobody; a folder that is none is the caller's mistake."""
    operation = replace(TEN, kind="Inodes", options={"dir": "/proc"})
    with pytest.raises(RefusedError, match="another file system"):
        place.check_folder(operation, tmp_path)
    with pytest.raises(InputError, match="existing folder"):
        place.check_folder(replace(operation, options={"dir": str(tmp_path / "none")}), tmp_path)
    place.check_folder(replace(operation, options={"dir": str(tmp_path)}), tmp_path)
    assert place.folder_of(replace(operation, options={}), tmp_path) == tmp_path


def test_a_rate_is_owed_for_a_moment_only() -> None:
    """What a slow disk had no time for is dropped after a second; a block is due when its bytes are owed, and no rest passes a look."""
    pacer = RatePacer(block_bytes=100)
    pacer.grow(1000.0, 0.05)
    assert pacer.pause_s(1000.0) == pytest.approx(0.05)
    pacer.grow(1000.0, 0.05)
    assert pacer.pause_s(1000.0) == 0.0
    pacer.pay(100)
    pacer.grow(1000.0, 60.0)
    assert pacer.debt_bytes == 1000.0
    assert RatePacer(100).pause_s(0.0) == tuning.used.look_s


BAD = [
    pytest.param({"count": -1}, "Descriptors.count", id="negative"),
    pytest.param({"count": 1.5}, "Descriptors.count", id="half-a-thing"),
    pytest.param({"count": math.nan}, "Descriptors.count", id="nan"),
    pytest.param({"count": math.inf}, "Descriptors.count", id="endless"),
    pytest.param({"count": 1 << 60}, "Descriptors.count", id="huge"),
    pytest.param({"count": "many"}, "Descriptors.count", id="a-word"),
    pytest.param({"fraction": 1.01}, "Descriptors.fraction", id="more-than-all"),
    pytest.param({"fraction": 0.5, "count": 1}, "both", id="two-units"),
    pytest.param({}, "neither", id="no-strength"),
    pytest.param({"count": 1, "batch": 0}, "Descriptors.batch", id="an-empty-batch"),
    pytest.param({"count": 1, "release_steps": 0}, "Descriptors.release_steps", id="no-step"),
    pytest.param({"count": 1, "release_interval_s": math.nan}, "Descriptors.release_interval_s", id="an-interval-of-nan"),
    pytest.param({"count": 1, "allow_partial": "yes"}, "Descriptors.allow_partial", id="a-flag-in-words"),
    pytest.param({"count": 1, "source": "copied"}, "Descriptors.source", id="an-unknown-choice"),
    pytest.param({"count": 1, "device": "null"}, "Descriptors.device", id="a-relative-path"),
]


@pytest.mark.parametrize(("given", "field"), BAD)
def test_bad_values_are_refused_by_name_before_anything_is_taken(given: dict[str, Any], field: str) -> None:
    """What is out of range is said with the name of its field, and this process has not one descriptor more."""
    before = len(own_descriptors())
    with pytest.raises(InputError, match=field):
        kinds.Descriptors(**given)
    assert len(own_descriptors()) == before


@pytest.mark.parametrize("unit", ["bytes", "per_second"])
def test_a_wrong_unit_is_refused(unit: str) -> None:
    """A number of things is no number of bytes."""
    with pytest.raises(InputError, match="takes values in count or fraction"):
        check(replace(TEN, unit=unit))


@pytest.mark.parametrize(("kind", "what"), [("Processes", "tasks"), ("Threads", "tasks"), ("Descriptors", "descriptors")])
def test_more_than_the_limits_allow_is_refused_in_the_plan(kind: str, what: str) -> None:
    """A plan may take its share of what there is: a little more is refused with the name of what is short, before anything starts."""
    limits = limits_for("balanced")
    most = int(limits.counts_fraction * getattr(CAPACITY, what))
    for count, fits in ((most - 100, True), (most + 1, False)):
        wanted = {"n1": peak_amounts(replace(TEN, kind=kind, shape={"kind": "constant", "level": count}), CAPACITY)}
        if fits:
            check_planned(wanted, {"n1": CAPACITY}, limits)
        else:
            with pytest.raises(RefusedError, match=what) as caught:
                check_planned(wanted, {"n1": CAPACITY}, limits)
            assert caught.value.code == "budget"
