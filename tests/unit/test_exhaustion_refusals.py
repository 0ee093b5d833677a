"""Each simulator of exhaustion in this process, with a refusal planted at its call of the kernel: one for each error number."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import held
from support.waiting import until
from test_holder import CAPACITY, TEN, Shelf, Watch

from actors.errors import InputError
from actors.exhaustion import descriptors, holder, inodes, mappings, ports, processes, shared_memory, tcp, tuning
from actors.exhaustion.refusal import ERRNOS, errno_word
from actors.lease import NOTE_NO_RECORDING
from actors.messages import Operation
from actors.metrics.reporter import MemoryReporter
from actors.simulator import REGISTRY, peak_amounts, record_of

FOR_S = 0.5


class Log(Watch):
    """A watch that keeps all that is told, and has somebody look at the process at each report."""

    def __init__(self, look: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.look, self.seen, self.asked, self.operations = look, [], [], []
        self.notes: list[int] = []
        self.shorts: list[tuple[int, int, int]] = []
        self.times_s: list[float] = []
        self.level = 1.0
        self.begun = 0

    def note(self, bit: int) -> None:
        self.notes.append(bit)

    def first_slice(self) -> None:
        self.begun += 1

    def ceiling(self) -> float:
        return self.level

    def shortfall(self, code: int, requested: int, allocated: int) -> None:
        super().shortfall(code, requested, allocated)
        self.shorts.append((code, requested, allocated))

    def report(self, *, asked: float, own: float, operations: int, **_: Any) -> None:
        self.asked.append(asked)
        self.own.append(own)
        self.operations.append(operations)
        self.seen.append(self.look())
        self.times_s.append(self.clock.boot_ns() / 1e9 - 1000.0)


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> MemoryReporter:
    made = MemoryReporter()
    monkeypatch.setattr(holder, "open_reporter", lambda path, seed: (made, bool(path)))
    return made


def operation(kind: str, count: float, duration_s: float = FOR_S, **options: Any) -> Operation:
    return Operation(f"0.{kind}@n1", kind, "n1", 0.0, duration_s, "count", {"kind": "constant", "level": count}, options, seed=3)


class Refusing:
    """Takes the place of a call of the kernel: after so many times it raises, and still does."""

    def __init__(self, real: Any, after: int, error: BaseException) -> None:
        self.real, self.after, self.error, self.calls = real, after, error, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls > self.after:
            raise self.error
        return self.real(*args, **kwargs)


class RefusingSocket(socket.socket):
    """A socket one call of which the kernel refuses after so many times, in all sockets together."""

    name, after, code, calls = "connect", 0, 0, 0

    def _may(self, name: str) -> None:
        if name == type(self).name:
            type(self).calls += 1
            if type(self).calls > type(self).after:
                raise OSError(type(self).code, "refused")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("fileno") is None:
            self._may("socket")
        super().__init__(*args, **kwargs)

    def connect(self, address: Any) -> None:
        self._may("connect")
        super().connect(address)

    def accept(self) -> Any:
        self._may("accept")
        return super().accept()

    def bind(self, address: Any) -> None:
        self._may("bind")
        super().bind(address)


def refuses(module: Any, name: str) -> Callable[[pytest.MonkeyPatch, int, int], Any]:
    """Return what plants a refusal at a call of the kernel; so many calls succeed before."""

    def plant(patch: pytest.MonkeyPatch, after: int, code: int) -> Refusing:
        error = RuntimeError("can't start new thread") if module is _thread else OSError(code, "refused")
        made = Refusing(getattr(module, name), after, error)
        patch.setattr(module, name, made)
        return made

    return plant


def refuses_socket(name: str) -> Callable[[pytest.MonkeyPatch, int, int], Any]:
    """Return what plants a refusal in a method of sockets, or in their making."""

    def plant(patch: pytest.MonkeyPatch, after: int, code: int) -> type:
        made = type("Planted", (RefusingSocket,), {"name": name, "after": after, "code": code})
        patch.setattr(socket, "socket", made)
        return made

    return plant


_OPEN = refuses(os, "open")
_SOCKET = refuses_socket("socket")
# simulator, options, where the refusal is planted, what it says
REFUSALS = [
    ("Descriptors", {}, _OPEN, ("EMFILE", "ENFILE", "ENOMEM", "EACCES")),
    ("Descriptors", {"source": "copy"}, refuses(os, "dup"), ("EMFILE",)),
    ("Mappings", {"form": "shared"}, refuses(mmap, "mmap"), ("ENOMEM", "EPERM")),
    ("Sockets", {}, _SOCKET, ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")),
    ("Connections", {}, _SOCKET, ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")),
    (
        "Connections",
        {},
        refuses_socket("connect"),
        ("EADDRNOTAVAIL", "ENOBUFS", "EAGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH"),
    ),
    ("Connections", {}, refuses_socket("accept"), ("EMFILE", "ENFILE", "ENOMEM")),
    ("Ports", {}, refuses_socket("bind"), ("EADDRINUSE", "EADDRNOTAVAIL")),
    ("Ports", {}, _SOCKET, ("EMFILE", "ENFILE")),
    ("Threads", {}, refuses(_thread, "start_new_thread"), ("EAGAIN",)),
    ("Processes", {}, refuses(os, "fork"), ("EAGAIN", "ENOMEM")),
    ("Inodes", {}, refuses(inodes, "open_nameless"), ("ENOSPC", "EDQUOT", "EMFILE", "ENFILE")),
    ("SharedMemory", {}, refuses(os, "memfd_create"), ("EMFILE", "ENFILE", "ENOMEM")),
    ("SharedMemory", {}, refuses(shared_memory, "allocate"), ("ENOSPC", "ENOMEM", "EPERM")),
]
CASES = [
    pytest.param(kind, options, plant, word, id=f"{kind}-{at}-{word}")
    for at, (kind, options, plant, words) in enumerate(REFUSALS)
    for word in words
]


@pytest.fixture
def no_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this process in its network namespace, which has a few ports for the load."""
    monkeypatch.setattr(ports, "leave_network", lambda: None)
    monkeypatch.setattr(ports, "read_range", lambda: (21_200, 21_240))


def run_refused(kind: str, options: dict[str, Any], plant: Any, word: str, patch: pytest.MonkeyPatch, folder: Path) -> Log:
    """Run a load that is refused its seventh thing; at each report an observer has to count what the load says that it holds."""
    if "dir" in {option.name for option in REGISTRY[kind].options}:
        options = {**options, "dir": str(folder)}
    more = 1 if kind == "Mappings" else 0  # one map more for what else happens in this process

    def count_is(want: int) -> bool:
        return abs(held.OBSERVERS[kind](os.getpid()) - opened - want) <= more

    watch, threads = Log(), held.threads(os.getpid())
    patch.setattr(holder, "_headroom", contextlib.nullcontext)  # a map too, which is not to be refused here
    load = record_of(kind).make(operation(kind, 10, spare=1, retry_s=60.0, **options), CAPACITY, watch, "kept")
    planted = plant(patch, 1000, getattr(errno, word))
    load.warm_up()
    until(lambda: held.threads(os.getpid()) <= threads, 5, "the end of its first try")
    planted.calls, planted.after = 0, 6  # what it needs for itself is no dose
    opened = held.OBSERVERS[kind](os.getpid())
    watch.look = lambda: until(lambda: count_is(load._stock.held), 5, lambda: f"{load._stock.held} of {kind}")
    load.run(watch.clock.boot_ns())
    until(lambda: count_is(0), 5, "the end of all")
    close(load)
    return watch


def close(load: Any) -> None:
    """Close what a load keeps open until its process ends."""
    for name in ("_listener", "_first"):
        one = getattr(load._stock, name, None)
        if isinstance(one, int):
            os.close(one)
        elif one is not None:
            one.close()


@pytest.mark.usefixtures("no_namespace")
@pytest.mark.parametrize(("kind", "options", "plant", "word"), CASES)
def test_each_error_number_of_each_simulator_is_a_partial_allocation(
    kind: str, options: dict[str, Any], plant: Any, word: str, reporter: MemoryReporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Refused the seventh of ten, five are held and told with the kernel's word, and seen by others; none is left at the end."""
    watch = run_refused(kind, options, plant, word, monkeypatch, tmp_path)
    assert (errno_word(watch.short[0]), *watch.short[1:]) == (word, 10, 5)
    assert watch.own[-1] == 5.0
    assert max(watch.own) <= 6.0
    assert [value for value, _ in reporter.samples("load.refused", errno=word)] == [1.0]
    assert {dict(series.labels).get("errno", word) for series in reporter.series()} == {word}
    assert sum(value for value, _ in reporter.samples("load.operations")) == watch.operations[-1] == 5


def test_every_word_is_a_case() -> None:
    """Each error number that a load can tell is planted in one simulator at least; what has no word of its own is `other`."""
    assert {case.values[3] for case in CASES} == set(ERRNOS) - {"other"}


@pytest.mark.parametrize("kind", ["Processes", "Ports"])
def test_what_cannot_work_at_all_is_an_error_before_the_start(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused its very first, a load does not begin: the error is the kernel's own."""
    monkeypatch.setattr(os, "fork", Refusing(os.fork, 0, OSError(errno.EAGAIN, "no more")))
    monkeypatch.setattr(ports, "leave_network", Refusing(None, 0, OSError(errno.EPERM, "no namespace")))
    load = record_of(kind).make(operation(kind, 10), CAPACITY, Log())
    with pytest.raises(OSError, match=r"no more|no namespace"):
        load.warm_up()


# ---- what loads share


def test_a_load_that_cannot_record_says_so_and_holds_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its segment is gone that is noted once; a load that was given none says nothing."""
    for path, want in (("/nowhere/segment", [NOTE_NO_RECORDING]), ("", [])):
        watch, shelf = Log(), Shelf(100)
        load = holder.Holding(shelf, TEN, CAPACITY, watch, path)
        load.warm_up()
        load.run(watch.clock.boot_ns())
        assert (watch.notes, max(watch.own), shelf.held, watch.begun) == (want, 10.0, 0, 1)


def test_a_fraction_is_told_as_one(reporter: MemoryReporter) -> None:
    """Asked for half of the descriptors of a process, half is what it says that it holds; under a ceiling, half of that."""
    watch, shelf = Log(), Shelf(10_000)
    watch.level = 0.5
    half = replace(TEN, unit="fraction", shape={"kind": "constant", "level": 0.5}, options={"batch": 700})
    load = holder.Holding(shelf, half, CAPACITY, watch)
    load.warm_up()
    load.run(watch.clock.boot_ns())
    assert (watch.asked[0], watch.own[0]) == (0.0, 0.0)
    assert (watch.asked[-1], watch.own[-1], shelf.high) == (0.25, 0.25, 2500)
    assert [value for value, _ in reporter.samples("load.operations")] == [700.0] * 3 + [400.0]
    assert len(reporter.samples("load.slice")) == 4
    assert reporter.closed


def test_a_shape_counts_from_the_start_that_was_agreed() -> None:
    """A load that begins late is where the shape is by then, and ends when the operation does."""
    watch, shelf = Log(), Shelf(100)
    shape = {"kind": "steps", "levels": [3, 7, 5], "each_s": 1.0}
    load = holder.Holding(shelf, replace(TEN, duration_s=3.0, shape=shape), CAPACITY, watch)
    load.warm_up()
    begun_ns = watch.clock.boot_ns()
    watch.clock.advance(0.5)
    load.run(begun_ns)
    asked = [(at_s, value) for at_s, value in zip(watch.times_s, watch.asked, strict=True)][1:]
    assert asked
    assert all(value == (3.0, 7.0, 5.0)[min(2, int(at_s + 1e-6))] for at_s, value in asked), asked
    assert watch.clock.boot_ns() == begun_ns + 3 * 10**9


def test_what_is_recorded_is_moved_on_ten_times_a_second(reporter: MemoryReporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before the start, then at the first look after each tenth, and no oftener."""
    watch, ticks = Log(), []
    monkeypatch.setattr(reporter, "tick", lambda: ticks.append(round(watch.clock.boot_ns() / 1e9 - 1000.0, 3)))
    load = holder.Holding(Shelf(100), replace(TEN, duration_s=1.0), CAPACITY, watch)
    load.warm_up()
    load.run(watch.clock.boot_ns())
    assert ticks == [0.0, *(round(0.1 * at, 3) for at in range(1, 10))]


def test_a_refusal_is_not_repeated_before_its_time() -> None:
    """Asked again after each `retry_s` and not more often; without a partial allocation, not at all."""
    for allow_partial, want in ((True, [0.0, 1.0, 2.0]), (False, [0.0])):
        shelf, watch = Shelf(6, OSError(errno.EMFILE, "no more")), Log()
        options = {"spare": 2, "retry_s": 1.0, "allow_partial": allow_partial}
        load = holder.Holding(shelf, replace(TEN, duration_s=2.9, options=options), CAPACITY, watch)
        load.warm_up()
        begun_ns, told = watch.clock.boot_ns(), []
        watch.shortfall = lambda *short, told=told, watch=watch, begun_ns=begun_ns: told.append(
            (round((watch.clock.boot_ns() - begun_ns) / 1e9, 1), short)
        )
        load.run(begun_ns)
        assert [at_s for at_s, _ in told] == want
        assert {short for _, short in told} == {(errno.EMFILE, 10, 4 if allow_partial else 0)}


@pytest.mark.parametrize(("steps", "interval_s"), [(1, 0.1), (4, 0.5), (10, 0.25)])
def test_a_release_takes_as_long_as_asked(steps: int, interval_s: float) -> None:
    """After the planned end each step falls at its interval, in batches, and the last leaves nothing after all of them."""
    shelf, watch, duration_s = Shelf(100), Log(), 2.0
    options = {"release_steps": steps, "release_interval_s": interval_s, "batch": 2}
    load = holder.Holding(shelf, replace(TEN, duration_s=duration_s, options=options), CAPACITY, watch)
    load.warm_up()
    load.run(watch.clock.boot_ns())
    ended_s = watch.clock.boot_ns() / 1e9 - 1000.0
    assert ended_s == pytest.approx(duration_s + (steps * interval_s if steps > 1 else 0.0), abs=0.001)
    levels = [own for own, at_s in zip(watch.own, watch.times_s, strict=True) if at_s > duration_s]
    falls = [whole for whole, _ in itertools.groupby(levels)]
    assert falls == ([] if steps == 1 else [float(10 * (steps - done) // steps) for done in range(steps)])
    assert shelf.held == 0
    assert watch.operations[-1] == (10 if steps == 1 else 10 + 10 - levels[-1])


@pytest.mark.parametrize(
    ("soft", "hard", "count", "want"),
    [
        (100, 1000, 50, 114),
        (100, 150, 500, 150),
        (200, 1000, 100, 200),
        (100, resource.RLIM_INFINITY, 500, 564),
        (resource.RLIM_INFINITY, -1, 9, 0),
    ],
)
def test_the_soft_limit_goes_as_far_as_needed(soft: int, hard: int, count: int, want: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised to what is held and the load's own, at most to the hard limit; never lowered; 0 here for not touched."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    holder.raise_descriptor_limit(count)
    assert made == ([] if want in (0, soft) else [(want, hard)])


def test_a_load_asks_for_the_descriptors_of_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the shape's peak takes, two for a connection, none for a map."""
    asked: list[int] = []
    monkeypatch.setattr(holder, "raise_descriptor_limit", asked.append)
    for kind in ("Descriptors", "Connections", "Mappings", "SharedMemory", "Sockets"):
        load = record_of(kind).make(operation(kind, 10), CAPACITY, Log())
        load._stock = Shelf(10)
        load.warm_up()
    assert asked == [10, 20, 0, 10, 10]


# ---- what each reserves and needs

OWN = tuning.used.own_descriptors
PAGE = mmap.PAGESIZE
RESERVED = [
    ("Descriptors", {}, {"descriptors": 11 + OWN}),
    ("Connections", {}, {"descriptors": 22 + OWN, "memory_bytes": 22 * 4096}),
    ("Sockets", {}, {"descriptors": 11 + OWN, "memory_bytes": 11 * 4096}),
    ("Ports", {}, {"descriptors": 11 + OWN, "memory_bytes": 11 * 4096}),
    ("Threads", {"stack_bytes": 65536}, {"tasks": 11, "memory_bytes": 11 * (65536 + (48 << 10))}),
    ("Processes", {}, {"tasks": 11, "memory_bytes": 11 << 20}),
    ("Inodes", {}, {"inodes": 11, "descriptors": 11 + OWN}),
    ("Mappings", {"size_bytes": 3 * PAGE}, {"memory_bytes": 11 * 512}),
    ("Mappings", {"size_bytes": 3 * PAGE, "touch": True}, {"memory_bytes": 11 * (512 + 3 * PAGE)}),
    ("SharedMemory", {"size_bytes": PAGE + 1}, {"descriptors": 11 + OWN, "memory_bytes": 11 * (2 * PAGE + 2048)}),
    ("DiskIO", {"file_bytes": 16 << 20}, {"disk_bytes": 16 << 20, "inodes": 1}),
]


@pytest.mark.parametrize(("kind", "options", "want"), RESERVED)
def test_what_is_reserved_is_what_is_held_and_what_holding_takes(kind: str, options: dict[str, Any], want: dict[str, int]) -> None:
    """Ten and a bit reserve eleven, each with what the kernel and the load keep of it."""
    found = peak_amounts(replace(operation(kind, 10.4, **options), unit="per_second" if kind == "DiskIO" else "count"), CAPACITY)
    names = [name for name in type(found).__slots__ if getattr(found, name)]
    assert {name: getattr(found, name) for name in names} == want


FACTS = {
    "makes_nameless": True,
    "state_filesystem": "ext4",
    "direct_io": True,
    "state_dir": "/s",
    "populates_memory": True,
    "lists_children": True,
    "capabilities": {"CAP_SYS_ADMIN"},
}
LACKING = [
    ("Inodes", {"makes_nameless": False, "state_filesystem": "nfs"}, "unavailable", "nfs has no files without a name"),
    ("DiskIO", {"state_filesystem": "tmpfs"}, "unavailable", "has no disk behind it"),
    ("DiskIO", {"makes_nameless": False}, "unavailable", "has no files without a name"),
    ("DiskIO", {"direct_io": False}, "fallback", "has no direct access"),
    ("Mappings", {"populates_memory": False}, "fallback", "MADV_POPULATE_WRITE"),
    ("Processes", {"lists_children": False}, "unavailable", "CONFIG_PROC_CHILDREN"),
    ("Ports", {"capabilities": set()}, "unavailable", "needs CAP_SYS_ADMIN"),
]


@pytest.mark.parametrize(("kind", "lacks", "verdict", "reason"), LACKING)
def test_what_a_node_lacks_is_said(kind: str, lacks: dict[str, Any], verdict: str, reason: str) -> None:
    """A node without what a simulator needs says which it is, and what would do; one that has it is able."""
    found = REGISTRY[kind].supported(SimpleNamespace(**{**FACTS, **lacks}))
    assert found.verdict == verdict
    assert reason in found.reason
    assert found.remedy if hasattr(found, "remedy") else True
    assert REGISTRY[kind].supported(SimpleNamespace(**FACTS)).verdict == "available"


@pytest.mark.parametrize("kind", ["Descriptors", "Sockets", "Connections", "Threads", "SharedMemory"])
def test_others_need_nothing(kind: str) -> None:
    """They are available on any node."""
    assert REGISTRY[kind].supported(SimpleNamespace()).verdict == "available"


# ---- each of them in particular


def test_descriptors_are_opened_anew_or_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened, each is a file of its own for the machine; copied, all are one: the offset of one is the other's."""
    for source, shared in (("open", False), ("copy", True)):
        stock = record_of("Descriptors").make(operation("Descriptors", 5, source=source, device="/dev/zero"), CAPACITY, Log())._stock
        stock.open()
        stock.take(2)
        assert {os.readlink(f"/proc/self/fd/{fd}") for fd in stock._held} == {"/dev/zero"}  # noqa: PTH115
        one, other = stock._held
        before = fcntl.fcntl(other, fcntl.F_GETFL)
        fcntl.fcntl(one, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
        assert (fcntl.fcntl(other, fcntl.F_GETFL) != before) is shared
        assert [os.get_inheritable(fd) for fd in stock._held] == [False, False]
        stock.give_back(2)
        os.close(stock._first)
    with pytest.raises(InputError, match="'device' must name a character device such as /dev/null, got /etc"):
        descriptors.OpenFiles("/etc", copies=False).open()


def test_private_maps_stay_apart_and_touched_ones_are_resident() -> None:
    """Fifty maps are fifty entries; touched, they take their pages at once; of other sizes whole pages each."""
    for form, touch in (("private", False), ("private", True), ("shared", True)):
        options = {"form": form, "touch": touch, "size_bytes": 5 * PAGE - 1}
        stock = record_of("Mappings").make(operation("Mappings", 5, **options), CAPACITY, Log())._stock
        before, resident = held.maps(os.getpid()), held.resident_bytes(os.getpid())
        stock.take(200)
        assert held.maps(os.getpid()) - before == pytest.approx(200, abs=8)
        assert {len(one) for one in stock._held} == {5 * PAGE}
        if touch:
            assert held.resident_bytes(os.getpid()) - resident >= 0.8 * 200 * 5 * PAGE
        stock.give_back(200)
        assert stock.held == 0


def test_a_map_whose_pages_are_refused_is_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no memory for what is touched, the map goes too; other errors of a split keep their number."""
    stock = mappings.Maps("private", PAGE, touch=True)
    before = held.maps(os.getpid())
    monkeypatch.setattr(mappings, "MADV_POPULATE_WRITE", 12345)
    with pytest.raises(OSError, match="Invalid argument") as refused:
        stock.take(1)
    assert (refused.value.errno, stock.held) == (errno.EINVAL, 0)
    assert held.maps(os.getpid()) <= before + 1
    broken = SimpleNamespace(madvise=lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "no such advice")))
    with pytest.raises(OSError, match="no such advice") as refused:
        stock._set_apart(broken)
    assert refused.value.errno == errno.EINVAL


def test_threads_have_the_stack_that_was_asked() -> None:
    """New threads have whole pages of it, and those that are let go end."""
    stock = record_of("Threads").make(operation("Threads", 5, stack_bytes=(64 << 10) + 1), CAPACITY, Log())._stock
    before = threading.stack_size()
    stock.open()
    try:
        assert threading.stack_size() == (64 << 10) + PAGE
        alive = held.threads(os.getpid())
        stock.take(3)
        assert (stock.held, held.threads(os.getpid()) - alive) == (3, 3)
        stock.give_back(2)
        assert stock.held == 1
        stock.give_back(1)
    finally:
        threading.stack_size(before)


def test_a_child_waits_for_its_end_and_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied to its parent it waits again after each signal; whatever else happens it leaves with an error, and not into the load."""
    told: list[Any] = []

    def pause() -> None:
        told.append("pause")
        if told.count("pause") == 3:
            raise KeyboardInterrupt

    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        told.append(code)
        raise Left

    monkeypatch.setattr(processes, "die_with_parent", lambda pid: told.append(("tied to", pid)))
    monkeypatch.setattr(signal, "pause", pause)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left):
        processes._wait_for_the_end(4711)
    assert told == [("tied to", 4711), "pause", "pause", "pause", 1]


def test_children_are_tied_to_this_process_and_killed() -> None:
    """What lives is counted, each has this process as parent and the end of it as its own, and given back they leave no zombie."""
    stock = processes.Children()
    stock.open()
    stock.take(3)
    found = held.children(os.getpid())
    assert (stock.held, set(stock._held) <= set(found)) == (3, True)
    stock.give_back(1)
    assert (stock.held, held.living(os.getpid()), held.zombies(os.getpid())) == (2, len(found) - 1, 0)
    stock.give_back(2)
    assert stock.held == 0


@pytest.mark.parametrize(("close_by", "waiting"), [("reset", 0), ("orderly", 4)])
def test_connections_are_whole_and_end_as_asked(close_by: str, waiting: int) -> None:
    """Both ends are here and established; closed by a reset nothing stays, in order one end of each does, which is what it tells."""
    stock = record_of("Connections").make(operation("Connections", 5, close=close_by), CAPACITY, Log())._stock
    before = held.established(os.getpid())
    stock.open()
    stock.take(4)
    assert (stock.held, held.established(os.getpid()) - before) == (4, 4)
    assert stock.figures() == {"load.sockets.waiting": 0.0}
    stock.give_back(1)
    assert stock.held == 3
    stock.give_back(3)
    assert stock._listener is not None
    port = stock._listener.getsockname()[1]
    assert stock.figures() == {"load.sockets.waiting": float(waiting)} == {"load.sockets.waiting": float(held.time_wait(os.getpid(), port))}
    assert stock._listener.getsockname()[0] == "127.0.0.1"
    assert stock._listener.gettimeout() == tuning.used.connect_s
    stock._listener.close()


def test_rows_of_the_table_that_are_cut_are_no_connections() -> None:
    """The kernel's table may end in the middle of a line; a row counts once, whichever end has the port, and only in TIME_WAIT."""
    row = "0: 0100007F:{:04X} 0100007F:{:04X} {} 00"
    rows = [row.format(80, 80, "06"), row.format(80, 81, "06"), row.format(82, 80, "01"), "9: 0100007F:0050 0100007F:0051"]
    assert tcp.count_time_wait("head 0050:0050 0100007F:0050 06 00\n" + "\n".join(rows), 80) == 2
    assert tcp.count_time_wait("", 80) == 0


@pytest.mark.parametrize(("protocol", "name"), [("tcp", "TCP"), ("udp", "UDP")])
def test_sockets_have_their_protocol(protocol: str, name: str) -> None:
    """The kernel names them as asked, and those given back are closed."""
    stock = record_of("Sockets").make(operation("Sockets", 5, protocol=protocol), CAPACITY, Log())._stock
    before = held.sockets(os.getpid(), name)
    stock.open()
    stock.take(3)
    assert (stock.held, held.sockets(os.getpid(), name) - before) == (3, 3)
    stock.give_back(2)
    assert (stock.held, held.sockets(os.getpid(), name) - before) == (1, 1)
    stock.give_back(1)


def test_segments_are_whole_and_resident() -> None:
    """Each is a memfd of whole pages with its blocks; they end with their descriptors, and are not inherited."""
    stock = record_of("SharedMemory").make(operation("SharedMemory", 5, size_bytes=3 * PAGE - 5), CAPACITY, Log())._stock
    before = held.segments(os.getpid())
    stock.open()
    stock.take(2)
    assert stock.held == 2
    assert {(os.fstat(fd).st_size, os.fstat(fd).st_blocks * 512, os.get_inheritable(fd)) for fd in stock._held} == {
        (3 * PAGE, 3 * PAGE, False)
    }
    stock.give_back(2)
    assert held.segments(os.getpid()) == before


def test_files_have_no_name(tmp_path: Path) -> None:
    """The folder stays empty while inodes of it are held; none may be read by others, or inherited."""
    stock, before = record_of("Inodes").make(operation("Inodes", 5, dir=str(tmp_path)), CAPACITY, Log())._stock, held.nameless(os.getpid())
    stock.open()
    stock.take(3)
    assert (stock.held, held.nameless(os.getpid()) - before, list(tmp_path.iterdir())) == (3, 3, [])
    assert {(os.fstat(fd).st_mode & 0o777, os.get_inheritable(fd), os.fstat(fd).st_nlink) for fd in stock._held} == {(0o600, False, 0)}
    stock.give_back(3)
    assert held.nameless(os.getpid()) == before


# ---- ports and their namespace


class Libc:
    """A C library whose unshare answers as told."""

    def __init__(self, code: int) -> None:
        self.code, self.asked = code, []

    def unshare(self, flags: int) -> int:
        self.asked.append(flags)
        ctypes.set_errno(self.code)
        return -1 if self.code else 0


def test_a_namespace_that_is_not_permitted_is_told_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the kernel's number and words."""
    libc = Libc(errno.EPERM)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    with pytest.raises(PermissionError, match="cannot make a network namespace: Operation not permitted"):
        ports.leave_network()
    assert libc.asked == [0x40000000]


def test_the_loopback_of_the_namespace_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the move the one device there is gets the flag that it is up."""
    told: list[Any] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(0))
    monkeypatch.setattr(ports.fcntl, "ioctl", lambda _, request, argument: told.append((request, argument)))
    ports.leave_network()
    assert told == [(0x8914, b"lo" + bytes(14) + b"\x01\x00" + bytes(14))]


@pytest.mark.parametrize(
    ("given", "inside", "want", "written"),
    [
        (0, (21_000, 21_009), 10, []),
        (3, (21_000, 21_009), 3, ["21000 21002"]),
        (30, (21_000, 21_009), 10, []),
        (0, (1, 2), 10, ["21000 21009"]),
    ],
)
def test_the_namespace_has_the_ports_that_are_asked(
    given: int, inside: tuple[int, int], want: int, written: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many as the host or as named, never more than the host has; the kernel's own range is written only where it differs."""
    ranges = iter([(21_000, 21_009), inside])
    monkeypatch.setattr(ports, "leave_network", lambda: None)
    monkeypatch.setattr(ports, "read_range", lambda: next(ranges))
    monkeypatch.setattr(ports, "PROC", tmp_path)
    file = tmp_path / "sys/net/ipv4/ip_local_port_range"
    file.parent.mkdir(parents=True)
    stock = ports.BoundPorts(given)
    stock.open()
    assert ([file.read_text()] if file.exists() else []) == written
    stock.take(2)
    assert [one.getsockname() for _, one in stock._held] == [("0.0.0.0", 21_000), ("0.0.0.0", 21_001)]
    with pytest.raises(OSError, match="every local port"):
        stock.take(want)
    assert stock.held == want
    stock.give_back(want)


def test_the_range_is_read_from_the_kernels_file(tmp_path: Path) -> None:
    """First and last, however they are set apart."""
    file = tmp_path / "sys/net/ipv4/ip_local_port_range"
    file.parent.mkdir(parents=True)
    file.write_text("32768\t60999\n")
    assert ports.read_range(tmp_path) == (32_768, 60_999)
