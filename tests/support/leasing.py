"""As much of an agent as simulators on real Ray need: opens slots at a real guardian, renews leases, says when to start."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.capacity import read_capacity
from actors.clock import SECOND_NS, SystemClock
from actors.guardian.client import GuardianClient
from actors.messages import Operation, SimulatorStatus, SlotTicket
from actors.metrics import Segment
from actors.origin import code_id
from actors.proc import read_stat
from actors.ray_loads.ray_load import Processes, mark_of
from actors.ray_loads.ray_work import MARK
from actors.simulator import peak_amounts
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, Outbox, parse

from .waiting import until


def marked() -> list[int]:
    """Return all processes that this session's Ray started for a flood, whosever they are by now."""
    found, session = [], os.environ["STRESS_CLUSTER_STATE_DIR"].encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes()
            if MARK.encode() in environ and session in environ:
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@dataclass(slots=True)
class Leased:
    """One simulator's actor and its slot."""

    operation: Operation
    ticket: SlotTicket
    call: Callable[..., Any]  # of a method of the actor
    raylet: int  # the process whose child the actor is

    def status(self) -> SimulatorStatus:
        return self.call("status")

    def until(self, phase: str, within_s: float) -> SimulatorStatus:
        """Wait for a phase and return the status then."""
        return until(lambda: (now := self.status()).phase == phase and now, within_s, lambda: f"{phase}: {self.status()}")


class Leasing:
    """Holds the guardian of a state folder. `create(operation, capacity, ticket, state_dir)` makes an actor and returns its `call`."""

    def __init__(self, state_dir: Path, create: Callable[..., Callable[..., Any]]) -> None:
        self.state_dir = state_dir
        self._create = create
        self._me = {"cluster": "c", "node": "n1", "epoch": 1, "incarnation": 1}  # one agent, whatever the node of an operation
        self.client = GuardianClient.connect(state_dir, role="agent", code_id=code_id(), watch=[os.getpid()], **self._me)
        self.capacity = replace(read_capacity(state_dir), cpu_cores=8.0)
        self.lease_s: dict[tuple[int, int], float] = {}
        self.given: list[Leased] = []
        self._stopping = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self._renewer.join()
        for one in list(self.given):
            self.close(one)
        status = until(lambda: not (now := self.client.call("status"))["slots"] and now, 10, "every slot free")
        self.client.close()
        for pid in (status["standby_pid"], status["pid"]):  # rather than wait for them to go by themselves
            os.kill(pid, signal.SIGKILL)

    def _renew(self) -> None:
        while not self._stopping.wait(0.2):
            now_ns = SystemClock().boot_ns()
            leases = [[*key, now_ns + round(lease_s * SECOND_NS)] for key, lease_s in list(self.lease_s.items())]
            if leases:
                self.client.call("grant", **self._me, leases=leases, halt={"generation": 0, "on": False})

    def prepare(self, operation: Operation, segment_path: str = "") -> Leased:
        """Open a slot, make the simulator's actor, and have it begin to prepare under a lease."""
        amounts = asdict(peak_amounts(operation, self.capacity))
        whole = asdict(replace(self.capacity, cpu_cores=64.0).amounts)
        opened = self.client.call(
            "open_slot",
            **self._me,
            run="run",
            operation=operation.id,
            amounts=amounts,
            machine_limits=whole,
            release_s=0.2,
            sharers=1,
        )
        ticket = SlotTicket(opened["slot"], opened["generation"], segment_path)
        call = self._create(operation, self.capacity, ticket, str(self.state_dir))
        stat = read_stat(call("hello")["pid"])
        assert stat is not None
        leased = Leased(operation, ticket, call, stat.ppid)
        self.given.append(leased)
        leased.call("prepare")
        self.lease_s[ticket.slot, ticket.generation] = 2.0
        return leased

    def start(self, *leased: Leased) -> int:
        """Have them begin together; returns when."""
        start_ns = SystemClock().boot_ns() + SECOND_NS // 5
        for one in leased:
            self.client.call("start", slot=one.ticket.slot, generation=one.ticket.generation, start_ns=start_ns)
        return start_ns

    def close(self, leased: Leased) -> None:
        """Close its slot, and end what Ray keeps of it."""
        self.let_go(leased)
        self.client.call("close_slot", slot=leased.ticket.slot, generation=leased.ticket.generation, grace_s=0)
        Processes(mark_of(leased.operation.id, leased.ticket.slot, leased.ticket.generation), leased.raylet).end()
        self.given.remove(leased)

    def let_go(self, leased: Leased) -> None:
        """Renew its lease no longer."""
        self.lease_s.pop((leased.ticket.slot, leased.ticket.generation), None)


class Recorded:
    """A segment that a load records into, read as an agent reads it."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._clock = SystemClock()
        self._segment = Segment.create()
        self._stream = MetricStream("n1", "a", "run", Outbox(folder / f"{worker}.box", node="n1", incarnation="a", run="run"), self._clock)
        self._stream.attach(self._segment, worker, "main")
        self.path = str(self._segment.path)

    def rows(self) -> list[dict[str, Any]]:
        """Return what was recorded since the last call: metric, labels and figures of one window."""
        self._stream.close_window(self._clock.wall_ns())
        parsed = [parse(data) for _, data in self._stream.unacked(1 << 22)]
        windows = [unseal(one.payload)[0] for one in parsed if one.kind is Kind.WINDOW]
        return [{**row, "labels": dict(row["labels"])} for table in windows[-1:] for row in table.to_pylist()]
