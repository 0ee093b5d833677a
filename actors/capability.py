"""What this node can do: facts of kernel, control groups and privileges, and from them a verdict for each simulator.

Asks the kernel and changes nothing but one page of its own memory; a file without a name that it opens ends at once.
A verdict other than `available` has a reason in plain words.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from . import memory_group
from .exhaustion.place import open_nameless
from .kernels.table import missing_kernels
from .limits import PROC, Container, cpu_stalled_s, find_container, read_text
from .memory import MADV_POPULATE_WRITE
from .proc import cgroup_root
from .processor import read_processor
from .procfs import size_bytes
from .simulator import REGISTRY, Capability
from .stress_ng import tree as stress_ng

# Bits of CapEff: linux/capability.h
CAPABILITIES: Final[Mapping[str, int]] = {
    "CAP_KILL": 5,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
}
_LOCAL: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "bcachefs"})


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What `doctor` prints of a node, and what simulators judge by."""

    system: str
    kernel: str
    machine: str
    python: str
    euid: int
    capabilities: tuple[str, ...]
    nice: int
    nice_limit: int  # the lowest nice value that this process may take
    oom_score_adj: int
    cgroup: str  # "v2", "v1", "hybrid" or "none"
    cgroup_folder: str  # where operations get groups of their own; "" when none can be made
    cpu_cores: float
    cpu_quota: bool
    memory_limit_bytes: int
    memory_limited: bool
    swap_bytes: int
    populates_memory: bool
    has_numba: bool
    kernels_missing: Mapping[str, str]  # kernels of CpuLoad that this processor cannot run, and why
    has_cpu_pressure: bool
    has_memory_pressure: bool
    memory_group: int  # of which version operations get groups with a limit of memory; 0 where they get none
    has_pidfd: bool
    state_dir: str
    state_filesystem: str
    state_local: bool
    systemd: bool
    lists_children: bool
    makes_nameless: bool  # STATE's file system has files without a name (O_TMPFILE)
    direct_io: bool  # and direct access to them (O_DIRECT)
    stress_ng: str = ""  # its version, "" where it is not installed

    @property
    def may_raise_nice(self) -> bool:
        """Whether a load may run at nice 0 although Ray starts its workers at nice 15."""
        return "CAP_SYS_NICE" in self.capabilities or self.nice_limit <= 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {**asdict(self), "may_raise_nice": self.may_raise_nice}


def effective_capabilities(status: str) -> tuple[str, ...]:
    """Return the names of the effective capabilities that matter here, from /proc/self/status."""
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    bits = int(line.split()[1], 16)
    return tuple(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)


def cgroup_kind(mountinfo: str) -> str:
    """Return which control group trees are mounted."""
    kinds = {line.partition(" - ")[2].split(" ", 1)[0] for line in mountinfo.splitlines()}
    if {"cgroup", "cgroup2"} <= kinds:
        return "hybrid"
    return "v2" if "cgroup2" in kinds else "v1" if "cgroup" in kinds else "none"


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds a path: the longest mount point above it, the last one mounted there."""
    target, best, kind = os.path.realpath(path), "", "unknown"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].replace("\\040", " ")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, right.split(" ", 1)[0]
    return kind


def populates_memory() -> bool:
    """Tell whether the kernel has MADV_POPULATE_WRITE (since 5.14)."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        try:
            page.madvise(MADV_POPULATE_WRITE)
        except OSError:
            return False
    return True


def makes_nameless(folder: Path, flags: int = 0) -> bool:
    """Tell whether a file without a name can be opened in a folder with these flags."""
    try:
        os.close(open_nameless(folder, flags))
    except OSError:
        return False
    return True


def nice_limit(limits: str) -> int:
    """Return the lowest nice value allowed by RLIMIT_NICE (20 - soft limit), from /proc/self/limits."""
    line = next((line for line in limits.splitlines() if line.startswith("Max nice priority")), "")
    soft = line[len("Max nice priority") :].split()[:1]
    return 20 - int(soft[0]) if soft and soft[0].isdigit() else -20 if soft else 20


def _swap_bytes(proc: Path) -> int:
    return size_bytes(read_text(proc / "meminfo") or "", "SwapTotal") or 0


def read_facts(state_dir: Path, container: Container | None = None, proc: Path = PROC) -> NodeFacts:
    """Return what is so on this node now."""
    limits = container or find_container(proc)
    mounts = read_text(proc / "self/mountinfo") or ""
    filesystem = filesystem_of(state_dir, mounts)
    return NodeFacts(
        system=platform.system(),
        kernel=platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        euid=os.geteuid(),
        capabilities=effective_capabilities(read_text(proc / "self/status") or ""),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        nice_limit=nice_limit(read_text(proc / "self/limits") or ""),
        oom_score_adj=int(read_text(proc / "self/oom_score_adj") or 0),
        cgroup=cgroup_kind(mounts),
        cgroup_folder=cgroup_root(),
        cpu_cores=limits.cpu_cores,
        cpu_quota=limits.cpu_quota_cores is not None,
        memory_limit_bytes=limits.memory_limit_bytes,
        memory_limited=bool(limits.memory_levels),
        swap_bytes=_swap_bytes(proc),
        populates_memory=populates_memory(),
        has_numba=importlib.util.find_spec("numba") is not None,
        kernels_missing=missing_kernels(read_processor(proc)),
        has_cpu_pressure=cpu_stalled_s(proc) is not None,
        has_memory_pressure=(proc / "pressure/memory").exists(),
        memory_group=groups.version if (groups := memory_group.find(proc)) else 0,
        has_pidfd=hasattr(os, "pidfd_open") and sys.platform == "linux",
        state_dir=str(state_dir),
        state_filesystem=filesystem,
        state_local=filesystem in _LOCAL,
        systemd=Path("/run/systemd/system").is_dir(),
        lists_children=(proc / "self/task" / str(os.getpid()) / "children").exists(),
        makes_nameless=makes_nameless(state_dir),
        direct_io=makes_nameless(state_dir, os.O_DIRECT),
        stress_ng=stress_ng.version(stress_ng.find()) if stress_ng.find() else "",
    )


def common_obstacle(facts: NodeFacts) -> str:
    """Return why no simulator can run on a node, "" when nothing forbids them."""
    if facts.system != "Linux":
        return f"{facts.system} is not supported: leases and undo need Linux"
    if not facts.has_pidfd:
        return "the kernel has no pidfd (before 5.3), so a process cannot be ended without the risk of hitting another"
    return ""


def judge(facts: NodeFacts) -> dict[str, Capability]:
    """Return the verdict for each simulator of the registry."""
    obstacle = common_obstacle(facts)
    if obstacle:
        return {name: Capability("unavailable", obstacle) for name in REGISTRY}
    return {name: record.supported(facts) for name, record in REGISTRY.items()}
