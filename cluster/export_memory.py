"""What an aggregator's next life has to know of its exporters: which records each destination has for good, and what became of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .files import read_json, write_json_atomic
from .metrics.parts import FOOTER
from .metrics.store import Coverage

_FILE: Final = "state.json"
_SUMS: Final = (
    "produced_rows",
    "recovered_rows",
    "delivered_rows",
    "delivered_bytes",
    "attempts",
    "successes",
    "filtered_rows",
    "late_rows",
    "cut_bytes",
    "spill_lost_bytes",
)


@dataclass(slots=True)
class Kept:
    """One destination: the records that it has, or that are dropped and counted; its last report if its life was ended properly."""

    held: Coverage = field(default_factory=Coverage)
    report: Mapping[str, Any] | None = None


def load(folder: Path) -> dict[str, Kept]:
    """Return what an earlier life left, by destination."""
    told = (read_json(folder / _FILE) or {}).get("destinations", {})
    return {name: Kept(Coverage.of_footer({FOOTER: json.dumps(one["held"]).encode()}), one["report"]) for name, one in told.items()}


def save(folder: Path, kept: Mapping[str, Kept]) -> None:
    """Keep it, whole and on disk. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    told = {name: {"held": json.loads(one.held.to_footer()), "report": one.report} for name, one in kept.items()}
    write_json_atomic(folder / _FILE, {"schema": 1, "destinations": told})


def added(earlier: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report that counts an ended life and the one after it together; what waits and how it stands is the later one's."""
    if earlier is None:
        return dict(now)
    sums = {name: earlier.get(name, 0) + now[name] for name in _SUMS}
    sums["recovered_rows"] -= earlier["spilled_rows"]  # produced once
    reasons = {name: _summed(earlier[name], now[name]) for name in ("dropped_rows", "failures")}
    return {**now, **sums, **reasons, "earlier_rows": earlier["earlier_rows"]}


def _summed(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
