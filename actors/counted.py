"""How many descriptors, tasks, inodes, map entries and ports a process or a node may have: the tightest of what limits them.

Reads /proc, rlimits and control groups; changes nothing. A limit that the kernel does not state does not count.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .limits import PROC, chain, read_integer, read_text
from .procfs import port_range

PORT_RANGE: Final = "sys/net/ipv4/ip_local_port_range"  # under /proc
LARGEST: Final = 1 << 53  # what has no limit counts as this: a float still holds it exactly


def _tightest(limits: Iterable[int | None]) -> int:
    return min((limit for limit in limits if limit is not None and limit >= 0), default=LARGEST)


def _rlimit(which: int) -> int | None:
    """Return the hard limit, which a load may raise its soft one to; None for infinity."""
    _, hard = resource.getrlimit(which)
    return None if hard == resource.RLIM_INFINITY else hard


def descriptors(proc: Path = PROC) -> int:
    """Return how many file descriptors one process may open."""
    return _tightest([_rlimit(resource.RLIMIT_NOFILE), read_integer(proc / "sys/fs/file-max")])


def tasks(proc: Path = PROC) -> int:
    """Return how many processes and threads there may be: of this user, in this control group, on this machine."""
    cgroup, mounts = read_text(proc / "self/cgroup") or "", read_text(proc / "self/mountinfo") or ""
    groups = [read_integer(group / "pids.max") for version in ("", "pids") for group in chain(version, cgroup, mounts)]
    kernel = [read_integer(proc / "sys/kernel" / name) for name in ("threads-max", "pid_max")]
    user = _rlimit(resource.RLIMIT_NPROC) if os.geteuid() else None  # root is not held to it
    return _tightest([*groups, *kernel, user])


def locks(proc: Path = PROC) -> int:
    """Return how many locks loads may have: one for each task that there may be, for the kernel itself sets no bound to them."""
    return tasks(proc)


def mappings(proc: Path = PROC) -> int:
    """Return how many map entries one process may have."""
    return _tightest([read_integer(proc / "sys/vm/max_map_count")])


def ports(proc: Path = PROC) -> int:
    """Return how many local ports the kernel gives to connections by itself."""
    try:
        first, last = port_range((proc / PORT_RANGE).read_text())
    except (OSError, ValueError):
        return 0
    return last - first + 1


def inodes(path: Path) -> int:
    """Return how many files the file system that holds an existing path may have; some (btrfs) state none."""
    return os.statvfs(path).f_files or LARGEST
