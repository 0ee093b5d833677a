"""What a test leaves in its own process: descriptors, threads, children, map entries, and settings of the process, counted by /proc."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from . import held
from .waiting import until

# how files begin whose tests hold what the kernel counts
CHECKED = ("test_holder", "test_exhaustion", "test_disk_io", "test_release_steps", "test_links")
MAPS = 128  # entries by which the map of an interpreter moves by itself: arenas, stacks of ended threads that are kept for the next
PATIENCE_S = 5.0  # threads and children that were told to end take a moment


def is_checked(path: Path) -> bool:
    """Tell whether the tests of a file are followed by the check, wherever it lies: also those of load processes and of Ray."""
    return path.name.startswith(CHECKED)


def _things(known: frozenset[str] = frozenset()) -> dict[str, object]:
    """Return what has to be as it was, by name; of descriptors those that are not known: what others left may be closed meanwhile."""
    pid = os.getpid()
    return {
        "descriptors": set(_open(pid)) - known,
        "children": held.children(pid),
        "limit of descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
        "network": os.readlink("/proc/self/ns/net"),  # noqa: PTH115
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }


def _open(pid: int) -> Iterator[str]:
    """Give each descriptor that outlives a look at it, with what it leads to."""
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            yield f"{name} -> {os.readlink(f'/proc/{pid}/fd/{name}')}"  # noqa: PTH115


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail after the block unless all is as it was: no descriptor, thread, child or map more, no limit and no namespace changed.

    The stack size of threads to come, which a load sets for its whole process, is put back.
    """
    import actors.metrics  # noqa: F401  # what it loads is mapped once, and not in the first test that records

    stack = threading.stack_size()
    known = frozenset(_open(os.getpid()))
    before, maps, threads = _things(known), held.maps(os.getpid()), _thread._count()
    yield
    threading.stack_size(stack)
    if _things(known) != before:
        gc.collect()  # takes longer than most tests
    until(lambda: _things(known) == before, PATIENCE_S, lambda: f"left: {_differences(before, _things(known))}")
    # those of the interpreter: libraries have pools of their own, which begin and end as they like
    until(lambda: _thread._count() <= threads, PATIENCE_S, lambda: f"{_thread._count()} threads, before {threads}")
    assert held.maps(os.getpid()) <= maps + MAPS, f"{held.maps(os.getpid())} map entries, before {maps}"


def _differences(before: dict[str, object], now: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {name: (before[name], now[name]) for name in now if now[name] != before[name]}
