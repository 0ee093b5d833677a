"""What a process's environment says of Ray's authentication, health checks and memory monitor: settings, never a token. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

AUTHENTICATION: Final = "RAY_AUTH_MODE"
HEALTH_CHECK: Final[Mapping[str, int]] = {  # Ray 2.60's defaults
    "RAY_health_check_period_ms": 3_000,
    "RAY_health_check_timeout_ms": 10_000,
    "RAY_health_check_failure_threshold": 5,
}


def ray_facts(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return this environment's authentication mode and health check, and after which silence that makes a node count as dead.

    That figure is None where a value is no number. The last one is the used share of memory above which Ray ends workers.
    """
    open_to_all = "not set: anyone who reaches the head may run code; set RAY_AUTH_MODE=token on all nodes"
    checks = {name: environ.get(name, f"{default}") for name, default in HEALTH_CHECK.items()}
    return {
        AUTHENTICATION: environ.get(AUTHENTICATION) or open_to_all,
        **checks,
        "declares_a_node_dead_after_s": _dead_after_s(checks),
        "ends_workers_above_memory": monitor_share(environ),
    }


def monitor_share(environ: Mapping[str, str]) -> float:
    """Return above which used share of a node's memory Ray ends workers, the youngest first; 1.0 where it does not, or says no number."""
    try:
        is_off = float(environ.get("RAY_memory_monitor_refresh_ms", "250")) == 0.0
        share = float(environ.get("RAY_memory_usage_threshold", "0.95"))
    except ValueError:
        return 1.0
    return share if not is_off and 0.0 < share <= 1.0 else 1.0


def _dead_after_s(checks: Mapping[str, str]) -> float | None:
    try:
        period_ms, timeout_ms, count = (int(checks[name]) for name in HEALTH_CHECK)
    except ValueError:
        return None
    return count * (period_ms + timeout_ms) / 1000
