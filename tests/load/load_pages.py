"""The smallest thing a load needs of a guardian: real pages, leases set by the test, a gate that opens on `register`."""

from __future__ import annotations

import os
from typing import Any

from actors import control
from actors.clock import SECOND_NS, SystemClock
from actors.control import ControlWriter, StatsPage


class PageGuardian:
    """Pages as the guardian makes them; `call` answers what a carrier asks. Holds no process and kills none."""

    def __init__(self) -> None:
        self.control, control_fd = ControlWriter.create()
        self.stats, stats_fd = StatsPage.create()
        self.page_fds = (control_fd, stats_fd)
        self.clock = SystemClock()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def open_slot(self, slot: int, generation: int) -> None:
        self.control.reset_slot(slot, generation, epoch=1, sharers=1)

    def grant(self, slot: int, generation: int, lease_s: float) -> None:
        self.control.write_lease(slot, generation, self.clock.boot_ns() + round(lease_s * SECOND_NS))

    def start(self, slot: int, in_s: float = 0.05) -> int:
        start_ns = self.clock.boot_ns() + round(in_s * SECOND_NS)
        self.control.write(slot, control.START, start_ns)
        return start_ns

    def call(self, op: str, *, timeout_s: float = 1.0, **fields: Any) -> dict[str, Any]:
        self.calls.append((op, fields))
        if op == "register":
            self.control.write(fields["slot"], control.GATE, fields["generation"])
        if op == "stop":
            self.control.write_stop(fields["slot"], fields["generation"], control.STOP_DRAIN)
        return {}

    def close(self) -> None:
        for fd in self.page_fds:
            os.close(fd)
        self.control.close()
        self.stats.close()
