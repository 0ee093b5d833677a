"""What all loads of a machine use of its processors, whoever's they are, seen from outside: what is left of the busy time is others'.

A load is its whole tree. Where the guardian gave it a control group of its own, that group counts it, children that ended included; else
its session does. What Ray's own workers do for a load is others' work, here as for the load that fills up beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors import proc, session
from actors.clock import SECOND_NS
from actors.control import LOAD_RUNNING, SLOTS, StatsPage
from actors.dose import ProcessFiles
from actors.host import usage_seconds

_TICK_S: Final = 0.01  # of the clock that sessions are counted by


@dataclass(slots=True)
class _Load:
    """One load process and its control group, None where it has none of its own."""

    files: ProcessFiles
    group: Path | None
    had_children: bool = False


class LoadsCpu:
    """Reads the loads of all slots that run. Used by one thread at a time."""

    def __init__(self, stats: StatsPage) -> None:
        self._stats = stats
        self._loads: dict[int, _Load] = {}

    def read(self) -> dict[tuple[int, int], float]:
        """Return the CPU seconds so far of every load that runs, by slot and process."""
        self._follow()
        alone = [one.files.pid for one in self._loads.values() if one.group is None]
        trees = session.by_session(alone) if alone else {}
        found = {}
        for slot, load in self._loads.items():
            used_s = _group_seconds(load) if load.group is not None else _session_seconds(load, trees.get(load.files.pid, []))
            if used_s is not None:
                found[slot, load.files.pid] = used_s
        return found

    def _follow(self) -> None:
        """Open what is new, and let go of what a slot no longer runs."""
        now = dict(self._running())
        for slot in [slot for slot, load in self._loads.items() if now.get(slot) != load.files.pid]:
            self._loads.pop(slot).files.close()
        for slot, pid in now.items():
            if slot not in self._loads:
                self._loads[slot] = _Load(ProcessFiles(pid), _own_group(pid, f"{slot}-{self._stats.read(slot).generation}"))

    def _running(self) -> Iterator[tuple[int, int]]:
        for slot in range(SLOTS):
            load = self._stats.read(slot)
            if load.state == LOAD_RUNNING and load.pid:
                yield slot, load.pid


def _own_group(pid: int, name: str) -> Path | None:
    """Return the group that the guardian made for a slot, where the process is in it and it counts."""
    path = proc.cgroup_path(pid)
    return Path(path) if path and Path(path).name == name and Path(path, "cpu.stat").exists() else None


def _group_seconds(load: _Load) -> float | None:
    assert load.group is not None
    if load.files.cpu_ns() is None:
        return None
    with suppress(OSError, ValueError):  # the group goes with its load
        return usage_seconds((load.group / "cpu.stat").read_text())
    return None


def _session_seconds(load: _Load, tree: list[session.Member]) -> float | None:
    """Return the time of a session: to the nanosecond while the load is alone in it, in ticks of the clock once it has had children."""
    used_ns = load.files.cpu_ns()
    if used_ns is None:
        return None
    counted_s = session.cpu_seconds(tree)
    load.had_children = load.had_children or len(tree) > 1 or counted_s > used_ns / SECOND_NS + 5 * _TICK_S
    return counted_s if load.had_children else used_ns / SECOND_NS
