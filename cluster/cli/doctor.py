"""`doctor`: what each node can do, before anything is tried on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import options
from .control import connection
from .output import emit


def doctor(address: options.Address = None, config: options.Config = None, as_json: options.Json = False) -> int:
    """Tell per node: kernel, cgroup, privileges, the Ray settings of its own environment, and whether each simulator is available.

    Starts no load. `unavailable` and `fallback` come with their reason, and with what would allow it.

    Examples:
      stress-cluster doctor                    this machine
      stress-cluster doctor --address auto     every node of the cluster
    """
    with connection(address, config) as link:
        found = link.doctor()
    emit(found, as_json, doctor_lines(found))
    return 0


def doctor_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a doctor's answer as lines: what holds for the cluster, then node by node."""
    lines = _fact_lines({key: value for key, value in found.items() if key != "nodes"}, "")
    for name, facts in nodes_of(found).items():
        lines += [name, *_fact_lines(facts, "  ")]
    return lines


def nodes_of(found: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return a doctor's answer about each node, by name."""
    return found.get("nodes") or {}


def _fact_lines(facts: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        if isinstance(value, Mapping) and "verdict" in value:
            lines.append(f"{indent}{key:{width}} {value['verdict']}{told_of(value)}")
        elif isinstance(value, Mapping):
            lines += [f"{indent}{key}", *_fact_lines(value, indent + "  ")]
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{key:{width}} {', '.join(map(str, value)) or '-'}")
        else:
            lines.append(f"{indent}{key:{width}} {_word(value)}")
    return lines


def told_of(capability: Mapping[str, Any]) -> str:
    """Return why a node cannot do something, or not as well as others, and what would allow it; "" where it can."""
    allow = f"; what would allow it: {capability['allow']}" if capability.get("allow") else ""
    return f"  ({capability['reason']}{allow})" if capability.get("reason") else ""


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in {None, ""} else str(value)
