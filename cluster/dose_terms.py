"""What an operation's dose is judged by: its scenario's tolerance or its simulator's own. Pure."""

from __future__ import annotations

from typing import Any

from actors.dose import METERS
from actors.messages import Operation
from actors.simulator import record_of


def terms_of(operation: Operation) -> dict[str, Any]:
    """Return the arguments that `dose.reached`, `dose.at_target` and `dose.momentary` take of an operation, without its duration."""
    record = record_of(operation.kind)
    return {
        "unit": operation.unit,
        "relative": not METERS[record.meter_of(operation.unit)].in_points,
        "tolerance": record.tolerance if operation.tolerance is None else operation.tolerance,
        "host_total": operation.options.get("mode") == "host_total",
        "floor": record.floor,
    }
