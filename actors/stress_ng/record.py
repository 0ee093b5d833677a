"""What other parts need to know of StressNg. Imports nothing that loads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..messages import Amounts, Capacity, Operation
from ..option import Value
from ..proc import cgroup_root
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord
from . import rules, tree

if TYPE_CHECKING:
    from ..capability import NodeFacts

MIB: Final = 1 << 20
INSTANCE_BYTES: Final = 16 * MIB  # of an instance's own two processes
INSTANCE_TASKS: Final = 2
INSTANCES_MAX: Final = 1024


def check_options(options: Mapping[str, Value]) -> None:
    """Refuse a stressor or options that no node may run; raises `InputError`."""
    rules.check_name(str(options["stressor"]))
    rules.arguments(str(options["stressor"]), str(options["arguments"]))


def check_here(operation: Operation, _: Path) -> None:
    """Refuse what this node's stress-ng does not have, or what this node could not end surely. Raises `StressError`."""
    options = RECORD.resolve_options(operation.options)
    known = tree.stressors(tree.required())
    means = rules.Means(group=bool(cgroup_root()), namespaces=_may_make_namespaces())
    rules.check_on_node(str(options["stressor"]), known, means)
    rules.arguments(str(options["stressor"]), str(options["arguments"]), known)


def _may_make_namespaces() -> bool:
    from ..capability import effective_capabilities  # noqa: PLC0415  # it imports the registry, which imports this

    return "CAP_SYS_ADMIN" in effective_capabilities(Path("/proc/self/status").read_text())


def instances(peak: float, operation: Operation, options: Mapping[str, Value]) -> int:
    """Return how many instances an operation has at a peak, which is in instances or in cores."""
    return round(peak) if operation.unit == "count" else int(options["instances"]) or max(1, math.ceil(peak - 1e-9))


def reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    """Return what an operation may take at a peak: of each instance what its options state, and what stress-ng itself needs."""
    options = RECORD.resolve_options(operation.options)
    count = instances(peak, operation, options)
    cores = peak if operation.unit == "fraction" else count * float(options["cores"])
    return Amounts(
        cpu_cores=min(cores, capacity.cpu_cores),
        memory_bytes=count * (int(options["memory_bytes"]) + INSTANCE_BYTES),
        disk_bytes=count * int(options["disk_bytes"]),
        tasks=count * (int(options["tasks"]) + INSTANCE_TASKS),
    )


def _supported(facts: NodeFacts) -> Capability:
    if not facts.stress_ng:
        return Capability("unavailable", "stress-ng is not installed on this node", "install the package stress-ng, so that PATH finds it")
    missing, allow = [], []
    if not facts.cgroup_folder:
        missing.append(f"load is throttled by SIGSTOP, and {', '.join(sorted(rules.LEAVES_SESSION))} are refused")
        allow.append("a writable version 2 control group")
    if "CAP_SYS_ADMIN" not in facts.capabilities:
        missing.append(f"{', '.join(sorted(rules.LEAVES_OBJECTS))} are refused, which need namespaces")
        allow.append("CAP_SYS_ADMIN")
    return Capability("fallback", "; ".join(missing), " and ".join(allow)) if missing else AVAILABLE


RECORD: Final = SimulatorRecord(
    name="StressNg",
    family="backend",
    summary="Runs a stressor of stress-ng by name, as so many instances or as a share of the node's CPU time.",
    units=("count", "fraction"),
    resource="cpu_cores",
    meter="instances",
    meters={"fraction": "tree_cpu_seconds"},
    measure="instances that work, those that are frozen or stopped left out; as a fraction: CPU seconds of all processes of the load per "
    "second, of the node's cores",
    tolerance=0.05,
    floor=0.5,  # instances are few: each that is missing is a miss, half a step of a ramp is not
    look_ms=50,
    options=(
        Option(
            "stressor", "text", "cpu", "which stressor runs: a name that `stress-ng --stressors` prints on the node", examples=("cpu", "vm")
        ),
        Option("arguments", "text", "", 'options of this stressor, as on a command line: "--vm-bytes 64M"', examples=("", "--verify")),
        Option(
            "instances",
            "integer",
            0,
            "with a fraction: how many instances share it; 0 is one for each core of the peak",
            high=INSTANCES_MAX,
        ),
        Option("cores", "number", 1.0, "with a count: cores that an instance may use, it is held still else", low=0.01, high=INSTANCES_MAX),
        Option("memory_bytes", "bytes", 320 * MIB, "memory that an instance may take; more than that in all ends the load"),
        Option("disk_bytes", "bytes", 64 * MIB, "bytes of files that an instance may have; more than that in all ends the load"),
        Option("tasks", "integer", 64, "processes and threads that an instance may have; more in all ends the load", low=1, high=1 << 22),
    ),
    rule=check_options,
    check_here=check_here,
    scratch=True,
    supported=_supported,
    metrics=("stressng.bogo.operations", "stressng.bogo.rate", "stressng.cpu.user", "stressng.cpu.system", "stressng.memory.max"),
    needs="stress-ng on PATH; for stressors that leave something behind CAP_SYS_ADMIN and a control group",
    undo="its processes end with the load process or by the guardian, its objects with their namespaces; the guardian removes its folder",
    entry="stress_ng.load:StressNg",
    reserves=reserves,
)
