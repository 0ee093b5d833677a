"""What the documents of a run directory say of its run. Pure, and imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .words import moment, stamp

DEFAULT_LEASE_S: Final = 5.0


def judge_status(manifest: Mapping[str, Any], summary: Mapping[str, Any], now_wall_ns: int) -> tuple[str, int | None, str]:
    """Return (status, exit code, why it counts as died).

    A manifest that says `running` with a heartbeat older than the lease belongs to a run whose harness died: `error`.
    """
    status = str(manifest.get("status") or summary.get("status") or "error")
    code = manifest.get("exit_code", summary.get("exit_code"))
    if status != "running":
        return status, code if isinstance(code, int) else None, ""
    heartbeat_s, lease_s = moment(manifest.get("heartbeat")), float(setting_of(manifest, "lease_s") or DEFAULT_LEASE_S)
    if heartbeat_s is None or now_wall_ns / 1e9 - heartbeat_s > lease_s:
        seen = f"its last sign of life was at {stamp(manifest.get('heartbeat'))}" if heartbeat_s else "it left no sign of life"
        return "error", 3, f"The run died: {seen}. `stress-cluster recover` undoes and delivers what it left."
    return "running", None, ""


def scenario_name(manifest: Mapping[str, Any]) -> str:
    """Return the name of the run's scenario; empty when the manifest does not say."""
    scenario = manifest.get("scenario")
    return str(scenario.get("name") or "") if isinstance(scenario, Mapping) else ""


def setting_of(manifest: Mapping[str, Any], name: str) -> Any:
    """Return a setting that the run had, or None."""
    settings = manifest.get("settings")
    value = settings.get(name, manifest.get(name)) if isinstance(settings, Mapping) else manifest.get(name)
    return value.get("value") if isinstance(value, Mapping) else value
