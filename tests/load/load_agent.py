"""As much of an agent as a simulator's shell needs, against the real guardian."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.waiting import until

from actors import memory_group
from actors.capacity import read_capacity
from actors.clock import SECOND_NS, SystemClock
from actors.disk import fill_paths
from actors.dose import OutsideMeter
from actors.guardian.client import GuardianClient
from actors.messages import Capacity, Operation, SlotTicket
from actors.shell import SimulatorShell
from actors.simulator import memory_limit_bytes, peak_amounts


class Agent:
    """As much of an agent as a simulator needs: opens slots, renews leases, says when to start."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.me = {"cluster": "c", "node": "n1", "epoch": 1, "incarnation": 1}
        self.client = GuardianClient.connect(state_dir, role="agent", code_id="test", watch=[os.getpid()], **self.me)
        self.capacity = replace(read_capacity(state_dir), cpu_cores=1.0)
        self.leases: dict[tuple[int, int], float] = {}
        self.shells: list[SimulatorShell] = []
        self.tickets: list[SlotTicket] = []
        self.ended: list[str] = []
        self.stopping = threading.Event()
        self.renewer = threading.Thread(target=self.renew, daemon=True)
        self.renewer.start()

    def renew(self) -> None:
        while not self.stopping.wait(0.2):
            now_ns = SystemClock().boot_ns()
            leases = [[*key, now_ns + round(lease_s * SECOND_NS)] for key, lease_s in list(self.leases.items())]
            if leases:
                self.client.call("grant", **self.me, leases=leases, halt={"generation": 0, "on": False})

    def shell(self, operation: Operation, release_s: float = 0.2, limit_bytes: int | None = None, segment_path: str = "") -> SimulatorShell:
        amounts = peak_amounts(operation, self.capacity)
        whole = Capacity(8.0, 1 << 34, 1 << 34)
        slot = self.client.call(
            "open_slot",
            **self.me,
            run="run",
            operation=operation.id,
            amounts={"cpu_cores": amounts.cpu_cores, "memory_bytes": amounts.memory_bytes, "disk_bytes": amounts.disk_bytes},
            machine_limits={"cpu_cores": whole.cpu_cores, "memory_bytes": whole.memory_bytes, "disk_bytes": whole.disk_bytes},
            release_s=release_s,
            sharers=1,
            memory_limit_bytes=memory_limit_bytes(operation) if limit_bytes is None else limit_bytes,
        )
        self.ticket = SlotTicket(slot["slot"], slot["generation"], segment_path)
        self.tickets.append(self.ticket)
        on_end = lambda: self.ended.append(operation.id)
        self.shells.append(SimulatorShell(operation, self.capacity, self.ticket, str(self.state_dir), on_end=on_end))
        return self.shells[-1]

    def run(
        self, operation: Operation, limit_bytes: int | None = None, segment_path: str = "", *, until_it_runs: bool = True
    ) -> SimulatorShell:
        shell = self.shell(operation, limit_bytes=limit_bytes, segment_path=segment_path)
        assert shell.prepare().phase in {"preparing", "ready"}
        self.leases[self.key] = 2.0
        until(lambda: shell.status().phase == "ready", 60, lambda: str(shell.status()))
        self.start()
        if until_it_runs:
            until(lambda: shell.status().phase == "running", 10, lambda: str(shell.status()))
        return shell

    def start(self) -> None:
        start_ns = SystemClock().boot_ns() + SECOND_NS // 10
        self.client.call("start", slot=self.ticket.slot, generation=self.ticket.generation, start_ns=start_ns)

    @property
    def groups(self) -> list[Path]:
        """The control groups of the last slot: its container first, and the one with the limit of memory."""
        slot = next(one for one in self.client.call("status")["slots"] if (one["slot"], one["generation"]) == self.key)
        return [Path(path) for path in memory_group.of({"path": slot["container"], "memory_group": slot["memory_group"]})]

    @property
    def key(self) -> tuple[int, int]:
        return (self.ticket.slot, self.ticket.generation)

    def files(self, operation: Operation) -> tuple[Path, ...]:
        return fill_paths(operation, self.ticket, self.state_dir, self.client.hello["guardian_id"])

    def meter(self, operation: Operation, shell: SimulatorShell) -> OutsideMeter:
        paths = () if shell.status().pids else self.files(operation)
        return OutsideMeter(operation, shell.status().pids, paths=paths)

    def close_slot(self) -> dict[str, Any]:
        self.leases.pop(self.key, None)
        return self.client.call("close_slot", slot=self.ticket.slot, generation=self.ticket.generation, grace_s=1.0)

    def close(self) -> None:
        self.stopping.set()
        self.renewer.join()
        for shell in self.shells:
            shell.stop(0.2)
        for ticket in self.tickets:
            self.client.call("close_slot", slot=ticket.slot, generation=ticket.generation, grace_s=0)
        status = until(lambda: not (now := self.client.call("status"))["slots"] and now, 10, "every slot free")
        assert status["records"] == []
        self.client.close()
        for pid in (status["standby_pid"], status["pid"]):  # rather than wait for them to go by themselves
            os.kill(pid, signal.SIGKILL)
