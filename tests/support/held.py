"""What a process holds, counted from outside by /proc and extended attributes. Uses none of the product's code."""

# ruff: noqa: PTH208, PTH115, PTH123

from __future__ import annotations

import contextlib
import gc
import os
import resource
import subprocess
from collections.abc import Callable, Iterator


def descriptors(pid: int) -> int:
    """Return how many descriptors are open; 0 when it is gone."""
    return len(_list(f"/proc/{pid}/fd"))


def own_descriptors() -> list[str]:
    """Return which descriptors this process has, without those of garbage: what earlier tests left would close them at any moment."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def maps(pid: int) -> int:
    """Return how many lines its memory map has; 0 when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        return sum(1 for _ in file)
    return 0


def maps_of(pid: int, name: str) -> int:
    """Return how many of its maps are of a file of this name; 0 when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        return sum(line.rstrip().endswith(name) for line in file)
    return 0


def links_to(pid: int, target: str) -> int:
    """Return how many of its descriptors lead to a file."""
    return sum(found == target for found in _targets(pid))


def threads(pid: int) -> int:
    """Return the kernel's own count of its threads (status); 0 when it is gone."""
    return int(status(pid).get("Threads", "0"))


def children(pid: int) -> list[int]:
    """Return the processes whose parent it is, zombies included, from every process's stat."""
    return [one for one, parent, _ in _stats() if parent == pid]


def living(pid: int) -> int:
    """Return how many of its children live."""
    return sum(1 for _, parent, state in _stats() if parent == pid and state not in "ZX")


def zombies(pid: int) -> int:
    """Return how many of its children are dead and not waited for."""
    return sum(1 for _, parent, state in _stats() if parent == pid and state in "ZX")


def sockets(pid: int, protocol: str) -> int:
    """Return how many of its sockets are of a protocol, by the name that the kernel gives each ("TCP", "UDP")."""
    found = 0
    for name in _list(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # no socket, or closed meanwhile
            found += os.getxattr(f"/proc/{pid}/fd/{name}", "system.sockprotoname").rstrip(b"\0") == protocol.encode()
    return found


def established(pid: int) -> int:
    """Return how many established connections have both ends among its sockets."""
    ours = _inodes(pid)
    return sum(state == "01" and inode in ours for state, inode, _ in _table(pid)) // 2


def time_wait(pid: int, port: int) -> int:
    """Return how many ends of a port are in TIME_WAIT in the network namespace of a process."""
    return sum(state == "06" and port in ports for state, _, ports in _table(pid))


def nameless(pid: int) -> int:
    """Return how many files without a name it has open."""
    return sum(target.endswith(" (deleted)") and target.startswith("/") and not target.startswith("/memfd:") for target in _targets(pid))


def segments(pid: int) -> int:
    """Return how many shared segments (memfd) it has open."""
    return sum(target.startswith("/memfd:") for target in _targets(pid))


def semaphore_sets(pid: int) -> int:
    """Return how many semaphore sets its IPC namespace has, as a command that enters it sees; 0 when it is gone."""
    table = subprocess.run(["nsenter", "--ipc", f"--target={pid}", "cat", "/proc/sysvipc/sem"], capture_output=True, check=False).stdout
    return max(0, table.count(b"\n") - 1)


def io_bytes(pid: int) -> int:
    """Return the bytes that it read from storage and wrote to it."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        rows = dict(line.strip().split(": ") for line in file)
    return int(rows["read_bytes"]) + int(rows["write_bytes"])


def status(pid: int) -> dict[str, str]:
    """Return its /proc status by field; empty when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    return {}


def started_ticks(pid: int) -> str:
    """Return when it began, in the kernel's ticks, which no later process of its number shares; "" when it is gone, zombie and all."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


def resident_bytes(pid: int) -> int:
    """Return its resident bytes of all kinds."""
    return int(status(pid).get("VmRSS", "0 kB").split()[0]) * 1024


def mapped_bytes(pid: int) -> int:
    """Return its mapped bytes of all kinds, which RLIMIT_AS bounds."""
    return int(status(pid).get("VmSize", "0 kB").split()[0]) * 1024


def highest_descriptor(pid: int) -> int:
    """Return how many numbers its descriptors take, which RLIMIT_NOFILE bounds; 0 when it is gone."""
    return max((int(name) + 1 for name in _list(f"/proc/{pid}/fd")), default=0)


def soft_descriptors(pid: int) -> tuple[int, int]:
    """Return its soft and hard limit of descriptors."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


OBSERVERS: dict[str, Callable[[int], int]] = {
    "Descriptors": descriptors,
    "Mappings": maps,
    "Sockets": lambda pid: sockets(pid, "TCP"),
    "Connections": established,
    "Ports": lambda pid: sockets(pid, "TCP"),
    "Threads": threads,
    "Processes": living,
    "Inodes": nameless,
    "SharedMemory": segments,
    "Semaphores": semaphore_sets,
}


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _targets(pid: int) -> Iterator[str]:
    for name in _list(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            yield os.readlink(f"/proc/{pid}/fd/{name}")


def _inodes(pid: int) -> set[str]:
    return {target[8:-1] for target in _targets(pid) if target.startswith("socket:[")}


def _table(pid: int) -> list[tuple[str, str, tuple[int, int]]]:
    """Return (state, inode, (local port, remote port)) of each TCP socket in its network namespace that has an address."""
    try:
        with open(f"/proc/{pid}/net/tcp", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return []
    return [(row[3], row[9], (int(row[1][-4:], 16), int(row[2][-4:], 16))) for row in rows]


def _stats() -> Iterator[tuple[int, int, str]]:
    for name in _list("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
                yield int(name), int(fields[1]), fields[0]
