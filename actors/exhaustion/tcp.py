"""TCP as the kernel tells of it: the states of ends in /proc/net/tcp, and an end that closes by a reset. Pure.

States: include/net/tcp_states.h. Fields: man 5 proc_pid_net.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Final

TIME_WAIT: Final = "06"
FIN_WAIT: Final = ("04", "05")  # closed here, not yet by the peer
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s


def count_states(table: str, ports: Collection[int], states: Collection[str]) -> int:
    """Return how many rows of /proc/net/tcp are in one of these states and have one of these ports, local or remote."""
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(row[3] in states and not {int(row[1][-4:], 16), int(row[2][-4:], 16)}.isdisjoint(ports) for row in rows if len(row) > 3)


def count_time_wait(table: str, port: int) -> int:
    """Return how many rows of /proc/net/tcp are in TIME_WAIT with this local or remote port."""
    return count_states(table, (port,), (TIME_WAIT,))
