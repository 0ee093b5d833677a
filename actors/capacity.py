"""What a node has to give: its share of its machine, with the container's limits as denominators."""

from __future__ import annotations

import os
from pathlib import Path

from . import counted
from .limits import Container, find_container
from .messages import Capacity
from .raylet import read_store


def read_capacity(disk_path: Path, sharers: int = 1, container: Container | None = None) -> Capacity:
    """Return this node's share of its machine: the container's limits divided by the raylets that share them.

    `disk_path`, or its nearest existing parent, lies on the file system that counts (STATE, or where a disk fill goes).
    """
    assert sharers >= 1, f"a machine is shared by at least one raylet, got {sharers}"
    limits = container or find_container()
    while not disk_path.exists() and disk_path != disk_path.parent:
        disk_path = disk_path.parent
    disk = os.statvfs(disk_path)
    whole = Capacity(
        cpu_cores=limits.cpu_cores,
        memory_bytes=limits.memory_limit_bytes,
        disk_bytes=disk.f_blocks * disk.f_frsize,
        descriptors=counted.descriptors(),
        tasks=counted.tasks(),
        inodes=counted.inodes(disk_path),
        mappings=counted.mappings(),
        ports=counted.ports(),
        locks=counted.locks(),
        object_store_bytes=store.size_bytes if (store := read_store(os.getppid())) is not None else 0,
    )
    return whole.shared(sharers)
