"""Load processes and fills of the hosts as seen from outside, many times a second: how long they lived, and what they used.

Nothing here asks the product: loads are processes in /proc, fills are blocks on disk, times are this process's own.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from host import Host
from support.observe import allocated_bytes, anonymous_bytes, boot_s, cpu_fine_s
from sweep import start_time

LOAD: Final = "actors.load"
CORES: Final = len(os.sched_getaffinity(0))
REST_S: Final = 0.06
LOOK_S: Final = 0.05  # between two looks, the kernel's ticks included
EDGE_S: Final = 1.3  # a window that the load did not live through is not measured


@dataclass(slots=True)
class Sight:
    """One load process as seen from outside; times in boot time."""

    host: str
    pid: int
    started: str  # start time: a pid may come back
    first_s: float
    last_s: float
    gone_s: float = 0.0  # the first look that did not see it; 0 while it lives
    samples: list[tuple[float, float]] = field(default_factory=list)  # (time, CPU seconds), at every look
    memory: list[tuple[float, int]] = field(default_factory=list)  # (time, anonymous bytes), a few times a second

    def cores(self, since_s: float, until_s: float) -> float:
        """Return the mean cores that it used between two times."""
        inside = [sample for sample in self.samples if since_s <= sample[0] <= until_s]
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) if len(inside) > 1 else 0.0

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    def begun(self, near_s: float, cores: float) -> tuple[float, float]:
        """Return between which two looks, near a time, it began to use so many cores; zeros if it did not.

        Begin is the last change from rest to work: it rests once it is ready, and what it spent before was its own start. Work is a
        tenth of a second (or, where the watch stood still, the span between two looks) with a third of that use.
        """
        found = (0.0, 0.0)
        near = [sample for sample in self.samples if near_s - 2.0 < sample[0] < near_s + 1.0]
        for at, (seen_s, used_s) in enumerate(near[:-1]):
            if seen_s > near_s + 0.1 and found[1]:
                break
            rested = [spent_s for earlier_s, spent_s in near[:at] if earlier_s <= seen_s - REST_S]
            inside = list(itertools.takewhile(lambda sample: sample[0] <= seen_s + 0.1, near[at:]))  # noqa: B023  # used at once
            window = inside if len(inside) > 1 else near[at : at + 2]
            works = window[-1][1] - used_s > cores * max(0.1, window[-1][0] - seen_s) / 3
            if rested and used_s - rested[-1] < 0.002 and works:
                found = next((one[0], two[0]) for one, two in itertools.pairwise(window) if two[1] - used_s > 0.001)
        return found

    def used_s(self, at_s: float) -> float:
        """Return the CPU seconds that it had spent at a time. Threads that end take theirs along, so the most that was seen counts."""
        return max((used_s for seen_s, used_s in self.samples if seen_s <= at_s), default=0.0)


class Watch:
    """Follows all load processes and fills of some hosts, many times a second, in a thread: `with Watch(hosts) as watch`."""

    def __init__(self, hosts: Sequence[Host], every_s: float = 0.02) -> None:
        self.hosts, self.every_s = hosts, every_s
        self.sights: dict[tuple[int, str], Sight] = {}  # by pid and start time
        self.fills: dict[str, tuple[float, float]] = {}  # by host when one was first and last seen
        self._young: dict[int, float] = {}
        self._known: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def of(self, host: Host) -> list[Sight]:
        """Return the loads seen on a host so far."""
        return [sight for sight in list(self.sights.values()) if sight.host == host.name]

    def loads(self, host: Host) -> list[int]:
        """Return the loads that live on a host now."""
        return [sight.pid for sight in self.of(host) if sight.alive]

    def loading(self, host: Host) -> bool:
        """Tell whether a host is under load now: its fill begins together with its load processes."""
        return bool(self.loads(host)) and bool(filled(host))

    def load_gone_s(self, host: Host) -> float:
        """Return when load was last seen on a host; 0 if never."""
        return max((sight.last_s for sight in self.of(host)), default=0.0)

    def gone_s(self, host: Host) -> float:
        """Return when load or fill was last seen on a host; 0 if never."""
        return max(self.load_gone_s(host), self.fills.get(host.name, (0.0, 0.0))[1])

    def quiet(self, host: Host) -> bool:
        """Tell whether neither load nor fill is on a host now."""
        return not self.loads(host) and not filled(host)

    def forget(self) -> None:
        """Start afresh with what is there from now on."""
        self.sights = {key: sight for key, sight in self.sights.items() if sight.alive}
        self.fills.clear()

    def _loop(self) -> None:
        next_memory_s = 0.0
        while not self._end.wait(self.every_s):
            now_s = boot_s()
            self._find_new(now_s)
            for sight in list(self.sights.values()):
                if sight.gone_s:
                    continue
                if sight.alive:
                    used_s = cpu_fine_s(sight.pid)
                    if sight.alive:  # or its threads were gone already
                        sight.samples.append((boot_s(), used_s))
                    sight.last_s = boot_s()
                    if now_s > next_memory_s:
                        sight.memory.append((now_s, anonymous_bytes(sight.pid)))
                else:
                    sight.gone_s = boot_s()
            next_memory_s = now_s + 0.2 if now_s > next_memory_s else next_memory_s
            for host in self.hosts:
                if filled(host):
                    self.fills[host.name] = (self.fills.get(host.name, (now_s, 0.0))[0], boot_s())

    def _find_new(self, now_s: float) -> None:
        """Look at each process while it is young: its command line becomes its own only at exec."""
        present = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208  # many times a second
        for pid in present - self._known:
            self._young.setdefault(pid, now_s)
        self._known = present
        for pid, born_s in list(self._young.items()):
            if pid not in present or now_s - born_s > 3.0:
                del self._young[pid]
            elif _is_load(pid) and (host := self._host_of(pid)):
                del self._young[pid]
                self.sights[pid, start_time(pid)] = Sight(host, pid, start_time(pid), now_s, now_s)

    def _host_of(self, pid: int) -> str:
        for host in self.hosts:
            with contextlib.suppress(OSError):  # gone
                if os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{host.init_pid}/ns/net"):  # noqa: PTH115  # often
                    return host.name
        return ""


def begun(watch: Watch, host: Host, cores: float) -> tuple[float, float]:
    """Return between which two looks a host's CPU load began; zeros where none was seen to.

    That load is the one that works most from then on: another one, memory's, only rests and works while it gets ready.
    """
    near_s = watch.fills[host.name][0]
    busiest = max(watch.of(host), key=lambda sight: sight.used_s(math.inf) - sight.used_s(near_s), default=None)
    return busiest.begun(near_s, cores) if busiest else (0.0, 0.0)


def skew_ms(begins: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the least and the most that may lie between the earliest and the latest begin, each known within two looks."""
    lows, highs = [low for low, _ in begins], [high for _, high in begins]
    return max(0.0, max(lows) - min(highs)) * 1e3, (max(highs) - min(lows)) * 1e3


def assert_counted(data: Any, watch: Watch, hosts: Sequence[Host], cores: float) -> None:
    """Assert that the recorded CPU time of each host's load is what was seen in /proc over the same span, within 3 %.

    The windows follow each other without a hole, from the one in which the load began to the last whole one of its life.
    """
    wall_s = time.time() - boot_s()
    for host in hosts:
        (rested_s, begun_s), ended_s = begun(watch, host, cores), watch.load_gone_s(host)
        assert begun_s, f"no load was seen to begin on {host.name}"
        windows = [(at_s - wall_s, length_s, core_s) for at_s, length_s, core_s in recorded_core_s(data, host.name)]
        ends = [at_s + length_s for at_s, length_s, _ in windows]
        assert windows, f"no dose of {host.name} was recorded"
        assert all(abs(after[0] - end_s) < 0.5 for end_s, after in zip(ends, windows[1:], strict=False)), (
            f"{host.name}: a hole in {windows}"
        )
        assert windows[0][0] <= begun_s + LOOK_S, f"{host.name} began at {begun_s:.2f}, its first window is {windows[0]}"
        assert ends[-1] >= ended_s - EDGE_S, f"{host.name} ended at {ended_s:.2f}, its last window ended at {ends[-1]:.2f}"
        recorded = sum(core_s for _, _, core_s in windows)
        from_s = max(windows[0][0], rested_s)  # what it spent on getting ready in the same window is no dose
        seen = max(sight.used_s(ends[-1]) - sight.used_s(from_s) for sight in watch.of(host))
        told = f"recorded {recorded:.2f} core s, seen {seen:.2f}; by window {[round(core_s, 2) for _, _, core_s in windows]}"
        assert abs(recorded - seen) < 0.03 * seen + 0.05, f"{host.name}: {told}"


def recorded_core_s(data: Any, node: str) -> list[tuple[float, float, float]]:
    """Return each window of a node's CPU load: start, length, and core seconds, which are its mean share times its length."""
    rows = data.metrics.select(["time", "metric", "node", "worker", "window_s", "sum", "count"]).to_pylist()
    wanted = [row for row in rows if row["metric"] == "dose.achieved" and row["node"] == node and "CpuLoad" in row["worker"]]
    made = ((row["time"].timestamp(), row["window_s"], row["sum"] / row["count"] * CORES * row["window_s"]) for row in wanted)
    return sorted(made)


def _is_load(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return LOAD.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def filled(host: Host) -> int:
    """Return the bytes that fills occupy in a host's STATE."""
    folder = host.state / "fill"
    return sum(allocated_bytes(path) for path in folder.iterdir()) if folder.is_dir() else 0
