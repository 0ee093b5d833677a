"""Simulators of exhaustion as real load processes: what each holds is counted from outside, by code that is not the product's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_bench import SLOT, Bench, Told
from support import held
from support.observe import boot_s, promised
from support.stairs import assert_stairs
from support.waiting import until

from actors.capability import judge, read_facts
from actors.capacity import read_capacity
from actors.lease import read_shortfall
from actors.lifecycle import Event
from actors.messages import Capacity, Operation
from actors.simulator import REGISTRY

COUNTS = {
    "Descriptors": 1500,
    "Mappings": 3000,
    "Sockets": 100,
    "Connections": 120,
    "Ports": 400,
    "Threads": 100,
    "Processes": 24,
    "Inodes": 300,
    "SharedMemory": 200,
    "Semaphores": 300,
}
KINDS = sorted(COUNTS)
CORE = ("Descriptors", "Inodes", "Mappings", "Processes", "Sockets", "Threads")
CORE_KINDS = [kind if kind in CORE else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS]
STOPPED = [kind if kind in CORE and kind not in {"Inodes", "Processes"} else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS]
ONE_KIND = [kind if kind == "Processes" else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS]


def operation(kind: str, count: float | None = None, **options: Any) -> Operation:
    level = COUNTS[kind] if count is None else count
    return Operation(f"0.{kind}@n1", kind, "n1", 0.0, 60.0, "count", {"kind": "constant", "level": level}, options)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def capacity(state_dir: Path) -> Capacity:
    return read_capacity(state_dir)


class Seen(Bench):
    """A load with a count of what it holds above what it held when it was ready, as somebody else counts it."""

    def ready(self) -> None:
        super().ready()
        self.pid = self.load.pids[0]
        self.before = held.OBSERVERS[self.operation.kind](self.pid)

    def count(self) -> int:
        return held.OBSERVERS[self.operation.kind](self.pid) - self.before

    def gone(self) -> bool:
        return not Path(f"/proc/{self.pid}/task").is_dir() and not held.children(self.pid)

    def shortfall(self) -> Any:
        return read_shortfall(self.guardian.stats, SLOT, self.stats.generation)


@pytest.fixture
def bench(state_dir: Path, capacity: Capacity) -> Iterator[Callable[..., Seen]]:
    made: list[Seen] = []
    able = judge(read_facts(state_dir))

    def make(one: Operation, of: Capacity | None = None, told: Told | None = None) -> Seen:
        if able[one.kind].verdict == "unavailable":
            pytest.skip(able[one.kind].reason)
        made.append(Seen(state_dir, one, of or capacity, told.segment.path if told else ""))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def told() -> Iterator[Told]:
    kept = Told()
    yield kept
    kept.close()


def margin(kind: str, count: int) -> int:
    """Return what the requirement allows: 2 descriptors, else one thing or 1 %."""
    return 2 if kind == "Descriptors" else max(1, count // 100)


def settled(one: Seen, want: int, within_s: float = 10.0) -> None:
    until(lambda: abs(one.count() - want) <= margin(one.operation.kind, want), within_s, lambda: f"{want}: {one.count()} {one.stats}")


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_what_is_asked_until_it_is_stopped(bench: Any, kind: str) -> None:
    """At each of ten looks from outside the count is what was asked; the agent's meter agrees, and after a stop nothing is there."""
    one, want = bench(operation(kind)), COUNTS[kind]
    one.ready()
    one.go()
    settled(one, want)
    pause = threading.Event()
    for _ in range(10):
        assert abs(one.count() - want) <= margin(kind, want)
        assert abs(one.meter.read() - want) <= margin(kind, want)
        pause.wait(0.03)
    assert one.stats.own == want
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    assert one.gone()
    assert one.meter.read() is None


@pytest.mark.parametrize("kind", ONE_KIND)
def test_it_follows_its_shape_down_and_up(bench: Any, kind: str) -> None:
    """What is given back on the way down is gone for the kernel too, and comes back on the way up."""
    whole = COUNTS[kind] // 2
    levels = [whole, whole // 3, whole]
    one = bench(replace(operation(kind), shape={"kind": "steps", "levels": levels, "each_s": 0.5}))
    one.ready()
    one.go()
    for want in levels:
        settled(one, want, 3.0)


@pytest.mark.parametrize("kind", CORE_KINDS)
@promised
def test_it_gives_back_in_equal_steps(bench: Any, kind: str) -> None:
    """After its time the counted staircase has k equal steps, +/- 1, in k times the interval, +/- 10 %."""
    steps, interval_s, hold_s = 4, 0.25, 0.7
    options = {"form": "shared"} if kind == "Mappings" else {}  # each of which has a name, so that those of the load itself do not count
    one = bench(replace(operation(kind, release_steps=steps, release_interval_s=interval_s, **options), duration_s=hold_s))
    one.ready()
    count = one.count if kind != "Mappings" else lambda: held.maps_of(one.pid, "/dev/zero (deleted)")
    start_s = one.go() / 1e9
    whole, seen = COUNTS[kind], []
    while one.load.poll() is None and boot_s() < start_s + 10:
        seen.append((boot_s(), count()))
    assert one.end() == (Event.FINISHED, "")
    gone_s = boot_s()
    assert_stairs(seen, whole, steps, interval_s, start_s + hold_s, margin=1)
    assert gone_s - (start_s + hold_s) == pytest.approx(steps * interval_s, rel=0.1)


@pytest.mark.parametrize("kind", STOPPED)
def test_a_stop_in_the_middle_of_the_steps_gives_all_back(bench: Any, kind: str) -> None:
    """Who asks for the end does not wait for the rest of a slow release."""
    whole = COUNTS[kind]
    one = bench(replace(operation(kind, release_steps=10, release_interval_s=1.0), duration_s=0.3))
    one.ready()
    start_s = one.go() / 1e9
    until(lambda: 0 < one.count() < whole - margin(kind, whole) and boot_s() > start_s + 1.2, 6, "the first step")
    before_s = boot_s()
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    assert boot_s() - before_s < 2.0
    assert one.gone()


@pytest.mark.parametrize("kind", ONE_KIND)
def test_nothing_outlives_the_lease(bench: Any, kind: str) -> None:
    """When nobody renews, the load and all that it held are gone, children included, without anybody's signal."""
    one = bench(operation(kind))
    one.ready()
    one.go(lease_s=0.8)
    until(lambda: one.count() > 0, 5, "something held")
    family = [one.pid, *held.children(one.pid)]
    assert one.end()[0] is Event.LEASE_ENDED
    until(lambda: not any(alive(pid) for pid in family), 3, "the end of all of them")


def alive(pid: int) -> bool:
    return held.status(pid).get("State", "Z")[0] not in "ZX"


# limit by limit: which one, what is asked, how it is lowered for the process, what the kernel says then
LIMITS = [
    pytest.param("Descriptors", resource.RLIMIT_NOFILE, 600, 1000, "EMFILE", id="Descriptors"),
    pytest.param("Sockets", resource.RLIMIT_NOFILE, 180, 300, "EMFILE", id="Sockets"),
    pytest.param("Connections", resource.RLIMIT_NOFILE, 144, 120, "EMFILE", id="Connections"),
    pytest.param("Inodes", resource.RLIMIT_NOFILE, 180, 300, "EMFILE", id="Inodes"),
    pytest.param("SharedMemory", resource.RLIMIT_NOFILE, 120, 200, "EMFILE", id="SharedMemory"),
    pytest.param("Threads", resource.RLIMIT_AS, 0, 20_000, "EAGAIN", id="Threads"),
]


ROLLED_BACK = [pytest.param(*one.values, id=one.id, marks=() if one.id == "Descriptors" else pytest.mark.soak) for one in LIMITS]


@pytest.mark.parametrize(("kind", "limit", "value", "asked", "word"), LIMITS)
def test_a_limit_is_told_as_partial(bench: Any, told: Told, kind: str, limit: int, value: int, asked: int, word: str) -> None:
    """Refused before it has all, a load keeps what it has and says how much; it never fails by it."""
    refused(bench, told, kind, limit, value, asked, word, allow_partial=True)


@pytest.mark.parametrize(("kind", "limit", "value", "asked", "word"), ROLLED_BACK)
def test_all_is_given_back_where_a_part_is_not_enough(
    bench: Any, told: Told, kind: str, limit: int, value: int, asked: int, word: str
) -> None:
    """Without `allow_partial` a refusal leaves nothing held, and is told all the same."""
    refused(bench, told, kind, limit, value, asked, word, allow_partial=False)


def refused(bench: Any, told: Told, kind: str, limit: int, value: int, asked: int, word: str, *, allow_partial: bool) -> None:
    """Lower a limit of a load before its start, and look at what it holds and says then."""
    one = bench(operation(kind, asked, allow_partial=allow_partial), told=told)
    one.ready()
    value = value or int(held.status(one.pid)["VmSize"].split()[0]) * 1024 + (8 << 20)
    resource.prlimit(one.pid, limit, (value, value))
    one.go()
    short = until(one.shortfall, 5, "a shortfall")
    until(lambda: one.stats.own == one.shortfall().allocated, 3, "its figures")
    assert (short.errno, short.requested) == (word, asked)
    if allow_partial:
        assert 0 < short.allocated < asked
        if limit == resource.RLIMIT_NOFILE:
            each = 2 if kind == "Connections" else 1
            assert abs(short.allocated * each - value) <= 0.25 * value, short
    else:
        assert short.allocated == 0
    until(lambda: abs(one.count() - short.allocated) <= 2, 2, lambda: f"{one.count()} {short}")
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    assert told.last("load.refused", errno=word) >= 1


def test_a_limit_that_is_lifted_is_filled(bench: Any) -> None:
    """What was refused is asked for again, and once it is held nothing is short any more."""
    one = bench(operation("Descriptors", 1000, retry_s=0.2))
    one.ready()
    _, hard = held.soft_descriptors(one.pid)
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (400, hard))
    one.go()
    until(one.shortfall, 5, "a shortfall")
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (2000, hard))
    settled(one, 1000)
    assert one.shortfall() is None


def test_the_soft_limit_is_raised_in_the_load_only(bench: Any) -> None:
    """A load that asks for more than the soft limit raises its own, and nobody else's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        one = bench(operation("Descriptors", 1500))
        one.ready()
        assert held.soft_descriptors(one.pid)[0] >= 1500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(soft, 512)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["Descriptors", "Mappings"])
def test_a_fraction_is_of_the_limit(bench: Any, capacity: Capacity, kind: str) -> None:
    """60 % of a process's descriptors, or maps, at this machine's limits: within 2 (1 %) in the whole hold, and back after it."""
    most = min(20_000, getattr(capacity, REGISTRY[kind].resource))
    of = replace(capacity, **{REGISTRY[kind].resource: most})
    shape = {"kind": "square", "low": 0.0, "high": 0.6, "period_s": 8.0}
    one = bench(replace(operation(kind), unit="fraction", shape=shape), of)
    one.ready()
    begun_s, pause, looks = one.go() / 1e9, threading.Event(), 0
    settled(one, most * 6 // 10, 3.5)
    assert one.stats.own == pytest.approx(0.6, abs=0.001)
    while boot_s() < begun_s + 3.6 or looks == 0:
        seen, looked_s = one.count(), boot_s()
        assert looked_s > begun_s + 4.0 or abs(seen - most * 6 // 10) <= margin(kind, most * 6 // 10)
        looks += 1
        pause.wait(0.05)
    settled(one, 0, 3.5)


def test_all_maps_that_the_kernel_gives_are_no_end(bench: Any, capacity: Capacity) -> None:
    """Beyond vm.max_map_count the load is told ENOMEM, keeps all but a few, and ends as it should."""
    if not capacity.mappings <= 200_000:
        pytest.skip(f"vm.max_map_count is {capacity.mappings}: too many to fill in a test")
    one = bench(operation("Mappings", capacity.mappings + 5000, retry_s=60.0))
    one.ready()
    one.go()
    short = until(one.shortfall, 30, "a shortfall")
    assert short.errno == "ENOMEM"
    assert capacity.mappings * 0.97 <= held.maps(one.pid) <= capacity.mappings
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")


@pytest.mark.parametrize("form", ["private", "shared"])
def test_touched_maps_are_resident(bench: Any, form: str) -> None:
    """Maps that are touched take their size each, and are unmapped with it: what is mapped and resident falls to where it was."""
    size, count = 16 << 10, 1000
    levels = [count, 0]
    one = bench(
        replace(operation("Mappings", form=form, size_bytes=size, touch=True), shape={"kind": "steps", "levels": levels, "each_s": 1.5})
    )
    one.ready()
    resident, mapped = held.resident_bytes(one.pid), int(held.status(one.pid)["VmSize"].split()[0])
    one.go()
    settled(one, count)
    assert held.resident_bytes(one.pid) - resident == pytest.approx(count * size, rel=0.03)
    settled(one, 0)
    until(lambda: one.stats.own == 0, 3, "all given back")
    assert int(held.status(one.pid)["VmSize"].split()[0]) - mapped < 2048
    assert held.resident_bytes(one.pid) - resident < 2 << 20


@pytest.mark.parametrize(("protocol", "name"), [("tcp", "TCP"), ("udp", "UDP")])
def test_sockets_are_of_their_protocol(bench: Any, protocol: str, name: str) -> None:
    """The kernel's own name of each socket says the protocol that was asked for."""
    one = bench(operation("Sockets", protocol=protocol))
    one.ready()
    before = held.sockets(one.pid, name)
    one.go()
    until(lambda: abs(held.sockets(one.pid, name) - before - COUNTS["Sockets"]) <= 1, 5, "the sockets")


@pytest.mark.parametrize(("close", "want"), [("reset", 0), ("orderly", COUNTS["Connections"] + 1)])
def test_what_stays_in_time_wait_is_recorded(bench: Any, told: Told, close: str, want: int) -> None:
    """Closed by a reset nothing stays; closed in order one end of each connection does, the first try's too."""
    one = bench(replace(operation("Connections", close=close), duration_s=1.0), told=told)
    one.ready()
    one.go()
    settled(one, COUNTS["Connections"])
    ports = [port for state, _, pair in held._table(one.pid) if state == "01" for port in pair]
    listener = max(set(ports), key=ports.count)  # each connection has it at one end
    assert one.end() == (Event.FINISHED, "")
    assert held.time_wait(os.getpid(), listener) == want
    assert told.last("load.sockets.waiting") == want


INSIDE = """
import ctypes, os, socket, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
if ctypes.CDLL(None, use_errno=True).setns(fd, 0):
    sys.exit("cannot enter")
server = socket.create_server(("127.0.0.1", 20_000))
client = socket.socket()
try:
    client.connect(("127.0.0.1", 20_000))
    print("connected")
except OSError as error:
    print(error.errno)
"""


def test_ports_are_used_up_inside_and_free_outside(bench: Any) -> None:
    """A connection inside finds no port (EADDRNOTAVAIL) while one outside does; with the shape's fall the namespace has ports again."""
    one = bench(replace(operation("Ports", ports=500), shape={"kind": "steps", "levels": [500, 490], "each_s": 2.0}))
    one.ready()
    one.go()
    settled(one, 500)

    def connect(namespace: str) -> str:
        found = subprocess.run([sys.executable, "-S", "-c", INSIDE, namespace], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    assert connect(f"/proc/{one.pid}/ns/net") == "99"
    assert connect("/proc/self/ns/net") == "connected"
    settled(one, 490)
    assert connect(f"/proc/{one.pid}/ns/net") == "connected"


def test_more_ports_than_there_are_is_partial(bench: Any) -> None:
    """Asked for more than the namespace has, all are taken and the kernel's word for that is told."""
    one = bench(operation("Ports", 300, ports=200))
    one.ready()
    one.go()
    short = until(one.shortfall, 5, "a shortfall")
    assert (short.errno, short.requested, short.allocated) == ("EADDRNOTAVAIL", 300, 200)
    assert one.count() == 200


def test_semaphores_are_used_up_inside_and_free_outside(bench: Any) -> None:
    """Asked for more sets than the namespace may have, a further one finds no space there, is told as such, and outside it does."""
    one = bench(operation("Semaphores", 300, sets=200))
    outside = held.semaphore_sets(os.getpid())
    one.ready()
    one.go()
    short = until(one.shortfall, 5, "a shortfall")
    assert (short.errno, short.requested, short.allocated) == ("ENOSPC", 300, 200)
    assert one.count() == one.meter.read() == 200
    make = "import ctypes, sys; s = ctypes.CDLL(None); i = s.semget(0, 1, 0o1600); print(i >= 0 and s.semctl(i, 0, 0))"
    enter = ["nsenter", "--ipc", f"--target={one.pid}"]
    made = [subprocess.check_output([*how, sys.executable, "-S", "-c", make], text=True).strip() for how in (enter, [])]
    assert made == ["False", "0"]
    assert held.semaphore_sets(os.getpid()) == outside


def test_a_child_that_others_kill_is_replaced_and_leaves_no_zombie(bench: Any) -> None:
    """The count comes back, and the dead child is waited for."""
    one = bench(operation("Processes", 10))
    one.ready()
    one.go()
    settled(one, 10)
    victim = held.children(one.pid)[0]
    os.kill(victim, 9)
    until(lambda: victim not in held.children(one.pid) and held.living(one.pid) == 10, 3, "another in its place")
    assert held.zombies(one.pid) == 0


def test_children_die_with_a_load_that_is_killed(bench: Any) -> None:
    """SIGKILL of the load takes all of its children along."""
    one = bench(operation("Processes"))
    one.ready()
    one.go()
    settled(one, COUNTS["Processes"])
    family = held.children(one.pid)
    one.load.kill()
    one.end()
    until(lambda: not any(alive(pid) for pid in family), 3, lambda: str([held.status(pid).get("State") for pid in family]))


def test_the_recorded_metrics_are_the_documented_ones(bench: Any, told: Told) -> None:
    """What a load records are names of its record, and a load that is refused and closed in order records all of them."""
    one = bench(replace(operation("Connections", close="orderly"), duration_s=1.0), told=told)
    one.ready()
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (100, 100))
    one.go()
    assert one.end() == (Event.FINISHED, "")
    assert told.names() == set(REGISTRY["Connections"].metrics)
