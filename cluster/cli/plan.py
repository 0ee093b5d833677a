"""`plan`: what a scenario would do, when, where, and how much of the budgets it would take. Starts no load."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.errors import RefusedError
from actors.messages import Amounts, Capacity, NodeSpec, Operation
from actors.simulator import peak_amounts
from scenarios import plan as plans
from scenarios.plan import Plan

from ..safety.profiles import Limits, check_planned, limits_for
from ..settings import Settings
from ..words import amount
from . import options, ports, source
from .doctor import nodes_of
from .output import emit, table
from .render import peak_words


def plan(
    scenario: options.Scenario,
    *,
    address: options.Address = None,
    nodes: options.Nodes = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    profile: options.Profile = None,
    allow_head: options.AllowHead = False,
    allow_starve: options.AllowStarve = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Resolve a scenario: targets, times, parameters, reservations and budget use. Starts no load.

    With --address it asks that cluster for its nodes; without, it plans for raylets of this machine.

    Examples:
      stress-cluster plan burst --nodes 3
      stress-cluster plan mine.yaml --address auto --json
    """
    loaded = source.load(scenario, sets or [], seed, config)
    settings = source.resolve_settings(loaded, config, profile=profile)
    loaded = source.recorded(loaded, settings)
    limits = limits_for(settings.profile, loaded.scenario.limits, allow_starve=allow_starve)
    return show_plan(loaded, settings, limits, address=address, nodes=nodes, allow_head=allow_head, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Site:
    """The nodes a plan is made for, what each has, and what each can do (None and nothing where that is not known)."""

    nodes: tuple[NodeSpec, ...]
    capacities: Mapping[str, Capacity]
    capabilities: Mapping[str, Mapping[str, Any]]
    shares_machine: bool


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the timeline in which the same operations are on."""

    from_s: float
    to_s: float
    nodes: int
    amounts: Amounts
    over: tuple[str, ...] = ()


def show_plan(
    loaded: source.Loaded, settings: Settings, limits: Limits, *, address: str | None, nodes: int | None, allow_head: bool, as_json: bool
) -> int:
    """Print the plan. Returns 6 when what it asks passes a budget, else 0."""
    site = _ask_cluster(address, settings) if address else local_site(nodes, settings)
    document = describe_plan(loaded, site, settings, limits, allow_head=allow_head)
    emit(document, as_json, plan_lines(document))
    return 6 if "error" in document else 0


def local_site(nodes: int | None, settings: Settings) -> Site:
    """Return what an embedded Ray would have: one raylet that is its own target, or `nodes` of them beside a head."""
    from actors import capability, capacity  # noqa: PLC0415  # reads /proc, which not every platform has

    names = [f"n{index + 1}" for index in range(nodes or 0)] or ["head"]
    specs = tuple(NodeSpec(name, address="127.0.0.1", is_head=name == "head") for name in dict.fromkeys(["head", *names]))
    folder = _existing(Path(settings.state_dir))
    found = capacity.read_capacity(folder, sharers=len(names))
    verdicts = {name: asdict(one) for name, one in capability.judge(capability.read_facts(folder)).items()}
    return Site(specs, dict.fromkeys(names, found), dict.fromkeys(names, verdicts), shares_machine=len(names) > 1)


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _ask_cluster(address: str, settings: Settings) -> Site:
    with ports.linked(address, settings) as link:
        nodes, answer = tuple(link.nodes()), link.doctor()
    facts = nodes_of(answer)
    capacities = {name: Capacity(**one["capacity"]) for name, one in facts.items() if isinstance(one.get("capacity"), Mapping)}
    machines = [str(one.get("machine")) for one in facts.values() if one.get("machine")]
    capabilities = {name: one.get("simulators") or {} for name, one in facts.items()}
    return Site(nodes, capacities, capabilities, shares_machine=len(set(machines)) < len(machines))


def describe_plan(loaded: source.Loaded, site: Site, settings: Settings, limits: Limits, *, allow_head: bool) -> dict[str, Any]:
    """Return the plan as a document: timeline, nodes with their reservations, budget use, and an error where it does not fit.

    Raises `RefusedError` when no node matches or only protected ones do.
    """
    resolved, drift = _resolve(loaded, site, allow_head=allow_head)
    spans = budget_use(resolved.operations, site.capacities, settings)
    nodes = [_node_row(name, resolved.operations, site) for name in resolved.targets]
    document: dict[str, Any] = {
        "scenario": loaded.name,
        "seed": loaded.seed,
        "digest": resolved.digest,
        "duration_s": resolved.duration_s,
        "targets": list(resolved.targets),
        "shared_machine": site.shares_machine,
        "timeline": [_timeline_row(one) for one in resolved.operations],
        "nodes": nodes,
        "budget": [{**asdict(span), "over": list(span.over)} for span in spans],
        "drift": list(drift),
        "skipped": [asdict(one) for one in resolved.skipped],
        "hypotheses": [one.name or one.tolerance for one in loaded.scenario.hypotheses],
    }
    over = [*_over_limits(resolved, site, limits), *dict.fromkeys(reason for span in spans for reason in span.over)]
    if settings.budget.max_duration_s is not None and resolved.duration_s > settings.budget.max_duration_s:
        over.append(f"it lasts {resolved.duration_s:g} s, budget.max_duration_s is {settings.budget.max_duration_s:g} s")
    if over:
        refusal = RefusedError("budget", f"the plan passes a budget: {'; '.join(over)}", "lower the load, or raise the budget or profile")
        document |= refusal.to_json()
    return document


def _resolve(loaded: source.Loaded, site: Site, *, allow_head: bool) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan, and for a replay in what it differs from the stored one."""
    if not loaded.replay_plan:
        return plans.resolve(loaded.scenario, site.nodes, loaded.seed, allow_head=allow_head), ()
    found, drift = plans.replay(Plan.from_json(loaded.replay_plan.encode()), site.nodes, allow_head=allow_head)
    return found, tuple(one.message for one in drift)


def _over_limits(plan: Plan, site: Site, limits: Limits) -> list[str]:
    """Return why the nodes' limits or the scenario's own budget forbid the plan: the first reason, as a run would be told."""
    if any(name not in site.capacities for name in plan.targets):
        return []
    try:
        check_planned(plan.reservations(site.capacities), site.capacities, limits)
        plans.check_budget(plan, plan.scenario.budget, site.capacities)
    except RefusedError as error:
        return [error.message]
    return []


def _timeline_row(one: Operation) -> dict[str, Any]:
    return {
        "start_s": one.start_s,
        "end_s": one.start_s + one.duration_s,
        "operation": one.id,
        "kind": one.kind,
        "node": one.node,
        "phase": one.phase,
        "unit": one.unit,
        "peak": plans.peak_of(one),
        "shape": dict(one.shape),
    }


def _node_row(name: str, operations: Sequence[Operation], site: Site) -> dict[str, Any]:
    mine = [one for one in operations if one.node == name]
    capacity = site.capacities.get(name)
    held = [span.amounts for span in _spans(mine, site.capacities)]
    most = functools.reduce(Amounts.most, held, Amounts())
    return {
        "node": name,
        "capacity": None if capacity is None else asdict(capacity),
        "reserved": asdict(most),
        "capability": {kind: site.capabilities.get(name, {}).get(kind) for kind in dict.fromkeys(one.kind for one in mine)},
    }


def _amounts(one: Operation, capacities: Mapping[str, Capacity]) -> Amounts:
    """Return what an operation holds at its peak; nothing known of a fraction on a node whose capacity is unknown."""
    capacity = capacities.get(one.node)
    if capacity is None and one.unit == "fraction":
        return Amounts()
    return peak_amounts(one, capacity or Capacity(0.0, 0, 0))


def _spans(operations: Sequence[Operation], capacities: Mapping[str, Capacity]) -> list[Span]:
    edges = sorted({edge for one in operations for edge in (one.start_s, one.start_s + one.duration_s)})
    amounts = {one.id: _amounts(one, capacities) for one in operations}
    spans = []
    for low, high in itertools.pairwise(edges):
        active = [one for one in operations if one.start_s <= low < one.start_s + one.duration_s]
        total = Amounts()
        for one in active:
            total = total.plus(amounts[one.id])
        spans.append(Span(low, high, len({one.node for one in active}), total))
    return spans


def budget_use(operations: Sequence[Operation], capacities: Mapping[str, Capacity], settings: Settings) -> list[Span]:
    """Return what is held in each stretch of the timeline, and which budgets that passes. Operations are held at their peak."""
    used = {one.node for one in operations}
    known = [capacity for name, capacity in capacities.items() if name in used]
    cores, memory = sum(one.cpu_cores for one in known), sum(one.memory_bytes for one in known)
    return [
        Span(one.from_s, one.to_s, one.nodes, one.amounts, _over(one, cores, memory, settings)) for one in _spans(operations, capacities)
    ]


def _over(span: Span, cores: float, memory: int, settings: Settings) -> tuple[str, ...]:
    budget, held = settings.budget, span.amounts
    bounds: list[tuple[float, float | None, str, str]] = [
        (span.nodes, budget.max_nodes, f"{span.nodes} nodes", f"budget.max_nodes is {budget.max_nodes}"),
        (held.disk_bytes, budget.disk_bytes, f"disk {amount(held.disk_bytes, 'bytes')}", f"budget.disk_bytes is {budget.disk_bytes}"),
    ]
    if cores and memory:
        allowed_cores, allowed_memory = cores * budget.cpu_fraction, memory * budget.memory_fraction
        bounds += [
            (held.cpu_cores, allowed_cores, f"{held.cpu_cores:.2f} cores", f"budget.cpu_fraction allows {allowed_cores:.2f}"),
            (
                held.memory_bytes,
                allowed_memory,
                f"memory {amount(held.memory_bytes, 'bytes')}",
                f"budget.memory_fraction allows {amount(allowed_memory, 'bytes')}",
            ),
        ]
    return tuple(f"{asked}, {limit}" for value, bound, asked, limit in bounds if bound is not None and value > bound * (1 + 1e-9))


def plan_lines(document: Mapping[str, Any]) -> list[str]:
    """Return a plan's document as lines."""
    timeline = [
        (
            f"{one['start_s']:g}",
            f"{one['end_s']:g}",
            one["operation"],
            one["phase"],
            f"{one['shape'].get('kind', '')} up to {amount(one['peak'], one['unit'])}",
        )
        for one in document["timeline"]
    ]
    nodes = [(one["node"], peak_words(one["reserved"]), _capability_words(one["capability"])) for one in document["nodes"]]
    budget = [
        (f"{one['from_s']:g}", f"{one['to_s']:g}", one["nodes"], peak_words(one["amounts"]), "; ".join(one["over"]) or "within budget")
        for one in document["budget"]
    ]
    shared = ["these nodes share one machine and one set of limits"] if document["shared_machine"] else []
    refused = [f"refused: {document['error']['message']}", f"  {document['error']['hint']}"] if "error" in document else []
    return [
        f"scenario {document['scenario']}  seed {document['seed']}  {document['duration_s']:g} s  plan {document['digest'][:16]}",
        "",
        *table(("from s", "to s", "operation", "phase", "load"), timeline),
        "",
        *table(("node", "reserved", "capability"), nodes),
        *shared,
        "",
        *table(("from s", "to s", "nodes", "held", "budget"), budget),
        "",
        *[f"hypothesis: {one}" for one in document["hypotheses"]],
        *[f"part {one['path']} is not run on {one['node']}: {one['reason']}" for one in document["skipped"]],
        *[f"differs from the stored plan: {one}" for one in document["drift"]],
        *refused,
    ]


def _capability_words(capability: Mapping[str, Any]) -> str:
    told = []
    for kind, one in capability.items():
        verdict = one.get("verdict", "unknown") if isinstance(one, Mapping) else (one or "unknown")
        reason = f" ({one['reason']})" if isinstance(one, Mapping) and one.get("reason") else ""
        told.append(f"{kind} {verdict}{reason}")
    return ", ".join(told)
