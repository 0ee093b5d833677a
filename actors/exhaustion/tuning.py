"""Every number of exhaustion that could be another: what a load assumes and does by itself, and the defaults of its options.

What a scenario may set is an option of the simulator (docs/reference/simulators.md): its range is stated there, its default here. Numbers
of the kernel's interface are no settings and stay where they are used.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """Defaults of `batch` (a few milliseconds of taking, since the lease is looked at after each) and of `spare`."""

    batch: int
    spare: int


PACES: Final[Mapping[str, Pace]] = {
    "Descriptors": Pace(2000, 16),
    "Mappings": Pace(1000, 128),
    "Sockets": Pace(500, 16),
    "Connections": Pace(100, 8),
    "Ports": Pace(200, 0),
    "Threads": Pace(100, 16),
    "Processes": Pace(8, 2),
    "Inodes": Pace(200, 16),
    "SharedMemory": Pace(100, 16),
    "Semaphores": Pace(200, 0),
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings. Seconds and bytes by their names.

    `look_s`: between two looks at the lease of a load that rests. `tick_s`: how often what was recorded is moved on.
    `own_descriptors`: what a load process needs beside what it holds; `headroom_bytes`: likewise of address space, the interpreter's
    arenas of 1 MiB in it. `connect_s`: for a handshake within one host, which takes
    microseconds. `accept_backlog`: of a listener that accepts after each connect. `forget_s`: how much a disk load owes at most.
    `rounding`: how much of one thing rounding may have taken of what is asked.

    Of connections with another node: `peer_backlog` of a listener that accepts at each look, `peer_strangers` that may stay who have not
    said the key, `peer_connect_s` for a handshake, `keepalive_s` of silence until the other end is asked whether it is there, and between
    two such questions, `keepalive_probes` without an answer until the connection ends (before a lease of the default length does),
    `settle_s` for the peer to close its ends.

    Reserved for each thing beside what is asked: `map_overhead_bytes` (what the kernel and this process keep of one map),
    `socket_overhead_bytes` (about what the kernel keeps of a socket without data), `segment_overhead_bytes` (inode and descriptor),
    `set_overhead_bytes` (a set of one semaphore: measured over 20,000 sets),
    `thread_overhead_bytes` (kernel stack, thread state of the interpreter, page tables), `child_bytes` (page tables, kernel stack and the
    pages that a child copies).

    Defaults of options: `paces` by simulator, `peer_port`, `retry_s`, `release_steps`, `release_interval_s`, `device`, `map_bytes`,
    `segment_bytes`, `stack_bytes`, `block_bytes`, `file_bytes`.
    """

    look_s: float = 0.05
    tick_s: float = 0.1
    own_descriptors: int = 64
    headroom_bytes: int = 4 * MIB
    connect_s: float = 1.0
    accept_backlog: int = 16
    peer_backlog: int = 4000
    peer_strangers: int = 64
    peer_connect_s: float = 0.25
    peer_port: int = 17_700
    keepalive_s: int = 1
    keepalive_probes: int = 2
    settle_s: float = 1.0
    forget_s: float = 1.0
    rounding: float = 1e-6
    map_overhead_bytes: int = 512
    socket_overhead_bytes: int = 4 * KIB
    segment_overhead_bytes: int = 2 * KIB
    set_overhead_bytes: int = 512
    thread_overhead_bytes: int = 48 * KIB
    child_bytes: int = MIB
    paces: Mapping[str, Pace] = field(default_factory=lambda: PACES)
    retry_s: float = 1.0
    release_steps: int = 1
    release_interval_s: float = 0.1
    device: str = os.devnull
    map_bytes: int = mmap.PAGESIZE
    segment_bytes: int = mmap.PAGESIZE
    stack_bytes: int = 64 * KIB
    block_bytes: int = 64 * KIB
    file_bytes: int = 32 * MIB


used = Tuning()
