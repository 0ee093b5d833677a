"""The settings of exhaustion: each is documented and takes effect where it is changed, and no other number is in the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import mmap
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.clock import SECOND_NS, VirtualClock
from actors.exhaustion import connections, disk_io, holder, links, tuning
from actors.messages import Capacity, Operation
from actors.option import Option
from actors.simulator import REGISTRY

FOLDER = Path(inspect.getfile(tuning)).parent
CAPACITY = Capacity(4.0, 1 << 34, 1 << 40, 1, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 16)
# Numbers of the kernel's interface: who states them.
OF_THE_KERNEL = {"CLONE_NEWNET", "SIOCSIFFLAGS", "IFF_UP", "TIME_WAIT", "RESET", "IPC_CREAT"}
PLAIN = {0, 1, 2, -1}  # to count with, to begin with, and to round up


def option(kind: str, name: str) -> Option:
    """Return an option of a simulator's record as it is made with the settings in use, and leave the module as it was."""
    module = importlib.import_module(f"actors.{REGISTRY[kind].entry.partition(':')[0]}")
    source = Path(inspect.getfile(module)).read_text(encoding="utf-8")
    made: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(source, module.__name__, "exec"), made)
    return next(one for one in made["RECORD"].options if one.name == name)


def reserved(kind: str, amount: str, **options: Any) -> float:
    """Return what ten of them reserve."""
    operation = Operation("0@n1", kind, "n1", 0.0, 10.0, "count", {"kind": "constant", "level": 10.0}, options)
    reserves = REGISTRY[kind].reserves
    assert reserves is not None
    return float(getattr(reserves(10.0, operation, CAPACITY), amount))


class Watch:
    """A lease that lives for a hundred looks; how long each rest was."""

    def __init__(self) -> None:
        self.clock, self.looks = VirtualClock(), 100
        self.noted = self.short = 0

    def may_go_on(self) -> bool:
        self.looks -= 1
        return self.looks > 0

    def __getattr__(self, _: str) -> Callable[..., float]:
        return lambda *_, **__: 1.0


def held_for(count: int) -> tuple[Any, Watch]:
    """Hold some descriptors for as long as the lease of a `Watch` goes."""
    watch = Watch()
    shape = {"kind": "constant", "level": float(count)}
    operation = Operation("0.Descriptors@n1", "Descriptors", "n1", 0.0, 1e6, "count", shape)
    stock = SimpleNamespace(held=0, open=lambda: None, figures=dict, take=lambda _: None, give_back=lambda _: None)
    made = holder.Holding(stock, operation, CAPACITY, watch)  # type: ignore[arg-type]
    made._figures = SimpleNamespace(reporter=SimpleNamespace(ticks=0), moved=lambda *_: None)  # type: ignore[assignment]
    reporter = made._figures.reporter  # type: ignore[union-attr]
    reporter.tick = lambda: setattr(reporter, "ticks", reporter.ticks + 1)
    return made, watch


def looked_s() -> float:
    made, watch = held_for(0)
    before_ns = watch.clock.boot_ns()
    made._follow(before_ns, before_ns + 10**15)
    return (watch.clock.boot_ns() - before_ns) / SECOND_NS


def ticks() -> float:
    made, watch = held_for(0)
    begun_ns = watch.clock.boot_ns()
    made._follow(begun_ns, begun_ns + 10**15)
    return float(made._figures.reporter.ticks)


def listening(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what a listener of connections was made with."""
    seen: dict[str, Any] = {}
    fake = SimpleNamespace(settimeout=lambda s: seen.update(timeout=s), getsockname=lambda: ("127.0.0.1", 1))
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_server", lambda _, backlog: seen.update(backlog=backlog) or fake)
        connections.Pairs(orderly=False).open()
    return seen


def owed() -> float:
    pacer = disk_io.RatePacer(1)
    pacer.grow(1000.0, 3600.0)
    return pacer.debt_bytes


def link() -> links.Links:
    """Return a load with a peer, on ports of loopback that are free."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    here, there = (list(one.getsockname()) for one in servers)
    for one in servers:
        one.close()
    return links.Links({"listen": here, "dial": there, "key": "00" * 16}, VirtualClock(), orderly=True)


def set_on_an_end(*options: int) -> list[int]:
    with socket.socket() as end:
        link()._set(end)
        return [end.getsockopt(socket.IPPROTO_TCP, option) for option in options]


def peer_backlog(monkeypatch: pytest.MonkeyPatch) -> int:
    one, seen = link(), []
    real = socket.create_server
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_server", lambda *of, backlog: seen.append(backlog) or real(*of))
        one.open()
    assert one._listener is not None
    one._listener.close()
    return seen[0]


def dialled_for(monkeypatch: pytest.MonkeyPatch) -> float | None:
    """Return how long a handshake may take."""
    seen: list[float | None] = []
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda one, _: seen.append(one.gettimeout()))
        patch.setattr(socket.socket, "sendall", lambda *_: None)
        link()._dial().close()
    return seen[0]


def strangers() -> int:
    """Return how many are kept of a hundred who say nothing."""
    one = link()
    one.open()
    guests = [socket.create_connection(one._here) for _ in range(100)]
    assert one.held == 0
    kept = len(one._unknown)
    for end in (*guests, *one._unknown.values(), one._listener):
        end.close()  # type: ignore[union-attr]
    return kept


def settled_for() -> float:
    """Return how often a load looks for a peer that closes nothing."""
    one, looks = link(), list[float]()
    one._accepted[-1] = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]
    one._serve = looks.append  # type: ignore[method-assign]
    one.figures()
    return len(looks)


# Of each setting another value, and what is seen of it.
def paced(name: str) -> list[Any]:
    return [option(kind, name).default for kind in tuning.PACES]


EFFECTS: dict[str, tuple[Any, Callable[[pytest.MonkeyPatch], Any]]] = {
    "look_s": (0.5, lambda _: looked_s()),
    "tick_s": (1.0, lambda _: ticks()),
    "own_descriptors": (100, lambda _: reserved("Descriptors", "descriptors")),
    "headroom_bytes": (9 * mmap.PAGESIZE, lambda _: len(holder._headroom())),
    "connect_s": (9.0, lambda patch: listening(patch)["timeout"]),
    "accept_backlog": (9, lambda patch: listening(patch)["backlog"]),
    "peer_backlog": (9, peer_backlog),
    "peer_strangers": (9, lambda _: strangers()),
    "peer_connect_s": (9.0, dialled_for),
    "peer_port": (20_000, lambda _: option("Connections", "port").default),
    "keepalive_s": (9, lambda _: set_on_an_end(socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)),
    "keepalive_probes": (9, lambda _: set_on_an_end(socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)),
    "settle_s": (2.0, lambda _: settled_for()),
    "forget_s": (9.0, lambda _: owed()),
    "rounding": (0.1, lambda _: holder.whole(9.95)),
    "map_overhead_bytes": (9, lambda _: reserved("Mappings", "memory_bytes")),
    "socket_overhead_bytes": (9, lambda _: (reserved("Sockets", "memory_bytes"), reserved("Connections", "memory_bytes"))),
    "segment_overhead_bytes": (9, lambda _: reserved("SharedMemory", "memory_bytes")),
    "set_overhead_bytes": (9, lambda _: reserved("Semaphores", "memory_bytes")),
    "thread_overhead_bytes": (9, lambda _: reserved("Threads", "memory_bytes")),
    "child_bytes": (9, lambda _: reserved("Processes", "memory_bytes")),
    "paces": ({kind: tuning.Pace(9, 9) for kind in tuning.PACES}, lambda _: (paced("batch"), paced("spare"))),
    "retry_s": (9.0, lambda _: option("Inodes", "retry_s").default),
    "release_steps": (9, lambda _: option("Inodes", "release_steps").default),
    "release_interval_s": (9.0, lambda _: option("Inodes", "release_interval_s").default),
    "device": ("/dev/zero", lambda _: option("Descriptors", "device").default),
    "map_bytes": (9, lambda _: option("Mappings", "size_bytes").default),
    "segment_bytes": (9, lambda _: option("SharedMemory", "size_bytes").default),
    "stack_bytes": (1 << 20, lambda _: option("Threads", "stack_bytes").default),
    "block_bytes": (1 << 20, lambda _: option("DiskIO", "block_bytes").default),
    "file_bytes": (64 << 20, lambda _: option("DiskIO", "file_bytes").default),
}


@pytest.mark.parametrize("name", [one.name for one in fields(tuning.Tuning)])
def test_each_setting_takes_effect(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With another value something else is seen, and with the first one the same as before."""
    value, seen = EFFECTS[name]
    before, first = seen(monkeypatch), tuning.used
    tuning.used = replace(first, **{name: value})
    try:
        assert seen(monkeypatch) != before
    finally:
        tuning.used = first
    assert seen(monkeypatch) == before


def test_each_setting_is_documented() -> None:
    """By its name in the class's docstring, and nothing else is named there."""
    told = re.findall(r"`([a-z_]+)`", inspect.getdoc(tuning.Tuning) or "")
    assert sorted(told) == sorted(one.name for one in fields(tuning.Tuning))


def numbers(source: str) -> Iterator[tuple[int, float]]:
    """Yield the numbers of a module that are settings: not plain ones, the kernel's, or a record's own words (ranges, tolerance)."""
    tree = ast.parse(source)
    words: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target := getattr(node, "target", None), ast.Name):
            words |= set(ast.walk(node)) if target.id in OF_THE_KERNEL else set()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Option", "SimulatorRecord"):
            words |= {part for word in node.keywords if word.arg in ("low", "high", "tolerance", "look_ms") for part in ast.walk(word)}
        if isinstance(node, ast.Subscript):
            words |= set(ast.walk(node.slice))  # which field of a row
        if isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("len("):
            words |= set(node.comparators)  # how many fields a row has
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "int":
            words |= set(node.args[1:])  # the base that a number is written in
    for node in ast.walk(tree):
        is_number = isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        if is_number and node not in words and node.value not in PLAIN:
            yield node.lineno, node.value


def test_no_other_number_is_in_the_code() -> None:
    """What could be another number is a setting."""
    paths = [path for path in sorted(FOLDER.glob("*.py")) if path.name != "tuning.py"]
    found = {f"{path.name}:{line}": value for path in paths for line, value in numbers(path.read_text())}
    assert found == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("def f():\n    return 7\n", [7], id="a-number"),
        pytest.param("LIMIT: Final = 1 << 20\n", [20], id="a-constant-of-the-module"),
        pytest.param("RECORD = SimulatorRecord(options=(Option('a', 'integer', 9, 'help', low=3, high=7),))\n", [9], id="a-default"),
        pytest.param("CLONE_NEWNET: Final = 0x40000000\n", [], id="the-kernels"),
        pytest.param("x = rows[3][-4:]\nfor _ in range(2):\n    y = int(x, 16)\n", [], id="places"),
    ],
)
def test_what_the_lint_finds(source: str, found: list[float]) -> None:
    """Numbers in functions, in constants and as defaults of options; not the kernel's, ranges, or places in a row."""
    assert [value for _, value in numbers(source)] == found
