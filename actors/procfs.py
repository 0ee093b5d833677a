"""The forms of /proc that several parts read: sizes in kB, a process's stat, the port range. Pure; standard library only.

What a node may use is in `limits` and `counted`, how it stands in `host`, its processes in `proc` and `session`: all of them read by this
one, so that a field is found by one rule. Source of the fields: man 5 proc.
"""

from __future__ import annotations

import os
from typing import Final

USER_HZ: Final = os.sysconf("SC_CLK_TCK")  # clock ticks a second: the unit of CPU times and start times in stat


def size_bytes(text: str, key: str) -> int | None:
    """Return a line `key:  N kB` of /proc/meminfo or of a process's status or smaps in bytes; None where the kernel does not have it."""
    start = f"{key}:"
    for line in text.splitlines():
        if line.startswith(start):
            return int(line.split()[1]) * 1024
    return None


def split_stat(text: str) -> tuple[int, str, list[str]]:
    """Return a process's pid, its command, and the fields behind it (field 3, its state, is the first) from its stat.

    The command may hold blanks and parentheses. Raises `ValueError` for what is no stat.
    """
    head, _, tail = text.rpartition(")")
    pid, _, command = head.partition(" (")
    return int(pid), command, tail.split()


def major_faults(text: str) -> int:
    """Return the major page faults of a process so far from its stat. Raises `ValueError` or `IndexError` for what is none."""
    return int(split_stat(text)[2][9])


def port_range(text: str) -> tuple[int, int]:
    """Return the first and the last port of ip_local_port_range. Raises `ValueError` for what is none."""
    first, last = text.split()
    return int(first), int(last)
