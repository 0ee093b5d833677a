"""Small scenarios as documents: little load, all three simulators, hypotheses that hold on a slow machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

MIB: Final = 1 << 20
MEMORY_STAYS: Final = {
    "threshold": {"name": "memory stays", "metric": "host.memory.available", "stat": "min", "op": ">=", "value": "32MiB"}
}
ACTORS_ANSWER: Final = {"actor_probe": {"name": "actors answer", "value": "8s", "timeout": "20s", "rate_hz": 10}}


def document(
    name: str = "small",
    for_s: float = 8.0,
    *,
    cpu: Any = "20%",
    memory: Any = "64MiB",
    disk: Any = "16MiB",
    reserve: str = "64MiB",
    tolerance: str | None = "100%",
    hypotheses: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """Return a scenario document; None leaves a simulator out. `tolerance` is the CPU load's: any dose will do, if not said otherwise."""
    allowed = {"tolerance": tolerance} if tolerance else {}
    parts: list[dict[str, Any]] = [
        {"CpuLoad": {"fraction": cpu}, **allowed} if cpu else {},
        {"MemoryPressure": {"bytes": memory}} if memory else {},
        {"DiskFill": {"bytes": disk, "reserve": reserve}} if disk else {},
    ]
    together = [{**part, "for": f"{for_s:g}s"} for part in parts if part]
    return {"version": 1, "name": name, "hypotheses": list(hypotheses), "plan": {"phase": "main", "together": together}, **more}


def write(folder: Path, made: Mapping[str, Any]) -> str:
    """Write a document (JSON is YAML) and return its path."""
    path = folder / f"{made['name']}.yaml"
    path.write_text(json.dumps(made, indent=1))
    return str(path)
