"""The end of a run: from what the control plane saw and what was measured to a verdict and the run's documents.

Pure: an `Ending` (control plane), a plan and an object that answers questions about the metrics go in, documents come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from actors.clock import SECOND_NS
from actors.messages import Allocation, Event, Operation, Shortfall
from scenarios.hypotheses import ActorProbe, Hypothesis, HypothesisResult, Observed, Threshold, title
from scenarios.hypotheses import judge as judge_hypothesis
from scenarios.plan import Plan

from . import dose
from .dose import DoseResult, DoseWindow
from .dose_terms import terms_of
from .overlap import Stretch, longest_overlap
from .verdict import Cause, Conclusion, Evidence, Finding, judge

AFTER_S = 60.0  # how long after the load "after" reaches at most


@dataclass(frozen=True, slots=True)
class NodeEnding:
    """One target at the end of a run."""

    name: str
    stage: str
    lost: bool = False
    lost_reason: str = ""
    clean: bool = False
    delivered: bool = False
    unclean: tuple[str, ...] = ()
    failure: str = ""
    stopped_ms: float | None = None  # from the decision to stop until its last load had ended
    released_ms: float | None = None  # and until the last of it was given back
    failed: Mapping[str, str] = field(default_factory=dict)  # by operation: why its load ended before its time, while the rest went on
    partial: Mapping[str, Shortfall] = field(default_factory=dict)  # by operation: what its load could not get
    allocations: Mapping[str, Allocation] = field(default_factory=dict)  # by operation: what its load held, counted from outside


@dataclass(frozen=True, slots=True)
class Ending:
    """What the control plane knows when a run is over."""

    run: str
    causes: tuple[tuple[str, str], ...]
    nodes: tuple[NodeEnding, ...]
    events: tuple[Event, ...]
    start_at_wall_ns: int
    start_skew_ms: float | None
    halt_latency_ms: float | None
    drift: tuple[str, ...] = ()
    shared: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ended_s: float | None = None  # when it was let go before its plan's end, in seconds from its start


class Figures(Protocol):
    """What was measured."""

    def evaluate(
        self,
        metric: str,
        stat: str,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        between: tuple[float, float] | None = None,
    ) -> float | None:
        """Return one figure over all matching windows; `between` is in seconds of UTC."""
        ...

    def windows(self, operation: str) -> Sequence[tuple[float, float, float, float | None]]:
        """Return (start UTC s, requested, achieved, own) of each window of an operation."""
        ...

    def outstanding(self) -> Sequence[Mapping[str, Any]]:
        """Return the streams that have not arrived whole."""
        ...


@dataclass(frozen=True, slots=True)
class Concluded:
    """A verdict and what it rests on."""

    conclusion: Conclusion
    findings: tuple[Finding, ...]
    summary: dict[str, Any]


def conclude(ending: Ending, plan: Plan, figures: Figures) -> Concluded:
    """Return the verdict and the summary document of a run."""
    started = ending.start_at_wall_ns > 0
    measured = _measured(ending, plan, figures) if started else ()
    doses = tuple(one.dose() for one in measured)
    hypotheses = tuple(_hypothesis(one, ending, plan, figures) for one in plan.scenario.hypotheses) if started else ()
    partial = _partial(ending)
    cut_short = bool(ending.causes)  # what could not be judged for lack of time is no unknown outcome then
    evidence = Evidence(
        hypotheses=tuple(result for result in hypotheses if result.held is not None or not cut_short),
        doses=doses,
        operations_expected=len(plan.operations) if started else 0,
        unknown=_unknown(ending),
        outstanding=_outstanding(ending, figures),
        unclean=tuple(f"{node.name}: {words}" for node in ending.nodes for words in node.unclean),
        partial=(
            *(f"{node.name} took no part to the end: {node.lost_reason}" for node in ending.nodes if node.lost),
            *_told(partial),
            *_failed(ending),
        ),
        causes=tuple((Cause(cause), reason) for cause, reason in ending.causes),
    )
    conclusion, findings = judge(evidence)
    summary = {
        "run": ending.run,
        "status": conclusion.status,
        "exit_code": conclusion.exit_code,
        "reasons": [{"cause": str(finding.cause), "reason": finding.reason} for finding in findings],
        "hypotheses": [asdict(result) for result in hypotheses],
        "dose": [asdict(result) for result in doses],
        "partial": partial,
        "allocations": _allocations(ending),
        "overlap": asdict(longest_overlap([one.held() for one in measured])),
        "high_water": _high_water(figures),
        "violations": [finding.reason for finding in findings if finding.cause is Cause.SAFETY],
        "nodes": [_node(node) for node in ending.nodes],
        "start_skew_ms": ending.start_skew_ms,
        "halt_latency_ms": ending.halt_latency_ms,
        "drift": list(ending.drift),
        "shared_machines": [list(names) for names in ending.shared.values()],
    }
    return Concluded(conclusion, findings, summary)


def _partial(ending: Ending) -> list[dict[str, Any]]:
    """Return each operation that did not get all it asked for: how many it asked for, got, and the kernel's first refusal."""
    return [
        {"operation": operation, "node": node.name, **asdict(shortfall)}
        for node in ending.nodes
        for operation, shortfall in node.partial.items()
    ]


def _allocations(ending: Ending) -> list[dict[str, Any]]:
    """Return what each operation that holds something had, as it was counted from outside when it began, held, and had ended."""
    return [
        {"operation": operation, "node": node.name, **asdict(allocation)}
        for node in ending.nodes
        for operation, allocation in node.allocations.items()
    ]


def _told(partial: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(
        f"{one['operation']} got {one['allocated']:,} of the {one['requested']:,} that it asked for: {one['errno']}" for one in partial
    )


def _failed(ending: Ending) -> tuple[str, ...]:
    return tuple(f"{operation} has failed: {reason}" for node in ending.nodes for operation, reason in node.failed.items())


def _node(node: NodeEnding) -> dict[str, Any]:
    return {name: value for name, value in asdict(node).items() if name not in {"partial", "allocations"}}  # they have their own places


@dataclass(frozen=True, slots=True)
class _Measured:
    """An operation and its windows, as they are judged."""

    operation: Operation
    windows: list[DoseWindow]
    ended_s: float  # in seconds from the start of the run, where it was let go before its time

    @property
    def terms(self) -> dict[str, Any]:
        """Return what the judgement goes by."""
        operation = self.operation
        duration_s = min(operation.duration_s, max(0.0, self.ended_s - operation.start_s))
        return {**terms_of(operation), "duration_s": duration_s}

    def dose(self) -> DoseResult:
        """Return whether the dose was reached."""
        return dose.reached(self.windows, operation=self.operation.id, node=self.operation.node, **self.terms)

    def held(self) -> list[Stretch]:
        """Return the times at target, in seconds from the start of the run."""
        begun_s = self.operation.start_s
        return [(begun_s + begin_s, begun_s + end_s) for begin_s, end_s in dose.at_target(self.windows, **self.terms)]


def _measured(ending: Ending, plan: Plan, figures: Figures) -> tuple[_Measured, ...]:
    """Return the operations of which there are windows."""
    found = []
    for operation in plan.operations:
        start_s = ending.start_at_wall_ns / SECOND_NS + operation.start_s
        rows = figures.windows(operation.id)
        if rows:
            windows = [DoseWindow(at_s - start_s, requested, achieved, own=own) for at_s, requested, achieved, own in rows]
            found.append(_Measured(operation, windows, math.inf if ending.ended_s is None else ending.ended_s))
    return tuple(found)


def _hypothesis(one: Hypothesis, ending: Ending, plan: Plan, figures: Figures) -> HypothesisResult:
    start_s = ending.start_at_wall_ns / SECOND_NS
    end_s = start_s + (plan.duration_s if ending.ended_s is None else ending.ended_s)
    if isinstance(one, ActorProbe):
        return judge_hypothesis(one, _probed(one, figures))
    return judge_hypothesis(one, _observed(one, (start_s, end_s) if one.when == "during" else (end_s, end_s + AFTER_S), figures))


def _observed(threshold: Threshold, between: tuple[float, float], figures: Figures) -> Observed:
    node, labels = threshold.node or None, dict(threshold.labels) or None
    value = figures.evaluate(threshold.metric, threshold.stat, node, labels, between)
    count = figures.evaluate(threshold.metric, "count", node, labels, between)
    return Observed(value, int(count or 0), reason="" if value is not None else f"no window of {threshold.metric} was recorded")


def _probed(probe: ActorProbe, figures: Figures) -> Observed:
    labels = {"probe": title(probe)}
    value = figures.evaluate("probe.response", probe.stat, labels=labels)
    count = figures.evaluate("probe.response", "count", labels=labels)
    errors = figures.evaluate("probe.failures", "sum", labels=labels)
    return Observed(value, int(count or 0), int(errors or 0), reason="" if value is not None else "no call was recorded")


def _unknown(ending: Ending) -> tuple[str, ...]:
    return tuple(
        f"{node.name}: {node.lost_reason or node.failure or 'its end was not confirmed'} ({node.stage}); {_state_of_load(node)}"
        for node in ending.nodes
        if not node.clean and node.stage != "never_heard"
    )


def _state_of_load(node: NodeEnding) -> str:
    if node.unclean and not node.lost:
        return "its guardian says that it is not gone, and goes on trying; the node stays charged"
    return "its load has ended by its lease, its undo is not confirmed"


def _outstanding(ending: Ending, figures: Figures) -> tuple[str, ...]:
    streams = figures.outstanding()
    named = {entry["node"] for entry in streams}  # a stream of which nothing came is not known to the aggregator
    silent = [node.name for node in ending.nodes if node.clean and not node.delivered and node.name not in named]
    late = [f"metrics of {entry['node']} from sequence {entry['from']} on have not arrived" for entry in streams]
    return (*late, *(f"metrics of {name} have not all arrived" for name in silent))


def _high_water(figures: Figures) -> dict[str, float | None]:
    return {
        "host_cpu_busy_ratio": figures.evaluate("host.cpu.busy", "max"),
        "host_memory_used_bytes": figures.evaluate("host.memory.used", "max"),
        "host_memory_available_min_bytes": figures.evaluate("host.memory.available", "min"),
        "host_descriptors_used": figures.evaluate("host.descriptors.used", "max"),
    }
