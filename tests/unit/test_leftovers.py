"""The check that follows each test of exhaustion finds whatever is left, and nothing where nothing is."""

from __future__ import annotations

import mmap
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import leftovers
from support.leftovers import CHECKED, is_checked, nothing_left

ROOT = Path(__file__).parents[2]


def descriptor() -> Callable[[], object]:
    fd = os.open(os.devnull, os.O_RDONLY)
    return lambda: os.close(fd)


def other_descriptor() -> Callable[[], object]:
    one = socket.socket()
    return one.close


def thread() -> Callable[[], object]:
    gate = threading.Event()
    threading.Thread(target=gate.wait, daemon=True).start()
    return gate.set


def child() -> Callable[[], object]:
    one = subprocess.Popen(["sleep", "60"])
    return lambda: (one.kill(), one.wait())


def zombie() -> Callable[[], object]:
    one = subprocess.Popen(["true"])
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    return one.wait


def maps() -> Callable[[], object]:
    made = [mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) for _ in range(leftovers.MAPS + 40)]
    return lambda: [one.close() for one in made]


def limit() -> Callable[[], object]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("leave", [descriptor, other_descriptor, thread, child, zombie, maps, limit], ids=lambda leave: leave.__name__)
def test_what_a_test_leaves_is_found(leave: Callable[[], Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing by itself fails the check; taken back within the block it does not."""
    monkeypatch.setattr(leftovers, "PATIENCE_S", 0.2)
    undo: list[Callable[[], object]] = []

    def left() -> None:
        with nothing_left():
            undo.append(leave())

    with pytest.raises(AssertionError):
        left()
    undo[0]()
    with nothing_left():
        leave()()


def test_the_stack_of_threads_to_come_is_put_back() -> None:
    """A load sets it for its whole process."""
    before = threading.stack_size()
    with nothing_left():
        threading.stack_size(1 << 20)
    assert threading.stack_size() == before


def test_each_file_of_exhaustion_is_checked() -> None:
    """A file of tests that imports a simulator of exhaustion, names all of them, or sees one give back in steps: checked by its name."""
    found = {
        path.name
        for folder in ("unit", "property", "death", "load", "ray")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        if any(word in path.read_text() for word in ("actors.exhaustion", "held.OBSERVERS", "from support.stairs"))
    }
    others = {"test_leftovers.py", "test_recorded_set.py", "test_disk_fill.py", "test_stairs.py"}  # which hold nothing themselves
    assert {name for name in found if not name.startswith(CHECKED)} - others == set()
    assert {"test_holder.py", "test_exhaustion_refusals.py", "test_exhaustion_disk_io.py", "test_exhaustion_death.py"} <= found
    assert {"test_exhaustion.py", "test_disk_io.py", "test_links.py", "test_release_steps.py"} <= found
    assert all(is_checked(ROOT / "tests" / name) for name in ("load/test_exhaustion.py", "ray/test_exhaustion_runs.py"))
    assert not is_checked(ROOT / "tests/ray/test_health.py")


def test_a_network_of_its_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test whose thread moved to another namespace would take all later ones along."""
    monkeypatch.setattr(leftovers, "PATIENCE_S", 0.2)

    def moved() -> None:
        with nothing_left():
            monkeypatch.setattr(os, "readlink", lambda path: "net:[1]" if "ns/net" in str(path) else "x")

    with pytest.raises(AssertionError, match="network"):
        moved()
