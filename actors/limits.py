"""What a node may use: cores, bytes of memory and disk. A container's limits are the denominators, not the machine.

Reads cgroup v1, v2 and hybrid trees from the process's own group up to the root of the mounted hierarchy; the tightest
level counts. Never writes anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .procfs import size_bytes

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One control group that limits memory, with the files that say how much of it is used."""

    limit_bytes: int
    usage: Path
    stat: Path


@dataclass(frozen=True, slots=True)
class Container:
    """The limits that this process lives under. `cpu_usage` is the usage file of the group with the quota, if there is one."""

    cpus: frozenset[int]
    cpu_quota_cores: float | None
    cpu_usage: Path | None
    memory_total_bytes: int
    memory_levels: tuple[MemoryLevel, ...]

    @property
    def cpu_cores(self) -> float:
        """Return the cores that may be used at once: the affinity, or the quota when it is smaller."""
        allowed = float(len(self.cpus))
        return allowed if self.cpu_quota_cores is None else min(allowed, self.cpu_quota_cores)

    @property
    def memory_limit_bytes(self) -> int:
        """Return the bytes of memory that may be used: the machine's, or the tightest group's."""
        return min([self.memory_total_bytes, *(level.limit_bytes for level in self.memory_levels)])


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted control group tree: version 2, or the version 1 controllers in it."""

    controllers: frozenset[str]  # empty for version 2
    root: str
    mount: Path


def read_text(path: Path) -> str | None:
    """Return a small file's text, or None when it is absent or unreadable: controllers differ between machines."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def read_integer(path: Path) -> int | None:
    """Return the number that a file holds, or None when it is absent or holds a word such as `max`."""
    text = (read_text(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def hierarchies(mountinfo: str) -> tuple[Hierarchy, ...]:
    """Return the mounted control group trees. Fields: man 5 proc_pid_mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if len(fields) < 5 or not source:
            continue
        if source[0] == "cgroup2":
            found.append(Hierarchy(frozenset(), fields[3], Path(fields[4])))
        elif source[0] == "cgroup" and len(source) > 2:
            found.append(Hierarchy(frozenset(source[2].split(",")), fields[3], Path(fields[4])))
    return tuple(found)


def own_groups(cgroup: str) -> dict[str, str]:
    """Return the group's path by controller from /proc/self/cgroup; the key of version 2 is ""."""
    rows = (line.split(":", 2) for line in cgroup.splitlines() if line.count(":") >= 2)
    return {controller: path for _, controllers, path in rows for controller in controllers.split(",")}


def chain(controller: str, cgroup: str, mountinfo: str) -> tuple[Path, ...]:
    """Return a controller's group folders from our own up to the mounted root; () where the controller is not mounted.

    `controller` "" means version 2. In a container whose path is not visible the mounted root is what limits us.
    """
    path = own_groups(cgroup).get(controller)
    tree = next((h for h in hierarchies(mountinfo) if (controller in h.controllers if controller else not h.controllers)), None)
    if path is None or tree is None:
        return ()
    inside = path[len(tree.root) :] if tree.root != "/" and path.startswith(tree.root) else path
    own = tree.mount / inside.strip("/")
    if ".." in own.parts or not own.is_dir():
        return (tree.mount,)
    return tuple(_upwards(own, tree.mount))


def _upwards(own: Path, root: Path) -> Iterator[Path]:
    while own != root:
        yield own
        own = own.parent
    yield root


def quota_cores(group: Path) -> float | None:
    """Return a group's CPU quota in cores, or None when it has none. Version 2: cpu.max; version 1: cpu.cfs_quota_us."""
    words = (read_text(group / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    quota, period = read_integer(group / "cpu.cfs_quota_us"), read_integer(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _cpu_limit(proc: Path) -> tuple[float | None, Path | None]:
    """Return the tightest quota in cores and the file that counts the CPU time used under it."""
    cgroup, mounts = read_text(proc / "self/cgroup") or "", read_text(proc / "self/mountinfo") or ""
    usage = {"": chain("", cgroup, mounts), "cpu": chain("cpuacct", cgroup, mounts)}
    limits = [
        (quota, level, version)
        for version in ("", "cpu")
        for level, group in enumerate(chain(version, cgroup, mounts))
        if (quota := quota_cores(group))
    ]
    if not limits:
        return None, None
    quota, level, version = min(limits)
    groups = usage[version]
    file = groups[min(level, len(groups) - 1)] / ("cpuacct.usage" if version else "cpu.stat") if groups else None
    return quota, file if file and file.exists() else None


def _memory_levels(proc: Path, total_bytes: int) -> tuple[MemoryLevel, ...]:
    cgroup, mounts = read_text(proc / "self/cgroup") or "", read_text(proc / "self/mountinfo") or ""
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    levels = []
    for version, (limit_name, usage_name) in names.items():
        for group in chain(version, cgroup, mounts):
            limit = read_integer(group / limit_name)
            if limit is not None and 0 < limit < total_bytes:
                levels.append(MemoryLevel(limit, group / usage_name, group / "memory.stat"))
    return tuple(levels)


def memory_total_bytes(proc: Path = PROC) -> int:
    """Return the machine's memory in bytes."""
    found = size_bytes(read_text(proc / "meminfo") or "", "MemTotal")
    return found if found is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def find_container(proc: Path = PROC) -> Container:
    """Return the limits that this process lives under; without any, those of the machine."""
    total = memory_total_bytes(proc)
    quota, usage = _cpu_limit(proc)
    return Container(frozenset(os.sched_getaffinity(0)), quota, usage, total, _memory_levels(proc, total))


def cpu_stalled_s(proc: Path = PROC) -> float | None:
    """Return the seconds for which some process has waited for a CPU since boot (PSI, `some`); None where the kernel does not tell.

    Source: Documentation/accounting/psi.rst of the kernel.
    """
    return _stalled_s(proc / "pressure/cpu")


def memory_stalled_s(group: Path) -> float | None:
    """Return the seconds for which some process of a version 2 group has waited for memory so far; None where the kernel does not tell."""
    return _stalled_s(group / "memory.pressure")


def _stalled_s(file: Path) -> float | None:
    line = next((line for line in (read_text(file) or "").splitlines() if line.startswith("some ")), "")
    total = line.rpartition("total=")[2]
    return int(total) / 1e6 if total.isdigit() else None
