"""The plan: a scenario resolved against a cluster's node names into a timeline of operations. Pure; starts nothing.

The same scenario, seed and nodes give the same bytes on every machine: no clock, address, run id or free memory enters.
A fraction stays a fraction; it becomes cores and bytes where the capacities are known (`reservations`).

Each branch derives its own seed from (run seed, path), each operation from (run seed, path, node), so a branch that is added
at the end moves no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeVar

from actors import shape as shapes
from actors.errors import InputError, RefusedError
from actors.messages import Amounts, Capacity, NodeSpec, Operation
from actors.simulator import REGISTRY, peak_amounts, record_of

from . import text
from .combinators import Placed, placed
from .model import Budget, Scenario, check_seed
from .targets import derive_seed, is_protected, narrow, natural_key, select
from .units import check_number

SCHEMA: Final = 1
FULL: Final = 1.0 + 1e-9
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A part of the scenario that a node does not run, because a condition does not hold or another part was drawn."""

    path: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A resolved scenario: who does what when. `operations` are in order of start, path and node.

    `skipped` says what conditions left out, and why; it is in `plan.json` where there is any.
    """

    scenario: Scenario
    seed: int
    duration_s: float
    targets: tuple[str, ...]
    operations: tuple[Operation, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def digest(self) -> str:
        """Return 16 hex digits of SHA-256 over the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    @property
    def by_node(self) -> dict[str, tuple[Operation, ...]]:
        """Return each target's operations, in order."""
        found: dict[str, list[Operation]] = {name: [] for name in self.targets}
        for operation in self.operations:
            found[operation.node].append(operation)
        return {name: tuple(operations) for name, operations in found.items()}

    def reservations(self, capacities: Mapping[str, Capacity]) -> dict[str, Amounts]:
        """Return the most that each target's operations take at any instant, on nodes of these capacities.

        Raises `RefusedError` (`capability`) for a target without a capacity.
        """
        missing = [name for name in self.targets if name not in capacities]
        if missing:
            raise RefusedError("capability", f"the capacity of {', '.join(missing)} is not known", "see `stress-cluster doctor`")
        return _per_node(self, lambda node, operations: _most(operations, capacities[node]), lambda node: capacities[node])

    def to_json(self) -> bytes:
        """Return the canonical bytes of `plan.json`: sorted keys, no spaces, ASCII, one newline at the end."""
        body = {
            "schema": SCHEMA,
            "scenario": text.to_data(self.scenario),
            "seed": self.seed,
            "duration_s": self.duration_s,
            "targets": self.targets,
            "operations": [_operation_data(operation) for operation in self.operations],
            **({"skipped": [asdict(one) for one in self.skipped]} if self.skipped else {}),
        }
        return (json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Plan:
        """Return the plan of a `plan.json`; raises `InputError` (`invalid_document`, `unsupported_version`) for anything else."""
        body = _parse(content)
        try:
            operations = tuple(Operation(**_checked_operation(item)) for item in body["operations"])
            plan = cls(
                scenario=text.from_data(body["scenario"], "plan.json: scenario"),
                seed=check_seed("plan.json: seed", body["seed"]),
                duration_s=check_number("plan.json: duration_s", body["duration_s"]),
                targets=tuple(map(str, body["targets"])),
                operations=operations,
                skipped=tuple(Skipped(**one) for one in body.get("skipped", ())),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError("invalid_document", f"plan.json is damaged: {type(error).__name__}: {error}", "replay another run") from error
        strange = sorted({operation.node for operation in operations} - set(plan.targets))
        if strange:
            raise InputError("invalid_document", f"plan.json is damaged: {', '.join(strange)} is no target of it", "replay another run")
        return plan


@dataclass(frozen=True, slots=True)
class Step:
    """One hold of the scenario with the nodes that it runs on, and why not on others."""

    placed: Placed
    nodes: tuple[NodeSpec, ...]
    skipped: tuple[Skipped, ...] = ()


def resolve(scenario: Scenario, nodes: Sequence[NodeSpec], seed: int | None = None, *, allow_head: bool = False) -> Plan:
    """Return the plan of a scenario on these nodes; `seed` replaces the scenario's own.

    Raises `RefusedError`: `no_target` and `protected` as `targets.select` does, `budget` where the fractions on one node pass
    100 % at an instant or the scenario's own budget is passed by what a plan can see.
    """
    run_seed = scenario.seed if seed is None else check_seed("seed", seed)
    _check_names(nodes)
    targets = select(scenario.targets, nodes, derive_seed(run_seed, "targets"), allow_head=allow_head)
    steps = [_step(part, targets, run_seed) for part in placed(scenario.plan)]
    steps.sort(key=lambda step: (step.placed.start_s, natural_key(step.placed.path)))
    operations = tuple(operation for step in steps for operation in _operations(step, run_seed))
    used = {operation.node for operation in operations}
    names = tuple(node.name for node in targets if node.name in used)
    skipped = tuple(one for step in steps for one in step.skipped)
    if not operations:
        first = skipped[0]
        message = f"no part of the plan runs on any node; part {first.path} not on {first.node}, because {first.reason}"
        raise RefusedError("no_target", message, "change the conditions, or see `stress-cluster doctor` for the cluster's nodes and labels")
    plan = Plan(scenario, run_seed, round(scenario.plan.duration_s, 6), names, operations, skipped)
    check_fractions(plan)
    _check_seen_budget(scenario.budget, steps)
    return plan


def _check_names(nodes: Sequence[NodeSpec]) -> None:
    names = [node.name for node in nodes]
    if len(set(names)) != len(names):
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        raise RefusedError("no_target", f"two nodes are called {', '.join(twice)}", "give each node a name of its own")


def _step(part: Placed, targets: tuple[NodeSpec, ...], run_seed: int) -> Step:
    nodes, skipped = targets, []
    for sieve in part.sieves:
        nodes, left = sieve.sift(nodes, run_seed)
        skipped += [Skipped(part.path, name, reason) for name, reason in left]
        if not nodes:
            return Step(part, (), tuple(skipped))
    own = part.hold.targets
    nodes = nodes if own is None else narrow(own, nodes, derive_seed(run_seed, part.path, "targets"))
    return Step(part, nodes, tuple(skipped))


def _operations(step: Step, run_seed: int) -> list[Operation]:
    part, simulator = step.placed, step.placed.hold.simulator
    kind = type(simulator).__name__
    shape, options, unit = simulator.shape.to_spec(), simulator.options(), simulator.unit
    start_s, duration_s, phase, tolerance = part.start_s, part.hold.for_s, part.phase, part.hold.tolerance
    prefix, path = f"{part.path}.{kind}@", part.path
    return [
        Operation(
            prefix + node.name,
            kind,
            node.name,
            start_s,
            duration_s,
            unit,
            shape,
            options,
            phase,
            derive_seed(run_seed, path, node.name),
            tolerance,
            part.on_failure,
        )
        for node in step.nodes
    ]


def _operation_data(operation: Operation) -> dict[str, Any]:
    data = {name: getattr(operation, name) for name in _OPERATION_FIELDS}
    if operation.on_failure == "stop":  # plans of runs before there was a choice keep their bytes
        del data["on_failure"]
    return data


_OPERATION_FIELDS: Final = tuple(item.name for item in fields(Operation) if item.name != "link")  # a run's own, with its secret


# ---- sums at an instant


def peak_of(operation: Operation) -> float:
    """Return the highest value of an operation's shape, in its unit."""
    return shapes.from_spec(operation.shape).peak(operation.duration_s)


def check_fractions(plan: Plan) -> None:
    """Raise `RefusedError` (`budget`) where the fractions of one resource on one node pass 100 % at an instant.

    Each operation counts with its peak over its whole span: that is what it reserves.
    """
    for node, operations in _signatures(plan):
        shares = [(record_of(operation.kind).resource, operation) for operation in operations if operation.unit == "fraction"]
        for resource in dict.fromkeys(name for name, _ in shares):
            _check_sum(node, resource.split("_")[0], [operation for name, operation in shares if name == resource])


def _check_sum(node: str, resource: str, operations: list[Operation]) -> None:
    if sum(map(peak_of, operations)) <= FULL:
        return
    for at_s in sorted({operation.start_s for operation in operations}):
        live = _live(operations, at_s)
        total = sum(map(peak_of, live))
        if total > FULL:
            names = ", ".join(operation.id for operation in live)
            message = f"{names} ask {total * 100:.4g}% of {resource} on {node} at {at_s:g} s, at most 100% can be had"
            raise RefusedError("budget", message, "lower the fractions or let the operations follow each other")


def _live(operations: Sequence[Operation], at_s: float) -> list[Operation]:
    return [operation for operation in operations if operation.start_s <= at_s < operation.start_s + operation.duration_s - 1e-6]


def _signatures(plan: Plan) -> list[tuple[str, tuple[Operation, ...]]]:
    """Return one node with its operations for each different set of them: most nodes do the same."""
    seen: dict[tuple[str, ...], tuple[str, tuple[Operation, ...]]] = {}
    for node, operations in plan.by_node.items():
        seen.setdefault(_signature(node, operations), (node, operations))
    return list(seen.values())


def _signature(node: str, operations: Sequence[Operation]) -> tuple[str, ...]:
    cut = len(node)
    return tuple(operation.id[:-cut] for operation in operations)


def _per_node(
    plan: Plan, compute: Callable[[str, tuple[Operation, ...]], Value], key: Callable[[str], Capacity] | None = None
) -> dict[str, Value]:
    """Return a figure per target, computed once for nodes that do the same."""
    known: dict[tuple[Any, ...], Value] = {}
    found: dict[str, Value] = {}
    for node, operations in plan.by_node.items():
        same = (_signature(node, operations), key(node) if key else None)
        if same not in known:
            known[same] = compute(node, operations)
        found[node] = known[same]
    return found


def _most(operations: Sequence[Operation], capacity: Capacity) -> Amounts:
    """Return the highest sum of each amount at any instant."""
    most = Amounts()
    for at_s in {operation.start_s for operation in operations}:
        total = Amounts()
        for operation in _live(operations, at_s):
            total = total.plus(peak_amounts(operation, capacity))
        most = most.most(total)
    return most


# ---- the scenario's own budget


def _check_seen_budget(budget: Budget, steps: Sequence[Step]) -> None:
    """Check what needs no capacity: nodes at once, and bytes that are asked as bytes."""
    for at_s in sorted({step.placed.start_s for step in steps}):
        live = [step for step in steps if step.placed.start_s <= at_s < step.placed.start_s + step.placed.hold.for_s - 1e-6]
        if budget.nodes_max is not None:
            _within("nodes under stress at once", len({node.name for step in live for node in step.nodes}), budget.nodes_max, "nodes_max")
        if budget.memory_bytes_max is not None:
            _within("bytes of memory", _bytes_of(live, "memory_bytes"), budget.memory_bytes_max, "memory_max")
        if budget.disk_bytes_max is not None:
            _within("bytes of disk", _bytes_of(live, "disk_bytes"), budget.disk_bytes_max, "disk_max")


def _bytes_of(steps: Sequence[Step], resource: str) -> float:
    return sum(
        len(step.nodes) * step.placed.hold.simulator.shape.peak(step.placed.hold.for_s)
        for step in steps
        if step.placed.hold.simulator.record.resource == resource and step.placed.hold.simulator.unit == "bytes"
    )


def check_budget(plan: Plan, budget: Budget, capacities: Mapping[str, Capacity]) -> None:
    """Raise `RefusedError` (`budget`) where the sum of all targets' reservations passes a scenario's budget."""
    total = Amounts()
    for wanted in plan.reservations(capacities).values():
        total = total.plus(wanted)
    if budget.cpu_cores_max is not None:
        _within("cores", total.cpu_cores, budget.cpu_cores_max, "cpu_cores_max")
    if budget.memory_bytes_max is not None:
        _within("bytes of memory", total.memory_bytes, budget.memory_bytes_max, "memory_max")
    if budget.disk_bytes_max is not None:
        _within("bytes of disk", total.disk_bytes, budget.disk_bytes_max, "disk_max")


def _within(what: str, asked: float, most: float, key: str) -> None:
    if asked > most * (1 + 1e-9):
        message = f"the plan takes {asked:.15g} {what}, its budget is {most:.15g} (budget.{key})"
        raise RefusedError("budget", message, f"ask for less or raise budget.{key}")


# ---- replay and drift


@dataclass(frozen=True, slots=True)
class Drift:
    """One way in which a plan differs from an older one: a stable kind, words for people, and the same as data."""

    kind: str
    message: str
    data: Mapping[str, Any]


def replay(old: Plan, nodes: Sequence[NodeSpec], *, allow_head: bool = False) -> tuple[Plan, tuple[Drift, ...]]:
    """Return an old plan on the nodes there are now, and what is missing of it.

    Raises `RefusedError`: `no_target` when none of its nodes is there, `protected` when one has become the head.
    """
    by_name = {node.name: node for node in nodes}
    kept = tuple(name for name in old.targets if name in by_name)
    if not kept:
        raise RefusedError("no_target", f"none of the plan's nodes is here: {', '.join(old.targets[:5])}", "run the scenario instead")
    heads = [name for name in kept if is_protected(by_name[name], old.scenario.targets, len(nodes))]
    if heads and not allow_head:
        raise RefusedError("protected", f"{', '.join(heads)} is the head node now", "pass --allow-head, or run the scenario instead")
    present = set(kept)
    operations = tuple(operation for operation in old.operations if operation.node in present)
    skipped = tuple(one for one in old.skipped if one.node in by_name)
    new = Plan(old.scenario, old.seed, old.duration_s, kept, operations, skipped)
    return new, drift(old, new)


def drift(old: Plan, new: Plan) -> tuple[Drift, ...]:
    """Return how a plan differs from an older one: seed, scenario, duration, nodes, then operations on nodes in both."""
    found = [
        Drift(f"{name}_changed", f"{name} was {before!r}, is {after!r}", {"old": before, "new": after})
        for name, before, after in (("seed", old.seed, new.seed), ("duration_s", old.duration_s, new.duration_s))
        if before != after
    ]
    if old.scenario != new.scenario:
        keys = _changed_keys(text.to_data(old.scenario), text.to_data(new.scenario))
        found.append(Drift("scenario_changed", f"the scenario differs in {', '.join(keys)}", {"keys": keys}))
    return (*found, *_node_drift(old, new), *_operation_drift(old, new))


def _node_drift(old: Plan, new: Plan) -> list[Drift]:
    before, after = old.by_node, new.by_node
    gone = [name for name in old.targets if name not in after]
    come = [name for name in new.targets if name not in before]
    missing = [_node("node_missing", name, len(before[name]), "is gone: {} operations are not run") for name in gone]
    return missing + [_node("node_added", name, len(after[name]), "is new: {} operations") for name in come]


def _node(kind: str, name: str, operations: int, words: str) -> Drift:
    return Drift(kind, f"{name} {words.format(operations)}", {"node": name, "operations": operations})


def _operation_drift(old: Plan, new: Plan) -> list[Drift]:
    both = set(old.targets) & set(new.targets)
    before = {operation.id: operation for operation in old.operations if operation.node in both}
    after = {operation.id: operation for operation in new.operations if operation.node in both}
    gone = [Drift("operation_missing", f"{name} is not run", {"operation": name}) for name in before if name not in after]
    come = [Drift("operation_added", f"{name} is new", {"operation": name}) for name in after if name not in before]
    changed = [_change(before[name], after[name]) for name in before if name in after and before[name] != after[name]]
    return gone + come + changed


def _change(before: Operation, after: Operation) -> Drift:
    old, new = _operation_data(before), _operation_data(after)
    keys = _changed_keys(old, new)
    words = "; ".join(f"{key} was {old[key]!r}, is {new[key]!r}" for key in keys)
    data = {"operation": before.id, "old": {key: old[key] for key in keys}, "new": {key: new[key] for key in keys}}
    return Drift("operation_changed", f"{before.id}: {words}", data)


def _changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


# ---- reading plan.json


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError("invalid_document", f"plan.json is not JSON: {error}", "replay another run") from error
    if not isinstance(body, dict):
        raise InputError("invalid_document", "plan.json is not a plan", "replay another run")
    if body.get("schema") != SCHEMA:
        message = f"plan.json has schema {body.get('schema')!r}, this release reads {SCHEMA}"
        raise InputError("unsupported_version", message, "replay it with the release that wrote it")
    return body


def _checked_operation(item: Mapping[str, Any]) -> Mapping[str, Any]:
    strange = sorted(set(item) - set(_OPERATION_FIELDS))
    if strange:
        raise ValueError(f"operation {item.get('id')!r} has unknown keys {', '.join(strange)}")
    if item["kind"] not in REGISTRY or item["unit"] not in REGISTRY[item["kind"]].units:
        raise ValueError(f"operation {item.get('id')!r} is of unknown kind or unit")
    shapes.from_spec(item["shape"])
    for key in ("start_s", "duration_s"):
        check_number(f"plan.json: {item['id']}: {key}", item[key])
    return item
