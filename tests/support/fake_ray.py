"""Ray for floods without Ray: servers on a virtual clock, each with a mailbox, so that what a flood decides is seen at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.clock import SECOND_NS, VirtualClock
from actors.ray_loads.flow import Outcome
from actors.ray_loads.lock_actors import Turn
from actors.ray_loads.ray_work import Ended, StoreUse
from actors.ray_loads.service_graph import Failure


@dataclass(eq=False, slots=True)
class FakeCall:
    """A call, and when it will have been served."""

    server: FakeServer
    begins_ns: int
    ends_ns: int
    end: Ended | None = None
    method: str = ""


@dataclass(eq=False, slots=True)
class FakeServer:
    """Serves one call after another."""

    calls_max: int
    free_ns: int = 0
    calls: list[FakeCall] = field(default_factory=list)
    alive: bool = True


class FakeRayWork:
    """`RayWork` whose calls take `work_s` each. `breaks_after` calls of a server fail."""

    def __init__(self, clock: VirtualClock, work_s: float, at_once: int = 1) -> None:
        self.clock, self.work_ns = clock, round(work_s * SECOND_NS)
        self.servers: list[FakeServer] = []
        self.pool = [FakeServer(0) for _ in range(at_once)]
        self.sent = self.outstanding_max = 0
        self.spilled = self.turns = 0

    def spawn(self, factory: type, *args: Any, calls_max: int = 0, at_once: int = 0, name: str = "") -> Any:
        self.servers.append(FakeServer(calls_max))
        return self.servers[-1]

    def call(self, victim: FakeServer, method: str, *args: Any) -> Any:
        victim.calls = [call for call in victim.calls if self.see(call) is None]
        if victim.calls_max and len(victim.calls) >= victim.calls_max:
            return None
        return self.put(victim, 0 if method == "pid" else self.work_ns, method)

    def put(self, server: FakeServer, work_ns: int, method: str = "") -> FakeCall:
        begins_ns = max(server.free_ns, self.clock.boot_ns())
        server.free_ns = begins_ns + work_ns
        call = FakeCall(server, begins_ns, server.free_ns, None if server.alive else Ended(Outcome.FAILED, reason="dead"), method)
        server.calls.append(call)
        self.sent += 1
        self.outstanding_max = max(self.outstanding_max, sum(self.see(one) is None for all_ in self.all() for one in all_.calls))
        return call

    def all(self) -> list[FakeServer]:
        return [*self.servers, *self.pool]

    def submit(self, function: Callable[..., Any], *args: Any, at_once: int) -> Any:
        return self.put(min(self.pool, key=lambda one: one.free_ns), self.work_ns)

    def value_of(self, call: FakeCall) -> Any:
        """Return what a call returns: here, how long it was served, as a lock's contender does, and nothing else."""
        if call.method != "contend":
            return None
        self.turns += 1
        return Turn(0.0, (call.ends_ns - call.begins_ns) / SECOND_NS, True, self.turns - 1)

    def see(self, call: FakeCall) -> Ended | None:
        if call.end is None and call.ends_ns <= self.clock.boot_ns():
            call.end = Ended(Outcome.FINISHED, self.value_of(call))
        return call.end

    def look(self, calls: Sequence[FakeCall]) -> list[Ended | None]:
        return [self.see(call) for call in calls]

    def cancel(self, calls: Sequence[FakeCall]) -> None:
        for call in calls:
            if self.see(call) is None and call.begins_ns > self.clock.boot_ns():
                call.end = Ended(Outcome.CANCELLED)

    def kill(self, victim: FakeServer) -> None:
        victim.alive = False
        for call in victim.calls:
            if self.see(call) is None:
                call.end = Ended(Outcome.FAILED, reason="killed")

    def store_use(self) -> StoreUse:
        return StoreUse(spilled_bytes=self.spilled)


class FakeServices(FakeRayWork):
    """Services that answer at once. A second after one was made to fail, all but it say that they failed for it."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, 0.001)
        self.failed: tuple[str, str, int] | None = None  # how, who, when
        self.asked: dict[int, tuple[FakeServer, str]] = {}
        self.spawned: dict[str, tuple[Any, ...]] = {}
        self.killed: list[str] = []

    def spawn(self, factory: type, *args: Any, calls_max: int = 0, at_once: int = 0, name: str = "") -> Any:
        self.spawned[args[0]] = args
        return super().spawn(factory, *args, calls_max=calls_max)

    def name(self, server: FakeServer) -> str:
        return list(self.spawned)[self.servers.index(server)]

    def call(self, victim: FakeServer, method: str, *args: Any) -> Any:
        made = super().call(victim, method, *args)
        self.asked[id(made)] = (victim, method)
        if method == "stand_still":
            self.failed = ("stopped", self.name(victim), self.clock.boot_ns())
        return made

    def kill(self, victim: FakeServer) -> None:
        super().kill(victim)
        self.killed.append(self.name(victim))
        self.failed = self.failed or ("killed", self.name(victim), self.clock.boot_ns())

    def see(self, call: FakeCall) -> Ended | None:
        ended = super().see(call)
        if ended is None or ended.outcome is not Outcome.FINISHED:
            return ended
        server, method = self.asked.get(id(call), (call.server, ""))
        if method == "figures":
            return Ended(Outcome.FINISHED, self.figures(self.name(server)))
        return Ended(Outcome.FINISHED, True)

    def figures(self, name: str) -> tuple[Failure | None, dict[str, int], dict[str, dict[str, int]]]:
        fates = {"taken": 5, "refused": 0, "timed_out": 1, "died": 0, "degraded": 0}
        if self.failed is None or self.clock.boot_ns() < self.failed[2] + SECOND_NS:
            return None, {self.failed[1] if self.failed else name: 0}, {"x": fates}
        first = self.failed[1]
        return Failure(name, first, self.failed[2] + SECOND_NS), {first: self.failed[2] + SECOND_NS // 10}, {"x": fates}
