"""One real load process without Ray on real pages, seen from outside. The test grants its lease, starts it and ends it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load_pages import PageGuardian
from support.waiting import until

from actors.carrier import LoadProcess
from actors.clock import SECOND_NS, SystemClock
from actors.dose import OutsideMeter
from actors.lease import LeaseWatch
from actors.lifecycle import Event
from actors.messages import Capacity, Operation, SlotTicket
from actors.metrics import Segment
from actors.metrics.segment import Cells

SLOT, GENERATION = 3, 7
CAPACITY = Capacity(cpu_cores=1.0, memory_bytes=1 << 30, disk_bytes=1 << 30)


class Bench:
    """One load, its pages and its outside meter."""

    def __init__(self, state_dir: Path, operation: Operation, capacity: Capacity, segment_path: str = "") -> None:
        self.guardian = PageGuardian()
        self.guardian.open_slot(SLOT, GENERATION)
        watch = LeaseWatch(self.guardian.control, self.guardian.stats, SLOT, GENERATION, SystemClock(), leave=lambda _: None)
        ticket = SlotTicket(SLOT, GENERATION, segment_path)
        fds = self.guardian.page_fds
        self.load = LoadProcess(operation, capacity, ticket, watch=watch, guardian=self.guardian, page_fds=fds, state_dir=state_dir)
        self.operation = operation

    def ready(self) -> None:
        self.load.start()
        until(lambda: self.load.poll() or self.stats.state >= 2, 60, lambda: f"{self.load.poll()} {self.stats}")
        assert self.load.poll() is None, self.load.poll()
        self.meter = OutsideMeter(self.operation, self.load.pids)
        self.meter.set_baseline()

    def go(self, lease_s: float = 30.0) -> int:
        self.guardian.grant(SLOT, GENERATION, lease_s)
        start_ns = self.guardian.start(SLOT)
        until(lambda: self.stats.first_slice_ns, 5, "the first slice")
        return start_ns

    def go_first(self) -> bool:
        """Let the load go before others of this machine, where that is allowed: for how it holds a level, not for who else is here."""
        (pid,) = self.load.pids
        try:
            os.setpriority(os.PRIO_PROCESS, pid, -20)
            group = Path(f"/proc/{pid}/autogroup")
            if group.exists():  # sessions share alike, whatever the priorities in them, where the kernel groups by session
                group.write_text("-20")
        except OSError:
            return False
        return True

    def end(self) -> tuple[Event, str]:
        return until(self.load.poll, 10, "the end of the load")

    @property
    def stats(self) -> Any:
        return self.guardian.stats.read(SLOT)

    def cores(self, over_s: float = 1.0) -> float:
        clock, pause = SystemClock(), threading.Event()
        before, then_ns = self.meter.read(), clock.boot_ns()
        pause.wait(over_s)
        after, now_ns = self.meter.read(), clock.boot_ns()
        assert before is not None
        assert after is not None
        return (after - before) / ((now_ns - then_ns) / SECOND_NS)

    def close(self) -> None:
        self.load.kill()
        self.load._reap()
        self.load.close()
        if hasattr(self, "meter"):
            self.meter.close()
        self.guardian.close()


class Told:
    """What a load recorded in its segment."""

    def __init__(self) -> None:
        self.segment = Segment.create()

    def cells(self, name: str, **labels: str) -> Cells | None:
        return next((self.segment.read(row) for row, _, series, given in self._rows() if (series, given) == (name, labels)), None)

    def last(self, name: str, **labels: str) -> float:
        found = self.cells(name, **labels)
        return -1.0 if found is None else found.last

    def sum(self, name: str) -> float:
        return next((self.segment.read(row).sum for row, _, series, _ in self._rows() if series == name), 0.0)

    def count(self, name: str) -> int:
        return next((self.segment.read(row).count for row, _, series, _ in self._rows() if series == name), 0)

    def _rows(self) -> Iterator[tuple[int, object, str, dict[str, str]]]:
        for row, kind, series, labels in self.segment.series():
            yield row, kind, series, dict(labels)

    def names(self) -> set[str]:
        return {series for row, _, series, _ in self._rows() if self.segment.read(row).count}

    def close(self) -> None:
        self.segment.close()
        del self.segment  # its map has a descriptor of its own, and ends with its last view
