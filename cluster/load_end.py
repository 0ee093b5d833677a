"""Whether an operation's load has ended or hangs, from its stage, its stats page and what its simulator says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from actors.clock import SECOND_NS
from actors.control import LOAD_FAILED, LOAD_NONE, LOAD_READY, LOAD_RUNNING, LoadStats
from actors.oom import is_told

TELL_S: Final = 3.0  # a silence that is told, whether it ends the load or not
LEASE_ENDED: Final = "its lease ended"
NO_LOAD: Final = LoadStats(0, 0, LOAD_NONE, 0, 0, 0, 0.0, 0.0, 0)


class Ended(NamedTuple):
    """How a load ended: the error's code, empty when as planned, and the reason."""

    code: str
    reason: str = ""


class Silence(NamedTuple):
    """Who has given no sign of life for how long."""

    who: str = ""
    seconds: float = 0.0


def ended(stage: str, load: LoadStats, status: Mapping[str, Any], now_ns: int, *, is_over: bool) -> Ended | None:
    """Return how a load has ended, nothing while it lives. `load`: its stats page, `status`: its simulator's last answer.

    `is_over`: whether its lease has ended. A load that says that it has failed leaves its reason with its simulator, which may need a
    moment to end what it had started.
    """
    phase = status.get("phase", "")
    if phase == "done":
        return Ended("")
    if phase == "expired":
        return Ended("expired", str(status.get("reason") or LEASE_ENDED))
    failed = load.state == LOAD_FAILED and now_ns - load.heartbeat_ns > TELL_S * SECOND_NS
    if failed or phase in {"failed", "dead"}:
        reason = str(status.get("reason") or "its load process failed")
        return Ended("oom", reason) if is_told(reason) else Ended("internal", reason)
    if stage in {"armed", "running"} and is_over:
        return Ended("expired", LEASE_ENDED)
    return None


def silence(stage: str, load: LoadStats, silent_s: float, now_ns: int) -> Silence:
    """Return who of a load that runs or waits for its start, and its simulator, has been silent for longer. `silent_s`: the latter."""
    if stage not in {"armed", "running"}:
        return Silence()
    beats = load.state in {LOAD_READY, LOAD_RUNNING} and load.heartbeat_ns > 0
    quiet_s = (now_ns - load.heartbeat_ns) / SECOND_NS if beats else 0.0
    return Silence("its load process", quiet_s) if quiet_s > silent_s else Silence("its simulator", silent_s)


def hung(found: Silence, patience_s: float) -> Ended | None:
    """Say so of a load that, or whose simulator, has given no sign of life for longer than `patience_s`: it is ended by force."""
    return Ended("internal", f"{found.who} has given no sign of life for {patience_s:.1f} s") if found.seconds > patience_s else None
