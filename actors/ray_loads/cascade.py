"""Cascade: services of this node call one another along a graph; one of them is made to fail, and how far that spreads is measured.

Each service keeps a bounded line for each dependency, of `buffer` seconds of its requests. When a dependency does not take them, the line
fills up, the service refuses its own callers, and their lines fill up in turn: a level fails about `buffer` after the one below. With a
breaker a service answers without the dependency after `failures` calls in a row have failed, so that its line does not fill up.

Depth, time, order and share are told from what the services say of calls that failed, never from the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..breaker import BreakerPolicy
from ..errors import InputError
from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option
from ..simulator import SimulatorRecord, absolute
from .calls import CallFlood
from .figures import SpreadFigures
from .flow import Bounds
from .options import METRICS, reserved, supported
from .ray_work import Ended, RayWork
from .service_graph import Failure, ServiceGraph, Spread, grow, tell
from .services import Service

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

SERVICES_MAX: Final = 32
LOOK_S: Final = 0.25  # how often each service is asked what it has seen
OUTSTANDING: Final = 200  # clients' requests to one entry that have not ended
FAIL_WITHIN: Final = 0.9  # of the operation's time, so that something can be seen of what follows


def graph_of(operation: Operation) -> ServiceGraph:
    """Return the graph that an operation's options and seed ask for."""
    options = RECORD.resolve_options(operation.options)
    seed = int(options["graph_seed"]) or operation.seed
    services = int(options["services"])
    return grow(seed, services, min(services, int(options["levels"])), int(options["fan_out"]))


def rooms(graph: ServiceGraph, per_s: float, buffer_s: float) -> dict[str, int]:
    """Return how many requests each service can keep for a dependency: `buffer_s` of what it takes when clients send `per_s`."""
    return {name: max(2, math.ceil(rate * buffer_s)) for name, rate in graph.traffic(per_s).items()}


class Services:
    """The services. Lanes are the entries, which clients call."""

    def __init__(self, operation: Operation, peak_per_s: float, work: RayWork, board: str, figures: SpreadFigures) -> None:
        options = RECORD.resolve_options(operation.options)
        self.graph = graph_of(operation)
        self.lanes = len(self.graph.levels[-1])
        self.spread = Spread()
        self._work, self._board, self._figures = work, board, figures
        self._rooms = rooms(self.graph, peak_per_s, float(options["buffer"]))
        self._apart_s = float(options["buffer"]) / 2
        self._timeout_s, self._how = float(options["timeout"]), str(options["how"])
        breaker = BreakerPolicy(int(options["failures"]), float(options["reset"]))
        self._policy = breaker if options["breaker"] else None
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self._failures: dict[str, Failure] = {}
        self._has_failed = False

    def open(self) -> Iterator[list[Any]]:
        """Create the services one after another, those first that others depend on."""
        entries = set(self.graph.levels[-1])
        for name in self.graph.services:
            others = {other: self._actors[other] for other in self.graph.dependencies[name]}
            board = self._board if name in entries else ""
            self._actors[name] = self._work.spawn(Service, name, board, self._rooms[name], self._timeout_s, self._policy, others)
            yield [self._work.call(self._actors[name], "pid")]

    def send(self, lane: int) -> Any:
        """Send one request of a client to an entry."""
        return self._work.call(self._actors[self.graph.levels[-1][lane]], "offer")

    def finished(self, end: Ended) -> None:
        """Record whether a client's request was taken."""
        self._figures.answered(is_taken=bool(end.value))

    def fail(self) -> None:
        """Make the first service fail, once."""
        if not self._has_failed:
            self._has_failed = True
            self._asked.pop(self.graph.first, None)
            if self._how == "killed":
                self._work.kill(self._actors[self.graph.first])
            else:
                self._work.call(self._actors[self.graph.first], "stand_still")

    def look(self) -> Spread:
        """Take what the services have answered since the last look, ask those that are not being asked, and return how far it has come."""
        asked = [(name, call) for name, call in self._asked.items() if call is not None]
        for (name, _), end in zip(asked, self._work.look([call for _, call in asked]), strict=True):
            if end is not None:
                del self._asked[name]
                if end.value is not None:
                    self._take(name, *end.value)
        for name in self._actors:
            if name not in self._asked and not (self._has_failed and name == self.graph.first):
                self._asked[name] = self._work.call(self._actors[name], "figures")
        before, self.spread = self.spread, tell(list(self._failures.values()), len(self.graph.services), self._apart_s)
        self._figures.spread(self.spread)
        if self.spread != before:
            self._figures.order(self.spread, self._failures)
        return self.spread

    def _take(self, name: str, failure: Failure | None, firsts: Mapping[str, int], fates: Mapping[str, Mapping[str, int]]) -> None:
        """Take one service's figures: its failure, its calls, and when it saw first that the one that was made to fail has."""
        if failure is not None:
            self._failures[name] = failure
        first_ns = firsts.get(self.graph.first, 0) if self._has_failed else 0
        known = self._failures.get(self.graph.first)
        if first_ns and (known is None or first_ns < known.at_ns):
            self._failures[self.graph.first] = Failure(self.graph.first, "", first_ns)
        self._figures.calls(name, fates)

    def close(self) -> None:
        """End all of them at once."""
        for actor in self._actors.values():
            self._work.kill(actor)


class Cascade(CallFlood):
    """Runs in the simulator's actor."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        peak_per_s = absolute(operation, capacity).peak(operation.duration_s)
        self._services = Services(operation, peak_per_s, work, board, SpreadFigures(reporter))
        self._fail_after_s = float(RECORD.resolve_options(operation.options)["fail_after"])
        self._looked_s = 0.0
        super().__init__(operation, capacity, watch, work, reporter, self._services, Bounds(OUTSTANDING * self._services.lanes), 0)

    def attend(self, elapsed_s: float) -> float:
        """Have the first service fail when its time has come, and look what follows; clients ask all that is asked."""
        if elapsed_s >= self._fail_after_s:
            self._services.fail()
        if elapsed_s - self._looked_s >= LOOK_S:
            self._looked_s = elapsed_s
            before = self._services.spread
            if (now := self._services.look()) != before:
                self._watch.cascade(now.rounds, services=len(self._services.graph.services), depth=now.depth, span_s=now.span_s)
        return 1.0


def _check_here(operation: Operation, state_dir: Path) -> None:
    del state_dir
    fail_after_s = float(RECORD.resolve_options(operation.options)["fail_after"])
    if fail_after_s > FAIL_WITHIN * operation.duration_s:
        message = f"{operation.id}: fail_after is {fail_after_s:g} s, and it lasts {operation.duration_s:g} s: nothing would be seen of it"
        raise InputError("invalid_value", message, f"at most {FAIL_WITHIN:.0%} of its time")


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    graph = graph_of(operation)
    calls = {"outstanding": OUTSTANDING, "waiting": 0, "work": 0.0}
    return reserved(sum(graph.traffic(peak).values()), calls, len(graph.services), len(graph.levels[-1]), capacity)


RECORD: Final = SimulatorRecord(
    name="Cascade",
    family="concurrency",
    summary="Makes one of many services fail that depend on one another, and measures how far and how fast that spreads.",
    units=("per_second",),
    resource="cpu_cores",
    meter="served_calls",
    measure="clients' requests a second that the entry services count in shared memory as answered, whether they took them or not",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("services", "integer", 8, "services, each an actor of its own", low=2, high=SERVICES_MAX),
        Option("levels", "integer", 3, "levels of services, each depending on the one below; at most one a service", low=2, high=8),
        Option("fan_out", "integer", 2, "services of the level below that each one depends on", low=1, high=8),
        Option("graph_seed", "integer", 0, "seed of the graph; 0 has it follow from the run's seed, the place in the plan and the node"),
        Option(
            "how",
            "choice",
            "stopped",
            "how the first service fails",
            choices=("stopped", "killed"),
            choice_help={
                "stopped": "its process is stopped: it answers no more",
                "killed": "its process is ended: calls to it fail at once",
            },
        ),
        Option("fail_after", "duration", 1.0, "time from the start until the first service fails", low=0.1, high=3600.0),
        Option("buffer", "duration", 1.0, "what a service can keep for a dependency, as time of its requests", low=0.2, high=60.0),
        Option("timeout", "duration", 0.1, "how long a service waits for a dependency's answer", low=0.01, high=60.0),
        Option("breaker", "flag", False, "answer without a dependency after some calls to it have failed in a row"),
        Option("failures", "integer", 3, "calls in a row that fail before the breaker opens", low=1, high=100),
        Option("reset", "duration", 2.0, "time after which an open breaker lets a call through again", low=0.1, high=600.0),
    ),
    supported=supported,
    metrics=(
        *METRICS,
        *("cascade.depth", "cascade.time", "cascade.failed", "cascade.blast.radius", "cascade.round", "cascade.after"),
        *("cascade.calls", "cascade.requests"),
    ),
    needs="Ray worker processes for its actors",
    undo="its actors end with the simulator's actor, which owns them; the guardian ends their processes at the lease's end, stopped or not",
    entry="ray_loads.cascade:Cascade",
    carrier="ray",
    reserves=_reserves,
    check_here=_check_here,
)
