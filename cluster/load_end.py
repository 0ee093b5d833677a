"""Whether an operation's load has ended or hangs, from its stage, its stats page and what its simulator says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from actors.clock import SECOND_NS
from actors.control import LOAD_FAILED, LOAD_NONE, LOAD_RUNNING, LoadStats
from actors.oom import is_told

LEASE_ENDED: Final = "its lease ended"
NO_LOAD: Final = LoadStats(0, 0, LOAD_NONE, 0, 0, 0, 0.0, 0.0, 0)


class Ended(NamedTuple):
    """How a load ended: the error's code, empty when as planned, and the reason."""

    code: str
    reason: str = ""


def ended(stage: str, state: int, status: Mapping[str, Any], *, is_leased: bool) -> Ended | None:
    """Return how a load has ended, nothing while it lives. `state` is the stats page's, `status` the simulator's last answer."""
    phase = status.get("phase", "")
    if phase == "done":
        return Ended("")
    if phase == "expired":
        return Ended("expired", str(status.get("reason") or LEASE_ENDED))
    if state == LOAD_FAILED or phase in {"failed", "dead"}:
        reason = str(status.get("reason") or "its load process failed")
        return Ended("oom" if is_told(reason) else "internal", reason)
    if stage in {"armed", "running"} and not is_leased:
        return Ended("expired", LEASE_ENDED)
    return None


def hung(stage: str, load: LoadStats, silent_s: float, now_ns: int, patience_s: float) -> Ended | None:
    """Say so of a running load or a simulator that has given no sign of life for `patience_s`: it is ended by force."""
    if stage != "running":
        return None
    if silent_s > patience_s:
        return Ended("internal", f"its simulator has not answered for {patience_s:.1f} s")
    is_silent = load.state == LOAD_RUNNING and load.heartbeat_ns > 0 and now_ns - load.heartbeat_ns > patience_s * SECOND_NS
    return Ended("internal", f"its load process has given no sign of life for {patience_s:.1f} s") if is_silent else None
