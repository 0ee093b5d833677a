"""Whether a run may start: from a plan and what its nodes said of themselves to amounts, limits and refusals. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from actors.errors import RefusedError
from actors.messages import Amounts, Capacity, NodeSpec, Operation
from scenarios import plan as plans
from scenarios.hypotheses import ActorProbe, Threshold, title
from scenarios.plan import Plan

from .links import linked
from .orchestrator_api import OrchestratorConfig, Submission
from .records import Admission
from .safety.budget import Budget
from .safety.profiles import check_planned, limits_for

OBSERVE_S = 5.0  # what a hypothesis about the time after the load is judged by

Hellos = Mapping[str, Mapping[str, Any]]


def admission_of(
    submission: Submission, plan: Plan, hellos: Hellos, memory_fraction: float, nodes: Iterable[NodeSpec] = ()
) -> tuple[Admission, dict[str, list[str]]]:
    """Return what a run asks for, and by machine the targets that share it. `nodes` have the addresses of loads with a peer.

    Raises `RefusedError`: `capability` for a simulator that a node cannot run, `budget` where a node, a machine or the scenario's own
    budget would be passed; and as `links.linked` does.
    """
    machines: dict[str, list[str]] = {}
    for name in plan.targets:
        machines.setdefault(hellos[name]["machine"], []).append(name)
    capacities = {name: hellos[name]["capacity"].shared(len(names)) for names in machines.values() for name in names}
    limits = {name: machine_limits(hellos[name]["capacity"], memory_fraction) for name in plan.targets}
    by_node = linked(plan.by_node, nodes)
    amounts = plan.reservations(capacities)
    _check_capability(by_node, hellos)
    _check_shapes(by_node, hellos)
    scenario = plan.scenario
    check_planned(amounts, capacities, limits_for(submission.profile, scenario.limits, allow_starve=submission.allow_starve))
    plans.check_budget(plan, scenario.budget, capacities)
    for names in machines.values():
        check_machine(names, amounts, limits[names[0]])
    admission = Admission(
        run=submission.run,
        operations=by_node,
        amounts=amounts,
        duration_s=plan.duration_s,
        on_node_lost=scenario.on_node_lost,
        detached=submission.detached,
        timeout_s=submission.timeout_s,
        capacities=capacities,
        machine_limits=limits,
        terms={
            "recording": scenario.metrics.policy().to_json(),
            "caps": dict(submission.caps),
            "profile": submission.profile,
            "limits": scenario.limits.given(),
        },
        observe_s=OBSERVE_S if any(isinstance(one, Threshold) and one.when == "after" for one in scenario.hypotheses) else 0.0,
    )
    return admission, {machine: sorted(names) for machine, names in machines.items() if len(names) > 1}


def machine_limits(capacity: Capacity, memory_fraction: float) -> Amounts:
    """Return the most that all runs together may take of a machine; its guardian holds them to it."""
    return replace(capacity.amounts, memory_bytes=round(capacity.memory_bytes * memory_fraction))


def _check_capability(by_node: Mapping[str, Sequence[Operation]], hellos: Hellos) -> None:
    for name, operations in by_node.items():
        can = hellos[name]["report"]["simulators"]
        for kind in sorted({op.kind for op in operations}):
            if can[kind]["verdict"] == "unavailable":
                raise RefusedError(
                    "capability",
                    f"{name} cannot run {kind}: {can[kind]['reason']}",
                    can[kind].get("allow") or "see `stress-cluster doctor`",
                )
        lacking = hellos[name]["report"].get("kernels_missing", {})
        for op in operations:
            if reason := lacking.get(op.options.get("kernel"), ""):
                raise RefusedError("capability", f"{name} cannot run {op.id}: {reason}", "see `stress-cluster describe CpuLoad`")


def _check_shapes(by_node: Mapping[str, Sequence[Operation]], hellos: Hellos) -> None:
    """Refuse a function of an installed package that a node lacks, or that two nodes have differently."""
    users: dict[str, list[str]] = {}
    for name, operations in by_node.items():
        for function in sorted({str(op.shape["function"]) for op in operations if op.shape["kind"] == "custom"}):
            users.setdefault(function, []).append(name)
    for function, names in users.items():
        found = {name: hellos[name]["report"]["shapes"].get(function, "") for name in names}
        lacking = [name for name in names if not found[name]]
        if lacking:
            hint = "install the same package on every node; its entry point belongs to the group stress_cluster.shapes"
            raise RefusedError("capability", f"{', '.join(lacking)} has no shape {function!r}", hint)
        other = next((name for name in names if found[name] != found[names[0]]), "")
        if other:
            message = f"{names[0]} and {other} have different packages for the shape {function!r}"
            raise RefusedError("capability", message, "install the same version on every node")


def budget_of(config: OrchestratorConfig, hellos: Hellos) -> Budget:
    """Return the cluster-wide budget: shares of what the machines known so far have."""
    machines = {hello["machine"]: hello["capacity"] for hello in hellos.values() if "capacity" in hello}
    return Budget(
        nodes_max=config.nodes_max,
        cpu_cores_max=sum(capacity.cpu_cores for capacity in machines.values()) * config.cpu_fraction,
        memory_bytes_max=round(sum(capacity.memory_bytes for capacity in machines.values()) * config.memory_fraction),
        disk_bytes_max=config.disk_bytes_max,
        duration_s_max=config.duration_s_max,
    )


def facts_of(
    plan: Plan, hellos: Hellos, addresses: Mapping[str, str], shared: Mapping[str, Sequence[str]], drift: Sequence[str]
) -> dict[str, Any]:
    """Return what the manifest says of plan and nodes."""
    nodes = [
        {
            "name": name,
            "machine": hellos[name]["machine"],
            "address": addresses.get(name, ""),
            "capacity": asdict(hellos[name]["capacity"]),
            "capabilities": hellos[name]["report"]["simulators"],
            "shares_machine_with": [other for other in shared.get(hellos[name]["machine"], []) if other != name],
            "facts": {key: value for key, value in hellos[name]["report"].items() if key != "simulators"},
        }
        for name in plan.targets
    ]
    return {"plan_digest": plan.digest, "nodes": nodes, "drift": list(drift)}


def probes_of(plan: Plan) -> list[dict[str, Any]]:
    """Return what the prober is to call."""
    probes = [one for one in plan.scenario.hypotheses if isinstance(one, ActorProbe)]
    return [{"name": title(one), "rate_hz": one.rate_hz, "timeout_s": one.timeout_s, "target": one.target} for one in probes]


def endpoint_of(submission: Submission, plan: Plan) -> tuple[str, int | None]:
    """Return where to serve metrics: what the command or settings say, else what the scenario says, else nowhere."""
    wanted = plan.scenario.exporters.prometheus
    if submission.prometheus_port is None and wanted is not None:
        return wanted.host, wanted.port
    return submission.prometheus_host, submission.prometheus_port


def preview_of(plan: Plan, amounts: Mapping[str, Amounts], shared: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return what is told before load starts."""
    total = Amounts()
    for one in amounts.values():
        total = total.plus(one)
    return {
        "targets": list(plan.targets),
        "peak": asdict(total),
        "duration_s": plan.duration_s,
        "shared": [list(names) for names in shared.values()],
        "stop_hint": "Ctrl-C, or `stress-cluster stop` from another terminal",
    }


def check_machine(names: Sequence[str], amounts: Mapping[str, Amounts], limits: Amounts) -> None:
    """Refuse a plan whose nodes together ask more of the machine that they share than its limits allow."""
    total = Amounts()
    for name in names:
        total = total.plus(amounts[name])
    if not total.within(limits):
        raise RefusedError(
            "budget",
            f"on the machine of {', '.join(names)} the plan asks {_told(total)}; its limits are {_told(limits)}",
            "ask for less, or use more machines",
        )


def _told(amounts: Amounts) -> str:
    gib = 1 << 30
    memory, disk = amounts.memory_bytes / gib, amounts.disk_bytes / gib
    counts = "".join(
        f", {getattr(amounts, name):,} {name}" for name in ("descriptors", "tasks", "inodes", "locks") if getattr(amounts, name)
    )
    return f"{amounts.cpu_cores:.2f} cores, {memory:.2f} GiB of memory and {disk:.2f} GiB of disk{counts}"
