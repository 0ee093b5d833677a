"""What can be changed of a run that goes on: what it records. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from actors.errors import InputError
from scenarios import Scenario, text


def modified(run: str, scenario: Scenario | None, changes: Sequence[str]) -> Scenario:
    """Return a run's scenario with `metrics.PATH=VALUE` changes; None is the scenario of a run that nobody knows.

    Raises `InputError` for such a run, for a path that is no part of `metrics`, and for what the scenario's own check refuses: a metric
    that one of its hypotheses rests on cannot be left out.
    """
    if scenario is None:
        raise InputError("unknown_name", f"no run {run} goes on", "see `stress-cluster status`")
    found = text.apply_settings(scenario, changes)
    if replace(found, metrics=scenario.metrics) != scenario:
        what = f"{', '.join(changes)}: of a run that goes on only what it records can be changed"
        raise InputError("invalid_setting", what, "such as metrics.level=minimal")
    return found


def told(run: str, changes: Sequence[str], there: Collection[str], missing: Collection[str], waited_s: float) -> dict[str, Any]:
    """Return what `modify` answers: the nodes on which the change is in force, and why it may not be on others."""
    reasons = [f"{name}: it has not confirmed within {waited_s:g} s" for name in sorted(missing)]
    return {"run": run, "changed": list(changes), "nodes": sorted(there), "unreached": reasons}
